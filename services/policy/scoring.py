"""When each host would answer: a prediction from what it last reported and what was sent to it since.

Owns the small local counters behind that, one set per host and one per version on a host. Which
hosts are compared is `balancing`'s; what follows from a failure is `retrying`'s. Loads ride on
results, so a prediction costs no call; between results it is carried on by counting.
"""

import math
from dataclasses import dataclass

from services.domain.host import ModelLoad
from services.domain.service_class import DEFAULT_BAND, LAST_BAND, OPEN
from services.domain.tenancy import PROTECTED, Protection
from services.policy.circuit import Circuit, CircuitState
from services.policy.prior import Prior

DOUBT_S = 0.5
"""A penalty from this on, for 23 s after a first failure, makes what only that host can answer the last choice."""

NETWORK_WINDOW_S = 1.0
"""A host's network time is the least seen within about this long: what else a call waited for is no property of the
way, but of a burst on one of its ends, which every host's calls share. (An average would keep the memory of a
burst, and a host that got no calls since would look far away for good.)"""

NETWORK_GROWTH = 1.5
"""After a window in which nothing was as fast it grows to what was seen, at most by this factor."""

FIRST_NETWORK_S = 0.001
"""Network time of a host that has not answered yet: two hops over loopback."""

LEAST_NETWORK_S = 0.0001
"""What it grows from, if it was next to nothing."""

HUNG_FACTOR = 3.0
"""A call that ran out of a time this many times the prediction is the host's failure, not the caller's haste."""


CUTOFF_BELIEVED_S = 0.2
"""A cutoff heard longer ago than this is not gone by: the next call shows whether it still holds."""


class HostState:
    """What this router knows of one host, whatever the version."""

    __slots__ = (
        "answers",
        "circuit",
        "cutoff",
        "cutoff_at_s",
        "ejection",
        "failures",
        "foretold_s",
        "host_id",
        "in_flight",
        "missed_s",
        "network_at_s",
        "network_s",
        "owed",
        "rated",
        "silent_s",
        "suspect",
        "timed",
        "took_s",
        "work_s",
    )

    def __init__(self, host_id: str) -> None:
        """Know nothing yet."""
        self.host_id = host_id
        self.in_flight = 0
        """Own calls that it has."""
        self.work_s = 0.0
        """Device time that those are predicted to take."""
        self.network_s = FIRST_NETWORK_S
        """Least time of a call that is neither queue nor compute."""
        self.network_at_s = -math.inf
        self.circuit = Circuit()
        """Opened by what it failed with itself, whatever the version."""
        self.ejection = Circuit()
        """Opened by how it does among its peers, and by silence."""
        self.owed: set[Owed] = set()
        """Calls that it owes answers."""
        self.silent_s = 0.0
        """For how long it has owed an answer and given none, as counted."""
        self.missed_s = 0.0
        """How much silence is too much for the last overdue call that nobody waits for any more."""
        self.answers = 0
        self.failures = 0
        """Those that were its own fault."""
        self.took_s = 0.0
        """What its answers took, all in all."""
        self.foretold_s = 0.0
        """What they were predicted to take."""
        self.rated = (0, 0)
        """Answers and failures when rates were last looked at."""
        self.timed = (0, 0.0, 0.0)
        """Answers, what they took and were predicted to take when times were last looked at."""
        self.suspect = False
        """True from a lost connection to the next answer."""
        self.cutoff = OPEN
        """Classes from this level on it refuses, as it last said."""
        self.cutoff_at_s = -math.inf

    def cuts(self, level: int, now_s: float) -> bool:
        """Whether it said of late that it refuses calls of `level`; what is older is worth a try."""
        return level >= self.cutoff and now_s - self.cutoff_at_s <= CUTOFF_BELIEVED_S


BELIEVED_S = 10.0
"""A batch time that no result has confirmed for this long is not believed any more: the host counts as one
like its peers again, and the next call shows. Else one slow start would keep calls away for good."""


