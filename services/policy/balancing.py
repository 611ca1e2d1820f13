"""Which host gets the call: the soonest of a few, drawn for each call.

Four are compared: enough to find a good one, few enough that a flock of routers does not settle
on the same. Predictions are `scoring`'s. All chance comes from the caller's 64 bits, so that a
decision can be made again.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.domain.service_class import DEFAULT_BAND
from services.domain.tenancy import PROTECTED, Protection
from services.policy.scoring import VersionState, awaits_probe, completion_s, penalty_s

SAMPLE = 4
"""Hosts compared for one call; all of them if there are no more."""

TIE_SHARE = 0.1
"""A host is sooner only if it is by this share: predictions are no better than that, and by a hair's breadth all
calls of a quiet route would go to one of two like hosts."""

RAMP_S = 10.0
"""A host that comes to established ones is made to look slower than it is for this long, less and less: its
caches are cold and its times unknown. It still gets what would wait much longer elsewhere."""

LEAST_RAMP = 0.1
"""At first it looks ten times as slow."""


class Pick(NamedTuple):
    """The host that gets the call."""

    state: VersionState
    predicted_s: float
    """When it would answer, without the penalty: a failure in the past makes no call slow."""
    penalty_s: float
    """What recent failures add; 0 for a probe."""
    probe: bool = False
    """Whether it goes there although the host was in trouble, to see."""

    @property
    def cost_s(self) -> float:
        """Prediction and penalty."""
        return self.predicted_s + self.penalty_s


class Draw:
    """The chance of one attempt, drawn when it is first needed: where there is no choice it is not."""

    __slots__ = ("_bits", "_make", "number")

    def __init__(self, make: Callable[[str], int], number: int = 1) -> None:
        """Draw 64 bits for a purpose by `make`; for the attempt of that number."""
        self._make = make
        self._bits: int | None = None
        self.number = number

    @property
    def drawn(self) -> int | None:
        """The bits; None as long as nothing needed them."""
        return self._bits

    @property
    def bits(self) -> int:
        """Those that hosts are drawn by; the same each time."""
        if self._bits is None:
            self._bits = self._make("host")
        return self._bits

    @property
    def chance(self) -> float:
        """That of trying another candidate, in [0, 1)."""
        return (self._make("explore") >> 11) * 2.0**-53


def pick(
    states: Sequence[VersionState],
    *,
    now_s: float,
    routers: int,
    draw: Draw,
    band: int = DEFAULT_BAND,
    protection: Protection = PROTECTED,
    may_probe: bool = False,
) -> Pick:
    """The soonest of a sample.

    Args:
        states: Hosts that have the version ready; at least one.
        now_s: Monotonic seconds.
        routers: Routers that send to these hosts, this one included.
        band: The call's; calls of later bands do not go before it.
        draw: The chance of this attempt.
        protection: Which signs of trouble are regarded.
        may_probe: Whether the call may be the one that sees whether a host is well again.

    Returns:
        The pick; of those that are about equal, one by chance.
    """
    if len(states) == 1:
        state = states[0]
        penalty = penalty_s(state, now_s, protection)
        probe = penalty > 0.0 and may_probe and awaits_probe(state, now_s)
        predicted = completion_s(state, now_s, routers=routers, band=band)
        return Pick(state, predicted, 0.0 if probe else penalty, probe)
    best, best_cost_s, best_predicted_s, best_penalty_s, best_probes = states[0], math.inf, 0.0, 0.0, False
    for state in sample(states, draw.bits):
        predicted = completion_s(state, now_s, routers=routers, band=band)
        cost = predicted + state.absent_s
        host = state.host
        penalty, probes = 0.0, False
        # Looked at here, since almost no host is in trouble and a call for each would cost as much as the rest.
        if state.circuit.penalty_s or host.circuit.penalty_s or host.ejection.penalty_s:
            penalty = penalty_s(state, now_s, protection)
            if penalty and may_probe and awaits_probe(state, now_s):
                penalty, probes = 0.0, True
            cost += penalty
        since_s = now_s - state.ramps_from_s
        if since_s < RAMP_S:
            cost += predicted * (1.0 / max(LEAST_RAMP, since_s / RAMP_S) - 1.0)
        if cost < best_cost_s * (1.0 - TIE_SHARE):
            best, best_cost_s, best_predicted_s = state, cost, predicted
            best_penalty_s, best_probes = penalty, probes
    return Pick(best, best_predicted_s, best_penalty_s, best_probes)


def nearest(local: Pick, remote: Pick, *, hysteresis: float, margin_s: float) -> Pick:
    """The pick of the own zone, unless that of another is clearly sooner.

    Predictions have the way in them. The band between is one for each call: a router that went on where it sent the
    last one, until the other side is clearly better, sends more calls away and answers them no sooner.

    Args:
        local: The own zone's.
        remote: That of others.
        hysteresis: Part by which the local one must be later than the remote one.
        margin_s: What staying is worth besides.
    """
    return remote if (1.0 + hysteresis) * (remote.cost_s + margin_s) < local.cost_s else local


def sample(states: Sequence[VersionState], bits: int) -> Sequence[VersionState]:
    """Up to `SAMPLE` of `states`, all equally likely, in an order that is by chance too."""
    count = len(states)
    if count <= SAMPLE:
        first = bits % count
        return [*states[first:], *states[:first]] if first else states
    chosen: list[int] = []
    for shift in (0, 12, 24, 36):
        index = (bits >> shift & 0xFFF) % count
        while index in chosen:
            index = (index + 1) % count
        chosen.append(index)
    return [states[index] for index in chosen]
