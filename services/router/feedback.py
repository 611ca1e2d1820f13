"""Tells metrics and traces how calls went. Log lines are for what an operator must know; a call is not."""

from typing import NamedTuple

from services.chassis import instruments
from services.chassis.errors import status_of
from services.chassis.hot_metrics import CounterChild, HistogramChild
from services.chassis.span_export import AttributeValue
from services.chassis.telemetry import Telemetry, current, logger
from services.domain.caching import CacheStatus
from services.domain.clock import Clock
from services.domain.errors import YardError
from services.policy.ejection import Reason
from services.router.decision import Attempt, CopyEnded, Decision
from services.router.decision_wire import attempt_status

UNKNOWN = "(unknown)"
"""Label of calls whose name leads nowhere: what callers invent becomes no label."""


KEPT = 4096
"""Most children of one metric that are kept, however many label sets there are."""


class Ends(NamedTuple):
    """What counts calls that end alike."""

    requests: CounterChild
    durations: HistogramChild


class StageTimes(NamedTuple):
    """What counts where the time of one version's calls went."""

    queue: HistogramChild
    compute: HistogramChild
    network: HistogramChild


class Feedback:
    """Metrics and spans of calls; keeps the children of metrics, since looking them up costs more than counting."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        """Send spans to `telemetry`."""
        self._telemetry = telemetry
        self._clock = clock
        self._ends: dict[tuple[str, str, str, str, str, str], Ends] = {}
        self._stages: dict[tuple[str, str], StageTimes] = {}
        self._attempts: dict[tuple[str, str], CounterChild] = {}
        self._cached: dict[tuple[str, CacheStatus], CounterChild] = {}

    def chosen(self, decision: Decision, duration_s: float) -> None:
        """The first decision of a call was made."""
        instruments.ROUTER_DECISION_SECONDS.observe(duration_s)
        context = current()
        if context is not None and context.sampled:
            end_s = self._clock.wall_s()
            self._telemetry.record(
                "choose",
                parent=context,
                start_wall_s=end_s - duration_s,
                end_wall_s=end_s,
                attributes={"route": decision.route, "strategy": decision.strategy},
            )

    def attempted(self, attempt: Attempt) -> None:
        """An attempt ended."""
        key = (attempt.host_id, attempt_status(attempt))
        child = self._attempts.get(key)
        if child is None:
            if len(self._attempts) >= KEPT:
                self._attempts.clear()
            child = self._attempts[key] = instruments.ROUTER_ATTEMPTS.labels(*key)
        child.inc()

    def probed(self, host_id: str, *, answered: bool) -> None:
        """A probe was answered, or was not."""
        instruments.ROUTER_PROBES.labels(host_id, "answered" if answered else "failed").inc()

    def opened(self, host_id: str, what: str) -> None:
        """A circuit opened."""
        instruments.ROUTER_CIRCUITS_OPENED.labels(host_id, what).inc()

    def ejected(self, host_id: str, reason: Reason, why: str) -> None:
        """A host was ejected."""
        instruments.ROUTER_EJECTIONS.labels(host_id, reason.value.lower()).inc()
        logger().warning("a host is ejected", host=host_id, reason=reason.value.lower(), why=why)

    def hedged(self, route: str, outcome: str) -> None:
        """A call was slow to answer, and this is what came of a second attempt."""
        instruments.ROUTER_HEDGES.labels(route, outcome).inc()

    def answered(self, decision: Decision) -> None:
        """The call was answered."""
        stages = decision.stages
        self._ended(decision, "OK", stages.total_s)
        if decision.record is not None:
            decision.record.ended(decision, "OK")
        if decision.version is not None and stages.network_s is not None:
            key = (decision.version.metadata.name, decision.version.version)
            times = self._stages.get(key) or self._stage_times(key)
            times.queue.observe(stages.queue_s or 0.0)
            times.compute.observe(stages.compute_s or 0.0)
            times.network.observe(stages.network_s)

    def degraded(self, decision: Decision) -> None:
        """The call was answered, though not as its route would rather have it."""
        instruments.ROUTER_DEGRADED.labels(decision.route).inc()

    def cancelled(self, decision: Decision | None) -> None:
        """The caller went away, or its deadline passed."""
        self._ended(decision, "CANCELLED", None)
        if decision is not None and decision.record is not None:
            decision.record.ended(decision, "CANCELLED")

    def failed(self, decision: Decision | None, error: YardError, duration_s: float) -> None:
        """The call failed."""
        self._ended(decision, status_of(error).name, duration_s)
        if decision is not None and decision.record is not None:
            decision.record.ended(decision, status_of(error).name)

    def refused(self, limit: str) -> None:
        """A call was not let in."""
        instruments.ROUTER_REFUSED.labels(limit).inc()

    def labelled(self, outcome: str) -> None:
        """A label came."""
        instruments.ROUTER_LABELS.labels(outcome).inc()

    def copied(self, copy: CopyEnded) -> None:
        """A copy ended, or was not made. Where answers differ, a line says so: it is what a shadow is for."""
        instruments.ROUTER_COPIES.labels(copy.route, copy.outcome).inc()
        if copy.largest is not None:
            instruments.ROUTER_COPY_DIFFERENCE.labels(copy.route).observe(copy.largest)
        if copy.outcome in ("different", "other_shape"):
            logger().info(
                "a shadow answered otherwise",
                route=copy.route,
                request_id=copy.request_id,
                outcome=copy.outcome,
                output=copy.why,
                largest=copy.largest,
            )
        elif copy.outcome == "failed":
            logger().debug("a shadow did not answer", route=copy.route, request_id=copy.request_id, why=copy.why)

    def looked_up(self, route: str, status: CacheStatus) -> None:
        """One candidate set of a route that keeps answers was to be asked."""
        child = self._cached.get((route, status))
        if child is None:
            child = self._cached[route, status] = instruments.ROUTER_CACHE.labels(route, status.value.lower())
        child.inc()

    def _ended(self, decision: Decision | None, outcome: str, duration_s: float | None) -> None:
        """Count a call, and tell its span; `duration_s` is None if how long it took says nothing."""
        if decision is None:
            key = (UNKNOWN, "", "", "", "", outcome)
        else:
            version, whose = decision.version, decision.rules.service_class
            if version is None:
                key = (decision.route, "", "", whose.tenant, whose.tier, outcome)
            else:
                key = (decision.route, version.metadata.name, version.version, whose.tenant, whose.tier, outcome)
        ends = self._ends.get(key) or self._ends_of(key)
        ends.requests.inc()
        if duration_s is not None:
            ends.durations.observe(duration_s)
        context = current()
        if context is not None and context.sampled:
            if duration_s is not None:
                ends.durations.exemplify(duration_s, context.trace_id, self._clock.wall_s())
            self._telemetry.describe(context, dict(zip(LABELS, key, strict=True)))
            if decision is not None:
                self._telemetry.describe(context, facts(decision))

    def _ends_of(self, key: tuple[str, str, str, str, str, str]) -> Ends:
        if len(self._ends) >= KEPT:
            self._ends.clear()
        route, model, version, _, _, outcome = key
        requests = instruments.ROUTER_REQUESTS.labels(route, model, version, outcome)
        made = self._ends[key] = Ends(requests, instruments.ROUTER_REQUEST_DURATION.labels(*key))
        return made

    def _stage_times(self, key: tuple[str, str]) -> StageTimes:
        if len(self._stages) >= KEPT:
            self._stages.clear()
        made = self._stages[key] = StageTimes(
            *(instruments.ROUTER_STAGE_SECONDS.labels(*key, stage) for stage in StageTimes._fields)
        )
        return made


LABELS = ("route", "model", "version", "tenant", "tier", "outcome")
"""Of what counts ends; attributes of spans too."""


def facts(decision: Decision) -> dict[str, AttributeValue]:
    """What the span of a sampled call says of how it went; times in seconds."""
    stages, tried = decision.stages, decision.attempts
    found: dict[str, AttributeValue] = {
        "strategy": decision.strategy,
        "attempts": len(tried),
        "retried": len(tried) > 1,
        "revision": decision.registry_revision,
        "choose_s": stages.choose_s,
    }
    if decision.reason:
        found["reason"] = decision.reason
    if decision.host is not None:
        found["host"] = decision.host.host_id
    if stages.network_s is not None:
        found["queue_s"], found["compute_s"] = stages.queue_s or 0.0, stages.compute_s or 0.0
        found["network_s"] = stages.network_s
    told = decision.told
    if told is not None and told.arm:
        found["arm"] = told.arm
    if told is not None and told.degraded_reason:
        found["degraded"] = told.degraded_reason
    return found
