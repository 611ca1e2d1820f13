"""Routes that ask several at once, over hosts in memory that compute."""

import asyncio

import numpy as np
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import HostUnavailable, ModelFailed, NoReadyHost
from services.domain.objects import Object
from services.domain.strategies import Combine, Ensemble, EnsembleMember, RouteTarget
from tests.fakes.objects import a_host, a_model, a_route, hosted
from tests.unit.router.test_graph import answered, asking, computing, floats
from tests.unit.router.yards import World, a_call, rated

NAMES = ("a", "b", "c")


def a_world(
    *, quorum: int = 3, how: Combine = Combine.MEAN, weights: tuple[float | None, ...] = (None,) * 3, hosts: str = "abc"
) -> World:
    """Members that answer 1, 2 and 6 times x."""
    members = tuple(EnsembleMember(RouteTarget(name), weight) for name, weight in zip(NAMES, weights, strict=True))
    objects: list[Object] = [a_route("r", Ensemble(members, how, quorum))]
    objects += [item for name in NAMES for item in (a_model(name), rated(name, cost=10))]
    world = World(objects, [a_host(f"h-{name}", hosted(name)) for name in hosts])
    world.hosts.answers = {
        "a": computing(lambda x: x),
        "b": computing(lambda x: np.float32(2) * x),
        "c": computing(lambda x: np.float32(6) * x),
    }
    return world


async def test_the_mean_of_all_is_the_answer() -> None:
    world = a_world()

    answer = await world.pipeline.route(asking(), remaining_s=None)

    assert isinstance(answer.payload, bytes)
    response = pb.InferResponse.FromString(answer.payload)
    assert floats(response.raw_output_contents[0]) == [3.0, 6.0, 9.0, 12.0]
    assert response.model_name == "r"
    decision = answer.decision
    assert decision.told is not None
    assert (decision.reason, decision.told.degraded_reason) == ("mean of 3 of 3 members", "")
    assert decision.cost_microusd == 30
    assert world.notes.answered_by == [decision]


async def test_members_are_asked_beside_each_other() -> None:
    world = a_world()
    world.hosts.held = {name: asyncio.Event() for name in NAMES}
    running = asyncio.ensure_future(world.decide(asking()))
    for _ in range(10):
        await asyncio.sleep(0)

    assert [key.model for _, key in world.hosts.calls] == ["a", "b", "c"]
    for event in world.hosts.held.values():
        event.set()
    await running


async def test_weights_count() -> None:
    answer = await answered(a_world(how=Combine.WEIGHTED, weights=(1.0, 1.0, 2.0)), asking())

    assert floats(answer.raw_output_contents[0])[0] == 3.75


async def test_one_that_is_late_is_not_waited_for_once_enough_have_answered() -> None:
    world = a_world(quorum=2)
    world.hosts.held = {"c": asyncio.Event()}

    answer = await world.pipeline.route(asking(), remaining_s=None)

    assert isinstance(answer.payload, bytes)
    assert floats(pb.InferResponse.FromString(answer.payload).raw_output_contents[0])[0] == 1.5
    told = answer.decision.told
    assert told is not None
    assert told.degraded_reason == "2 of 3 members answered; c: it was not waited for"
    assert [(step.name, step.dropped) for step in told.steps] == [("a", False), ("b", False), ("c", True)]
    assert len(asyncio.all_tasks()) == 1
    assert world.notes.degradations == [told.degraded_reason]


async def test_one_that_fails_is_left_out_if_enough_are_left() -> None:
    world = a_world(quorum=2)
    world.hosts.fail("h-a", ModelFailed("broken"))

    decision = await world.decide(asking())

    assert decision.told is not None
    assert decision.told.degraded_reason == "2 of 3 members answered; a: broken"
    assert decision.reason == "mean of 2 of 3 members"


async def test_fewer_than_enough_are_an_error_and_end_the_others() -> None:
    world = a_world(quorum=3)
    world.hosts.fail("h-a", HostUnavailable("gone"))
    world.hosts.held = {"c": asyncio.Event()}

    with pytest.raises(HostUnavailable):
        await world.decide(asking())

    assert len(asyncio.all_tasks()) == 1


async def test_without_hosts_for_enough_it_is_unavailable() -> None:
    with pytest.raises(NoReadyHost):
        await a_world(quorum=2, hosts="a").decide(asking())


async def test_answers_that_do_not_fit_together_are_the_models_failure() -> None:
    world = a_world()
    world.hosts.answers["b"] = computing(lambda x: x[:, :2])

    with pytest.raises(ModelFailed, match="cannot be combined: output 'y' is not of one type and shape"):
        await world.decide(asking())


async def test_large_answers_are_combined_beside_the_loop_and_just_so() -> None:
    world = a_world()
    tall = np.ones((5000, 4), "<f4")
    for name in NAMES:
        world.hosts.answers[name] = computing(lambda x: tall)

    answer = await answered(world, asking())

    assert answer.raw_output_contents[0] == tall.tobytes()


async def test_a_caller_that_goes_away_takes_every_member_with_it() -> None:
    world = a_world(quorum=2)
    world.hosts.held = {name: asyncio.Event() for name in NAMES}
    running = asyncio.ensure_future(world.decide(asking()))
    for _ in range(10):
        await asyncio.sleep(0)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert running.cancelled()
    assert len(asyncio.all_tasks()) == 1


async def test_explain_counts_who_can_be_asked() -> None:
    dry = a_world(quorum=2, hosts="ab").pipeline.explain(a_call("r"), remaining_s=None)

    assert dry.told is not None
    assert (dry.reason, dry.told.answerable) == ("2 of 3 members can be asked, 2 must answer", True)
    assert [step.name for step in dry.told.steps] == ["a", "b", "c"]
