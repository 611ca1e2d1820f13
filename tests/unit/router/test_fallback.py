"""Routes that fall back, over hosts in memory."""

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import HostUnavailable, InvalidRequest, ModelFailed, NoReadyHost
from services.domain.objects import Object
from services.domain.request import InferCall, RouteOptions
from services.domain.strategies import Fallback, RouteName, RouteTarget, StaticTensor
from services.router.frames import Payload
from tests.fakes.objects import a_host, a_model, a_route, a_version, hosted
from tests.unit.router.yards import World, a_call, a_choice

MODELS = ("first", "second", "third")
ZEROS = {"y": StaticTensor((1, 4))}


def a_yard(*strategies: Fallback) -> list[Object]:
    names = ("r", "s")
    objects: list[Object] = [a_route(name, strategy) for name, strategy in zip(names, strategies, strict=False)]
    for model in MODELS:
        objects += [a_model(model), a_version(model)]
    return objects


def over(*models: str, static: bool = False) -> Fallback:
    return Fallback(tuple(RouteTarget(model) for model in models), ZEROS if static else None)


HOSTS = [a_host(f"h-{model}", hosted(model)) for model in MODELS]


def asked(world: World) -> list[str]:
    return [key.model for _, key in world.hosts.calls]


async def test_the_first_that_can_answers() -> None:
    world = World(a_yard(over("first", "second")), HOSTS)

    decision = await world.decide(a_call("r"))

    assert decision.told is not None
    assert (asked(world), decision.told.degraded_reason, world.notes.degradations) == (["first"], "", [])
    assert [step.name for step in decision.told.steps] == ["first"]


async def test_the_next_is_asked_after_the_retries_of_the_one_before() -> None:
    world = World(a_yard(over("first", "second")), HOSTS)
    world.hosts.fail("h-first", ModelFailed("broken"))

    decision = await world.decide(a_call("r"))

    assert decision.told is not None
    assert asked(world) == ["first", "first", "first", "second"]
    assert [attempt.host_id for attempt in decision.attempts] == ["h-first"] * 3 + ["h-second"]
    assert decision.version is not None
    assert decision.version.metadata.name == "second"
    assert decision.told.degraded_reason == "first: broken"
    assert world.notes.degradations == ["first: broken"]
    assert world.notes.answered_by == [decision]
    assert world.notes.failures == []


async def test_attempts_are_those_of_the_call_and_not_of_each_that_is_asked() -> None:
    world = World(a_yard(over(*MODELS)), HOSTS)
    for model in MODELS:
        world.hosts.fail(f"h-{model}", ModelFailed("broken"))

    with pytest.raises(ModelFailed):
        await world.decide(a_call("r"))

    assert asked(world) == ["first"] * 3 + ["second", "third"]
    assert len(world.notes.failures) == 1


async def test_what_is_wrong_with_the_call_ends_it() -> None:
    world = World(a_yard(over("first", "second", static=True)), HOSTS)
    world.hosts.fail("h-first", InvalidRequest("bad"))

    with pytest.raises(InvalidRequest):
        await world.decide(a_call("r"))

    assert asked(world) == ["first"]


async def test_a_call_that_must_not_run_twice_is_not_run_by_the_next() -> None:
    world = World(a_yard(over("first", "second")), HOSTS)
    world.hosts.fail("h-first", ModelFailed("broken"))

    with pytest.raises(ModelFailed):
        await world.decide(a_call("r", options=RouteOptions(idempotent=False)))

    assert asked(world) == ["first"]


async def test_after_a_part_of_the_answer_nobody_else_is_asked() -> None:
    world = World(a_yard(over("first", "second", static=True)), HOSTS)
    world.hosts.fail("h-first", HostUnavailable("gone"))
    world.hosts.begun.add("h-first")

    with pytest.raises(HostUnavailable):
        await world.decide(a_call("r"))

    assert asked(world) == ["first"]


async def test_the_last_error_is_the_callers_if_nobody_answers() -> None:
    world = World(a_yard(over("first", "second")), [])

    with pytest.raises(NoReadyHost, match="'second'"):
        await world.decide(a_call("r"))


