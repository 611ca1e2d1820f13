"""Where versions that generate take calls: each has an engine, which takes its lane's calls in the queue's place.

To the lifecycle this is the batch queue, and is so for all other versions. A call that comes through the queue gets
its answer as a whole; `Engine.stream` gives it in pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from services.domain.clock import Clock
from services.domain.errors import ModelFailed, Overloaded, YardError
from services.domain.model import ModelKey
from services.domain.service_class import DEFAULT_BAND
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Answer, Call, Reply
from services.model_host.entrance import CUT_RETRY_S
from services.model_host.generation import Generation, Steps
from services.model_host.generator import Generator
from services.model_host.lane import Lane
from services.model_host.sequences import Bounds, Listener, Request, Totals
from services.model_host.wire import Tensors
from services.policy.batch_times import ServiceTimes
from services.policy.fairness import TenantShare
from services.policy.iterating import IterationTimes


class Observer(Protocol):
    """Who wants to know what was done."""

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        """A token of an answer: `after_s` the request if it is the first one, else the one before."""
        ...

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        """A sequence that had a slot gave it up."""
        ...

    def sequences(self, key: ModelKey, *, waiting: int, active: int) -> None:
        """So many wait now, and so many have a slot."""
        ...

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A sequence ended before its first token."""
        ...

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        """The device computed for so long what nobody waited for."""
        ...

    def answer_failed(self, key: ModelKey, error: Exception) -> None:
        """A model made no whole answer of its own pieces."""
        ...

    def device_broken(self) -> None:
        """The device will not compute again in this process."""
        ...


class Engines:
    """Opens lanes; those of versions that generate with an engine."""

    def __init__(self, *, queue: BatchQueue, steps: Steps, observer: Observer, clock: Clock) -> None:
        """Beside `queue`, which serves all other versions."""
        self._queue = queue
        self._steps = steps
        self._observer = observer
        self._clock = clock

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
        lane = self._queue.open(
            key,
            model,
            max_batch_size=max_batch_size,
            max_wait_s=max_wait_s,
            slo_s=slo_s,
            times=times,
            ceiling=ceiling,
        )
        if isinstance(model, Generator):
            lane.detour = Engine(
                model,
                lane,
                steps=self._steps,
                observer=self._observer,
                cuts_off=self._queue.cuts_off,
                charge=self._queue.charge,
                clock=self._clock,
            )
        return lane

    def arrived(self, lane: Lane, model: object) -> None:
        """See `BatchQueue.arrived`."""
        self._queue.arrived(lane, model)

    def refuse_all(self, lane: Lane, error: YardError) -> None:
        """See `BatchQueue.refuse_all`."""
        self._queue.refuse_all(lane, error)

    async def close(self, lane: Lane) -> None:
        """Take no new calls, and return once the last is answered."""
        await self._queue.close(lane)


