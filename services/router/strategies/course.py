"""What holds for a call on its whole way over those that its route names: deadline, attempts, and whom to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import YardError
from services.domain.model import TensorSpec
from services.domain.objects import Route
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.domain.strategies import StaticTensor
from services.domain.tensor import RawTensor
from services.policy.sharing import share_s
from services.router.decision import Decision, StepView
from services.router.destination import Destination


class Legs(Protocol):
    """Who asks one candidate set."""

    async def run_one(
        self,
        call: InferCall,
        destination: Destination,
        decision: Decision,
        deadline: Deadline,
        start_s: float,
        *,
        most: int,
    ) -> object:
        """Ask it from `start_s` on, with `most` attempts; the answer's message.

        Raises:
            YardError: It cannot be answered; says why.
        """
        ...

    def plan_one(self, call: InferCall, destination: Destination, decision: Decision, remaining_s: float) -> None:
        """Decide and ask nobody; without a version in `decision` nothing can be chosen, and its reason says why."""
        ...


class Keeps(Protocol):
    """Who keeps answers of candidate sets."""

    async def run_one(
        self,
        call: InferCall,
        destination: Destination,
        decision: Decision,
        deadline: Deadline,
        start_s: float,
        *,
        legs: Legs,
        under: Route,
        most: int,
    ) -> object:
        """As `Legs.run_one`, for a route `under` which answers are kept, if there is none yet."""
        ...

    async def stand_in(
        self, call: InferCall, destination: Destination, decision: Decision, *, under: Route, error: YardError
    ) -> object | None:
        """An answer that is too old, for a candidate set that failed with `error`; None if there is none."""
        ...


class Composes(Protocol):
    """Who takes messages apart and makes them."""

    def inputs(self, call: InferCall) -> dict[str, RawTensor]:
        """The tensors that a caller sent, by name."""
        ...

    def outputs(self, payload: object) -> dict[str, RawTensor]:
        """The tensors of an answer, by name; raises ModelFailed if it is none."""
        ...

    def asking(
        self, call: InferCall, tensors: Mapping[str, RawTensor] | None = None, *, wanted: Sequence[str] = ()
    ) -> InferCall:
        """`call` to be answered in one message.

        Args:
            call: The caller's.
            tensors: Other inputs in place of its own, all of whose outputs are wanted if none is named.
            wanted: Outputs that are needed; of its own inputs, beside those that the caller wants.
        """
        ...

    def answered(self, call: InferCall, name: str, payload: object, *, wanted: Sequence[str] = ()) -> object:
        """What a caller gets that is answered with the message of one that was asked for outputs `wanted` too."""
        ...

    def in_pieces(self, call: InferCall) -> bool:
        """Whether it is to be answered in pieces."""
        ...

    def size(self, call: InferCall) -> int:
        """Bytes of its message."""
        ...

    def answer(self, call: InferCall, name: str, outputs: Mapping[str, RawTensor]) -> object:
        """What a caller gets that is answered with `outputs`; `name` stands for the model."""
        ...

    def static_answer(
        self, call: InferCall, name: str, specs: tuple[TensorSpec, ...], known: Mapping[str, StaticTensor]
    ) -> object:
        """What a caller gets that is answered with what was known beforehand."""
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


@dataclass(slots=True)  # not frozen: there is one for each call, and frozen ones take three times as long to make
class Course:
    """One call under way; never changes."""

    legs: Legs
    strategies: CarriesOut
    composes: Composes
    clock: Clock
    rng: KeyedRng
    deadline: Deadline
    """Of the whole call, or of the part of it that this is."""
    most_attempts: int
    """Of the whole call, as its own route says; whoever is asked first is always tried."""
    tally: Tally
    under: Route
    """The route whose strategy is carried out."""
    keeps: Keeps | None

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
        if destination.target is None:
            call = call._replace(name=destination.name, version="")
        if destination.choice is None:
            inner = replace(self, deadline=deadline, under=destination.route)
            return await self.strategies.carry_out(inner, call, destination, decision)
        before = len(decision.attempts)
        most = max(1, self.most_attempts - self.tally.retries)
        under, keeps = self.keeping(destination), self.keeps
        try:
            if keeps is not None and under.cache is not None:
                start_s = self.clock.now_s()
                return await keeps.run_one(
                    call, destination, decision, deadline, start_s, legs=self.legs, under=under, most=most
                )
            return await self.legs.run_one(call, destination, decision, deadline, self.clock.now_s(), most=most)
        finally:
            self.tally.retries += max(0, len(decision.attempts) - before - 1)
            if decision.hold is not None:
                decision.hold.end()

    def keeping(self, destination: Destination) -> Route:
        """The route that says whether answers of one that this one names are kept: of models, this one itself."""
        return destination.route if destination.target is None else self.under

    def plan(self, call: InferCall, destination: Destination, decision: Decision) -> None:
        """Decide what `ask` would, and ask nobody."""
        call = call._replace(name=destination.name, version="")
        if destination.choice is None:
            self.strategies.plan(self, call, destination, decision)
        else:
            self.legs.plan_one(call, destination, decision, self.deadline.remaining_s())

    def cut(self, behind_s: float) -> Deadline:
        """The deadline of the one that is asked now, if what is behind it is expected to take `behind_s`."""
        now_s = self.clock.now_s()
        return Deadline(now_s + share_s(self.deadline.at_s - now_s, behind_s), self.clock)

    def note(
        self, decision: Decision, name: str, leg: Decision, start_s: float, error: YardError | None = None
    ) -> None:
        """Enter into `decision` how one that was asked ended, and what it cost."""
        told, took_s = decision.telling, self.clock.now_s() - start_s
        decision.attempts += leg.attempts
        decision.candidates += leg.candidates
        if leg.told is not None:
            told.steps += [replace(step, name=f"{name}/{step.name}") for step in leg.told.steps]
        reason = leg.reason if error is None else error.message
        told.steps.append(StepView(name, leg.version, leg.host, reason, took_s, error))
        told.cost_microusd = (told.cost_microusd or 0) + (leg.cost_microusd if error is None else leg.spent_microusd)

    def note_dry(self, decision: Decision, name: str, leg: Decision) -> None:
        """Enter into `decision` how one would be asked."""
        told = decision.telling
        decision.candidates += leg.candidates
        if leg.told is not None:
            told.steps += [replace(step, name=f"{name}/{step.name}") for step in leg.told.steps]
        told.steps.append(StepView(name, leg.version, leg.host, leg.reason))


def draw_key(call: InferCall) -> str:
    """Keys the call's chance; with the trace, since callers give the same id to many calls."""
    return f"{call.request_id}/{call.trace_id}"
