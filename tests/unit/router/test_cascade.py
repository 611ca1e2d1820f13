"""Routes that ask small models first, over hosts in memory that compute."""

from dataclasses import replace

import numpy as np
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import InvalidRequest, ModelFailed, NoReadyHost
from services.domain.model import TensorSpec
from services.domain.objects import Metadata, Model, Object, Policy, Tenant
from services.domain.request import RouteOptions
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    Cascade,
    CascadeStep,
    Escalation,
    RouteTarget,
)
from services.domain.tenancy import Budget, PriceRules, Tier
from services.router.frames import Payload
from tests.fakes.objects import a_host, a_model, a_route, hosted
from tests.unit.router.test_graph import answered, asking, floats
from tests.unit.router.yards import World, rated


def scoring(label: float, sure: float) -> object:
    """A host that gives a label and how sure it is of it, as far as these are wanted."""

    def answer(payload: object) -> bytes:
        assert isinstance(payload, Payload)
        wanted = [output.name for output in pb.InferRequest.FromString(payload.raw).outputs] or ["label", "scores"]
        response = pb.InferResponse(model_name="m", id="r1")
        for name in wanted:
            value = np.array([[label if name == "label" else sure]], "<f4")
            response.outputs.add(name=name, datatype="FP32", shape=[1, 1])
            response.raw_output_contents.append(value.tobytes())
        return response.SerializeToString()

    return answer


def a_classifier(name: str) -> Model:
    outputs = (TensorSpec("label", "FP32", (-1, 1)), TensorSpec("scores", "FP32", (-1, 1)))
    return replace(a_model(name), outputs=outputs)


def a_world(*, small: float = 0.6, large: float = 0.99, hosts: tuple[str, ...] = ("small", "large")) -> World:
    steps = (
        CascadeStep(RouteTarget("small"), Escalation("scores", 0.9)),
        CascadeStep(RouteTarget("large")),
    )
    objects: list[Object] = [a_route("r", Cascade(steps)), a_classifier("small"), a_classifier("large")]
    objects += [rated("small", cost=10), rated("large", cost=60)]
    world = World(objects, [a_host(f"h-{name}", hosted(name)) for name in hosts])
    world.hosts.answers = {"small": scoring(1.0, small), "large": scoring(2.0, large)}  # type: ignore[dict-item]
    return world


def asked(world: World) -> list[str]:
    return [key.model for _, key in world.hosts.calls]


async def test_a_sure_answer_is_the_small_ones() -> None:
    world = a_world(small=0.95)

    decision = await world.decide(asking())

    assert asked(world) == ["small"]
    assert decision.version is not None
    assert decision.version.metadata.name == "small"
    assert decision.reason == "newest version; sure enough: 0.95, at least 0.9"
    assert decision.told is not None
    assert decision.told.degraded_reason == ""
    assert decision.cost_microusd == 10


async def test_an_unsure_one_is_asked_of_the_large_one() -> None:
    world = a_world()

    answer = await world.pipeline.route(asking(), remaining_s=None)

    assert isinstance(answer.payload, bytes)
    assert floats(pb.InferResponse.FromString(answer.payload).raw_output_contents[0]) == [2.0]
    decision = answer.decision
    assert decision.told is not None
    assert [(step.name, step.reason.partition("; ")[2]) for step in decision.told.steps] == [
        ("small", "unsure: 0.6, below 0.9"),
        ("large", ""),
    ]
    assert decision.version is not None
    assert (decision.version.metadata.name, decision.cost_microusd) == ("large", 70)
    assert world.notes.degradations == []


async def test_without_slack_the_unsure_answer_is_given() -> None:
    world = a_world()

    decision = (await world.pipeline.route(asking(), remaining_s=0.028)).decision

    assert asked(world) == ["small"]
    assert decision.told is not None
    assert decision.told.degraded_reason.startswith("unsure: 0.6, below 0.9; the next step takes 10 ms")


async def test_a_price_that_the_caller_allows_holds_for_all_steps_together() -> None:
    world = a_world()

    decision = await world.decide(asking()._replace(options=RouteOptions(max_cost_microusd=65)))

    assert asked(world) == ["small"]
    assert decision.told is not None
    assert "it costs 70 µUSD, over the 65 allowed" in decision.told.degraded_reason


async def test_a_large_one_that_fails_leaves_the_small_ones_answer() -> None:
    world = a_world()
    world.hosts.fail("h-large", ModelFailed("broken"))

    decision = await world.decide(asking())

    assert decision.version is not None
    assert decision.version.metadata.name == "small"
    assert decision.told is not None
    assert decision.told.degraded_reason == "large: broken"
    assert world.notes.failures == []


