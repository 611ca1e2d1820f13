"""What becomes of the calls of a lane: the reply to each, what is counted of it, and who is told."""

from typing import Protocol

from services.domain.errors import BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.model_host.calls import Answer, Call, Step
from services.model_host.lane import Lane
from services.model_host.statistics import BandStatistics
from services.policy.cutoff import Cutoff
from services.policy.fairness import Shares, TenantShare


class OutcomeObserver(Protocol):
    """Who wants to know what was done."""

    def step_done(self, key: ModelKey, step: Step) -> None:
        """Calls of `key` were computed."""
        ...

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A call ended before it was computed; the cause is one of `statistics.CAUSES`."""
        ...

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        """The device computed for so long what came too late or nobody waited for."""
        ...


class Outcomes:
    """Ends calls."""

    def __init__(self, observer: OutcomeObserver, shares: Shares, cutoff: Cutoff) -> None:
        """Tell `observer` of every step and drop; charge device time to `shares`."""
        self._observer = observer
        self._shares = shares
        self._cutoff = cutoff

    def answer(self, lane: Lane, step: Step) -> None:
        """Calls were computed: each is told its own."""
        calls = step.calls
        size = len(calls)
        rows = calls[0].rows if size == 1 else sum(call.rows for call in calls)
        row_s = step.compute_s / max(1, rows)
        ended_s = step.started_s + step.compute_s
        computed = False
        waited_s = wasted_s = had_s = 0.0
        share = calls[0].share
        assert share is not None
        statistics = lane.statistics.of(share.tier.band)
        for call, outcome in zip(calls, step.outcomes, strict=True):
            if call.share is not share:
                self._had(share, statistics, had_s)
                share, had_s = call.share, 0.0
                assert share is not None
                statistics = lane.statistics.of(share.tier.band)
            device_s = row_s * call.rows
            had_s += device_s
            if isinstance(outcome, YardError):
                self.fail(lane, call, outcome)
                continue
            computed = True
            reply = call.reply
            assert reply is not None
            queue_s = max(0.0, step.started_s - call.arrived_s)
            waited_s += queue_s
            if reply.done() or ended_s > call.deadline_at_s:
                statistics.wasted_s += device_s
                wasted_s += device_s
            if not reply.done():
                statistics.success += 1
                statistics.queue_s += queue_s
                statistics.compute_s += step.compute_s
                reply.set_result(Answer(outcome, queue_s, step.compute_s, size))
        self._had(share, statistics, had_s)
        if computed:
            self._cutoff.waited(size, waited_s)
            lane.learn(step)
            self._observer.step_done(lane.key, step)
            if wasted_s > 0.0:
                self._observer.device_wasted(lane.key, wasted_s)

    def _had(self, share: TenantShare, statistics: BandStatistics, device_s: float) -> None:
        statistics.device_s += device_s
        self._shares.charge(share, device_s)

    def fail(self, lane: Lane, call: Call, error: YardError, *, failed: bool = False) -> None:
        """The call fails with `error`; for lack of time or room it was dropped, unless it has `failed` computing."""
        reply = call.reply
        if reply is None or reply.done():
            return
        if failed or not isinstance(error, (Overloaded, BudgetExhausted)):
            lane.statistics.of(_band(call)).failure += 1
        else:
            self.dropped(lane, call, "deadline", error)
        reply.set_exception(error)

    def cancelled(self, lane: Lane, call: Call) -> None:
        """Nobody waits for a call any more that has not been computed."""
        self._count(lane, call, "cancelled")

    def pushed_out(self, lane: Lane, call: Call, error: YardError) -> None:
        """The call makes room for one of an earlier band."""
        self.dropped(lane, call, "preempted", error)
        if call.reply is not None and not call.reply.done():
            call.reply.set_exception(error)

    def dropped(self, lane: Lane, call: Call, cause: str, error: YardError) -> YardError:
        """A call was not computed, for `cause`; its caller is told `error`, which is returned."""
        if cause != "cutoff":
            self._cutoff.refused()
        self._count(lane, call, cause)
        return error

    def _count(self, lane: Lane, call: Call, cause: str) -> None:
        band = _band(call)
        drops = lane.statistics.of(band).drops
        drops[cause] = drops.get(cause, 0) + 1
        self._observer.call_dropped(lane.key, band, cause)


def _band(call: Call) -> int:
    assert call.share is not None
    return call.share.tier.band
