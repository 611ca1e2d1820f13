"""The order in which calls reach the device, and which of them are refused or dropped.

One queue per device, one lane per version. Calls wait in order of their deadlines; the lane whose
first call is due first goes next. What to take and what to drop is `policy.batching`; computing is
behind the port `Compute`. Everything here runs on the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from services.domain import errors
from services.domain.clock import Clock
from services.domain.errors import Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.lane import CEILING_S, Answer, Call, Lane, LaneStatistics, Reply, Step
from services.model_host.lateness import late_now, too_busy, too_late
from services.model_host.outcomes import OutcomeObserver, Outcomes
from services.policy.batch_times import ServiceTimes
from services.policy.batching import predicted_wait_s

PROBE_EVERY = 8
"""An idle lane runs every so-many-th call that looks hopeless, so that one slow spell is unlearned."""


class OutOfDeviceMemory(Exception):
    """The device had no memory for a batch; it can go on with smaller ones."""


class DeviceBroken(Exception):
    """The device will not compute again in this process."""


Done: TypeAlias = Callable[[Sequence[Step] | None, BaseException | None], None]
"""Takes the steps, or else what went wrong."""


class Compute(Protocol):
    """The device."""

    def start(self, model: object, calls: Sequence[Call], *, together: bool, predicted_s: float, done: Done) -> None:
        """Begin to compute calls of one version; another `start` comes only after `done`.

        A callback, because a task for each batch costs more than a small model computes.

        Args:
            model: The version, as it was opened with.
            calls: At least one.
            together: As one batch, or one after another.
            predicted_s: How long it should take.
            done: Called on the event loop, later, with steps that cover every call once; or with
                `OutOfDeviceMemory`, `DeviceBroken`, or an error that nobody foresaw.
        """
        ...


class Observer(OutcomeObserver, Protocol):
    """Who wants to know what was done, and what cannot be done any more."""

    def device_broken(self) -> None:
        """The device will not compute again in this process."""
        ...


class BatchQueue:
    """The calls of all versions on one device."""

    def __init__(
        self, *, compute: Compute, observer: Observer, clock: Clock, max_queued: int, max_queued_bytes: int
    ) -> None:
        """Nothing runs until `run` does.

        Args:
            compute: The device.
            observer: Told of every step and drop.
            clock: Time; deadlines of calls are on it.
            max_queued: Most calls that wait in one lane.
            max_queued_bytes: Most payload bytes that wait in all lanes.
        """
        self._compute = compute
        self._observer = observer
        self._outcomes = Outcomes(observer)
        self._clock = clock
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._busy: dict[Lane, None] = {}
        self._queued_bytes = 0
        self._running: list[Call] = []
        self._running_until_s = 0.0
        self._scheduled = False
        self._pausing: asyncio.Task[None] | None = None
        self._stopped: YardError | None = None
        self._ended: asyncio.Future[None] | None = None
        self.statistics: dict[ModelKey, LaneStatistics] = {}
        """What each version has done, those that are gone included."""

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
        """A lane for a version.

        Args:
            key: The version.
            model: What `Compute` is given.
            max_batch_size: Most rows of a batch; 1 or less never puts calls together.
            max_wait_s: Longest wait for company on an idle device.
            slo_s: The model's latency objective, if any.
            times: What is known of its batch times.
            ceiling: Most rows that fit the device, if it is known that not all do; else 0.
        """
        statistics = self.statistics.setdefault(key, LaneStatistics())
        until_s = self._clock.now_s() + CEILING_S
        lane = Lane(key, model, max(1, max_batch_size), max_wait_s, slo_s, times, ceiling, until_s, statistics)
        lane.recap()
        return lane

    async def close(self, lane: Lane) -> None:
        """Take no new calls, and return once those that wait are answered."""
        lane.closed = True
        if not lane.idle:
            if lane.empty is None:
                lane.empty = asyncio.get_running_loop().create_future()
            await asyncio.shield(lane.empty)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._busy and not self._running

    def enter(self, lane: Lane, call: Call, reply: Reply) -> None:
        """Put the call into the queue; `reply` is told what becomes of it, once, on the event loop.

        Raises:
            BudgetExhausted: Its deadline does not cover its own compute time.
            Overloaded: The queue is full, or what waits before it takes too long.
            ModelNotReady: The lane is closed.
            HostUnavailable: The device broke.
        """
        call.arrived_s = now_s = self._clock.now_s()
        self._admit(lane, call, now_s)
        call.reply = reply
        lane.add(call)
        self._queued_bytes += call.payload_bytes
        self._busy[lane] = None
        self._schedule()

    def abandon(self, lane: Lane, call: Call) -> None:
        """Nobody waits for `call` any more: out of the queue, unless it computes already, which is not stopped."""
        call.abandoned = True
        if not lane.discard(call):
            return
        self._queued_bytes -= call.payload_bytes
        self._outcomes.cancelled(lane)
        if not lane.waiting:
            del self._busy[lane]
            self._settle(lane)

    async def submit(self, lane: Lane, call: Call) -> Answer:
        """Wait for the call's turn and its answer. Cancelling abandons it.

        Raises:
            YardError: What `enter` raises; or `Overloaded`, the device ran out of memory; `ModelFailed`, the model
                failed on it; `BudgetExhausted`, it waited until it was too late; `HostUnavailable`, the device broke.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.enter(lane, call, answer)
        try:
            return await answer
        finally:
            if answer.cancelled():
                self.abandon(lane, call)

    async def run(self) -> None:
        """Serve the lanes, until cancelled; then what waits or runs fails as draining.

        Raises:
            Exception: An error that nobody foresaw; the queue has stopped.
        """
        self._ended = asyncio.get_running_loop().create_future()
        self._schedule()
        try:
            await self._ended
        finally:
            self._stop(errors.Draining("this host is stopping; ask another"))

    # --- admission ------------------------------------------------------------------------------

    def _admit(self, lane: Lane, call: Call, now_s: float) -> None:
        """Refuse `call` if it cannot be answered in time.

        Raises:
            YardError: It is not taken.
        """
        if lane.closed:
            raise errors.ModelNotReady(f"{lane.key} is being unloaded here")
        if self._stopped is not None:
            raise type(self._stopped)(self._stopped.message)
        left_s = call.deadline_at_s - now_s
        own_s = lane.seconds_of(call)
        if own_s > left_s:
            if not self._probes(lane, call, left_s, own_s):
                raise self._outcomes.dropped(lane, "deadline", too_late(lane.key, own_s, left_s))
            return
        running_s = max(0.0, self._running_until_s - now_s)
        rows_ahead = 0
        if self._busy:
            rows_ahead = lane.rows_before(call.deadline_at_s)
            running_s += sum(other.seconds_before(call.deadline_at_s) for other in self._busy if other is not lane)
        wait_s = predicted_wait_s(
            running_s=running_s, rows_ahead=rows_ahead, cap=lane.cap, times=lane.times.of_size(call.elements)
        )
        if len(lane.waiting) >= self._max_queued:
            text = f"{len(lane.waiting)} calls wait for {lane.key} here, and no more are taken"
            raise self._outcomes.dropped(lane, "full", Overloaded(text, retry_after_s=wait_s))
        if self._queued_bytes + call.payload_bytes > self._max_queued_bytes:
            text = f"{self._queued_bytes} bytes of calls wait here, and {self._max_queued_bytes} are the most"
            raise self._outcomes.dropped(lane, "full", Overloaded(text, retry_after_s=wait_s))
        if wait_s + own_s > left_s:
            raise self._outcomes.dropped(lane, "deadline", too_busy(lane.key, wait_s, own_s, left_s))
        lane.note_budget(left_s)

    def _probes(self, lane: Lane, call: Call, left_s: float, own_s: float) -> bool:
        """Whether a call that looks hopeless runs nevertheless, to see whether the prediction still holds."""
        if left_s <= 0.0 or not lane.idle:
            return False
        lane.hopeless += 1
        if lane.hopeless % PROBE_EVERY:
            return False
        call.deadline_at_s += 4.0 * own_s  # its caller's real deadline still cancels it
        return True

    # --- turns ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Take the next turn soon: not at once, so that calls that came together share a batch."""
        if not self._scheduled and not self._running and self._ended is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._guarded, self._advance)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a callback whose failure must not be lost."""
        try:
            step()
        except Exception as error:
            self._stop(errors.Internal("internal"))
            assert self._ended is not None
            if not self._ended.done():
                self._ended.set_exception(error)

    def _advance(self) -> None:
        """Start the next batch, unless one runs or all that waits may wait for company."""
        self._scheduled = False
        while not self._running and self._stopped is None:
            lane, pause_s = self._next(self._clock.now_s())
            if lane is None:
                if pause_s is not None and self._pausing is None:
                    self._pausing = asyncio.get_running_loop().create_task(self._pause(pause_s))
                return
            self._serve(lane)

    def _next(self, now_s: float) -> tuple[Lane | None, float | None]:
        """The lane to serve; else how long to pause, None until a call comes."""
        chosen: Lane | None = None
        pause_s: float | None = None
        for lane in self._busy:
            if chosen is not None and lane.waiting[0].deadline_at_s >= chosen.waiting[0].deadline_at_s:
                continue
            wait_s = lane.company_s(now_s)
            if wait_s <= 0.0:
                chosen = lane
            else:
                pause_s = wait_s if pause_s is None else min(pause_s, wait_s)
        return chosen, pause_s

    async def _pause(self, pause_s: float) -> None:
        try:
            await self._clock.sleep(pause_s)
        finally:
            self._pausing = None
        self._schedule()

    def _serve(self, lane: Lane) -> None:
        """Take a batch out of the lane and hand it to the device."""
        now_s = self._clock.now_s()
        calls, late, predicted_s, together = lane.take(now_s)
        for call in late:
            self._queued_bytes -= call.payload_bytes
            self._outcomes.fail(lane, call, late_now(lane, call, now_s))
        for call in calls:
            self._queued_bytes -= call.payload_bytes
        if not lane.waiting:
            del self._busy[lane]
        if not calls:
            self._settle(lane)
            return
        lane.running = len(calls)
        self._running = calls
        self._running_until_s = now_s + predicted_s

        def done(steps: Sequence[Step] | None, error: BaseException | None) -> None:
            self._guarded(lambda: self._done(lane, steps, error, together=together, predicted_s=predicted_s))

        self._compute.start(lane.model, calls, together=together, predicted_s=predicted_s, done=done)

    def _done(
        self,
        lane: Lane,
        steps: Sequence[Step] | None,
        error: BaseException | None,
        *,
        together: bool,
        predicted_s: float,
    ) -> None:
        """The device is free again."""
        calls, self._running, lane.running, self._running_until_s = self._running, [], 0, 0.0
        if steps is not None:
            self._schedule()
            for step in steps:
                self._outcomes.answer(lane, step)
        elif isinstance(error, OutOfDeviceMemory):
            lane.shrink(sum(call.rows for call in calls) if together else 1, self._clock.now_s())
            for call in calls:
                text = f"the device had no memory for a batch of {lane.key}"
                self._outcomes.fail(lane, call, Overloaded(text, retry_after_s=max(0.010, predicted_s)), failed=True)
            self._schedule()
        elif isinstance(error, DeviceBroken):
            self._running = calls
            self._stop(errors.HostUnavailable("the device of this host is broken"))
            self._observer.device_broken()
        else:
            self._running = calls
            assert error is not None
            raise error
        self._settle(lane)

    def _stop(self, error: YardError) -> None:
        """Fail all that runs or waits, and all that comes."""
        self._stopped = self._stopped or error
        lanes = list(self._busy)
        for call in (*self._running, *(call for lane in lanes for call in lane.waiting)):
            if call.reply is not None and not call.reply.done():
                call.reply.set_exception(error)
        if self._pausing is not None:
            self._pausing.cancel()
        self._busy.clear()
        self._queued_bytes = 0
        for lane in lanes:
            lane.waiting.clear()
            lane.waiting_rows = 0
            self._settle(lane)

    def _settle(self, lane: Lane) -> None:
        if lane.closed and lane.idle and lane.empty is not None and not lane.empty.done():
            lane.empty.set_result(None)
