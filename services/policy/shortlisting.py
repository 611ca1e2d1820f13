"""Which candidates of a `choose` route have to be looked at: those that could still be the best one.

What a candidate is worth at most is known before any of its hosts is looked at: it is what it would be worth if it
answered at once. Looked at from the highest such ceiling down, the first candidate that is sound and worth as much as
the next one's ceiling ends the search, and the choice is the one that looking at all of them comes to: branch and
bound (Land and Doig 1960) with a bound that does not change from call to call.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from services.domain.objects import Choose, ModelVersion
from services.domain.request import Preference
from services.policy.choosing import Rank, ceiling

KEPT = 16
"""Most orders that are kept of one set of candidates: there are four preferences, and weights change seldom."""


class Place(NamedTuple):
    """One candidate in the order in which they are looked at."""

    ceiling: Rank
    """What it is worth at most."""
    at: int
    """Its place in the route's order."""


class Candidate(Protocol):
    """What may be chosen."""

    @property
    def version(self) -> ModelVersion:
        """The version that would answer."""
        ...


class Shortlists:
    """The orders in which one set of candidates is looked at; what they are worth at most seldom changes."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        """None yet."""
        self._kept: dict[tuple[float, float, Preference], Sequence[Place]] = {}

    @property
    def kept(self) -> int:
        """How many orders are kept."""
        return len(self._kept)

    def of(self, strategy: Choose, candidates: Iterable[Candidate], prefer: Preference) -> Sequence[Place]:
        """The order for calls with this preference, highest ceiling first.

        Args:
            strategy: The route's; lateness costs nothing or more.
            candidates: Always the same ones, in the route's order.
            prefer: What the caller values most.
        """
        key = (strategy.quality_weight, strategy.cost_weight, prefer)
        kept = self._kept.get(key)
        if kept is None:
            places = [Place(ceiling(strategy, each.version, prefer), at) for at, each in enumerate(candidates)]
            places.sort(key=lambda place: place.ceiling, reverse=True)
            if len(self._kept) >= KEPT:
                self._kept.clear()
            kept = self._kept[key] = places
        return kept
