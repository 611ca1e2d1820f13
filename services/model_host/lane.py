"""What waits for one version, what is known of its batch times, and what its next batch is."""

import asyncio
from bisect import bisect_right, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, Protocol

from services.domain.host import ModelLoad
from services.domain.model import ModelKey
from services.policy.batch_times import ServiceTimes
from services.policy.batching import EXPLORE_EVERY, BatchPlan, batch_cap, form_batch, form_burst, wait_for_company_s

RECAP_EVERY = 16
"""Batches after which the cap is worked out again."""

BUDGET_RELAX = 0.05
"""Share by which the tightest budget follows looser ones, per call."""

CEILING_S = 60.0
"""After running out of memory the cap stays halved for this long, then doubles again."""

_BY_DEADLINE = attrgetter("deadline_at_s")


class Reply(Protocol):
    """Who takes what became of a call; a Future is one."""

    def done(self) -> bool:
        """Whether nothing is expected any more."""
        ...

    def set_result(self, answer: "Answer", /) -> None:
        """The call was computed."""
        ...

    def set_exception(self, error: BaseException, /) -> None:
        """The call failed, was dropped or refused."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """One request, as far as its turn is concerned."""

    payload: object
    """What computes it; opaque here."""
    deadline_at_s: float
    """When its answer is worth nothing any more, on the queue's clock."""
    rows: int = 1
    """Rows it adds to a batch."""
    elements: int = 1
    """Elements of one row."""
    group: Hashable = ()
    """Calls of equal groups can compute together."""
    payload_bytes: int = 0
    """Memory that it holds while it waits."""
    trace: object = None
    """Whose trace it belongs to; opaque here."""
    arrived_s: float = 0.0
    abandoned: bool = False
    """Nobody waits for the answer any more. Read by the compute thread."""
    reply: Reply | None = None


class Answer(NamedTuple):
    """What a call got, and how."""

    value: object
    queue_s: float
    compute_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Step:
    """Calls that were computed together."""

    calls: Sequence[Call]
    outcomes: Sequence[object]
    """One per call: its value, or the YardError that it failed with."""
    started_s: float
    compute_s: float


