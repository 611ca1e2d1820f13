"""Calls of versions that another server computes: they go there at once, many at a time, and never wait for the device.

Batches are the other server's to make. How many calls are under way is bounded; more are refused, since a queue here
would only hide the one there.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted, Internal, ModelFailed, ModelNotReady, Overloaded, YardError
from services.domain.model import ModelKey
from services.domain.service_class import DEFAULT_BAND
from services.model_host.calls import Answer, Call, Reply, Step
from services.model_host.hosted import Serving
from services.model_host.lane import Lane
from services.model_host.predictor import Predictor, WrongOutput
from services.model_host.statistics import BandStatistics
from services.model_host.tensors import NDArray
from services.model_host.wire import Tensors
from services.policy.batch_times import ServiceTimes

Done: TypeAlias = Callable[[dict[str, NDArray] | None, BaseException | None], None]
"""Takes the outputs, or else what went wrong."""


@runtime_checkable
class Forwards(Protocol):
    """A model that another server computes."""

    @property
    def max_in_flight(self) -> int:
        """Most calls that may be under way."""
        ...

    def begin(self, inputs: Mapping[str, NDArray], *, timeout_s: float, done: Done) -> Callable[[], object]:
        """Begin a call; `done` is called once, on any thread.

        Returns:
            What cancels the call.
        """
        ...


class Observer(Protocol):
    """Who wants to know what was done."""

    def step_done(self, key: ModelKey, step: Step) -> None:
        """A call was computed."""
        ...

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A call ended before it was computed; the cause is one of `statistics.CAUSES`."""
        ...


class Forwardings:
    """Opens lanes; those of versions that another server computes with a detour to it."""

    def __init__(self, serving: Serving, *, observer: Observer, clock: Clock) -> None:
        """Before `serving`, which has the lanes."""
        self._serving = serving
        self._observer = observer
        self._clock = clock
        self.refuse_all = serving.refuse_all
        self.close = serving.close

    def open(
        self,
        key: ModelKey,
        model: object,
        *,
        max_batch_size: int,
        max_wait_s: float,
        slo_s: float | None,
        times: ServiceTimes,
        ceiling: int = 0,
    ) -> Lane:
        """A lane for a version; see `BatchQueue.open`."""
        lane = self._serving.open(
            key,
            model,
            max_batch_size=max_batch_size,
            max_wait_s=max_wait_s,
            slo_s=slo_s,
            times=times,
            ceiling=ceiling,
        )
        if isinstance(model, Predictor) and isinstance(model.loaded, Forwards):
            lane.detour = Forwarding(model, model.loaded, lane, observer=self._observer, clock=self._clock)
        return lane

    def arrived(self, lane: Lane, model: object) -> None:
        """See `BatchQueue.arrived`."""
        self._serving.arrived(lane, model)
        if isinstance(lane.detour, Forwarding) and isinstance(model, Predictor) and isinstance(model.loaded, Forwards):
            lane.detour.renew(model, model.loaded)


class Forwarding:
    """The calls of one such version, as the detour of its lane. All of it runs on the event loop."""

    def __init__(self, predictor: Predictor, model: Forwards, lane: Lane, *, observer: Observer, clock: Clock) -> None:
        """Forward to `model`; its answers are held to the schema that `predictor` knows."""
        self._predictor = predictor
        self._model = model
        self._lane = lane
        self._observer = observer
        self._clock = clock
        self._running: dict[Call, Callable[[], object]] = {}
        self._closed = False
        self._empty: asyncio.Future[None] | None = None
        lane.cap = model.max_in_flight

    def renew(self, predictor: Predictor, model: Forwards) -> None:
        """Send calls to `model` from now on: the version was loaded anew."""
        self._predictor = predictor
        self._model = model

    def enter(self, call: Call, reply: Reply) -> None:
        """Send a call on.

        Raises:
            ModelNotReady: The version is being unloaded.
            BudgetExhausted: Nothing is left of its deadline.
            Overloaded: As many calls are under way as may be.
        """
        started_s = self._clock.now_s()
        key = self._predictor.key
        if self._closed:
            raise ModelNotReady(f"{key} is being unloaded here")
        timeout_s = call.deadline_at_s - started_s
        if timeout_s <= 0.0:
            raise self._dropped(call, "deadline", BudgetExhausted(f"nothing is left of the deadline to ask {key} in"))
        if len(self._running) >= self._model.max_in_flight:
            text = f"{len(self._running)} calls of {key} are under way, and no more are sent on"
            raise self._dropped(call, "full", Overloaded(text, retry_after_s=self._lane.seconds_of(call)))
        tensors = call.payload
        assert isinstance(tensors, Tensors)
        call.reply = reply
        loop = asyncio.get_running_loop()

        def done(outputs: dict[str, NDArray] | None, error: BaseException | None) -> None:
            outcome = self._outcome(outputs, error, tensors.rows)
            try:
                loop.call_soon_threadsafe(partial(self._done, call, outcome, started_s))
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        self._running[call] = self._model.begin(tensors.inputs, timeout_s=timeout_s, done=done)
        self._lane.running = len(self._running)

    def abandon(self, call: Call) -> None:
        """Nobody waits for a call any more: the other server hears of it."""
        cancel = self._running.pop(call, None)
        if cancel is not None:
            cancel()
            self._count(call, "cancelled")
            self._left()

    async def close(self) -> None:
        """Take no new calls, and return once those that were sent on are answered."""
        self._closed = True
        if self._running:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._empty)

    def _outcome(self, outputs: dict[str, NDArray] | None, error: BaseException | None, rows: int) -> object:
        """The outputs if they are as declared, else the error that the caller is told; on any thread."""
        key = self._predictor.key
        try:
            if error is not None:
                raise error
            assert outputs is not None
            return self._predictor.held(outputs, rows)
        except YardError as told:
            return told
        except WrongOutput as wrong:
            return ModelFailed(f"model {key} broke its schema: {wrong}", metadata={"model": str(key)})
        except Exception:
            return Internal("internal")

    def _done(self, call: Call, outcome: object, started_s: float) -> None:
        if self._running.pop(call, None) is None:
            return  # abandoned meanwhile
        took_s = self._clock.now_s() - started_s
        reply = call.reply
        assert reply is not None
        band = self._band(call)
        if isinstance(outcome, YardError):
            band.failure += 1
            if not reply.done():
                reply.set_exception(outcome)
        else:
            band.success += 1
            band.compute_s += took_s
            step = Step((call,), (outcome,), started_s, took_s)
            self._lane.learn(step)
            self._observer.step_done(self._predictor.key, step)
            if not reply.done():
                reply.set_result(Answer(outcome, 0.0, took_s, 1))
        self._left()

    def _left(self) -> None:
        self._lane.running = len(self._running)
        if self._closed and not self._running and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _dropped(self, call: Call, cause: str, error: YardError) -> YardError:
        self._count(call, cause)
        return error

    def _count(self, call: Call, cause: str) -> None:
        band = self._band(call)
        band.drops[cause] = band.drops.get(cause, 0) + 1
        self._observer.call_dropped(self._predictor.key, _band_of(call), cause)

    def _band(self, call: Call) -> BandStatistics:
        return self._lane.statistics.of(_band_of(call))


def _band_of(call: Call) -> int:
    return DEFAULT_BAND if call.share is None else call.share.tier.band