def a_request(**fields: object) -> InferCall:
    request = pb.InferRequest(model_name="r", **fields)  # type: ignore[arg-type]
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    return a_call("r")._replace(payload=Payload(request.SerializeToString()))


async def test_a_static_answer_is_encoded_once_and_carries_each_calls_id() -> None:
    world = World(a_yard(over("first", static=True)), [])

    answers = []
    for number in range(2):
        call = a_request()._replace(request_id=f"id{number}")
        answer = await world.pipeline.route(call, remaining_s=None)
        assert isinstance(answer.payload, bytes)
        answers.append(pb.InferResponse.FromString(answer.payload))

    assert [answer.id for answer in answers] == ["id0", "id1"]
    assert [list(answer.raw_output_contents) for answer in answers] == [[bytes(16)]] * 2
    assert answer.decision.version is None
    assert answer.decision.told is not None
    assert answer.decision.told.degraded_reason.startswith("first: no host is ready")


async def test_a_static_answer_has_the_outputs_that_are_wanted() -> None:
    world = World(a_yard(over("first", static=True)), [])
    wanted = [pb.InferRequest.InferRequestedOutputTensor(name="z")]

    answer = await world.pipeline.route(a_request(outputs=wanted), remaining_s=None)

    assert isinstance(answer.payload, bytes)
    assert not pb.InferResponse.FromString(answer.payload).outputs


async def test_a_route_behind_a_route_passes_on_too() -> None:
    inner, outer = over("first", "second"), Fallback((RouteName("s"), RouteTarget("third")))
    world = World(a_yard(outer, inner), HOSTS)
    world.hosts.fail("h-first", ModelFailed("broken"))

    decision = await world.decide(a_call("r"))

    assert decision.told is not None
    assert [step.name for step in decision.told.steps] == ["route s/first", "route s/second", "route s"]
    assert decision.told.degraded_reason == "first: broken"
    assert decision.version is not None
    assert decision.version.metadata.name == "second"

    world.hosts.fail("h-second", ModelFailed("broken"))
    assert asked(world)[-1] == "second"
    decision = await world.decide(a_call("r"))
    assert decision.version is not None
    assert decision.version.metadata.name == "third"


async def test_a_route_that_chooses_may_be_asked() -> None:
    world = World([*a_yard(Fallback((RouteTarget("first"), RouteName("c")))), a_choice("c", "second", "third")], HOSTS)
    world.hosts.fail("h-first", HostUnavailable("gone"))

    decision = await world.decide(a_call("r"))

    assert decision.told is not None
    assert [step.name for step in decision.told.steps] == ["first", "route c"]


async def test_time_is_kept_for_those_behind() -> None:
    world = World(a_yard(over("first", "second")), HOSTS)
    world.hosts.fail("h-first", HostUnavailable("gone"))

    await world.decide(a_call("r", options=RouteOptions(idempotent=True)), remaining_s=0.100)

    # Twice the 10 ms that the second one is registered with, less the reserve.
    assert world.hosts.timeouts_s[0] == pytest.approx(0.080 - 0.005, abs=0.004)
    assert world.hosts.timeouts_s[-1] > world.hosts.timeouts_s[0] - 0.010


async def test_explain_says_the_order_and_whom_it_would_be() -> None:
    world = World(a_yard(over(*MODELS, static=True)), HOSTS[1:])

    dry = world.pipeline.explain(a_call("r"), remaining_s=None)

    assert dry.told is not None
    assert [(step.name, step.version is not None) for step in dry.told.steps] == [
        ("first", False),
        ("second", True),
        ("third", True),
    ]
    assert dry.version is not None
    assert dry.version.metadata.name == "second"
    assert asked(world) == []
    assert {candidate.version.metadata.name for candidate in dry.candidates} == set(MODELS)


async def test_explain_says_when_only_the_static_answer_is_left() -> None:
    world = World(a_yard(over("first", static=True)), [])

    dry = world.pipeline.explain(a_call("r"), remaining_s=None)

    assert (dry.version, dry.reason) == (None, "the route's static answer")
