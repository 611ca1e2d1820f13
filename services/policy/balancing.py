"""Which host gets the call: the soonest of a few, drawn for each call.

Four are compared: enough to find a good one, few enough that a flock of routers does not settle
on the same. Predictions are `scoring`'s. All chance comes from the caller's 64 bits, so that a
decision can be made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.policy.scoring import VersionState, completion_s, penalty_s

SAMPLE = 4
"""Hosts compared for one call; all of them if there are no more."""

PROBE_SHARE = 0.01
"""Share of calls that ignore penalties, to see a recovery."""

RAMP_S = 10.0
"""A host that comes to others takes part in a growing share of draws for this long: its caches are cold
and its times unknown."""

LEAST_RAMP = 0.1
"""Share of draws that a newcomer takes part in at first."""

ZONE_HYSTERESIS = 1.1
"""A host of another zone must be this many times sooner, its way included."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Pick:
    """The host that gets the call."""

    state: VersionState
    predicted_s: float
    """When it would answer, without the penalty: a failure in the past makes no call slow."""
    penalty_s: float
    """What recent failures added when it was compared; 0 if they were ignored."""

    @property
    def cost_s(self) -> float:
        """What it was compared by."""
        return self.predicted_s + self.penalty_s


def pick(states: Sequence[VersionState], *, now_s: float, routers: int, bits: int) -> Pick:
    """The soonest of a sample.

    Args:
        states: Hosts that have the version ready; at least one.
        now_s: Monotonic seconds.
        routers: Routers that send to these hosts, this one included.
        bits: 64 random bits of this call.

    Returns:
        The pick; of equals, one by chance.
    """
    if len(states) == 1:
        state = states[0]
        return Pick(state, completion_s(state, now_s, routers=routers), penalty_s(state, now_s))
    ignores_penalties = (bits >> 48) < PROBE_SHARE * 65536
    best: Pick | None = None
    for state in sample(_ramped(states, now_s, bits), bits):
        penalty = 0.0 if ignores_penalties else penalty_s(state, now_s)
        predicted = completion_s(state, now_s, routers=routers)
        if best is None or predicted + penalty < best.cost_s:
            best = Pick(state, predicted, penalty)
    assert best is not None
    return best


def nearest(local: Pick, remote: Pick, *, way_s: float) -> Pick:
    """The pick of the own zone, unless that of another is clearly sooner, `way_s` for the way included."""
    if ZONE_HYSTERESIS * (remote.cost_s + way_s) < local.cost_s:
        return Pick(remote.state, remote.predicted_s + way_s, remote.penalty_s)
    return local


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


def _ramped(states: Sequence[VersionState], now_s: float, bits: int) -> Sequence[VersionState]:
    """`states` without the newcomers that this draw leaves out; all, if it would leave none in good standing.

    After a crash the only host that answers may be a newcomer, among others that are listed and dead.
    """
    oldest_s = now_s - RAMP_S
    if all(state.known_since_s <= oldest_s for state in states):
        return states
    kept = [
        state
        for index, state in enumerate(states)
        if state.known_since_s <= oldest_s
        or _draw(bits, index) < max(LEAST_RAMP, (now_s - state.known_since_s) / RAMP_S)
    ]
    return kept if any(not penalty_s(state, now_s) for state in kept) else states


def _draw(bits: int, index: int) -> float:
    """A number in [0, 1) for each index, by one round of splitmix64."""
    mixed = (bits + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    return (mixed >> 11) * 2.0**-53
