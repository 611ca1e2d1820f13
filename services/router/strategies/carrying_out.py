"""Which strategy's order of events a call goes by."""

from services.domain.request import InferCall
from services.domain.strategies import Cascade, Choose, Ensemble, Fallback, Pipeline, Shadow, Single, Split
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.strategies import cascade, ensemble, fallback, graph, split
from services.router.strategies.auditing import Audits
from services.router.strategies.course import Course
from services.router.strategies.shadow import Copies, CopyFeedback


class Strategies:
    """Every strategy that leads over others."""

    def __init__(self, feedback: CopyFeedback, *, share: float) -> None:
        """Tell `feedback` of copies; `share` is the part of their bounds that this process may use, in (0, 1]."""
        self._copies = Copies(feedback, share=share)
        self._audits = Audits()

    async def close(self) -> None:
        """End what goes on after answers."""
        await self._copies.close()
        await self._audits.close()

    async def carry_out(self, course: Course, call: InferCall, destination: Destination, decision: Decision) -> object:
        """Answer a call as its route says.

        Args:
            course: What holds for the whole call.
            call: The call.
            destination: What its name leads to, which has no choice of its own.
            decision: Told how the answer comes about.

        Returns:
            The answer's message.

        Raises:
            YardError: It cannot be answered; says why.
        """
        match destination.route.strategy:
            case Split() as strategy:
                return await split.carry_out(course, call, destination, strategy, decision)
            case Fallback() as strategy:
                return await fallback.carry_out(course, call, destination, strategy, decision)
            case Shadow() as strategy:
                return await self._copies.carry_out(course, call, destination, strategy, decision)
            case Pipeline() as strategy:
                return await graph.carry_out(course, call, destination, strategy, decision)
            case Ensemble() as strategy:
                return await ensemble.carry_out(course, call, destination, strategy, decision)
            case Cascade() as strategy:
                return await cascade.carry_out(course, call, destination, strategy, decision, audits=self._audits)
            case Single() | Choose():
                raise AssertionError("the pipeline carries out what has a choice")

    def plan(self, course: Course, call: InferCall, destination: Destination, decision: Decision) -> None:
        """Say how the call would be answered; ask nobody."""
        match destination.route.strategy:
            case Split() as strategy:
                split.plan(course, call, destination, strategy, decision)
            case Fallback() as strategy:
                fallback.plan(course, call, destination, strategy, decision)
            case Shadow() as strategy:
                self._copies.plan(course, call, destination, strategy, decision)
            case Pipeline() as strategy:
                graph.plan(course, call, destination, strategy, decision)
            case Ensemble() as strategy:
                ensemble.plan(course, call, destination, strategy, decision)
            case Cascade() as strategy:
                cascade.plan(course, call, destination, strategy, decision)
            case Single() | Choose():
                raise AssertionError("the pipeline carries out what has a choice")
