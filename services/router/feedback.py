"""Tells metrics and traces how calls went. Log lines are for what an operator must know; a call is not."""

from services.chassis import instruments
from services.chassis.errors import status_of
from services.chassis.hot_metrics import CounterChild, HistogramChild
from services.chassis.telemetry import Telemetry, current, logger
from services.domain.clock import Clock
from services.domain.errors import YardError
from services.router.decision import Attempt, CopyEnded, Decision
from services.router.decision_wire import attempt_status

UNKNOWN = "(unknown)"
"""Label of calls whose name leads nowhere: what callers invent becomes no label."""


class Feedback:
    """Metrics and spans of calls; keeps the children of metrics, since looking them up costs more than counting."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        """Send spans to `telemetry`."""
        self._telemetry = telemetry
        self._clock = clock
        self._requests: dict[tuple[str, str, str, str], CounterChild] = {}
        self._durations: dict[str, HistogramChild] = {}
        self._attempts: dict[tuple[str, str], CounterChild] = {}

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
            child = self._attempts[key] = instruments.ROUTER_ATTEMPTS.labels(*key)
        child.inc()

    def answered(self, decision: Decision) -> None:
        """The call was answered."""
        self._count(decision, "OK")
        if decision.record is not None:
            decision.record.ended(decision, "OK")
        if decision.stages.total_s is not None:
            self._observe(decision.route, decision.stages.total_s)

    def degraded(self, decision: Decision) -> None:
        """The call was answered, though not as its route would rather have it."""
        instruments.ROUTER_DEGRADED.labels(decision.route).inc()

    def cancelled(self, decision: Decision | None) -> None:
        """The caller went away, or its deadline passed."""
        self._count(decision, "CANCELLED")
        if decision is not None and decision.record is not None:
            decision.record.ended(decision, "CANCELLED")

    def failed(self, decision: Decision | None, error: YardError, duration_s: float) -> None:
        """The call failed."""
        self._count(decision, status_of(error).name)
        self._observe(UNKNOWN if decision is None else decision.route, duration_s)
        if decision is not None and decision.record is not None:
            decision.record.ended(decision, status_of(error).name)

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

    def _count(self, decision: Decision | None, outcome: str) -> None:
        if decision is None:
            key = (UNKNOWN, "", "", outcome)
        elif decision.version is None:
            key = (decision.route, "", "", outcome)
        else:
            key = (decision.route, decision.version.metadata.name, decision.version.version, outcome)
        child = self._requests.get(key)
        if child is None:
            child = self._requests[key] = instruments.ROUTER_REQUESTS.labels(*key)
        child.inc()

    def _observe(self, route: str, duration_s: float) -> None:
        child = self._durations.get(route)
        if child is None:
            child = self._durations[route] = instruments.ROUTER_REQUEST_DURATION.labels(route)
        child.observe(duration_s)
