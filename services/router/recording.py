"""Writing decisions down as they are made: what the pipeline needs of whoever does.

A record makes the plans of its call in the planner's place, so that calls that nobody writes down pay for one look at
whether there is one.
"""

from collections.abc import Collection
from typing import Protocol

from services.domain.errors import YardError
from services.domain.request import InferCall
from services.domain.rules import NO_RULES, Money, Rules
from services.policy.balancing import Draw
from services.policy.escalating import Enough, Escalate, Facts
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.labelling import LabelLog
from services.router.planning import Plan, Planner, Seen
from services.router.snapshot import Snapshot


class Plans(Protocol):
    """Who makes plans: a planner, or one that writes down what that says."""

    def plan(
        self,
        call: InferCall,
        destination: Destination,
        *,
        now_s: float,
        remaining_s: float,
        draw: Draw,
        excluded: Collection[str] = (),
        rules: Rules = NO_RULES,
        seen: Seen | None = None,
    ) -> Plan | YardError:
        """As `Planner.plan`."""
        ...


class Record(Plans, Protocol):
    """What is written down of one call."""

    def at(self, snapshot: Snapshot) -> Plans:
        """The same, for plans by another view than the one that the call began with."""
        ...

    def escalated(self, route: str, step: int, facts: Facts, verdict: Enough | Escalate, money: Money | None) -> None:
        """A cascade decided whether the step after `step`, from 0, is asked."""
        ...

    def audited(self, route: str, step: int, confidence: float, agreed: bool) -> None:
        """Whether the step after `step` said the same, where that was asked too."""
        ...

    def ended(self, decision: Decision, status: str) -> None:
        """The call ended now; `status` is the canonical name."""
        ...


class Recorder(LabelLog, Protocol):
    """Who writes down."""

    def begin(
        self,
        call: InferCall,
        snapshot: Snapshot,
        decision: Decision,
        planner: Planner,
        *,
        at_s: float,
        left_s: float | None,
    ) -> Record | None:
        """A call begins; None if it is not written down.

        Args:
            call: The call.
            snapshot: What it is decided by.
            decision: As it was settled for the whole call.
            planner: Who makes its plans.
            at_s: Monotonic seconds.
            left_s: What is left of the caller's deadline; None if it set none.
        """
        ...
