"""What waits for one version, what is known of its batch times, and what its next batch is."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import NamedTuple

from services.domain.host import ModelLoad
from services.domain.model import ModelKey
from services.domain.service_class import DEFAULT_BAND, LAST_BAND
from services.model_host.calls import Call, Detour, Step
from services.model_host.flow import Flow
from services.model_host.statistics import LaneStatistics
from services.policy.batch_times import ServiceTimes
from services.policy.batching import (
    EXPLORE_EVERY,
    TightestBudget,
    batch_cap,
    form_batch,
    form_burst,
    wait_for_company_s,
)
from services.policy.fairness import TenantShare, in_turn

RECAP_EVERY = 16
"""Batches after which the cap is worked out again."""

CEILING_S = 60.0
"""After running out of memory the cap stays halved for this long, then doubles again."""

LOOKED_AT = 4
"""Of calls of several tenants this many caps of calls are put in order for a batch: those that are dropped for being
too late leave room."""


class Batch(NamedTuple):
    """What came out of a lane."""

    calls: list[Call]
    """To be computed; empty only if nothing waits any more."""
    late: list[Call]
    """To be told that they are too late."""
    predicted_s: float
    together: bool
    """As one batch, or else one after another."""


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
    device_tightest: TightestBudget
    """Of the calls of all versions: a batch holds the device against them as well."""
    ceiling: int = 0
    """Most rows since the device ran out of memory; 0 if it did not."""
    ceiling_until_s: float = 0.0
    statistics: LaneStatistics = field(default_factory=LaneStatistics)
    flows: dict[TenantShare, Flow] = field(default_factory=dict)
    """What waits, by whom it is for; none is empty."""
    detour: Detour | None = None
    """What takes its calls in the queue's place, if they are not for batches."""
    wanted: "Callable[[], None] | None" = None
    """Asked to bring the version into memory, where it may come and go."""
    resident: bool = True
    """Whether it is in memory; where it is not, calls wait until it is."""
    absent_s: float = 0.0
    """How long it will take until it is, if it is called now."""
    uses: int = 0
    """Calls that entered."""
    queued: int = 0
    """Calls that wait."""
    queued_rows: int = 0
    running: int = 0
    cap: int = 1
    row_s: float = 0.0
    """Device time of one row in a full batch."""
    hopeless: int = 0
    """Calls refused for their own predicted time while the lane was idle."""
    closed: bool = False
    empty: "asyncio.Future[None] | None" = None
    """Set once the lane is closed and nothing waits or runs."""
    _batches: int = 0
    _tightest: TightestBudget = field(default_factory=TightestBudget)
    _capped_for_s: float | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self.queued and not self.running

    def load(self) -> ModelLoad:
        """Its load now."""
        base_s, per_item_s = self.times.overall.line()
        return ModelLoad(self.key, self.queued, self.running, self.cap, base_s, per_item_s, self.queued_up_to())

    def queued_up_to(self) -> tuple[int, ...]:
        """Calls that compute, and those that wait up to each band; empty if all that wait are of the default one."""
        bands = self.queued_by_band()
        if not bands or (len(bands) == 1 and DEFAULT_BAND in bands):
            return ()
        return tuple(accumulate((bands.get(band, 0) for band in range(1, LAST_BAND + 1)), initial=self.running))[1:]

    def queued_by_band(self) -> dict[int, int]:
        """Calls that wait, by band."""
        queued: dict[int, int] = {}
        for flow in self.flows.values():
            band = flow.share.tier.band
            queued[band] = queued.get(band, 0) + len(flow.waiting)
        return queued

    def seconds_of(self, call: Call) -> float:
        """Predicted time of `call` alone."""
        return self.times.of_size(call.elements).predict(call.rows)

    def seconds_before(self, share: TenantShare, deadline_at_s: float) -> float:
        """Predicted time to compute all of the tenant's that is due no later than `deadline_at_s`."""
        flow = self.flows.get(share)
        rows = 0 if flow is None else flow.rows_before(deadline_at_s)
        return -(-rows // self.cap) * self.times.overall.predict(min(rows, self.cap)) if rows else 0.0

    def note_budget(self, budget_s: float) -> None:
        """A call came that leaves `budget_s`; about the tightest of these bounds the batch."""
        self._tightest.note(budget_s)
        self.device_tightest.note(budget_s)

    def add(self, call: Call) -> None:
        """Put `call` where its deadline belongs."""
        share = call.share
        assert share is not None
        flow = self.flows.get(share)
        if flow is None:
            flow = self.flows[share] = Flow(share)
        flow.add(call)
        self.queued += 1
        self.queued_rows += call.rows

    def discard(self, call: Call) -> bool:
        """Take `call` out; False if it does not wait."""
        flow = None if call.share is None else self.flows.get(call.share)
        if flow is None or not flow.discard(call):
            return False
        self.queued -= 1
        self.queued_rows -= call.rows
        if not flow.waiting:
            del self.flows[flow.share]
        return True

    def take(self, now_s: float) -> Batch:
        """Take the next batch out of the queue."""
        if self.max_batch_size > 1 and self._recap_due(now_s):
            self.recap()
        if self.queued == 1:  # what policy would say of one call, without asking it
            share, flow = next(iter(self.flows.items()))
            call = flow.waiting[0]
            predicted_s = self.seconds_of(call)
            if call.deadline_at_s >= now_s + predicted_s:
                del self.flows[share]
                self.queued = self.queued_rows = 0
                return Batch([call], [], predicted_s, together=False)
        late: list[Call] = []
        cap = self._cap_now()
        while self.flows:
            waiting = self._in_turn(cap)
            if cap > 1:
                plan = form_batch(waiting, now_s=now_s, cap=cap, times=self.times.of_size(waiting[0].elements))
            else:
                plan = form_burst(waiting, now_s=now_s, seconds_of=self.seconds_of)
            calls = [waiting[index] for index in plan.take]
            dropped = [waiting[index] for index in plan.drop]
            self._remove((*calls, *dropped))
            late += dropped
            if calls:
                return Batch(calls, late, plan.predicted_s, cap > 1 and len(calls) > 1)
        return Batch([], late, 0.0, together=False)

    def take_expired(self, now_s: float) -> list[Call]:
        """Take out what is too late whatever happens: calls that others go before may never come to the front."""
        expired = [call for flow in self.flows.values() for call in flow.expired(now_s)]
        self._remove(expired)
        return expired

    def take_all(self) -> list[Call]:
        """Take everything out."""
        calls = [call for flow in self.flows.values() for call in flow.waiting]
        self.flows.clear()
        self.queued = self.queued_rows = 0
        return calls

    def last_behind(self, band: int) -> Call | None:
        """The call that waits for a later band than `band` and matters least; None if there is none."""
        behind = [flow for flow in self.flows.values() if flow.share.tier.band > band]
        if not behind:
            return None
        flow = max(behind, key=lambda each: (each.share.tier.band, each.share.tier.virtual_s, each.share.virtual_s))
        return flow.waiting[-1]

    def company_s(self, now_s: float) -> float:
        """How long an idle device should wait for company to what waits here; for ever while the version is away."""
        if not self.resident:
            return math.inf
        if self.max_wait_s <= 0.0:
            return 0.0
        if self.queued_rows >= self.cap:
            return 0.0
        flows = list(self.flows.values())
        waiting = flows[0].waiting
        if len(flows) > 1:
            waiting = sorted((call for flow in flows for call in flow.waiting), key=lambda call: call.deadline_at_s)
        return wait_for_company_s(
            waiting,
            first_at_s=min(call.arrived_s for call in waiting),
            now_s=now_s,
            cap=self.cap,
            max_wait_s=self.max_wait_s,
            times=self.times.of_size(waiting[0].elements),
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
        tightest_s = self._tightest_s()
        bounds = [bound for bound in (self.slo_s, tightest_s) if bound is not None]
        self._capped_for_s = tightest_s
        self.cap = batch_cap(self.times.overall, max_batch_size=self._most_rows(), slo_s=min(bounds, default=None))
        self.row_s = self.times.overall.predict(self.cap) / self.cap

    def _in_turn(self, cap: int) -> Sequence[Call]:
        """What waits, in the order in which it should go, as far as one batch needs it."""
        if len(self.flows) == 1:
            return next(iter(self.flows.values())).waiting
        calls = in_turn(list(self.flows.values()), row_s=self.row_s)
        return list(islice(calls, LOOKED_AT * max(cap, LOOKED_AT)))

    def _remove(self, gone: Sequence[Call]) -> None:
        if len(self.flows) == 1:
            (flow,) = self.flows.values()
            rows = flow.rows
            flow.remove(gone)
            self.queued -= len(gone)
            self.queued_rows -= rows - flow.rows
            if not flow.waiting:
                self.flows.clear()
            return
        by_share: dict[TenantShare, list[Call]] = {}
        for call in gone:
            assert call.share is not None
            by_share.setdefault(call.share, []).append(call)
            self.queued -= 1
            self.queued_rows -= call.rows
        for share, calls in by_share.items():
            flow = self.flows[share]
            flow.remove(calls)
            if not flow.waiting:
                del self.flows[share]

    def _tightest_s(self) -> float | None:
        own_s, device_s = self._tightest.value_s, self.device_tightest.value_s
        return device_s if own_s is None else own_s if device_s is None else min(own_s, device_s)

    def _recap_due(self, now_s: float) -> bool:
        if self.ceiling and now_s >= self.ceiling_until_s:
            self.ceiling = 0 if 2 * self.ceiling >= self.max_batch_size else 2 * self.ceiling
            self.ceiling_until_s = now_s + CEILING_S
            return True
        tightest_s = self._tightest_s()
        if self._batches % RECAP_EVERY == 0 or self._capped_for_s is None or tightest_s is None:
            return True
        return not 0.8 * self._capped_for_s <= tightest_s <= 1.25 * self._capped_for_s

    def _cap_now(self) -> int:
        """The cap; now and then twice as much under backlog, so that a size once slow is tried again."""
        if self._batches % EXPLORE_EVERY == EXPLORE_EVERY - 1 and self.queued_rows > self.cap:
            return min(self._most_rows(), 2 * self.cap)
        return self.cap

    def _most_rows(self) -> int:
        return min(self.max_batch_size, self.ceiling or self.max_batch_size)
