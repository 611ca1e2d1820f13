"""A route that chooses goes by what answers have taught, for calls of that kind; others pay nothing for it."""

from dataclasses import replace

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import InvalidRequest, NoCandidate
from services.domain.host import HostedModel
from services.domain.model import ModelKey, ModelState, TensorMeta
from services.domain.objects import Choose, Metadata, Object, Route, RouteTarget
from services.domain.request import RouteOptions
from services.domain.strategies import CandidateRule
from services.router import decision_wire, wire
from services.router.decision import CandidateView, Decision
from services.router.frames import Received
from tests.fakes.objects import a_host, a_model
from tests.unit.router.yards import World, a_call, a_choice, a_single, rated

SHORT, LONG = TensorMeta("x", "FP32", (1, 4), raw_bytes=16), TensorMeta("x", "FP32", (64, 4), raw_bytes=1024)


def a_world(*more: Object) -> World:
    """Two versions that a route chooses from, each on a host."""
    objects: list[Object] = [
        a_model("small"),
        a_model("large"),
        rated("small", quality=0.8),
        rated("large", quality=0.9, cost=10),
    ]
    hosts = [
        a_host(f"host-{model}", HostedModel(ModelKey(model, "1.0.0"), ModelState.READY)) for model in ("small", "large")
    ]
    return World([*objects, a_choice("best", "small", "large"), a_single("one", "large"), *more], hosts)


def candidate(decision: Decision, model: str) -> CandidateView:
    """One of those that were looked at."""
    return next(each for each in decision.candidates if each.version.metadata.name == model)


async def test_compute_times_are_learned_by_the_kind_of_call() -> None:
    world = a_world()
    for number in range(60):
        world.hosts.took_s = 0.012 if number % 2 else 0.102
        inputs = (SHORT,) if number % 2 else (LONG,)
        await world.decide(a_call("best", inputs=inputs, request_id=f"r{number}"), remaining_s=5.0)

    views = [
        candidate(world.pipeline.explain(a_call("best", inputs=(each,)), remaining_s=5.0), "large")
        for each in (SHORT, LONG)
    ]

    short, long = (view.expected for view in views)
    assert short is not None
    assert long is not None
    assert short.answers == pytest.approx(30.0, abs=1.0)
    assert short.service_s < long.service_s
    assert short.ratio < 1.0 < long.ratio


async def test_a_call_of_a_kind_that_takes_too_long_goes_to_another_model() -> None:
    world = a_world()
    for number in range(200):  # long calls of the large model take ten times as long as its short ones
        world.hosts.took_s = 0.012 if number % 2 else 0.102
        inputs = (SHORT,) if number % 2 else (LONG,)
        options = RouteOptions(min_quality=0.85)
        await world.decide(a_call("best", inputs=inputs, request_id=f"r{number}", options=options), remaining_s=5.0)
    world.hosts.took_s = 0.012
    await world.decide(a_call("best", inputs=(SHORT,), options=RouteOptions(min_quality=0.85)), remaining_s=5.0)

    found = [
        world.pipeline.explain(a_call("best", inputs=(each,)), remaining_s=0.030).version for each in (SHORT, LONG)
    ]

    assert [version.metadata.name for version in found if version is not None] == ["large", "small"]


async def test_a_route_to_one_model_learns_nothing_and_asks_for_nothing() -> None:
    world = a_world()

    decision = await world.decide(a_call("one"))

    assert decision.expected is None


async def test_the_decision_says_what_kind_of_call_it_was() -> None:
    world = a_world()
    options = RouteOptions(domain="law", complexity="hard", explain=True)

    found = decision_wire.decision_to(await world.decide(a_call("best", options=options)))

    assert (found.domain, found.complexity, found.quality) == ("law", "hard", 0.9)
    large = next(each for each in found.candidates if each.model == "large")
    assert large.HasField("late")
    assert large.service_time_p95.ToTimedelta() > large.service_time.ToTimedelta()
    found = decision_wire.decision_to(await world.decide(a_call("best")))
    assert (found.domain, found.complexity) == ("", "4x1")


def read(**route: object) -> RouteOptions:
    """The wishes of a request."""
    request = pb.InferRequest(model_name="m", route=pb.RouteOptions(**route))  # type: ignore[arg-type]
    return wire.call_from(Received.of(request), (), trace_id="", made_up_id="1").options


def test_labels_are_read_sorted() -> None:
    found = read(labels={"z": "", "language": "de"}, domain="law", complexity="hard")

    assert found.labels == (("language", "de"), ("z", ""))
    assert (found.domain, found.complexity) == ("law", "hard")


def test_domain_and_complexity_are_parameters_too() -> None:
    request = pb.InferRequest(model_name="m")
    request.parameters["domain"].string_param = "law"
    request.parameters["complexity"].string_param = "hard"

    found = wire.call_from(Received.of(request), (), trace_id="", made_up_id="1").options

    assert (found.domain, found.complexity) == ("law", "hard")


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ({"domain": "x" * 65}, "route.domain: has a text of 65 characters, more than 64"),
        ({"complexity": "a\nb"}, "route.complexity: has a text with characters that cannot be printed"),
        ({"labels": {"": "de"}}, "route.labels: has a label without a key"),
        ({"labels": {"language": "x" * 129}}, "route.labels[language]: has a text of 129 characters, more than 128"),
        ({"labels": {str(at): "" for at in range(17)}}, "route.labels: has 17 labels, more than 16"),
    ],
)
def test_what_cannot_be_a_label_is_refused(route: dict[str, object], fault: str) -> None:
    with pytest.raises(InvalidRequest, match=r".") as refused:
        read(**route)

    assert fault in str(refused.value)


async def test_rules_send_calls_by_what_they_are_about_and_explain_says_so() -> None:
    route = a_choice("best", "small", "large")
    assert isinstance(route.strategy, Choose)
    rules = (CandidateRule("large", domains=("law",)),)
    world = a_world(replace(route, metadata=Metadata("sorted"), strategy=replace(route.strategy, rules=rules)))

    decisions = [
        world.pipeline.explain(a_call("sorted", options=RouteOptions(domain=domain)), remaining_s=5.0)
        for domain in ("law", "art")
    ]

    assert [each.version.metadata.name for each in decisions if each.version is not None] == ["large", "small"]
    assert candidate(decisions[1], "large").filtered == "it takes calls of domain law"


async def test_a_call_that_no_candidate_is_for_is_refused_with_every_reason() -> None:
    world = a_world(
        Route(Metadata("never"), Choose((RouteTarget("small"),), rules=(CandidateRule("small", domains=("law",)),)))
    )

    with pytest.raises(NoCandidate, match="it takes calls of domain law"):
        await world.decide(a_call("never"))
