"""Calls of tenants with budgets: what there is money for is chosen, and what was answered is paid for, once."""

import asyncio

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import HostUnavailable, ModelFailed, SpendingExhausted
from services.domain.objects import Metadata, Object, Policy, Tenant
from services.domain.request import RouteOptions
from services.domain.strategies import (
    Choose,
    Combine,
    Ensemble,
    EnsembleMember,
    Fallback,
    RouteTarget,
    Shadow,
)
from services.domain.tenancy import Budget, PriceRules, Tier
from services.policy.pricing import ANY
from services.router.decision_wire import decision_to
from tests.fakes.objects import a_host, a_model, a_route, hosted
from tests.unit.router.test_graph import asking
from tests.unit.router.test_shadow import settled
from tests.unit.router.yards import World, a_call, rated

PRICES = PriceRules(cost_weight=0.0001, max_cost_weight=0.1, step=0.01, interval_s=5.0)
ACME = RouteOptions(tenant="acme")
SMALL, LARGE = RouteTarget("small"), RouteTarget("large")


def a_world(
    *, at_once: int = 100, per_s: float = 2.0, price: PriceRules | None = PRICES, worth: float | None = None
) -> World:
    """Models of 10 and 60 microdollars, of which acme has `at_once` to begin with."""
    amount = 40 * at_once  # of a twentieth of which there is a half
    objects: list[Object] = [
        *(a_model(name) for name in ("small", "large")),
        rated("small", quality=0.9, cost=10),
        rated("large", quality=0.99, cost=60),
        a_route("best", Choose((SMALL, LARGE), cost_weight=0.01)),
        a_route("both", Ensemble((EnsembleMember(SMALL), EnsembleMember(LARGE)), Combine.MEAN, 2)),
        a_route("copied", Shadow(SMALL, LARGE)),
        a_route("always", Fallback((LARGE, SMALL))),
        Policy(Metadata("p"), (Tier("gold", 1, quality_weight=worth),), price=price),
        Tenant(Metadata("acme"), policy="p", tier="gold", budget=Budget(amount, amount / per_s)),
        Tenant(Metadata("free"), policy="p", tier="gold"),
    ]
    hosts = [a_host("h-small", hosted("small")), *(a_host(f"h-large-{at}", hosted("large")) for at in (1, 2))]
    return World(objects, hosts)


async def chosen(world: World, name: str = "best", options: RouteOptions = ACME) -> str:
    version = (await world.decide(a_call(name, options=options))).version
    return "" if version is None else version.metadata.name


def left(world: World) -> int:
    """What acme has by now."""
    hold = world.pipeline.explain(a_call("large", options=ACME), remaining_s=None).hold
    assert hold is not None
    return hold.left_microusd(world.clock.now_s())


async def test_what_costs_more_than_is_left_is_not_chosen_and_a_cheaper_one_answers() -> None:
    world = a_world()

    assert [await chosen(world) for _ in range(3)] == ["large", "small", "small"]

    explained = world.pipeline.explain(a_call("best", options=ACME), remaining_s=None)
    assert [view.filtered for view in explained.candidates] == ["", "costs 60 µUSD, and tenant 'acme' has 20 left"]


async def test_without_money_for_any_a_call_is_refused_and_told_when_there_will_be() -> None:
    world = a_world(at_once=20)

    assert await chosen(world, "large") == "large"  # once, whatever that costs
    with pytest.raises(SpendingExhausted) as refused:
        await chosen(world)

    assert refused.value.message == (
        "'best' cannot be paid: small:1.0.0: costs 10 µUSD, and tenant 'acme' has 0 left; "
        "large:1.0.0: costs 60 µUSD, and tenant 'acme' has 0 left"
    )
    assert refused.value.retry_after_s == pytest.approx(25.0)
    assert len(world.hosts.calls) == 1
    world.clock.advance(25.0)
    assert await chosen(world) == "small"


async def test_others_are_not_bounded_by_it() -> None:
    world = a_world(at_once=10)
    await chosen(world, "large")

    assert await chosen(world, "large", RouteOptions(tenant="free")) == "large"
    assert await chosen(world, "large", RouteOptions()) == "large"


async def test_a_call_that_is_tried_twice_is_paid_for_once() -> None:
    world = a_world()
    failures = iter([HostUnavailable("gone")])
    for at in (1, 2):
        world.hosts.behaviour[f"h-large-{at}"] = lambda: next(failures, None)

    decision = await world.decide(a_call("large", options=ACME))

    assert len(decision.attempts) == 2
    assert left(world) == 40


async def test_a_call_that_fails_or_is_left_is_not_paid_for() -> None:
    world = a_world()
    for at in (1, 2):
        world.hosts.fail(f"h-large-{at}", ModelFailed("broken"))
    with pytest.raises(ModelFailed):
        await chosen(world, "large")
    world.hosts.held["small"] = asyncio.Event()
    left_alone = asyncio.create_task(chosen(world, "small"))
    await asyncio.sleep(0)
    assert left(world) == 90

    left_alone.cancel()
    await asyncio.gather(left_alone, return_exceptions=True)

    assert left(world) == ANY


async def test_the_next_one_answers_where_there_is_no_money_for_the_first() -> None:
    world = a_world(at_once=50)
    await chosen(world, "small")

    assert await chosen(world, "always") == "small"


async def test_all_that_a_route_asks_are_paid_for_and_copies_are_not() -> None:
    world = a_world()
    answer = pb.InferResponse(model_name="m", id="r1")
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 4])
    answer.raw_output_contents.append(bytes(16))
    world.hosts.answers = dict.fromkeys(("small", "large"), lambda _: answer.SerializeToString())

    await world.decide(asking("copied")._replace(options=ACME))
    await settled(world, 1)

    assert [key.model for _, key in world.hosts.calls] == ["small", "large"]
    assert left(world) == 90

    await world.decide(asking("both")._replace(options=ACME))

    assert left(world) == 20


async def test_the_price_of_money_takes_the_place_of_the_routes_and_follows_what_is_spent() -> None:
    world = a_world(at_once=10_000, per_s=4.0)  # 20 an interval
    decisions = [await world.decide(a_call("best", options=ACME)) for _ in range(2)]
    assert [decision.version and decision.version.metadata.name for decision in decisions] == ["large", "large"]
    assert decision_to(decisions[0]).cost_weight == 0.0001

    world.clock.advance(5.0)
    decision = await world.decide(a_call("best", options=ACME))

    # 120 were spent in place of 20, five budgets too much, of what is as full as before.
    assert decision_to(decision).cost_weight == pytest.approx(0.0001 + 0.01 * 5.0, rel=0.001)
    assert decision.version is not None
    assert decision.version.metadata.name == "small"


async def test_what_quality_is_worth_to_a_tier_takes_the_place_of_the_routes() -> None:
    prices = PriceRules(cost_weight=0.01, max_cost_weight=0.01)

    assert await chosen(a_world(price=prices)) == "small"
    assert await chosen(a_world(price=prices, worth=10.0)) == "large"


async def test_without_prices_the_routes_weights_hold() -> None:
    decision = await a_world(price=None).decide(a_call("best", options=ACME))

    assert not decision_to(decision).HasField("cost_weight")
    assert decision.version is not None
    assert decision.version.metadata.name == "small"