@dataclass(slots=True)
class LaneStatistics:
    """What one version has done since it was opened."""

    success: int = 0
    failure: int = 0
    dropped: int = 0
    executions: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    batches: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lane:
    """The calls of one version; made by `BatchQueue.open`."""

    key: ModelKey
    model: object
    """What computes it; opaque here."""
    max_batch_size: int
    """Rows; 1 never puts calls together."""
    max_wait_s: float
    """Longest wait for company on an idle device."""
    slo_s: float | None
    """The model's latency objective, if any."""
    times: ServiceTimes
    ceiling: int = 0
    """Most rows since the device ran out of memory; 0 if it did not."""
    ceiling_until_s: float = 0.0
    statistics: LaneStatistics = field(default_factory=LaneStatistics)
    waiting: list[Call] = field(default_factory=list)
    """In order of their deadlines."""
    waiting_rows: int = 0
    running: int = 0
    cap: int = 1
    hopeless: int = 0
    """Calls refused for their own predicted time while the lane was idle."""
    closed: bool = False
    empty: "asyncio.Future[None] | None" = None
    """Set once the lane is closed and nothing waits or runs."""
    _batches: int = 0
    _tightest_s: float | None = None
    _capped_for_s: float | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self.waiting and not self.running

    def load(self) -> ModelLoad:
        """Its load now."""
        base_s, per_item_s = self.times.overall.line()
        return ModelLoad(self.key, len(self.waiting), self.running, self.cap, base_s, per_item_s)

    def seconds_of(self, call: Call) -> float:
        """Predicted time of `call` alone."""
        return self.times.of_size(call.elements).predict(call.rows)

    def rows_before(self, deadline_at_s: float) -> int:
        """About how many rows are due no later than `deadline_at_s`."""
        waiting = self.waiting
        if not waiting or waiting[-1].deadline_at_s <= deadline_at_s:
            return self.waiting_rows
        return self.waiting_rows * bisect_right(waiting, deadline_at_s, key=_BY_DEADLINE) // len(waiting)

    def seconds_before(self, deadline_at_s: float) -> float:
        """Predicted time to compute all that is due no later than `deadline_at_s`."""
        rows = self.rows_before(deadline_at_s)
        return -(-rows // self.cap) * self.times.overall.predict(min(rows, self.cap)) if rows else 0.0

    def note_budget(self, budget_s: float) -> None:
        """A call came that leaves `budget_s`; about the tightest of these bounds the batch."""
        if self._tightest_s is None or budget_s < self._tightest_s:
            self._tightest_s = budget_s
        else:
            self._tightest_s += BUDGET_RELAX * (budget_s - self._tightest_s)

    def add(self, call: Call) -> None:
        """Put `call` where its deadline belongs."""
        if not self.waiting or self.waiting[-1].deadline_at_s <= call.deadline_at_s:
            self.waiting.append(call)
        else:
            insort(self.waiting, call, key=_BY_DEADLINE)
        self.waiting_rows += call.rows

    def discard(self, call: Call) -> bool:
        """Take `call` out; False if it does not wait."""
        for index, waiting in enumerate(self.waiting):
            if waiting is call:
                del self.waiting[index]
                self.waiting_rows -= call.rows
                return True
        return False

    def take(self, now_s: float) -> tuple[list[Call], list[Call], float, bool]:
        """Take the next batch out of the queue.

        Returns:
            The calls to compute, those that are too late, the predicted time, and whether the
            former are one batch (or else computed one after another).
        """
        if self.max_batch_size > 1 and self._recap_due(now_s):
            self.recap()
        if len(self.waiting) == 1:  # what policy would say of one call, without asking it
            call = self.waiting[0]
            predicted_s = self.seconds_of(call)
            if call.deadline_at_s >= now_s + predicted_s:
                self.waiting.clear()
                self.waiting_rows = 0
                return [call], [], predicted_s, False
        cap = self._cap_now()
        if cap > 1:
            times = self.times.of_size(self.waiting[0].elements)
            plan = form_batch(self.waiting, now_s=now_s, cap=cap, times=times)
        else:
            plan = form_burst(self.waiting, now_s=now_s, seconds_of=self.seconds_of)
        calls = [self.waiting[index] for index in plan.take]
        late = [self.waiting[index] for index in plan.drop]
        self._remove(plan)
        for call in (*calls, *late):
            self.waiting_rows -= call.rows
        return calls, late, plan.predicted_s, cap > 1 and len(calls) > 1

    def _remove(self, plan: BatchPlan) -> None:
        count = len(plan.take) + len(plan.drop)
        gone = {*plan.take, *plan.drop}
        if count == len(self.waiting):
            self.waiting.clear()
        elif max(gone, default=-1) == count - 1:
            del self.waiting[:count]
        else:
            self.waiting[:] = [call for index, call in enumerate(self.waiting) if index not in gone]

    def company_s(self, now_s: float) -> float:
        """How long an idle device should wait for company to what waits here."""
        if self.max_wait_s <= 0.0:
            return 0.0
        return wait_for_company_s(
            self.waiting,
            first_at_s=min(call.arrived_s for call in self.waiting),
            now_s=now_s,
            cap=self.cap,
            max_wait_s=self.max_wait_s,
            times=self.times.of_size(self.waiting[0].elements),
        )

    def learn(self, step: Step) -> None:
        """A step was computed."""
        first = step.calls[0]
        size = len(step.calls)
        rows = first.rows if size == 1 else sum(call.rows for call in step.calls)
        self.times.observe(rows, first.elements, step.compute_s)
        self._batches += 1
        self.statistics.executions += 1
        self.statistics.batches[size] = self.statistics.batches.get(size, 0) + 1

    def shrink(self, rows: int, now_s: float) -> None:
        """The device had no memory for `rows` rows: half as many from now on."""
        self.ceiling = max(1, min(rows, self.cap) // 2)
        self.ceiling_until_s = now_s + CEILING_S
        self.recap()

    def recap(self) -> None:
        """Work out the cap anew."""
        bounds = [bound for bound in (self.slo_s, self._tightest_s) if bound is not None]
        self._capped_for_s = self._tightest_s
        self.cap = batch_cap(self.times.overall, max_batch_size=self._most_rows(), slo_s=min(bounds, default=None))

    def _recap_due(self, now_s: float) -> bool:
        if self.ceiling and now_s >= self.ceiling_until_s:
            self.ceiling = 0 if 2 * self.ceiling >= self.max_batch_size else 2 * self.ceiling
            self.ceiling_until_s = now_s + CEILING_S
            return True
        if self._batches % RECAP_EVERY == 0 or self._capped_for_s is None or self._tightest_s is None:
            return True
        return not 0.8 * self._capped_for_s <= self._tightest_s <= 1.25 * self._capped_for_s

    def _cap_now(self) -> int:
        """The cap; now and then twice as much under backlog, so that a size once slow is tried again."""
        if self._batches % EXPLORE_EVERY == EXPLORE_EVERY - 1 and self.waiting_rows > self.cap:
            return min(self._most_rows(), 2 * self.cap)
        return self.cap

    def _most_rows(self) -> int:
        return min(self.max_batch_size, self.ceiling or self.max_batch_size)
