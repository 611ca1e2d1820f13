"""Routes with a shadow, over hosts in memory."""

import asyncio
from collections.abc import Callable

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import BudgetExhausted, ModelFailed, Overloaded
from services.domain.objects import Object
from services.domain.request import InferCall, RouteOptions
from services.domain.strategies import RouteTarget, Shadow
from services.domain.tenancy import Budget
from services.router.decision import CopyEnded
from services.router.frames import Payload
from tests.fakes.objects import a_host, a_model, a_route, hosted
from tests.unit.router.yards import World, a_call, rated

HOSTS = [a_host("h-old", hosted("old")), a_host("h-new", hosted("new"))]
PRIMARY, COPY = RouteTarget("old"), RouteTarget("new")


def a_world(shadow: Shadow | None = None, *, old: bytes = bytes(16), new: bytes = bytes(16)) -> World:
    objects: list[Object] = [a_model("old"), a_model("new"), rated("old"), rated("new", cost=40)]
    world = World([*objects, a_route("r", shadow or Shadow(PRIMARY, COPY))], HOSTS)
    world.hosts.answers = {"old": gives(old), "new": gives(new)}
    return world


def gives(raw: bytes) -> Callable[[object], object]:
    response = pb.InferResponse(raw_output_contents=[raw])
    response.outputs.add(name="y", datatype="FP32", shape=[1, len(raw) // 4])
    return lambda _: response.SerializeToString()


def asking(number: int = 0, options: RouteOptions | None = None) -> InferCall:
    request = pb.InferRequest(model_name="r", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    call = a_call("r", request_id=f"r{number}", options=options)
    return call._replace(payload=Payload(request.SerializeToString()))


async def settled(world: World, count: int) -> list[CopyEnded]:
    """What became of the copies, once there are as many."""
    for _ in range(1000):
        if len(world.notes.copies) >= count:
            break
        await asyncio.sleep(0)
    assert len(world.notes.copies) == count
    return world.notes.copies


def asked(world: World) -> list[str]:
    return [key.model for _, key in world.hosts.calls]


async def test_a_copy_goes_out_after_the_answer_and_is_compared() -> None:
    world = a_world(new=bytes(12) + b"\0\0\0\x3f")

    decision = await world.decide(asking())

    assert asked(world) == ["old"]
    assert decision.version is not None
    assert decision.version.metadata.name == "old"
    assert await settled(world, 1) == [CopyEnded("r", "r0", "different", 0.5, "y")]
    assert asked(world) == ["old", "new"]
    assert world.notes.answered_by == [decision]
    assert [attempt.host_id for attempt in decision.attempts] == ["h-old"]


async def test_equal_answers_are_counted_too() -> None:
    world = a_world()

    await world.decide(asking())

    assert await settled(world, 1) == [CopyEnded("r", "r0", "equal", 0.0, "")]


async def test_copies_are_the_last_in_every_queue_and_not_tried_again() -> None:
    world = a_world()
    world.hosts.fail("h-new", ModelFailed("broken"))

    await world.decide(asking())

    assert await settled(world, 1) == [CopyEnded("r", "r0", "failed", None, "broken")]
    assert asked(world) == ["old", "new"]
    assert (world.hosts.classes[1].band, world.hosts.classes[1].sheddable) == (8, True)
    assert world.notes.failures == []


async def test_what_becomes_of_a_copy_makes_no_host_look_worse() -> None:
    world = a_world()
    for error in (ModelFailed("broken"), Overloaded("full", retry_after_s=5.0), BudgetExhausted("late")):
        world.hosts.fail("h-new", error)
        await world.decide(asking())
        await settled(world, len(world.notes.copies) + 1)

    dry = world.pipeline.explain(a_call("new"), remaining_s=None)

    assert [host.penalty_s for host in dry.candidates[0].hosts] == [0.0]


async def test_no_more_copies_than_the_bound_are_under_way() -> None:
    world = a_world(Shadow(PRIMARY, COPY, max_in_flight=2))
    world.hosts.held["new"] = asyncio.Event()

    for number in range(5):
        await world.decide(asking(number))
        await asyncio.sleep(0)

    assert [copy.outcome for copy in await settled(world, 3)] == ["over_in_flight"] * 3
    assert asked(world).count("new") == 2
    world.hosts.held["new"].set()
    await settled(world, 5)
    await asyncio.sleep(0)
    await world.decide(asking(9))
    assert (await settled(world, 6))[-1].outcome == "equal"


async def test_copies_cost_no_more_than_their_budget() -> None:
    world = a_world(Shadow(PRIMARY, COPY, budget=Budget(100, 60.0)))

    for number in range(4):
        await world.decide(asking(number))
        await settled(world, number + 1)
    world.clock.advance(61.0)
    await world.decide(asking(5))

    assert [copy.outcome for copy in await settled(world, 5)] == [
        "equal",
        "equal",
        "over_budget",
        "over_budget",
        "equal",
    ]


@pytest.mark.parametrize(("percent", "least", "most"), [(0.0, 0, 0), (25.0, 30, 72), (100.0, 200, 200)])
async def test_a_share_of_the_calls_is_copied(percent: float, least: int, most: int) -> None:
    world = a_world(Shadow(PRIMARY, COPY, percent=percent, max_in_flight=1000))

    for number in range(200):
        await world.decide(asking(number))
    for _ in range(20):
        await asyncio.sleep(0)

    assert least <= asked(world).count("new") <= most


async def test_what_must_not_run_twice_is_not_copied() -> None:
    world = a_world()

    await world.decide(asking(options=RouteOptions(idempotent=False)))
    for _ in range(10):
        await asyncio.sleep(0)

    assert asked(world) == ["old"]


async def test_a_primary_that_fails_leaves_nothing_to_copy() -> None:
    world = a_world()
    world.hosts.fail("h-old", ModelFailed("broken"))

    with pytest.raises(ModelFailed):
        await world.decide(asking())
    for _ in range(10):
        await asyncio.sleep(0)

    assert set(asked(world)) == {"old"}


async def test_a_stop_ends_copies_under_way() -> None:
    world = a_world()
    world.hosts.held["new"] = asyncio.Event()
    await world.decide(asking())
    for _ in range(5):
        await asyncio.sleep(0)
    assert "new" in asked(world)

    await world.pipeline.close()

    assert world.notes.copies == []
    assert len(asyncio.all_tasks()) == 1


async def test_explain_says_both() -> None:
    dry = a_world().pipeline.explain(asking(), remaining_s=None)

    assert dry.told is not None
    assert [step.name for step in dry.told.steps] == ["old", "new"]
    assert dry.version is not None
    assert dry.version.metadata.name == "old"