async def test_a_small_one_that_fails_is_passed_over() -> None:
    world = a_world(hosts=("large",))

    decision = await world.decide(asking())

    assert decision.version is not None
    assert decision.version.metadata.name == "large"
    assert decision.told is not None
    assert decision.told.degraded_reason.startswith("small: no host is ready")


async def test_what_is_wrong_with_the_call_ends_it() -> None:
    world = a_world()
    world.hosts.fail("h-small", InvalidRequest("bad"))

    with pytest.raises(InvalidRequest):
        await world.decide(asking())

    assert asked(world) == ["small"]


async def test_without_any_host_it_is_unavailable() -> None:
    with pytest.raises(NoReadyHost):
        await a_world(hosts=()).decide(asking())


async def test_scores_that_the_caller_did_not_want_are_read_and_left_out() -> None:
    world = a_world()

    answer = await answered(world, asking(wanted=("label",)))

    assert [output.name for output in answer.outputs] == ["label"]
    assert floats(answer.raw_output_contents[0]) == [2.0]
    assert asked(world) == ["small", "large"]
    sure = await answered(a_world(small=0.95), asking(wanted=("label",)))
    assert [output.name for output in sure.outputs] == ["label"]
    assert floats(sure.raw_output_contents[0]) == [1.0]


async def test_explain_says_the_order_and_the_threshold() -> None:
    dry = a_world().pipeline.explain(asking(), remaining_s=None)

    assert dry.told is not None
    assert [step.name for step in dry.told.steps] == ["small", "large"]
    assert "the next one if 'scores' is below 0.9" in dry.told.steps[0].reason
    assert dry.version is not None
    assert dry.version.metadata.name == "small"
    assert len(dry.candidates) == 2


def a_calibrated_world(*, small: float = 0.6, cost: int = 60, audit_share: float = 0.0) -> World:
    """The small one is right as often as it is sure; the large one 98 times in 100."""
    table = Calibration((CalibrationPoint(0.0, 0.0), CalibrationPoint(1.0, 1.0)))
    steps = (
        CascadeStep(RouteTarget("small"), Escalation("scores", 0.0, table, audit_share)),
        CascadeStep(RouteTarget("large")),
    )
    objects: list[Object] = [a_route("r", Cascade(steps)), a_classifier("small"), a_classifier("large")]
    objects += [rated("small", cost=10), rated("large", quality=0.98, cost=cost)]
    objects += [
        Policy(Metadata("p"), (Tier("gold", 1),), price=PriceRules(cost_weight=0.002, step=0.0)),
        Tenant(Metadata("acme"), policy="p", tier="gold", budget=Budget(2000, 2000.0)),
    ]
    world = World(objects, [a_host(f"h-{name}", hosted(name)) for name in ("small", "large")])
    world.hosts.answers = {"small": scoring(1.0, small), "large": scoring(2.0, 0.99)}  # type: ignore[dict-item]
    return world


async def test_calibrated_the_large_one_is_asked_where_that_is_worth_its_price() -> None:
    decision = await a_calibrated_world(small=0.9).decide(asking())

    assert decision.told is not None
    assert [step.reason.partition("; ")[2] for step in decision.told.steps] == [
        "unsure: p = 0.9 at 0.9; the next step is worth 0.08 more, and costs 0.06",
        "",
    ]


async def test_it_is_not_asked_for_a_tenant_to_whom_money_is_worth_more() -> None:
    world = a_calibrated_world(small=0.9)

    decision = await world.decide(asking()._replace(options=RouteOptions(tenant="acme")))

    assert asked(world) == ["small"]
    assert decision.reason.endswith("sure enough: p = 0.9 at 0.9; the next step is worth 0.08 more, and costs 0.12")
    assert decision.told is not None
    assert decision.told.degraded_reason == ""


async def test_each_step_is_paid_for_and_without_money_the_unsure_answer_is_given() -> None:
    world = a_calibrated_world(small=0.2, cost=60)  # 50 at once
    tenant = asking()._replace(options=RouteOptions(tenant="acme"))

    decision = await world.decide(tenant)

    assert asked(world) == ["small"]
    assert decision.told is not None
    assert decision.told.degraded_reason == (
        "large: 'large' cannot be paid: large:1.0.0: costs 60 µUSD, and tenant 'acme' has 40 left"
    )
    assert decision.cost_microusd == 10
