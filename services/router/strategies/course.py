"""What holds for a call on its whole way over those that its route names: deadline, attempts, and whom to ask."""

from dataclasses import dataclass, replace
from typing import Protocol

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.router.decision import Decision
from services.router.destination import Destination


class Legs(Protocol):
    """Who asks one candidate set."""

    async def run_one(
        self, call: InferCall, destination: Destination, decision: Decision, deadline: Deadline, *, most: int
    ) -> object:
        """Ask it, with `most` attempts; the answer's message.

        Raises:
            YardError: It cannot be answered; says why.
        """
        ...

    def plan_one(self, call: InferCall, destination: Destination, decision: Decision, remaining_s: float) -> None:
        """Decide and ask nobody; without a version in `decision` nothing can be chosen, and its reason says why."""
        ...


class CarriesOut(Protocol):
    """Who knows the order of events of every strategy."""

    async def carry_out(
        self, course: "Course", call: InferCall, destination: Destination, decision: Decision
    ) -> object:
        """Answer a call that leads over others."""
        ...

    def plan(self, course: "Course", call: InferCall, destination: Destination, decision: Decision) -> None:
        """Say how it would be answered; ask nobody."""
        ...


@dataclass(slots=True)
class Tally:
    """What is counted over the whole call."""

    retries: int = 0


@dataclass(frozen=True, slots=True)
class Course:
    """One call under way."""

    legs: Legs
    strategies: CarriesOut
    clock: Clock
    rng: KeyedRng
    deadline: Deadline
    """Of the whole call, or of the part of it that this is."""
    most_attempts: int
    """Of the whole call, as its own route says; whoever is asked first is always tried."""
    tally: Tally

    async def ask(
        self, call: InferCall, destination: Destination, decision: Decision, deadline: Deadline | None = None
    ) -> object:
        """Ask one of those that the route names.

        Args:
            call: What it is asked.
            destination: What its name leads to.
            decision: Told how its answer comes about.
            deadline: Its own, within that of the call; None: all that is left.

        Raises:
            YardError: It cannot answer; says why.
        """
        deadline = deadline or self.deadline
        call = call._replace(name=destination.name, version="")
        if destination.choice is None:
            return await self.strategies.carry_out(replace(self, deadline=deadline), call, destination, decision)
        before = len(decision.attempts)
        most = max(1, self.most_attempts - self.tally.retries)
        try:
            return await self.legs.run_one(call, destination, decision, deadline, most=most)
        finally:
            self.tally.retries += max(0, len(decision.attempts) - before - 1)

    def plan(self, call: InferCall, destination: Destination, decision: Decision) -> None:
        """Decide what `ask` would, and ask nobody."""
        call = call._replace(name=destination.name, version="")
        if destination.choice is None:
            self.strategies.plan(self, call, destination, decision)
        else:
            self.legs.plan_one(call, destination, decision, self.deadline.remaining_s())


def draw_key(call: InferCall) -> str:
    """Keys the call's chance; with the trace, since callers give the same id to many calls."""
    return f"{call.request_id}/{call.trace_id}"
