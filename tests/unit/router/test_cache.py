"""Answers that are kept, identical calls computed once, and what becomes of those who wait when others leave."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.caching import Cache, CachePolicy, CacheStatus
from services.domain.clock import ManualClock
from services.domain.errors import BudgetExhausted, HostUnavailable, ModelFailed, YardError
from services.domain.model import ModelKey
from services.domain.objects import Backend, Choose, Metadata, Object, Route, RouteTarget, Single
from services.domain.request import InferCall
from services.domain.strategies import Fallback, Shadow, Split, SplitTarget, StaticTensor, Strategy
from services.domain.tenancy import Tier
from services.router.decision_wire import decision_to, trailing_metadata
from services.router.frames import Payload, Received
from services.router.pipeline import Answer
from services.router.wire import call_from
from tests.fakes.clock import SteppedClock, settle
from tests.fakes.objects import a_host, a_model, a_policy, a_tenant, a_version, hosted
from tests.unit.router.yards import World, a_snapshot

CACHE = Cache(ttl_s=10.0)
HIT, MISS, COALESCED, BYPASS = CacheStatus.HIT, CacheStatus.MISS, CacheStatus.COALESCED, CacheStatus.BYPASS


def a_request(
    *, typed: bool = False, values: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0), **wishes: object
) -> pb.InferRequest:
    request = pb.InferRequest(model_name="kept", id="r1", **wishes)  # type: ignore[arg-type]
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    if typed:
        tensor.contents.fp32_contents.extend(values)
    else:
        request.raw_input_contents.append(np.array(values, "<f4").tobytes())
    return request


def a_call(
    request: pb.InferRequest | None = None, *, name: str = "kept", request_id: str = "r1", **options: object
) -> InferCall:
    made = request or a_request()
    made.id = request_id
    raw = made.SerializeToString()
    call = call_from(Received.FromString(raw), (), trace_id="0" * 32, made_up_id="made-up")
    wishes = replace(call.options, **options) if options else call.options  # type: ignore[arg-type]
    return call._replace(name=name, request_id=request_id, options=wishes)


def objects(strategy: Strategy | None = None, *, cache: Cache | None = CACHE, shareable: bool = False) -> list[Object]:
    models = [replace(a_model(name), deterministic=True, shareable_answers=shareable) for name in ("small", "large")]
    return [
        *models,
        replace(a_version("small"), cost_microusd=7),
        replace(a_version("large"), cost_microusd=70),
        a_policy("default", "gold", "bronze"),
        a_tenant("acme", policy="default"),
        a_tenant("bolt", policy="default"),
        Route(Metadata("kept"), strategy or Single(RouteTarget("small")), cache=cache),
    ]


HOSTS = [a_host("a", hosted("small"), hosted("large"))]


class Computing:
    """Counts, and answers with the host's model, the request's id and the number of the answer."""

    def __init__(self, world: World) -> None:
        self.count = 0
        for model in ("small", "large"):
            world.hosts.answers[model] = lambda payload, model=model: self.answer(model, payload)  # type: ignore[misc]

    def answer(self, model: str, payload: object) -> bytes:
        assert isinstance(payload, Payload)
        request = pb.InferRequest.FromString(payload.raw + payload.suffix)
        self.count += 1
        response = pb.InferResponse(model_name=model, model_version="1.0.0", id=request.id)
        output = response.outputs.add(name="y", datatype="FP32", shape=[1])
        if request.raw_input_contents:
            response.raw_output_contents.append(np.array([self.count], "<f4").tobytes())
        else:
            output.contents.fp32_contents.append(self.count)
        return response.SerializeToString()


def a_world(made: list[Object] | None = None, clock: ManualClock | None = None) -> tuple[World, Computing]:
    world = World(made or objects(), HOSTS, clock=clock)
    return world, Computing(world)


def number(answer: Answer) -> float:
    """Which answer it is."""
    response = pb.InferResponse.FromString(bytes(answer.payload))  # type: ignore[call-overload]
    if response.raw_output_contents:
        return float(np.frombuffer(response.raw_output_contents[0], "<f4")[0])
    return float(response.outputs[0].contents.fp32_contents[0])


async def ask(world: World, call: InferCall | None = None, *, remaining_s: float | None = None) -> Answer:
    return await world.pipeline.route(call or a_call(), remaining_s=remaining_s)


def status(answer: Answer) -> CacheStatus | None:
    return None if answer.decision.cached is None else answer.decision.cached.status


async def test_the_same_call_is_computed_once_and_the_decision_says_so() -> None:
    world, computing = a_world()
    first = await ask(world)
    world.clock.advance(3.0)

    second = await ask(world, a_call(request_id="r2"))

    assert computing.count == 1
    assert (status(first), status(second)) == (MISS, HIT)
    decision = decision_to(second.decision)
    assert decision.cache == pb.CACHE_STATUS_HIT
    assert 2.9 < decision.cache_age.ToTimedelta().total_seconds() < 3.1
    assert (decision.model, decision.version, decision.host) == ("small", "1.0.0", "a")
    assert (decision.cost_microusd, list(decision.attempts), decision.request_id) == (0, [], "r2")
    assert decision_to(first.decision).cost_microusd == 7
    assert "cache=HIT; " in trailing_metadata(second.decision)[0][1]
    assert "cost_microusd=0" in trailing_metadata(second.decision)[0][1]
    assert world.notes.looks == [("kept", MISS), ("kept", HIT)]


async def test_a_hit_has_its_callers_id_and_nothing_of_the_one_it_was_computed_for() -> None:
    world, _ = a_world()
    await ask(world, a_call(request_id="secret-of-the-first"))

    second = await ask(world, a_call(request_id="mine"))

    assert status(second) is HIT
    assert pb.InferResponse.FromString(bytes(second.payload)).id == "mine"  # type: ignore[call-overload]
    assert b"secret" not in bytes(second.payload)  # type: ignore[call-overload]


@pytest.mark.parametrize("typed_first", [False, True])
async def test_raw_and_typed_are_one_call_and_each_gets_its_own_form(typed_first: bool) -> None:
    world, computing = a_world()
    await ask(world, a_call(a_request(typed=typed_first)))

    other = await ask(world, a_call(a_request(typed=not typed_first)))

    response = pb.InferResponse.FromString(bytes(other.payload))  # type: ignore[call-overload]
    assert (computing.count, number(other)) == (1, 1.0)
    assert bool(response.raw_output_contents) is typed_first
    assert (response.model_name, response.model_version, response.id) == ("small", "1.0.0", "r1")


async def test_an_answer_is_kept_for_the_routes_time_and_no_longer() -> None:
    world, computing = a_world()
    await ask(world)
    world.clock.advance(9.9)
    assert status(await ask(world)) is HIT
    world.clock.advance(0.2)

    assert status(await ask(world)) is MISS
    assert computing.count == 2


async def test_a_shorter_time_holds_at_once_for_what_is_kept_already() -> None:
    world, _ = a_world()
    await ask(world)
    world.clock.advance(2.0)
    world.catalog.current = a_snapshot(objects(cache=Cache(ttl_s=1.0)), HOSTS, revision=2)

    assert status(await ask(world)) is MISS


async def test_routes_without_a_cache_keep_nothing_and_say_nothing() -> None:
    world, computing = a_world(objects(cache=None))

    answers = [await ask(world), await ask(world)]

    assert computing.count == 2
    assert [status(answer) for answer in answers] == [None, None]
    assert world.notes.looks == []
    assert not decision_to(answers[0].decision).cache


async def test_tenants_do_not_get_each_others_answers() -> None:
    world, computing = a_world()

    seen = [status(await ask(world, a_call(tenant=tenant))) for tenant in ("", "acme", "bolt", "acme")]

    assert seen == [MISS, MISS, MISS, HIT]
    assert computing.count == 3


async def test_tenants_share_answers_where_every_model_says_so() -> None:
    world, computing = a_world(objects(shareable=True))

    seen = [status(await ask(world, a_call(tenant=tenant))) for tenant in ("", "acme", "bolt")]

    assert seen == [MISS, HIT, HIT]
    assert computing.count == 1


@pytest.mark.parametrize(
    "options",
    [{"cache": CachePolicy.BYPASS}, {"idempotent": False}, {"explain": True}],
    ids=["bypass", "not idempotent", "explain"],
)
async def test_some_calls_are_always_computed_and_never_kept(options: dict[str, Any]) -> None:
    world, computing = a_world()

    seen = [status(await ask(world, a_call(**options))) for _ in range(2)]

    assert seen == [BYPASS, BYPASS]
    assert (computing.count, len(world.kept)) == (2, 0)


async def test_calls_of_a_sequence_are_never_kept() -> None:
    world, computing = a_world()
    request = a_request()
    request.parameters["sequence_id"].int64_param = 7

    seen = [status(await ask(world, a_call(request))) for _ in range(2)]

    assert seen == [BYPASS, BYPASS]
    assert computing.count == 2


async def test_refresh_computes_anew_and_what_it_gets_is_kept() -> None:
    world, _ = a_world()
    await ask(world)

    refreshed = await ask(world, a_call(cache=CachePolicy.REFRESH))
    after = await ask(world)

    assert (status(refreshed), number(refreshed)) == (MISS, 2.0)
    assert (status(after), number(after)) == (HIT, 2.0)


async def test_wishes_of_the_choice_tell_calls_apart_and_urgency_does_not() -> None:
    world, _ = a_world()
    await ask(world)

    same: list[dict[str, Any]] = [{"tier": "bronze"}, {"priority": 2}, {"session": "s"}]
    assert [status(await ask(world, a_call(**options))) for options in same] == [HIT] * 3
    other: list[dict[str, Any]] = [{"max_cost_microusd": 50}, {"zone": ""}, {"min_quality": None}]
    assert [status(await ask(world, a_call(**options))) for options in other] == [MISS, HIT, HIT]


async def test_where_a_tier_may_decide_the_model_each_has_its_own_answers() -> None:
    made = objects(Choose((RouteTarget("small"), RouteTarget("large"))))
    world, _ = a_world(made)

    seen = [status(await ask(world, a_call(tier=tier))) for tier in ("gold", "bronze", "gold")]

    assert seen == [MISS, MISS, HIT]


async def test_another_set_of_ready_versions_is_another_call() -> None:
    world, computing = a_world()
    await ask(world)
    newer = a_host("b", hosted("small", "2.0.0"))
    world.catalog.current = a_snapshot([*objects(), a_version("small", "2.0.0")], [*HOSTS, newer], revision=2)

    assert status(await ask(world)) is MISS
    assert computing.count == 2
    world.catalog.current = a_snapshot(objects(), HOSTS, revision=3)
    assert status(await ask(world)) is HIT


async def test_an_older_version_that_stood_in_is_not_kept() -> None:
    made = [*objects(), a_version("small", "2.0.0")]
    hosts = [*HOSTS, a_host("b", hosted("small", "2.0.0"))]
    world = World(made, hosts)
    computing = Computing(world)
    world.hosts.fail("b", HostUnavailable("gone"))

    answer = await ask(world)

    assert answer.decision.version is not None
    assert answer.decision.version.version == "1.0.0"
    assert (computing.count, len(world.kept)) == (1, 0)


async def test_a_version_made_anew_under_its_name_is_another_one() -> None:
    world, _ = a_world()
    await ask(world)
    anew = replace(a_version("small"), backend=Backend("identity", options={"layers": "9"}))
    made = [*objects(), anew]
    world.catalog.current = a_snapshot(made, HOSTS, revision=2)

    assert status(await ask(world)) is MISS


async def test_a_part_of_a_split_is_never_answered_with_anothers() -> None:
    split = Split((SplitTarget(RouteTarget("small"), 50.0), SplitTarget(RouteTarget("large"), 50.0)))
    world, computing = a_world(objects(split))

    for session in range(60):
        answer = await ask(world, a_call(session=str(session), request_id=f"r{session}"))
        told = answer.decision.told
        assert told is not None
        assert pb.InferResponse.FromString(bytes(answer.payload)).model_name == told.arm  # type: ignore[call-overload]
    assert computing.count == 2


async def test_a_copy_for_a_shadow_is_not_made_of_what_was_not_computed() -> None:
    world, _ = a_world(objects(Shadow(RouteTarget("small"), RouteTarget("large"))))
    for _ in range(4):
        await ask(world)
        await settle()

    assert world.hosts.calls == [("a", ModelKey("small", "1.0.0")), ("a", ModelKey("large", "1.0.0"))]


async def test_a_failure_is_not_kept() -> None:
    world, computing = a_world()
    world.hosts.fail("a", ModelFailed("on this input"))
    with pytest.raises(ModelFailed):
        await ask(world)
    world.hosts.heal("a")

    assert status(await ask(world)) is MISS
    assert computing.count == 1


# --- identical calls under way ------------------------------------------------------------------


def held(world: World, model: str = "small") -> asyncio.Event:
    world.hosts.held[model] = asyncio.Event()
    return world.hosts.held[model]


async def begin(
    world: World, count: int, *, remaining_s: float | None = None, call: Callable[[int], InferCall] | None = None
) -> list[asyncio.Task[Answer]]:
    tasks = []
    for number in range(count):
        made = a_call(request_id=f"r{number}") if call is None else call(number)
        tasks.append(asyncio.create_task(ask(world, made, remaining_s=remaining_s)))
        await settle()
    return tasks


async def test_a_thousand_identical_calls_are_computed_once() -> None:
    world = World(objects(), HOSTS, most_in_flight=2000)
    computing = Computing(world)
    gate = held(world)
    tasks = [asyncio.create_task(ask(world, a_call(request_id=f"r{number}"))) for number in range(1000)]
    await settle()
    gate.set()

    answers = await asyncio.gather(*tasks)

    assert computing.count == 1
    assert [status(answer) for answer in answers] == [MISS] + [COALESCED] * 999
    ids = [pb.InferResponse.FromString(bytes(answer.payload)).id for answer in answers]  # type: ignore[call-overload]
    assert ids == [f"r{number}" for number in range(1000)]
    assert sum(answer.decision.cost_microusd for answer in answers) == 7
    assert [len(answer.decision.attempts) for answer in answers] == [1] + [0] * 999


async def test_a_route_may_have_every_call_computed() -> None:
    world, computing = a_world(objects(cache=Cache(ttl_s=10.0, coalesce=False)))
    gate = held(world)
    tasks = await begin(world, 3)
    gate.set()
    await asyncio.gather(*tasks)

    assert computing.count == 3


async def test_tenants_do_not_wait_for_each_other() -> None:
    world, computing = a_world()
    gate = held(world)
    tasks = await begin(world, 4, call=lambda number: a_call(tenant=("acme", "bolt")[number % 2]))
    gate.set()

    seen = [status(answer) for answer in await asyncio.gather(*tasks)]

    assert seen == [MISS, MISS, COALESCED, COALESCED]
    assert computing.count == 2


async def test_nobody_waits_for_a_call_that_stands_further_behind() -> None:
    tiers = a_policy("default")
    assert {tier.priority_band for tier in tiers.tiers if isinstance(tier, Tier)} == {1, 2}
    world, computing = a_world()
    gate = held(world)
    tasks = await begin(world, 2, call=lambda number: a_call(tier=("bronze", "gold")[number]))
    gate.set()
    await asyncio.gather(*tasks)

    assert computing.count == 2


@pytest.mark.parametrize("leaves", [0, 1])
async def test_one_that_leaves_takes_nobody_along(leaves: int) -> None:
    world, computing = a_world()
    gate = held(world)
    tasks = await begin(world, 3)
    tasks[leaves].cancel()
    await settle()
    gate.set()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(answers[leaves], asyncio.CancelledError)
    assert [isinstance(answer, Answer) for answer in answers] == [at != leaves for at in range(3)]
    assert (computing.count, len(world.hosts.calls), world.notes.cancellations) == (1, 1, 1)
    assert status(await ask(world)) is HIT


async def test_a_call_that_nobody_waits_for_any_more_ends() -> None:
    world, computing = a_world()
    held(world)
    tasks = await begin(world, 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()

    assert computing.count == 0
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    world.hosts.held.clear()
    assert status(await ask(world)) is MISS


async def test_all_who_wait_get_the_error_and_nothing_is_asked_again() -> None:
    world, _ = a_world()
    world.hosts.fail("a", ModelFailed("on this input"))
    gate = held(world)
    tasks = await begin(world, 5)
    gate.set()

    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(error) for error in errors} == {ModelFailed}
    assert len({id(error) for error in errors}) == 5
    assert len(world.hosts.calls) == 3  # the attempts of the one that was asked


async def test_one_whose_time_is_over_leaves_alone() -> None:
    clock = SteppedClock()
    world, computing = a_world(clock=clock)  # type: ignore[arg-type]
    world.hosts.took_s = 0.0
    world.hosts._clock = ManualClock()
    gate = held(world)
    (leader,) = await begin(world, 1, remaining_s=5.0)
    (hurried,) = await begin(world, 1, remaining_s=0.1)
    await clock.advance(0.2)

    with pytest.raises(BudgetExhausted, match="does not come in time"):
        await hurried
    gate.set()

    assert status(await leader) is MISS
    assert computing.count == 1


async def test_one_with_time_left_asks_anew_when_the_first_had_too_little() -> None:
    world, computing = a_world()
    gate = held(world)
    errors: list[YardError | None] = [BudgetExhausted("it took too long"), None]
    world.hosts.behaviour["a"] = lambda: errors.pop(0)
    (leader,) = await begin(world, 1, remaining_s=1.0)
    patient = await begin(world, 3, remaining_s=9.0)
    gate.set()

    with pytest.raises(BudgetExhausted):
        await leader
    assert [status(await task) for task in patient] == [MISS, COALESCED, COALESCED]
    assert computing.count == 1


async def test_nobody_asks_anew_twice() -> None:
    world, _ = a_world()
    gate = held(world)
    world.hosts.behaviour["a"] = lambda: BudgetExhausted("it took too long")
    tasks = [asyncio.create_task(ask(world, a_call(), remaining_s=3.0**number)) for number in range(6)]
    await settle()
    gate.set()

    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(error) for error in errors} == {BudgetExhausted}
    assert len(world.hosts.calls) == 2


async def test_those_with_hardly_more_time_than_the_first_do_not_ask_one_after_the_other() -> None:
    world, _ = a_world()
    gate = held(world)
    world.hosts.behaviour["a"] = lambda: BudgetExhausted("it took too long")
    tasks = [asyncio.create_task(ask(world, a_call(), remaining_s=1.0 + number / 100)) for number in range(10)]
    await settle()
    world.clock.advance(0.9)
    gate.set()

    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(error) for error in errors} == {BudgetExhausted}
    assert len(world.hosts.calls) == 1


async def test_a_router_that_stops_leaves_no_call_behind() -> None:
    world, _ = a_world()
    held(world)
    tasks = await begin(world, 2)

    await world.pipeline.close()
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(error, YardError) for error in ended)


# --- old answers --------------------------------------------------------------------------------


async def test_an_old_answer_stands_in_where_all_else_fails_and_is_called_degraded() -> None:
    world, _ = a_world(objects(cache=Cache(ttl_s=1.0, stale_s=60.0)))
    await ask(world)
    world.clock.advance(30.0)
    world.hosts.fail("a", HostUnavailable("gone"))

    answer = await ask(world)

    assert (status(answer), number(answer)) == (HIT, 1.0)
    assert answer.decision.told is not None
    assert answer.decision.told.degraded_reason.startswith("an older answer stands in: ")
    assert len(world.notes.degradations) == 1


async def test_an_old_answer_stands_in_where_no_host_is_ready() -> None:
    world, _ = a_world(objects(cache=Cache(ttl_s=1.0, stale_s=60.0)))
    await ask(world)
    world.clock.advance(30.0)
    world.catalog.current = a_snapshot(objects(cache=Cache(ttl_s=1.0, stale_s=60.0)), [], revision=2)

    assert status(await ask(world)) is HIT
    world.clock.advance(40.0)
    with pytest.raises(YardError):
        await ask(world)


async def test_without_a_word_of_it_no_old_answer_stands_in() -> None:
    world, _ = a_world()
    await ask(world)
    world.clock.advance(30.0)
    world.hosts.fail("a", HostUnavailable("gone"))

    with pytest.raises(HostUnavailable):
        await ask(world)


async def test_a_fallback_asks_all_before_it_ends_in_an_old_answer_and_that_before_the_static_one() -> None:
    static = {"y": StaticTensor((1, 4), b"")}
    cache = Cache(ttl_s=1.0, stale_s=60.0)
    made = objects(Fallback((RouteTarget("small"), RouteTarget("large")), static), cache=cache)
    hosts = [a_host("a", hosted("small")), a_host("b", hosted("large"))]
    world = World(made, hosts)
    Computing(world)
    await ask(world)
    world.clock.advance(30.0)
    world.hosts.fail("a", ModelFailed("broken"))

    second = await ask(world)
    world.hosts.fail("b", ModelFailed("broken"))
    world.clock.advance(40.0)
    last = await ask(world)

    assert (status(second), number(second)) == (MISS, 2.0)
    assert (status(last), number(last)) == (HIT, 2.0)
    assert last.decision.told is not None
    assert "an older answer stands in" in last.decision.told.degraded_reason
    world.clock.advance(60.0)
    assert (await ask(world)).decision.reason == "the route's static answer"


async def test_an_old_answer_of_a_version_that_was_taken_away_does_not_stand_in() -> None:
    cache = Cache(ttl_s=1.0, stale_s=60.0)
    world, _ = a_world(objects(cache=cache))
    await ask(world)
    world.clock.advance(5.0)
    made = [item for item in objects(cache=cache) if item.key.kind != "ModelVersion"]
    world.catalog.current = a_snapshot([*made, a_version("small", "2.0.0")], [], revision=2)

    with pytest.raises(YardError):
        await ask(world)


async def test_large_requests_are_hashed_beside_the_loop_and_found_again() -> None:
    world, computing = a_world()
    request = pb.InferRequest(model_name="kept", raw_input_contents=[bytes(4 * 4 * 40_000)])
    request.inputs.add(name="x", datatype="FP32", shape=[40_000, 4])

    seen = [status(await ask(world, a_call(request))) for _ in range(2)]

    assert seen == [MISS, HIT]
    assert computing.count == 1
