"""What the pipeline needs of others: a view of the world, somebody to tell, and a count."""

from typing import Protocol

from services.domain.errors import YardError
from services.router.attempting import AttemptFeedback
from services.router.decision import Decision
from services.router.snapshot import Snapshot
from services.router.strategies.shadow import CopyFeedback


class Catalog(Protocol):
    """Where the view of the world comes from."""

    def snapshot(self) -> Snapshot | None:
        """The current one; None before there is any."""
        ...


class Feedback(AttemptFeedback, CopyFeedback, Protocol):
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


class Counts(Protocol):
    """Calls in flight, over all processes that share the limit."""

    def enter(self) -> int:
        """Count one in; returns how many there were before it."""
        ...

    def leave(self) -> None:
        """Count one out."""
        ...