class Engine:
    """The engine of one version, as the detour of its lane."""

    def __init__(
        self,
        generator: Generator,
        lane: Lane,
        *,
        steps: Steps,
        observer: Observer,
        cuts_off: Callable[[TenantShare], bool],
        charge: Callable[[TenantShare, float], None],
        clock: Clock,
    ) -> None:
        """Make the engine.

        Args:
            generator: Reads requests, and computes them.
            lane: Shows the load.
            steps: The device.
            observer: Told of what is done.
            cuts_off: Whether the host refuses calls of somebody's class now.
            charge: Told whom the device computed for, and how long.
            clock: Time; deadlines of calls are on it.
        """
        settings = generator.settings
        self._cuts_off = cuts_off
        self._charge = charge
        self._generator = generator
        self._lane = lane
        self._observer = observer
        self._whole: dict[Call, Request] = {}
        lane.cap = settings.sequences
        self.generation = Generation(
            generator.key,
            generator,
            steps=steps,
            observer=self,
            clock=clock,
            bounds=Bounds(settings.sequences, settings.prefill_tokens, settings.max_waiting),
            times=IterationTimes(generator.pace.step_s, generator.pace.prompt_token_s),
            statistics=lane.statistics,
        )

    # --- calls ----------------------------------------------------------------------------------

    def enter(self, call: Call, reply: Reply) -> None:
        """Answer `call` as a whole.

        Raises:
            YardError: It cannot be read, or is not taken.
        """
        self._whole[call] = self.stream(call, _Whole(self, call, reply))

    def abandon(self, call: Call) -> None:
        """Nobody waits for the whole answer any more."""
        request = self._whole.pop(call, None)
        if request is not None:
            self.generation.leave(request)

    def stream(self, call: Call, listener: Listener) -> Request:
        """Answer `call` in pieces; `leave` ends it early.

        Raises:
            YardError: It cannot be read, or is not taken.
        """
        tensors = call.payload
        assert isinstance(tensors, Tensors)
        prompt = self._generator.read(tensors.inputs, tensors.parameters)
        band = DEFAULT_BAND if call.share is None else call.share.tier.band
        if call.share is not None and self._cuts_off(call.share):
            drops = self._lane.statistics.of(band).drops
            drops["cutoff"] = drops.get("cutoff", 0) + 1
            self._observer.call_dropped(self._lane.key, band, "cutoff")
            text = f"this host has too much work to take calls of band {band} now"
            raise Overloaded(text, retry_after_s=CUT_RETRY_S)
        request = Request(prompt, call.deadline_at_s, listener, band, call.trace, call.share)
        self.generation.enter(request)
        return request

    def leave(self, request: Request) -> None:
        """Nobody waits for more of it."""
        self.generation.leave(request)

    async def close(self) -> None:
        """Take no new calls, and return once those that came are answered."""
        await self.generation.close()

    # --- whole answers --------------------------------------------------------------------------

    def ended(self, call: Call, pieces: Sequence[Mapping[str, object]], totals: Totals, reply: Reply) -> None:
        """A whole answer is complete."""
        self._whole.pop(call, None)
        if reply.done():
            return
        key = self._lane.key
        try:
            outputs = self._generator.collect(pieces)  # type: ignore[arg-type]  # its own, which were checked
        except Exception as error:
            self._observer.answer_failed(key, error)
            reply.set_exception(ModelFailed(f"model {key} failed on this input", metadata={"model": str(key)}))
        else:
            reply.set_result(Answer(outputs, totals.queue_s, totals.compute_s, totals.beside))

    def failed(self, call: Call, error: YardError, reply: Reply) -> None:
        """There will be no whole answer."""
        self._whole.pop(call, None)
        if not reply.done():
            reply.set_exception(error)

    # --- what the engine reports ----------------------------------------------------------------

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        """A token of an answer came."""
        self._observer.token_came(key, after_s, first=first)

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        """A sequence gave its slot up; how long it took to its first token is what routers go by."""
        if request.first_at_s:
            self._lane.times.observe(max(1, request.beside), 1, request.first_at_s - request.joined_s)
        self._observer.sequence_ended(key, request, ended_s=ended_s)

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A sequence ended before its first token."""
        self._observer.call_dropped(key, band, cause)

    def device_used(self, request: Request, device_s: float) -> None:
        """The device computed for a sequence."""
        if isinstance(request.owner, TenantShare):
            self._charge(request.owner, device_s)
        if request.over:
            self._observer.device_wasted(self._lane.key, device_s)

    def load_changed(self, waiting: int, active: int) -> None:
        """So many wait now, and so many have a slot."""
        self._lane.queued, self._lane.running = waiting, active
        self._observer.sequences(self._lane.key, waiting=waiting, active=active)

    def device_broken(self) -> None:
        """The device will not compute again."""
        self._observer.device_broken()


class _Whole:
    """Keeps the pieces of an answer until it is complete."""

    def __init__(self, engine: Engine, call: Call, reply: Reply) -> None:
        self._engine = engine
        self._call = call
        self._reply = reply
        self._pieces: list[Mapping[str, object]] = []

    def piece(self, outputs: Mapping[str, object]) -> None:
        self._pieces.append(outputs)

    def ended(self, totals: Totals, outputs: Mapping[str, object] | None) -> None:
        if outputs is not None:
            self._pieces.append(outputs)
        self._engine.ended(self._call, self._pieces, totals, self._reply)

    def failed(self, error: YardError) -> None:
        self._engine.failed(self._call, error, self._reply)