class VersionState:
    """What this router knows of one version on one host."""

    __slots__ = (
        "absent_s",
        "base_s",
        "batch_cap",
        "circuit",
        "host",
        "in_flight",
        "in_flight_of",
        "known_since_s",
        "last_sent_s",
        "measured_at_s",
        "per_item_s",
        "prior",
        "queued",
        "queued_at_s",
        "queued_up_to",
        "ramps_from_s",
        "sent_since",
        "sequence",
    )

    def __init__(self, host: HostState, prior: Prior, *, known_since_s: float, ramps: bool) -> None:
        """Start from a prior.

        Args:
            host: The host it is on.
            prior: Shared with the version's other hosts of a like device.
            known_since_s: Monotonic seconds of now; minus infinity for what was there before this router.
            ramps: True for a newcomer among established ones, which takes its share of calls step by step.
        """
        self.host = host
        self.prior = prior
        self.base_s = 0.0
        self.per_item_s = 0.0
        self.measured_at_s = -math.inf
        self.known_since_s = known_since_s
        self.ramps_from_s = known_since_s if ramps else -math.inf
        self.in_flight = 0
        self.in_flight_of = [0] * (LAST_BAND + 1)
        """Own calls that it has, by band."""
        self.last_sent_s = -math.inf
        """When it last got an own call."""
        self.sent_since = 0
        self.queued = 0
        self.queued_up_to: tuple[int, ...] = ()
        """Calls reported as waiting up to each band; empty if all are of one."""
        self.queued_at_s = 0.0
        """When what is believed to be queued was counted: at the last report, or at the first call since."""
        self.batch_cap = 1
        self.absent_s = 0.0
        """Until the version is in the host's memory, as last reported. Speaks against the host and is no reason to
        refuse a call: only calls bring the version in."""
        self.sequence = -1
        """Of the last report; an older one that comes later is ignored."""
        self.circuit = Circuit()
        """Opened by what the version failed with there."""

    def batch_s(self, size: int, now_s: float) -> float:
        """Predicted time of a batch of `size`."""
        if now_s - self.measured_at_s > BELIEVED_S:
            return self.prior.base_s + self.prior.per_item_s * size
        return self.base_s + self.per_item_s * size

    def measured(self, now_s: float) -> bool:
        """Whether the batch time is the host's own, and of late."""
        return now_s - self.measured_at_s <= BELIEVED_S


class Owed:
    """A call that a host owes an answer."""

    __slots__ = ("predicted_s", "probe", "sent_s", "state", "timeout_s")

    def __init__(
        self, state: VersionState, sent_s: float, predicted_s: float, timeout_s: float, *, probe: bool
    ) -> None:
        """Owe an answer.

        Args:
            state: Of the version that is to answer.
            sent_s: When it was sent.
            predicted_s: Seconds until an answer, as predicted.
            timeout_s: Seconds that it may take.
            probe: Whether it went there to see.
        """
        self.state = state
        self.sent_s = sent_s
        self.predicted_s = predicted_s
        self.timeout_s = timeout_s
        self.probe = probe

    def leave(self) -> None:
        """The host is silent: go elsewhere, if that is possible."""


@dataclass(frozen=True, slots=True)
class HostScore:
    """One host as it was compared."""

    host_id: str
    zone: str
    predicted_s: float
    backlog: int
    penalty_s: float
    ejected: bool = False
    circuit: CircuitState = CircuitState.CLOSED
    trouble: str = ""
    """What speaks against it; empty if nothing does."""


def backlog(state: VersionState, now_s: float, *, routers: int, band: int = DEFAULT_BAND) -> int:
    """Calls of the version believed to be queued or running on the host, and to go before one of `band`.

    What was reported and what was sent since (by other routers as much as by this one), less what
    the host has worked off in the meantime; never less than the own calls it has. Where calls of several bands wait,
    only what was reported of this one and earlier ones: who sends what since is not known by band.
    """
    if state.queued_up_to:
        return max(state.queued_up_to[band - 1], sum(state.in_flight_of[: band + 1]))
    ahead = state.queued + state.sent_since * routers
    if ahead <= state.in_flight:
        return state.in_flight
    batches = int((now_s - state.queued_at_s) / state.batch_s(state.batch_cap, now_s))
    return max(state.in_flight, ahead - batches * state.batch_cap)


def completion_s(state: VersionState, now_s: float, *, routers: int, band: int = DEFAULT_BAND) -> float:
    """Seconds until the host would answer one more call of the version.

    Whole batches of what is ahead, the last batch with the call in it, what the device has to
    do for other versions, and the network.
    """
    count = backlog(state, now_s, routers=routers, band=band)
    fit = state.prior if now_s - state.measured_at_s > BELIEVED_S else state
    size, cap = count + 1, state.batch_cap
    if size <= cap:
        compute_s = fit.base_s + fit.per_item_s * size
    else:
        full, rest = divmod(size, cap)
        compute_s = full * (fit.base_s + fit.per_item_s * cap)
        if rest:
            compute_s += fit.base_s + fit.per_item_s * rest
    host = state.host
    if host.in_flight > state.in_flight and not state.queued_up_to:
        compute_s += max(0.0, host.work_s - state.in_flight * (fit.base_s + fit.per_item_s))
    return compute_s + host.network_s


def idle_s(state: VersionState, now_s: float) -> float:
    """Seconds until the host would answer if it had nothing else to do."""
    return state.batch_s(1, now_s) + state.host.network_s


