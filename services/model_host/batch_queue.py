"""The order in which calls reach the device, and which of them are refused or dropped.

One queue per device, one lane per version. Whose call goes next is `policy.fairness`: bands, fair shares of the
device between tenants; among the calls of one tenant, of whatever version, the earliest deadline goes first. What
to take and what to drop is `policy.batching`, which calls may enter is `entrance`; computing is behind the
port `Compute`. Everything here runs on the event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from services.domain import errors
from services.domain.clock import Clock
from services.domain.errors import Overloaded, YardError
from services.domain.model import ModelKey
from services.domain.service_class import ORDINARY, ServiceClass
from services.model_host.calls import Answer, Call, Reply, Step
from services.model_host.computing import Compute, DeviceBroken, OutOfDeviceMemory
from services.model_host.entrance import Entrance
from services.model_host.lane import CEILING_S, Lane
from services.model_host.lateness import late_now
from services.model_host.outcomes import OutcomeObserver, Outcomes
from services.model_host.statistics import LaneStatistics
from services.model_host.turns import SWEEP_EVERY_S, next_lane
from services.policy.batch_times import ServiceTimes
from services.policy.batching import TightestBudget
from services.policy.cutoff import Cutoff
from services.policy.fairness import Shares, TenantShare

BATCH_WEIGHT = 0.2
"""Weight of the last batch in what a batch takes of late."""


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
        self._clock = clock
        now_s = clock.now_s()
        self._shares = Shares()
        self._ordinary = self._shares.of(ORDINARY)
        self._cutoff = Cutoff(now_s)
        self._outcomes = Outcomes(observer, self._shares, self._cutoff)
        self._entrance = Entrance(
            shares=self._shares,
            outcomes=self._outcomes,
            cutoff=self._cutoff,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
        )
        self._tightest = TightestBudget()
        self._busy: dict[Lane, None] = {}
        self._queued_bytes = 0
        self._running: list[Call] = []
        self._running_until_s = 0.0
        self._batch_s = 0.0
        self._swept_s = now_s
        self._scheduled = False
        self._scheduled_s = now_s
        self._pausing: asyncio.Task[None] | None = None
        self._stopped: YardError | None = None
        self._ended: asyncio.Future[None] | None = None
        self.statistics: dict[ModelKey, LaneStatistics] = {}
        """What each version has done, those that are gone included."""

    @property
    def cutoff(self) -> int:
        """Classes from this level on are refused; see `policy.cutoff`."""
        return self._cutoff.value

    def share_of(self, service_class: ServiceClass) -> TenantShare:
        """What calls of the class are entered with; hold it while such calls may come."""
        return self._shares.of(service_class)

    def cuts_off(self, share: TenantShare) -> bool:
        """Whether calls of the class of `share` are refused now; one of them has come."""
        return self._cutoff.came(share.service_class.level)

    def charge(self, share: TenantShare, device_s: float) -> None:
        """The device computed for `device_s` for calls of `share` that took a detour."""
        self._shares.charge(share, device_s)

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
        rows = max(1, max_batch_size)
        lane = Lane(key, model, rows, max_wait_s, slo_s, times, self._tightest, ceiling, until_s, statistics)
        lane.recap()
        return lane

    async def close(self, lane: Lane) -> None:
        """Take no new calls, and return once those that wait are answered."""
        lane.closed = True
        if lane.detour is not None:
            await lane.detour.close()
        elif not lane.idle:
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
            Overloaded: Its class is cut off, the queue is full, or what goes before it takes too long.
            ModelNotReady: The lane is closed.
            HostUnavailable: The device broke.
        """
        call.arrived_s = now_s = self._clock.now_s()
        share = call.share
        if share is None:
            share = call.share = self._ordinary
        if self._stopped is not None:
            raise type(self._stopped)(self._stopped.message)
        if lane.detour is not None:
            lane.detour.enter(call, reply)
            return
        if self._cutoff.due(now_s):
            self._cutoff.move(now_s, batch_s=self._batch_s)
        lane.uses += 1
        if not lane.resident:
            lane.statistics.cold += 1
            if lane.wanted is not None:
                lane.wanted()  # also for a call that will not wait for it: the next one need not either
        behind = self._entrance.admit(
            lane,
            call,
            now_s=now_s,
            running_s=max(0.0, self._running_until_s - now_s),
            busy=self._busy,
            queued_bytes=self._queued_bytes,
        )
        if behind is not None:
            self._push_out(lane, behind)
        call.reply = reply
        call.cost_s = lane.row_s * call.rows
        lane.add(call)
        self._shares.entered(share, call.cost_s)
        self._queued_bytes += call.payload_bytes
        self._busy[lane] = None
        self._schedule()

    def arrived(self, lane: Lane, model: object) -> None:
        """The lane's version is in memory, as `model`: its calls may be served."""
        lane.model, lane.resident, lane.absent_s = model, True, 0.0
        self._schedule()

    def refuse_all(self, lane: Lane, error: YardError) -> None:
        """The lane's version cannot be brought into memory: its calls fail with `error`."""
        calls = lane.take_all()
        self._left(calls)
        for call in calls:
            self._outcomes.fail(lane, call, error, failed=True)
        self._unbusy(lane)

    def abandon(self, lane: Lane, call: Call) -> None:
        """Nobody waits for `call` any more: out of the queue, unless it computes already, which is not stopped."""
        call.abandoned = True
        if lane.detour is not None:
            lane.detour.abandon(call)
            return
        if not lane.discard(call):
            return
        self._left([call])
        self._outcomes.cancelled(lane, call)
        self._unbusy(lane)

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

    # --- turns ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Take the next turn soon: not at once, so that calls that came together share a batch."""
        if not self._scheduled and not self._running and self._ended is not None:
            self._scheduled = True
            self._scheduled_s = self._clock.now_s()
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
        now_s = self._clock.now_s()
        self._cutoff.lagged(now_s - self._scheduled_s)
        if now_s - self._swept_s >= SWEEP_EVERY_S:
            self._sweep(now_s)
        while not self._running and self._stopped is None:
            lane, pause_s = next_lane(self._busy, self._shares, self._clock.now_s())
            if lane is None:
                if pause_s is not None and self._pausing is None:
                    self._pausing = asyncio.get_running_loop().create_task(self._pause(pause_s))
                return
            self._serve(lane)

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
        self._left([*late, *calls])
        for call in late:
            self._outcomes.fail(lane, call, late_now(lane, call, now_s))
        lane.running = len(calls)  # before the lane could look idle
        self._unbusy(lane)
        if not calls:
            return
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
                self._batch_s += BATCH_WEIGHT * (step.compute_s - self._batch_s)
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
        waiting = [call for lane in lanes for call in lane.take_all()]
        self._left(waiting)
        for call in (*self._running, *waiting):
            if call.reply is not None and not call.reply.done():
                call.reply.set_exception(error)
        if self._pausing is not None:
            self._pausing.cancel()
        for lane in lanes:
            self._unbusy(lane)

    def _sweep(self, now_s: float) -> None:
        """Drop what is too late already, wherever it waits."""
        self._swept_s = now_s
        for lane in list(self._busy):
            expired = lane.take_expired(now_s)
            self._left(expired)
            for call in expired:
                self._outcomes.fail(lane, call, late_now(lane, call, now_s))
            self._unbusy(lane)

    def _push_out(self, lane: Lane, call: Call) -> None:
        """`call` has to make room."""
        lane.discard(call)
        self._left([call])
        text = f"the queue of {lane.key} is full, and a call of an earlier band took the place of this one"
        self._outcomes.pushed_out(lane, call, Overloaded(text, retry_after_s=lane.row_s * lane.queued_rows))

    def _left(self, calls: Sequence[Call]) -> None:
        """`calls` do not wait any more; mostly they are of one tenant."""
        share, count, cost_s, size = None, 0, 0.0, 0
        for call in calls:
            if call.share is not share:
                if share is not None:
                    self._shares.left(share, cost_s, count)
                share, count, cost_s = call.share, 0, 0.0
            count += 1
            cost_s += call.cost_s
            size += call.payload_bytes
        if share is not None:
            self._shares.left(share, cost_s, count)
        self._queued_bytes -= size

    def _unbusy(self, lane: Lane) -> None:
        """Calls left the lane: perhaps all."""
        if not lane.queued:
            self._busy.pop(lane, None)
            self._settle(lane)

    def _settle(self, lane: Lane) -> None:
        if lane.closed and lane.idle and lane.empty is not None and not lane.empty.done():
            lane.empty.set_result(None)
