"""Whether a call may enter the queue: it must be able to be answered in time, and there must be room for it.

A call that cannot be is refused at once, with the prediction: waiting would cost it its time, and computing it the
others theirs.
"""

from collections.abc import Iterable

from services.domain.errors import ModelNotReady, Overloaded
from services.model_host.calls import Call
from services.model_host.lane import Lane
from services.model_host.lateness import too_busy, too_late
from services.model_host.outcomes import Outcomes
from services.policy.batching import predicted_wait_s
from services.policy.cutoff import Cutoff
from services.policy.fairness import Shares, TenantShare

PROBE_EVERY = 8
"""An idle lane runs every so-many-th call that looks hopeless, so that one slow spell is unlearned."""

CUT_RETRY_S = 1.0
"""When calls of a class that is cut off may come again: the cutoff moves once a second."""


class Entrance:
    """Lets calls in, one by one."""

    def __init__(
        self, *, shares: Shares, outcomes: Outcomes, cutoff: Cutoff, max_queued: int, max_queued_bytes: int
    ) -> None:
        """Let in at most `max_queued` calls per lane, and `max_queued_bytes` in all."""
        self._shares = shares
        self._outcomes = outcomes
        self._cutoff = cutoff
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes

    def admit(
        self,
        lane: Lane,
        call: Call,
        *,
        now_s: float,
        running_s: float,
        busy: Iterable[Lane],
        queued_bytes: int,
    ) -> Call | None:
        """Refuse `call` if it cannot be answered in time.

        Args:
            lane: Where it would wait.
            call: The call.
            now_s: Time now.
            running_s: Predicted rest of what computes.
            busy: Lanes where calls wait.
            queued_bytes: Payload bytes that wait.

        Returns:
            The call of a later band that has to make room for it; None if none has.

        Raises:
            BudgetExhausted: Its deadline does not cover its own compute time.
            Overloaded: Its class is cut off, the queue is full, or what goes before it takes too long.
            ModelNotReady: The lane is closed.
        """
        if lane.closed:
            raise ModelNotReady(f"{lane.key} is being unloaded here")
        share = call.share
        assert share is not None
        if self._cutoff.came(share.service_class.level):
            text = f"this host has too much work to take calls of band {share.tier.band} now"
            raise self._outcomes.dropped(lane, call, "cutoff", Overloaded(text, retry_after_s=CUT_RETRY_S))
        left_s = call.deadline_at_s - now_s
        own_s = lane.seconds_of(call)
        if own_s > left_s:
            if not _probes(lane, call, left_s, own_s):
                raise self._outcomes.dropped(lane, call, "deadline", too_late(lane.key, own_s, left_s))
            return None
        # What others compute meanwhile is done by the time that it is in memory, unless that takes longer.
        wait_s = max(lane.absent_s, running_s + self._ahead_s(lane, call, share, busy))
        if wait_s + own_s > left_s:
            raise self._outcomes.dropped(lane, call, "deadline", too_busy(lane.key, wait_s, own_s, left_s))
        full = self._full(lane, call, queued_bytes)
        if not full:
            lane.note_budget(left_s)
            return None
        behind = lane.last_behind(share.tier.band) if share.service_class.preempts else None
        if behind is None or self._full(lane, call, queued_bytes - behind.payload_bytes, less=1):
            raise self._outcomes.dropped(lane, call, "full", Overloaded(full, retry_after_s=wait_s))
        lane.note_budget(left_s)
        return behind

    def _ahead_s(self, lane: Lane, call: Call, share: TenantShare, busy: Iterable[Lane]) -> float:
        """Predicted time of what goes before `call`."""
        flow = lane.flows.get(share)
        rows = 0 if flow is None else flow.rows_before(call.deadline_at_s)
        elsewhere_s = 0.0
        if share.waiting > (0 if flow is None else len(flow.waiting)):
            elsewhere_s = sum(other.seconds_before(share, call.deadline_at_s) for other in busy if other is not lane)
        others_s = self._shares.ahead_s(share, lane.row_s * (rows + call.rows) + elsewhere_s)
        if others_s > 0.0:  # as far as it is in this lane it shares batches with the call
            beside = min(lane.queued_rows - (0 if flow is None else flow.rows), int(others_s / lane.row_s))
            rows += beside
            elsewhere_s += max(0.0, others_s - beside * lane.row_s)
        times = lane.times.of_size(call.elements)
        return predicted_wait_s(running_s=elsewhere_s, rows_ahead=rows, cap=lane.cap, times=times)

    def _full(self, lane: Lane, call: Call, queued_bytes: int, *, less: int = 0) -> str:
        """Why there is no room; empty if there is."""
        if lane.queued - less >= self._max_queued:
            return f"{lane.queued} calls wait for {lane.key} here, and no more are taken"
        if queued_bytes + call.payload_bytes > self._max_queued_bytes:
            return f"{queued_bytes} bytes of calls wait here, and {self._max_queued_bytes} are the most"
        return ""


def _probes(lane: Lane, call: Call, left_s: float, own_s: float) -> bool:
    """Whether a call that looks hopeless runs nevertheless, to see whether the prediction still holds."""
    if left_s <= 0.0 or not lane.idle:
        return False
    lane.hopeless += 1
    if lane.hopeless % PROBE_EVERY:
        return False
    call.deadline_at_s += 4.0 * own_s  # its caller's real deadline still cancels it
    return True
