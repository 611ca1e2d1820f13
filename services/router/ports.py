"""What the pipeline needs of others: a view of the world, somebody to tell, and counts."""

from typing import Protocol

from services.domain.errors import YardError
from services.router.attempting import AttemptFeedback
from services.router.cache import CacheFeedback
from services.router.decision import Decision
from services.router.hedging import HedgeFeedback
from services.router.labelling import LabelFeedback
from services.router.snapshot import Snapshot
from services.router.strategies.shadow import CopyFeedback
from services.router.watching import WatchFeedback


class Catalog(Protocol):
    """Where the view of the world comes from."""

    def snapshot(self) -> Snapshot | None:
        """The current one; None before there is any."""
        ...


class Feedback(AttemptFeedback, CopyFeedback, CacheFeedback, HedgeFeedback, LabelFeedback, WatchFeedback, Protocol):
    """Who is told how calls go."""

    def chosen(self, decision: Decision, duration_s: float) -> None:
        """The first decision of a call was made."""
        ...

    def answered(self, decision: Decision) -> None:
        """The call was answered."""
        ...

    def degraded(self, decision: Decision) -> None:
        """The call was answered, though not as its route would rather have it."""
        ...

    def cancelled(self, decision: Decision | None) -> None:
        """The caller went away, or its deadline passed."""
        ...

    def failed(self, decision: Decision | None, error: YardError, duration_s: float) -> None:
        """The call failed; without a decision, before its name was known to mean anything."""
        ...

    def refused(self, limit: str) -> None:
        """A call, which then failed, was not let in; `limit` is the kind of the one it met."""
        ...


class Cell(Protocol):
    """What is counted under one name; tokens are those of `policy/limiting`."""

    share: float
    """The part of the whole that is counted here, in (0, 1]: a limit holds for that part of it."""

    def in_flight(self) -> int:
        """Calls in flight."""
        ...

    def enter(self) -> None:
        """Count one call in."""
        ...

    def leave(self) -> None:
        """Count one call out."""
        ...

    def taken(self) -> int:
        """Tokens taken in all."""
        ...

    def spilled(self) -> float:
        """Tokens lost in all."""
        ...

    def take(self, spilled: float) -> None:
        """Take a token, so many being lost by now."""
        ...


class Counts(Protocol):
    """Calls in flight, over all processes that share the limit."""

    def enter(self) -> int:
        """Count one in; returns how many there were before it."""
        ...

    def leave(self) -> None:
        """Count one out."""
        ...

    def in_flight(self) -> int:
        """How many there are."""
        ...

    def cell(self, name: tuple[str | float, ...]) -> Cell:
        """What is counted for a limit of its own, by kind and name."""
        ...
