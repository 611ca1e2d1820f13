"""Which candidates of a `choose` route have to be looked at: those that could still be the best one.

What a candidate is worth at most is known before any of its hosts is looked at: it is what it would be worth if it
answered at once. Looked at from the highest such ceiling down, the first candidate that is sound and worth as much as
the next one's ceiling ends the search, and the choice is the one that looking at all of them comes to: branch and
bound (Land and Doig 1960) with a bound that does not change from call to call.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from services.domain.objects import Choose, ModelVersion
from services.domain.request import Preference
from services.policy.choosing import Rank, Worth, ceiling
from services.policy.learning import Expected

KEPT = 256
"""Most shortlists that are kept of one set of candidates: one for each kind of call, preference and set of weights."""


class Place(NamedTuple):
    """One candidate in the order in which they are looked at."""

    ceiling: Rank
    """What it is worth at most."""
    at: int
    """Its place in the route's order."""


class Shortlist(NamedTuple):
    """The order in which candidates are looked at."""

    places: Sequence[Place]
    """Highest ceiling first."""
    learned: bool
    """Whether labels had a say in it, and not the registry alone."""


def shortlist(
    worth: Worth | Choose, versions: Sequence[ModelVersion], expectations: Sequence[Expected], prefer: Preference
) -> Shortlist:
    """The order for calls of one kind.

    Args:
        worth: What quality, money and lateness are worth; lateness costs nothing or more.
        versions: The candidates, in the route's order.
        expectations: What is expected of each for such a call.
        prefer: What the caller values most.
    """
    places = [
        Place(ceiling(worth, version, expected, prefer), at)
        for at, (version, expected) in enumerate(zip(versions, expectations, strict=True))
    ]
    places.sort(key=lambda place: place.ceiling, reverse=True)
    return Shortlist(places, any(expected.labelled for expected in expectations))


class Shortlists:
    """Those of one set of candidates, kept; they change only with labels, weights and the candidates themselves."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        """None yet."""
        self._kept: dict[Hashable, Shortlist] = {}

    @property
    def kept(self) -> int:
        """How many there are."""
        return len(self._kept)

    def get(self, key: Hashable) -> Shortlist | None:
        """The one for calls that are alike in `key`; None if there is none."""
        return self._kept.get(key)

    def put(self, key: Hashable, made: Shortlist) -> None:
        """Keep one."""
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[key] = made
