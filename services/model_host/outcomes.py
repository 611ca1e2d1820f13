"""What becomes of the calls of a lane: the reply to each, what is counted of it, and who is told."""

from typing import Protocol

from services.domain.errors import BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.lane import Answer, Call, Lane, Step


class OutcomeObserver(Protocol):
    """Who wants to know what was done."""

    def step_done(self, key: ModelKey, step: Step) -> None:
        """Calls of `key` were computed."""
        ...

    def call_dropped(self, key: ModelKey, cause: str) -> None:
        """A call ended before it was computed: `deadline`, `cancelled` or `full`."""
        ...


class Outcomes:
    """Ends calls."""

    def __init__(self, observer: OutcomeObserver) -> None:
        """Tell `observer` of every step and drop."""
        self._observer = observer

    def answer(self, lane: Lane, step: Step) -> None:
        """Calls were computed: each is told its own."""
        statistics = lane.statistics
        size = len(step.calls)
        computed = False
        for call, outcome in zip(step.calls, step.outcomes, strict=True):
            if isinstance(outcome, YardError):
                self.fail(lane, call, outcome)
                continue
            computed = True
            reply = call.reply
            assert reply is not None
            if not reply.done():
                queue_s = max(0.0, step.started_s - call.arrived_s)
                statistics.success += 1
                statistics.queue_s += queue_s
                statistics.compute_s += step.compute_s
                reply.set_result(Answer(outcome, queue_s, step.compute_s, size))
        if computed:
            lane.learn(step)
            self._observer.step_done(lane.key, step)

    def fail(self, lane: Lane, call: Call, error: YardError, *, failed: bool = False) -> None:
        """The call fails with `error`; for lack of time or room it was dropped, unless it has `failed` computing."""
        reply = call.reply
        if reply is None or reply.done():
            return
        if failed or not isinstance(error, (Overloaded, BudgetExhausted)):
            lane.statistics.failure += 1
        else:
            self.dropped(lane, "deadline", error)
        reply.set_exception(error)

    def cancelled(self, lane: Lane) -> None:
        """Nobody waits for a call any more that has not been computed."""
        lane.statistics.dropped += 1
        self._observer.call_dropped(lane.key, "cancelled")

    def dropped(self, lane: Lane, cause: str, error: YardError) -> YardError:
        """A call was not computed, for `cause`; its caller is told `error`, which is returned."""
        lane.statistics.dropped += 1
        self._observer.call_dropped(lane.key, cause)
        return error
