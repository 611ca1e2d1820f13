"""Which of the waiting calls compute together, which are too late to compute at all.

Batches form without a timer: a batch is what queued while the previous one ran. Order is
earliest deadline first. Under backlog a call that would miss its deadline is dropped before it
costs anything, and the batch is never shrunk to save it (see POLICIES, "May it enter").
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from services.policy.batch_times import BatchTimes

SLO_SHARE = 0.5
"""Share of a model's latency objective that one batch may take: a call may just have missed one."""

THROUGHPUT_TOLERANCE = 0.02
"""A larger batch must gain more than this in rows per second, else the smaller one is as good."""

LONGEST_WAIT_S = 0.005
"""A call never waits longer than this for company, whatever its version allows."""

EXPLORE_EVERY = 64
"""Under backlog every so-many-th batch may be twice the cap, so that a size once slow is tried again."""


BURST_S = 0.002
"""Calls that do not batch may be handed to the device together up to this much predicted time, to
save a hand-over per call where computing costs less than that."""

BURST_CALLS = 32
"""Most calls of a burst."""

BUDGET_RELAX = 1.05
"""Factor by which the tightest budget grows towards looser ones, per call."""


class TightestBudget:
    """About the tightest of the budgets that calls came with of late."""

    __slots__ = ("value_s",)

    def __init__(self) -> None:
        """None came yet."""
        self.value_s: float | None = None

    def note(self, budget_s: float) -> None:
        """A call came that leaves `budget_s`."""
        value_s = self.value_s
        self.value_s = budget_s if value_s is None else min(budget_s, BUDGET_RELAX * value_s)


class Waiting(Protocol):
    """A call that waits."""

    @property
    def deadline_at_s(self) -> float:
        """When its answer is worth nothing any more."""
        ...

    @property
    def rows(self) -> int:
        """Rows it adds to a batch."""
        ...

    @property
    def group(self) -> Hashable:
        """Calls of equal groups can compute together."""
        ...


