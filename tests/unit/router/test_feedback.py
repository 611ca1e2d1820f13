"""What calls leave behind in metrics and spans."""

import urllib.request
from uuid import uuid4

import pytest

from services.chassis.instruments import REGISTRY, serve_metrics
from services.chassis.span_export import FinishedSpan
from services.chassis.telemetry import Telemetry
from services.chassis.trace_context import TraceContext
from services.domain.clock import ManualClock
from services.domain.errors import HostUnavailable, ModelNotFound
from services.domain.objects import Metadata, Object, Tenant
from services.domain.rules import Rules
from services.domain.service_class import ServiceClass
from services.router.decision import Decision
from services.router.feedback import UNKNOWN, Feedback
from tests.fakes.objects import a_host, a_model, a_version, hosted
from tests.unit.router.yards import World, a_call, a_single

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class KeptSpans(Telemetry):
    """Telemetry whose finished spans stay here."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(service="router", instance="test", otlp_endpoint=None, sample_ratio=0.0, clock=clock)
        self.finished: list[FinishedSpan] = []

    def emit(self, span: FinishedSpan) -> None:
        self.finished.append(span)


class Told(World):
    """A world whose calls are counted; its route is one that no other test counts."""

    def __init__(self) -> None:
        self.route = f"route-{uuid4().hex[:12]}"
        objects: list[Object] = [a_model("digits"), a_version("digits"), a_single(self.route, "digits")]
        super().__init__(objects, [a_host("h0", hosted("digits")), a_host("h1", hosted("digits"))])
        self.telemetry = KeptSpans(self.clock)
        self.feedback = Feedback(telemetry=self.telemetry, clock=self.clock)

    async def ask(self, *, sampled: bool = False) -> Decision:
        """One answered call, told of from within its span, as servers do."""
        with self.telemetry.span("Infer", parent=TraceContext(TRACE, PARENT, sampled), kind="server"):
            decision = await self.decide(a_call(self.route))
            whose = Tenant(Metadata("acme"), "standard", "gold")
            decision.rules = Rules(ServiceClass("acme", "gold"), tenant=whose)
            self.feedback.answered(decision)
        return decision

    def series(self, name: str, **labels: str) -> float | None:
        """A value of one of this route's series."""
        return REGISTRY.get_sample_value(name, {"route": self.route, **labels})


@pytest.fixture
def told() -> Told:
    return Told()


OF_ALL = {"model": "digits", "version": "1.0.0", "tenant": "acme", "tier": "gold"}


async def test_a_call_is_timed_by_route_version_tenant_tier_and_outcome(told: Told) -> None:
    decision = await told.ask()
    told.feedback.failed(decision, HostUnavailable("gone"), 0.3)

    count = "modelyard_router_request_duration_seconds_count"
    assert told.series(count, **OF_ALL, outcome="OK") == 1
    assert told.series(count, **OF_ALL, outcome="UNAVAILABLE") == 1
    assert told.series(
        "modelyard_router_request_duration_seconds_sum", **OF_ALL, outcome="UNAVAILABLE"
    ) == pytest.approx(0.3)
    requests = "modelyard_router_requests_total"
    assert told.series(requests, model="digits", version="1.0.0", outcome="OK") == 1


async def test_a_call_that_was_given_up_is_counted_and_not_timed(told: Told) -> None:
    told.feedback.cancelled(await told.ask())

    assert told.series("modelyard_router_requests_total", model="digits", version="1.0.0", outcome="CANCELLED") == 1
    assert told.series("modelyard_router_request_duration_seconds_count", **OF_ALL, outcome="CANCELLED") in (None, 0)


def test_names_that_lead_nowhere_become_no_label(told: Told) -> None:
    name = "modelyard_router_requests_total"
    labels = {"route": UNKNOWN, "model": "", "version": "", "outcome": "NOT_FOUND"}
    before = REGISTRY.get_sample_value(name, labels) or 0.0

    told.feedback.failed(None, ModelNotFound("there is none"), 0.001)

    assert REGISTRY.get_sample_value(name, labels) == before + 1


async def test_where_the_time_went_is_told_by_version(told: Told) -> None:
    name = "modelyard_router_stage_seconds_sum"
    stages = ("queue", "compute", "network")
    labels = {stage: {"model": "digits", "version": "1.0.0", "stage": stage} for stage in stages}
    before = {stage: REGISTRY.get_sample_value(name, labels[stage]) or 0.0 for stage in stages}

    decision = await told.ask()

    for stage in stages:
        took_s = (REGISTRY.get_sample_value(name, labels[stage]) or 0.0) - before[stage]
        assert took_s == pytest.approx(getattr(decision.stages, f"{stage}_s"))


def scraped(port: int, accept: str) -> list[str]:
    """What a scrape reads."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode()).splitlines()


async def test_a_sampled_call_is_the_exemplar_of_its_bucket_and_no_other_is(told: Told, free_port: int) -> None:
    stop = serve_metrics(free_port)
    await told.ask()
    before = scraped(free_port, "application/openmetrics-text; version=1.0.0")
    await told.ask(sampled=True)
    after = scraped(free_port, "application/openmetrics-text; version=1.0.0")
    classic = scraped(free_port, "text/plain")
    stop()

    def exemplars(lines: list[str]) -> list[str]:
        return [line for line in lines if told.route in line and "# {" in line]

    assert exemplars(before) == []
    (line,) = exemplars(after)
    counted, _, exemplar = line.partition(" # ")
    assert 'le="0.01"' in counted
    assert counted.endswith(" 2.0")
    trace, took_s, at_s = exemplar.split()
    assert trace == f'{{trace_id="{TRACE}"}}'
    assert float(took_s) == pytest.approx(0.01)
    assert float(at_s) == pytest.approx(told.clock.wall_s())
    assert exemplars(classic) == []
    assert [line for line in classic if told.route in line]


async def test_the_span_of_a_sampled_call_says_where_it_went_and_where_its_time_did(told: Told) -> None:
    told.hosts.fail("h0", HostUnavailable("gone"))
    decision = await told.ask(sampled=True)

    (span,) = told.telemetry.finished
    attributes = dict(span.attributes or {})
    stages = decision.stages
    assert decision.host is not None
    expected = {
        "route": told.route,
        **OF_ALL,
        "outcome": "OK",
        "strategy": "single",
        "attempts": len(decision.attempts),
        "retried": len(decision.attempts) > 1,
        "host": "h1",
        "queue_s": stages.queue_s,
        "compute_s": stages.compute_s,
        "network_s": stages.network_s,
        "choose_s": stages.choose_s,
    }
    assert {key: attributes.get(key) for key in expected} == expected


async def test_the_span_of_a_failed_call_says_what_was_tried(told: Told) -> None:
    with told.telemetry.span("Infer", parent=TraceContext(TRACE, PARENT, True), kind="server"):
        decision = await told.decide(a_call(told.route))
        told.feedback.failed(decision, HostUnavailable("gone"), 0.3)

    attributes = dict(told.telemetry.finished[0].attributes or {})
    assert attributes["outcome"] == "UNAVAILABLE"
    assert attributes["attempts"] == len(decision.attempts)
