"""What the policies read of a host's state, taken out of it as values, and put back.

A state changes with every call, so a log takes what a choice read while that still stands: for few hosts of all of
them, for many of those that were compared.
"""

from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.type.v1 import model_pb2
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.domain.rules import Rules
from services.policy import balancing
from services.policy.circuit import PENALTY_S, Circuit
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState
from services.router.destination import Option
from services.router.host_picking import compares_all
from services.router.planning import Seen

TAKEN_WHOLE = 2 * balancing.SAMPLE
"""Up to so many hosts, to find out which were compared takes longer than to take them all."""

_OF_STATE = (
    "absent_s", "base_s", "per_item_s", "batch_cap", "in_flight", "measured_at_s", "queued", "queued_at_s",
    "ramps_from_s", "sent_since", "queued_up_to", "last_sent_s",
    "circuit.penalty_s", "circuit.opened_at_s", "circuit.hold_s", "circuit.probing",
)  # fmt: skip
_OF_HOST = (
    "cutoff", "cutoff_at_s", "in_flight", "network_s", "work_s",
    "circuit.penalty_s", "circuit.opened_at_s", "circuit.hold_s", "circuit.probing",
    "ejection.opened_at_s", "ejection.hold_s", "ejection.probing",
)  # fmt: skip
_OF_PRIOR = ("base_s", "per_item_s")

_STATE_FIELDS = {
    "circuit.penalty_s": "penalty_s",
    "circuit.opened_at_s": "failed_at_s",
    "circuit.hold_s": "hold_s",
    "circuit.probing": "probing",
}
_HOST_FIELDS = {
    "in_flight": "host_in_flight",
    "circuit.penalty_s": "host_penalty_s",
    "circuit.opened_at_s": "host_failed_at_s",
    "circuit.hold_s": "host_hold_s",
    "circuit.probing": "host_probing",
    "ejection.opened_at_s": "ejected_at_s",
    "ejection.hold_s": "ejected_for_s",
    "ejection.probing": "ejected_probing",
}
FIELDS = (
    *(_STATE_FIELDS.get(name, name) for name in _OF_STATE),
    *(_HOST_FIELDS.get(name, name) for name in _OF_HOST),
    *(f"prior_{name}" for name in _OF_PRIOR),
    "in_flight_of",
)
"""Fields of LogState in the order of `Facts`."""

_state_facts = attrgetter(*_OF_STATE)
_host_facts = attrgetter(*_OF_HOST)
_prior_facts = attrgetter(*_OF_PRIOR)

Facts = tuple[Any, ...]
"""Values of a state, in the order of `FIELDS`."""


class Taken(NamedTuple):
    """The state of one version on one host."""

    record: HostRecord
    key: ModelKey
    facts: Facts


def facts_of(state: VersionState) -> Facts:
    """Its values now."""
    by_band = tuple(state.in_flight_of) if state.queued_up_to else ()
    return (*_state_facts(state), *_host_facts(state.host), *_prior_facts(state.prior), by_band)


def take(
    seen: Seen,
    *,
    zone: str,
    own_zone: str,
    session: str,
    excluded: Collection[str],
    draw: balancing.Draw,
    rules: Rules,
    now_s: float,
) -> list[Taken]:
    """The states that a plan read, and perhaps others, as they are now.

    Args:
        seen: What the plan looked at.
        zone: The one that the caller wants; empty for any.
        own_zone: The one that the router stands in; empty for any.
        session: The caller's; empty if it has none.
        excluded: Ids of hosts that were not to be used.
        draw: The chance of the attempt.
        rules: What the call lives by.
        now_s: When the plan was made.
    """
    taken = []
    whole = compares_all(rules, session)
    for look in seen.looks:
        if look.pick is None and look.rejected is None:
            continue  # its states were not looked at
        option, states = look.option, look.states
        if whole or len(states) <= TAKEN_WHOLE:
            key = option.key
            taken += [Taken(record, key, facts_of(state)) for state, record in zip(states, option.hosts, strict=True)]
            continue
        compared = _compared(look.states, option, zone=zone, own_zone=own_zone, excluded=excluded, draw=draw)
        if any(states[at].host.cuts(rules.service_class.level, now_s) for at in compared):
            compared = range(len(states))  # then others were compared in their place
        taken += [Taken(option.hosts[at], option.key, facts_of(states[at])) for at in compared]
    return taken


def _compared(
    states: Sequence[VersionState],
    option: Option,
    *,
    zone: str,
    own_zone: str,
    excluded: Collection[str],
    draw: balancing.Draw,
) -> Sequence[int]:
    """Which of many hosts were compared, as `planning` and `balancing` go about it."""
    if not zone and not own_zone and not excluded:
        return [states.index(state) for state in balancing.sample(states, draw.bits)]
    fit = [at for at, record in enumerate(option.hosts) if zone in ("", record.zone) and record.host_id not in excluded]
    near = [at for at in fit if option.hosts[at].zone == own_zone] if own_zone else []
    far = [at for at in fit if option.hosts[at].zone != own_zone] if own_zone else fit
    found: list[int] = []
    for group in (near, far):
        if len(group) > balancing.SAMPLE:
            sampled = balancing.sample([states[at] for at in group], draw.bits)
            found += [states.index(state) for state in sampled]
        else:
            found += group
    return found


def message_of(taken: Taken) -> pb.LogState:
    """It as it is logged."""
    key = model_pb2.ModelKey(model=taken.key.model, version=taken.key.version)
    return pb.LogState(host=taken.record.host_id, key=key, **dict(zip(FIELDS, taken.facts, strict=True)))


def state_from(message: pb.LogState) -> VersionState:
    """A state with the values that were logged."""
    host = HostState(message.host)
    host.cutoff, host.cutoff_at_s = message.cutoff, message.cutoff_at_s
    _set(host.circuit, message.host_penalty_s, message.host_failed_at_s, message.host_hold_s, message.host_probing)
    ejected_s = PENALTY_S if message.ejected_for_s else 0.0
    _set(host.ejection, ejected_s, message.ejected_at_s, message.ejected_for_s, message.ejected_probing)
    host.in_flight, host.work_s = message.host_in_flight, message.work_s
    host.network_s = message.network_s
    prior = Prior(message.prior_base_s, message.prior_per_item_s)
    state = VersionState(host, prior, known_since_s=message.ramps_from_s, ramps=True)
    state.absent_s, state.batch_cap = message.absent_s, message.batch_cap
    state.base_s, state.per_item_s = message.base_s, message.per_item_s
    state.measured_at_s = message.measured_at_s
    _set(state.circuit, message.penalty_s, message.failed_at_s, message.hold_s, message.probing)
    state.in_flight, state.sent_since = message.in_flight, message.sent_since
    state.last_sent_s = message.last_sent_s
    state.queued, state.queued_at_s = message.queued, message.queued_at_s
    state.queued_up_to = tuple(message.queued_up_to)
    if message.in_flight_of:
        state.in_flight_of = list(message.in_flight_of)
    return state


def _set(circuit: Circuit, penalty_s: float, opened_at_s: float, hold_s: float, probing: bool) -> None:
    circuit.penalty_s, circuit.opened_at_s, circuit.hold_s, circuit.probing = penalty_s, opened_at_s, hold_s, probing


def unknown(option: Option, at: int) -> VersionState:
    """A state that was not read when the choice was made."""
    return VersionState(HostState(option.hosts[at].host_id), Prior(0.0), known_since_s=0.0, ramps=False)