def penalty_s(state: VersionState, now_s: float, protection: Protection = PROTECTED) -> float:
    """What went wrong of late adds to the prediction: of what is regarded, whichever is most."""
    host = state.host
    own, circuit, ejection = state.circuit, host.circuit, host.ejection
    if not (own.penalty_s or circuit.penalty_s or ejection.penalty_s):
        return 0.0
    worst = own.cost_s(now_s) if protection.circuits else 0.0
    if protection.penalties and circuit.penalty_s:
        worst = max(worst, circuit.cost_s(now_s))
    if protection.ejection and ejection.penalty_s:
        worst = max(worst, ejection.cost_s(now_s))
    return worst


def awaits_probe(state: VersionState, now_s: float) -> bool:
    """Whether one call may go there whatever its penalty, to see whether it is well again."""
    host = state.host
    return state.circuit.awaits_probe(now_s) and host.circuit.awaits_probe(now_s) and host.ejection.awaits_probe(now_s)


def in_trouble(state: VersionState) -> bool:
    """Whether anything opened a circuit, and none has closed it."""
    host = state.host
    return bool(state.circuit.penalty_s or host.circuit.penalty_s or host.ejection.penalty_s)


def begin_probe(state: VersionState) -> None:
    """The one that sees is there."""
    for circuit in (state.circuit, state.host.circuit, state.host.ejection):
        circuit.probing = bool(circuit.penalty_s)


def end_probe(state: VersionState, now_s: float, *, answered: bool) -> None:
    """It is back, with an answer or without one; a failure that counts has opened a circuit again before."""
    for circuit in (state.circuit, state.host.circuit, state.host.ejection):
        if circuit.probing:
            circuit.probing = False
            if answered:
                circuit.close(now_s)
                state.ramps_from_s = now_s


def score(
    state: VersionState, now_s: float, *, zone: str, routers: int, band: int, protection: Protection
) -> HostScore:
    """The host as it is compared."""
    worst = max((state.circuit, state.host.circuit), key=lambda circuit: circuit.cost_s(now_s))
    ejected = state.host.ejection.cost_s(now_s) > 0.0
    against = [each.why for each in (state.circuit, state.host.circuit, state.host.ejection) if each.cost_s(now_s)]
    return HostScore(
        host_id=state.host.host_id,
        zone=zone,
        predicted_s=completion_s(state, now_s, routers=routers, band=band),
        backlog=backlog(state, now_s, routers=routers, band=band),
        penalty_s=penalty_s(state, now_s, protection),
        ejected=ejected,
        circuit=worst.state(now_s),
        trouble="; ".join(against),
    )


def sent(state: VersionState, now_s: float, band: int = DEFAULT_BAND) -> float:
    """Count a call as sent.

    Returns:
        The device time it was counted with, which `ended` takes back.
    """
    work_s = state.batch_s(1, now_s)
    if not state.queued and not state.sent_since:
        state.queued_at_s = now_s
    state.in_flight += 1
    state.in_flight_of[band] += 1
    state.sent_since += 1
    state.last_sent_s = now_s
    state.host.in_flight += 1
    state.host.work_s += work_s
    return work_s


def ended(state: VersionState, work_s: float, band: int = DEFAULT_BAND) -> None:
    """Count a call as ended, however it did."""
    host = state.host
    state.in_flight -= 1
    state.in_flight_of[band] -= 1
    host.in_flight -= 1
    # An idle host has no work: what rounding left over must not grow over millions of calls.
    host.work_s = host.work_s - work_s if host.in_flight else 0.0


def reported(state: VersionState, load: ModelLoad, now_s: float) -> None:
    """Take over what the host says of the version."""
    state.queued = load.queued + load.running
    state.queued_up_to = load.queued_up_to
    state.absent_s = load.absent_s
    state.sent_since = 0
    state.queued_at_s = now_s
    state.batch_cap = max(1, load.batch_cap)
    if load.base_s + load.per_item_s > 0.0:
        state.base_s, state.per_item_s, state.measured_at_s = load.base_s, load.per_item_s, now_s
        state.prior.heard(load.base_s, load.per_item_s, now_s)


def answered(
    state: VersionState, network_s: float, now_s: float, *, took_s: float = 0.0, predicted_s: float = 0.0
) -> None:
    """Learn from an answer: the host lives, and this is what the way there and back took, and all of it."""
    host = state.host
    host.suspect = False
    host.silent_s = host.missed_s = 0.0
    host.answers += 1
    host.took_s += took_s
    host.foretold_s += predicted_s
    if network_s <= host.network_s:
        host.network_s = max(0.0, network_s)
        host.network_at_s = now_s
    elif now_s - host.network_at_s > NETWORK_WINDOW_S:
        host.network_s = min(network_s, NETWORK_GROWTH * max(host.network_s, LEAST_NETWORK_S))
        host.network_at_s = now_s