_W = TypeVar("_W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What to do with the waiting calls now, by their index."""

    take: tuple[int, ...]
    """Compute together; empty only if nothing is left after the drops."""
    drop: tuple[int, ...]
    """Answer at once that it is too late."""
    predicted_s: float
    """Time the batch should take."""


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two up to `max_batch_size`, and itself."""
    largest = max(1, max_batch_size)
    sizes = [1 << power for power in range(largest.bit_length()) if 1 << power <= largest]
    return tuple(sizes if sizes[-1] == largest else [*sizes, largest])


def batch_cap(times: BatchTimes, *, max_batch_size: int, slo_s: float | None) -> int:
    """The largest batch worth forming.

    Args:
        times: Batch times of the model on its device.
        max_batch_size: Most rows the version (or its device, after running out of memory) takes.
        slo_s: The model's latency objective, if it has one.

    Returns:
        Rows; at least 1, never beyond the size of the best rate, and with a predicted time
        within half of the objective where any size has that.
    """
    sizes = batch_sizes(max_batch_size)
    best_per_s = max(size / times.predict(size) for size in sizes)
    good = (1.0 - THROUGHPUT_TOLERANCE) * best_per_s
    cap = next(size for size in sizes if size / times.predict(size) >= good)
    if slo_s is None:
        return cap
    return max((size for size in sizes if size <= cap and times.predict(size) <= SLO_SHARE * slo_s), default=1)


def form_batch(waiting: Sequence[Waiting], *, now_s: float, cap: int, times: BatchTimes) -> BatchPlan:
    """Choose the next batch.

    Args:
        waiting: Calls in order of their deadlines.
        now_s: Time now, on the clock of the deadlines.
        cap: Most rows; a single call with more goes alone.
        times: Batch times of the model.

    Returns:
        The batch and the drops. A batch holds one group, that of its first call.
    """
    dropped: list[int] = []
    start = 0
    gone: set[int] = set()
    while True:
        while start < len(waiting) and start in gone:
            start += 1
        if start == len(waiting):
            return BatchPlan((), tuple(dropped), 0.0)
        take, rows, backlog = _fill(waiting, start, gone, cap)
        predicted_s = times.predict(rows)
        # Where others wait, a place in the batch is not for a call that may well be late.
        ready_s = now_s + (times.at_most(rows) if backlog else predicted_s)
        late = [index for index in take if waiting[index].deadline_at_s < ready_s]
        if not late:
            return BatchPlan(tuple(take), tuple(dropped), predicted_s)
        if not backlog:
            spared = _spare_head(waiting, take, rows, now_s, times)
            if spared:
                return BatchPlan(
                    tuple(take[:spared]),
                    tuple(dropped),
                    times.predict(sum(waiting[index].rows for index in take[:spared])),
                )
            late = late[:1]  # no backlog refills the batch: without its first call it is shorter
        dropped.extend(late)
        gone.update(late)


def form_burst(waiting: Sequence[_W], *, now_s: float, seconds_of: Callable[[_W], float]) -> BatchPlan:
    """Choose calls to compute one after another, where batching does not pay.

    Args:
        waiting: Calls in order of their deadlines.
        now_s: Time now, on the clock of the deadlines.
        seconds_of: Predicted time of one call.

    Returns:
        At least one call unless all are too late; more only while their times add up to less
        than `BURST_S`.
    """
    take: list[int] = []
    drop: list[int] = []
    total_s = 0.0
    for index, call in enumerate(waiting):
        own_s = seconds_of(call)
        if take and (total_s + own_s > BURST_S or len(take) == BURST_CALLS):
            break
        if call.deadline_at_s < now_s + total_s + own_s:
            drop.append(index)
            continue
        take.append(index)
        total_s += own_s
    return BatchPlan(tuple(take), tuple(drop), total_s)


def _fill(waiting: Sequence[Waiting], start: int, gone: set[int], cap: int) -> tuple[list[int], int, bool]:
    """Indexes of one batch from `start` on, its rows, and whether calls of its group are left over."""
    head = waiting[start]
    group = head.group
    take = [start]
    rows = head.rows
    for index in range(start + 1, len(waiting)):
        call = waiting[index]
        if index in gone or call.group != group:
            continue
        if rows + call.rows > cap:
            return take, rows, True
        take.append(index)
        rows += call.rows
    return take, rows, False


def _spare_head(waiting: Sequence[Waiting], take: Sequence[int], rows: int, now_s: float, times: BatchTimes) -> int:
    """How many of `take` can go first so that all of it, in two batches, is in time; 0 if none."""
    first_rows = 0
    for count, index in enumerate(take[:-1], start=1):
        first_rows += waiting[index].rows
        first_s = times.predict(first_rows)
        if waiting[take[0]].deadline_at_s < now_s + first_s:
            return 0
        if waiting[take[count]].deadline_at_s >= now_s + first_s + times.predict(rows - first_rows):
            return count
    return 0


def wait_for_company_s(
    waiting: Sequence[Waiting], *, first_at_s: float, now_s: float, cap: int, max_wait_s: float, times: BatchTimes
) -> float:
    """How long an idle device should wait before it takes what is there.

    Args:
        waiting: Calls in order of their deadlines; at least one.
        first_at_s: When the longest waiting of them came.
        now_s: Time now.
        cap: Most rows of a batch.
        max_wait_s: What the version allows.
        times: Batch times of the model.

    Returns:
        Seconds; 0 to start now. Never so long that the first deadline is missed by it, and 0
        where twice the rows would not compute faster per row.
    """
    if max_wait_s <= 0.0:
        return 0.0
    rows = sum(call.rows for call in waiting)
    if rows >= cap:
        return 0.0
    doubled = min(cap, 2 * rows)
    if doubled / times.predict(doubled) <= (1.0 + THROUGHPUT_TOLERANCE) * rows / times.predict(rows):
        return 0.0
    slack_s = waiting[0].deadline_at_s - now_s - times.predict(doubled)
    return max(0.0, min(first_at_s + min(max_wait_s, LONGEST_WAIT_S) - now_s, slack_s))


def predicted_wait_s(*, running_s: float, rows_ahead: int, cap: int, times: BatchTimes) -> float:
    """Time until a batch with a new call could start.

    Args:
        running_s: Predicted rest of the batch that computes now.
        rows_ahead: Rows of earlier deadlines that wait.
        cap: Most rows of a batch.
        times: Batch times of the model.
    """
    if rows_ahead <= 0:
        return running_s
    full = rows_ahead // cap  # the rest shares a batch with the new call
    return running_s + full * times.predict(cap)
