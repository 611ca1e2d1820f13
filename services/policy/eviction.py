"""Which versions leave the device's memory when another one is called.

Greedy-Dual-Size-Frequency (Cherkasova, HPL-98-69R1): a version is worth its uses times what it costs to bring it
back, per byte that it takes; an age that grows with every eviction is added at each use, so that what was popular
once does not stay for good. The least worth goes. Uses of versions that are away are remembered, and halve with time,
so that one that comes back often is not a stranger each time.

Never one that has calls, and never one that came within three times its own loading time: else two
versions that take turns would push each other out without end.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOAD_TIMES = 3.0
"""A version stays for this many of its own loading times at least."""

HALF_LIFE_S = 300.0
"""In this time what a use counts halves."""

LEAST_LOAD_S = 1e-3
"""No version is taken to load in less."""


@dataclass(slots=True, eq=False)
class Residence:
    """What is known of a version that may come and go."""

    memory_bytes: int
    load_s: float
    """What bringing it back takes, as last measured."""
    loaded_at_s: float = -math.inf
    uses: float = 0.0
    """Decayed to `used_at_s`."""
    used_at_s: float = 0.0
    worth: float = 0.0


class Ages:
    """The age of one device's memory."""

    __slots__ = ("age",)

    def __init__(self) -> None:
        """Nothing was evicted yet."""
        self.age = 0.0

    def used(self, residence: Residence, count: int, now_s: float) -> None:
        """A version was called `count` times since it was last noted."""
        if count:
            residence.uses = residence.uses * _decay(now_s - residence.used_at_s) + count
            residence.used_at_s = now_s
            cost_s = max(LEAST_LOAD_S, residence.load_s)
            residence.worth = self.age + residence.uses * cost_s / max(1, residence.memory_bytes)

    def evicted(self, residence: Residence) -> None:
        """It goes: all that is used from now on is worth more than it."""
        self.age = max(self.age, residence.worth)


def victims(idle: Iterable[Residence], *, need_bytes: int, now_s: float) -> Sequence[Residence] | None:
    """Who has to go.

    Args:
        idle: Those in memory that have no calls and are not pinned; what was called of them is noted.
        need_bytes: What is to become free.
        now_s: Time now.

    Returns:
        The least worth ones that free enough, all of which are needed for it; None if those that may go do not.
    """
    if need_bytes <= 0:
        return ()
    chosen: list[Residence] = []
    freed = 0
    for residence in sorted(idle, key=lambda each: each.worth):
        if now_s - residence.loaded_at_s < LOAD_TIMES * residence.load_s:
            continue
        chosen.append(residence)
        freed += residence.memory_bytes
        if freed >= need_bytes:
            return _spare(chosen, freed - need_bytes)
    return None


def _spare(chosen: list[Residence], surplus_bytes: int) -> list[Residence]:
    """Without those that need not go after all, the most worth first."""
    kept: list[Residence] = []
    for residence in reversed(chosen):
        if residence.memory_bytes <= surplus_bytes:
            surplus_bytes -= residence.memory_bytes
        else:
            kept.append(residence)
    return kept[::-1]


def _decay(passed_s: float) -> float:
    return 0.5 ** (passed_s / HALF_LIFE_S) if passed_s > 0.0 else 1.0
