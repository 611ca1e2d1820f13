"""Routes that are a graph of steps, over hosts in memory that compute."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import BudgetExhausted, InvalidRequest, ModelFailed, NoReadyHost
from services.domain.model import TensorMeta, TensorSpec
from services.domain.objects import Object
from services.domain.request import InferCall, RouteOptions
from services.domain.strategies import (
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    RouteTarget,
    StaticTensor,
    TensorSource,
)
from services.router.frames import Payload
from tests.fakes.objects import a_host, a_model, a_route, a_version, hosted
from tests.unit.router.yards import World, a_call

SPEC = TensorSpec("x", "FP32", (-1, 4))
SUM = replace(a_model("sum"), inputs=(replace(SPEC, name="a"), replace(SPEC, name="b")))


def computing(
    compute: Callable[..., "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"],
) -> Callable[[object], object]:
    """A host that answers raw requests, and with the outputs that are wanted."""

    def answer(payload: object) -> bytes:
        assert isinstance(payload, Payload)
        request = pb.InferRequest.FromString(payload.raw)
        arrays = {
            tensor.name: np.frombuffer(raw, "<f4").reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        made = compute(**arrays)
        response = pb.InferResponse(model_name="m", id=request.id)
        for name in [output.name for output in request.outputs] or ["y"]:
            assert name == "y"
            response.outputs.add(name=name, datatype="FP32", shape=made.shape)
            response.raw_output_contents.append(made.tobytes())
        return response.SerializeToString()

    return answer


def a_world(*more: Object, models: tuple[str, ...] = ("double", "half", "sum")) -> World:
    """A diamond: twice and half of x, added up."""
    pipeline = Pipeline(
        (
            PipelineStep("add", RouteTarget("sum"), {"a": TensorSource("y", "twice"), "b": TensorSource("y", "less")}),
            PipelineStep("twice", RouteTarget("double"), {"x": TensorSource("x")}),
            PipelineStep("less", RouteTarget("half"), {"x": TensorSource("x")}),
        ),
        {"total": TensorSource("y", "add"), "twice": TensorSource("y", "twice")},
    )
    outputs = (replace(SPEC, name="total"), replace(SPEC, name="twice"))
    route = replace(a_route("r", pipeline), inputs=(SPEC,), outputs=outputs)
    objects: list[Object] = [a_model("double"), a_model("half"), SUM, route, *more]
    objects += [a_version(name) for name in ("double", "half", "sum")]
    world = World(objects, [a_host(f"h-{name}", hosted(name)) for name in models])
    world.hosts.answers = {
        "double": computing(lambda x: 2 * x),
        "half": computing(lambda x: x / np.float32(2)),
        "sum": computing(lambda a, b: a + b),
    }
    return world


def asking(name: str = "r", *, typed: bool = False, wanted: tuple[str, ...] = ()) -> InferCall:
    values = [1.0, 2.0, 3.0, 4.0]
    request = pb.InferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    if typed:
        tensor.contents.fp32_contents.extend(values)
        meta = TensorMeta("x", "FP32", (1, 4), typed_count=4)
    else:
        request.raw_input_contents.append(np.array(values, "<f4").tobytes())
        meta = TensorMeta("x", "FP32", (1, 4), raw_bytes=16)
    for output in wanted:
        request.outputs.add(name=output)
    return a_call(name, inputs=(meta,))._replace(payload=Payload(request.SerializeToString()))


async def answered(world: World, call: InferCall) -> pb.InferResponse:
    answer = await world.pipeline.route(call, remaining_s=None)
    assert isinstance(answer.payload, bytes)
    return pb.InferResponse.FromString(answer.payload)


def floats(raw: bytes) -> list[float]:
    return list(np.frombuffer(raw, "<f4").tolist())


async def test_steps_get_what_others_give_and_the_caller_what_the_route_says() -> None:
    answer = await answered(a_world(), asking())

    assert [output.name for output in answer.outputs] == ["total", "twice"]
    assert [floats(raw) for raw in answer.raw_output_contents] == [[2.5, 5.0, 7.5, 10.0], [2.0, 4.0, 6.0, 8.0]]
    assert (answer.model_name, answer.id) == ("r", "r1")


async def test_a_typed_caller_is_answered_typed() -> None:
    answer = await answered(a_world(), asking(typed=True))

    assert list(answer.outputs[0].contents.fp32_contents) == [2.5, 5.0, 7.5, 10.0]
    assert not answer.raw_output_contents


async def test_a_caller_gets_the_outputs_it_wants() -> None:
    answer = await answered(a_world(), asking(wanted=("twice",)))

    assert [output.name for output in answer.outputs] == ["twice"]


async def test_the_decision_has_every_step() -> None:
    world = a_world()

    decision = await world.decide(asking())

    assert decision.told is not None
    assert {(step.name, step.host.host_id if step.host else "") for step in decision.told.steps} == {
        ("twice", "h-double"),
        ("less", "h-half"),
        ("add", "h-sum"),
    }
    assert decision.told.steps[-1].name == "add"
    assert (decision.version, decision.host, len(decision.attempts)) == (None, None, 3)
    assert world.notes.answered_by == [decision]


async def test_an_explanation_has_the_candidates_of_every_step() -> None:
    decision = await a_world().decide(asking()._replace(options=RouteOptions(explain=True)))

    assert {candidate.version.metadata.name for candidate in decision.candidates} == {"double", "half", "sum"}


async def test_branches_run_beside_each_other() -> None:
    world = a_world()
    world.hosts.held = {"double": asyncio.Event(), "half": asyncio.Event()}
    running = asyncio.ensure_future(world.decide(asking()))
    for _ in range(20):
        await asyncio.sleep(0)

    assert sorted(key.model for _, key in world.hosts.calls) == ["double", "half"]
    for event in world.hosts.held.values():
        event.set()
    await running


async def test_the_first_failure_ends_the_rest() -> None:
    world = a_world()
    world.hosts.held = {"half": asyncio.Event()}
    world.hosts.fail("h-double", ModelFailed("broken"))

    with pytest.raises(ModelFailed) as caught:
        await world.decide(asking())

    assert caught.value.message == "step 'twice': broken"
    assert caught.value.metadata["step"] == "twice"
    assert len(asyncio.all_tasks()) == 1
    assert "sum" not in [key.model for _, key in world.hosts.calls]


async def test_a_caller_that_goes_away_takes_every_step_with_it() -> None:
    world = a_world()
    world.hosts.held = {"double": asyncio.Event(), "half": asyncio.Event()}
    running = asyncio.ensure_future(world.decide(asking()))
    for _ in range(20):
        await asyncio.sleep(0)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert running.cancelled()
    assert len(asyncio.all_tasks()) == 1
    assert world.notes.cancellations == 1


async def test_a_step_without_a_host_is_named() -> None:
    with pytest.raises(NoReadyHost) as caught:
        await a_world(models=("double", "sum")).decide(asking())

    assert caught.value.message.startswith("step 'less': no host is ready for 'half'")


async def test_a_tensor_that_the_next_step_cannot_take_is_not_the_callers_fault() -> None:
    world = a_world()
    world.hosts.answers["double"] = computing(lambda x: x[:, :2])

    with pytest.raises(ModelFailed) as caught:
        await world.decide(asking())

    assert caught.value.message.startswith("step 'add': it cannot take what the steps before gave: inputs[0].shape")


async def test_an_output_that_a_step_does_not_give_is_its_failure() -> None:
    world = a_world()
    world.hosts.answers["double"] = lambda _: pb.InferResponse(model_name="double").SerializeToString()

    with pytest.raises(ModelFailed, match="step 'twice' gave no output 'y'"):
        await world.decide(asking())


async def test_what_is_wrong_with_the_callers_inputs_is_told_before_any_step() -> None:
    world = a_world()

    with pytest.raises(InvalidRequest, match="not one of the model's"):
        await world.decide(a_call("r", inputs=(TensorMeta("q", "FP32", (1, 4), raw_bytes=16),)))

    assert not world.hosts.calls


async def test_each_step_leaves_time_for_those_behind_it() -> None:
    world = a_world()

    await world.pipeline.route(asking(), remaining_s=0.100)

    # Twice the 10 ms that the last step is registered with are kept; it then has all that is left.
    assert world.hosts.timeouts_s[0] == pytest.approx(0.075, abs=0.005)
    with pytest.raises(BudgetExhausted):
        await world.pipeline.route(asking(), remaining_s=0.002)


async def test_a_step_may_be_a_route_that_asks_several_itself() -> None:
    inner = a_route("safe", Fallback((RouteTarget("half"), RouteTarget("double")), {"y": StaticTensor((1, 4))}))
    pipeline = Pipeline(
        (PipelineStep("one", RouteName("safe"), {"x": TensorSource("x")}),), {"y": TensorSource("y", "one")}
    )
    outer = replace(a_route("outer", pipeline), inputs=(SPEC,), outputs=(replace(SPEC, name="y"),))
    world = a_world(inner, outer)
    world.hosts.fail("h-half", ModelFailed("broken"))

    answer = await world.pipeline.route(asking("outer"), remaining_s=None)

    assert answer.decision.told is not None
    assert [step.name for step in answer.decision.told.steps] == ["one/half", "one/double", "one"]
    assert answer.decision.told.degraded_reason == "one: half: broken"
    assert isinstance(answer.payload, bytes)
    assert floats(pb.InferResponse.FromString(answer.payload).raw_output_contents[0]) == [2.0, 4.0, 6.0, 8.0]

    world.hosts.fail("h-double", ModelFailed("broken"))
    static = pb.InferResponse.FromString(
        (await world.pipeline.route(asking("outer"), remaining_s=None)).payload  # type: ignore[arg-type]
    )
    assert floats(static.raw_output_contents[0]) == [0.0] * 4


async def test_explain_says_whom_each_step_would_ask() -> None:
    world = a_world(models=("double", "sum"))

    dry = world.pipeline.explain(asking(), remaining_s=None)

    assert dry.told is not None
    assert [(step.name, step.host.host_id if step.host else "") for step in dry.told.steps] == [
        ("add", "h-sum"),
        ("twice", "h-double"),
        ("less", ""),
    ]
    assert dry.reason == "not every step can be asked now"
    assert not world.hosts.calls
