"""Limits of routes, tiers and tenants, and of the router itself by bands."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.domain.errors import ModelFailed, Overloaded, RateLimited, TooManyInFlight
from services.domain.objects import Metadata, Object, Policy, Tenant
from services.domain.request import InferCall, RouteOptions
from services.domain.tenancy import RateLimit, Tier
from services.router.snapshot import Snapshot
from tests.fakes.objects import a_host, a_tenant, hosted
from tests.unit.router import test_cascade, test_graph, test_shadow
from tests.unit.router.yards import World, a_call, a_single, a_snapshot, digits

POLICY = Policy(Metadata("standard"), (Tier("gold", 1), Tier("silver", 4), Tier("bulk", 8, sheddable=True)))


def limited(policy: Policy = POLICY, **fields: object) -> list[Object]:
    """A yard with the tenant `acme`, which has these limits, and `other`, which has none."""
    acme = replace(a_tenant("acme"), **fields)  # type: ignore[arg-type]
    return [*digits(), policy, acme, a_tenant("other", tier="silver")]


def a_world(objects: list[Object], *, most_in_flight: int = 100, routers: int = 1) -> World:
    names = {each.metadata.name for each in objects if each.key.kind == "Model"}
    hosts = [a_host("h1", *(hosted(name) for name in sorted(names)))]
    return World(objects, hosts, most_in_flight=most_in_flight, routers=routers)


def of(tenant: str = "acme", *, name: str = "digits", tier: str = "", priority: int = 0) -> InferCall:
    return a_call(name, options=RouteOptions(tenant=tenant, tier=tier, priority=priority))


@asynccontextmanager
async def in_flight(world: World, calls: list[InferCall], *, model: str = "digits") -> AsyncIterator[None]:
    """While these calls wait for their host."""
    held = world.hosts.held[model] = asyncio.Event()
    running = [asyncio.ensure_future(world.decide(call)) for call in calls]
    await settled()
    del world.hosts.held[model]
    try:
        yield
    finally:
        held.set()
        await asyncio.gather(*running)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(call: Callable[[], Awaitable[object]]) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await call()
    return caught.value


# --- calls at once -----------------------------------------------------------------------------------


async def test_a_tenant_has_as_many_calls_in_flight_as_it_may_and_others_are_not_disturbed() -> None:
    world = a_world(limited(max_in_flight=2))

    async with in_flight(world, [of(), of()]):
        error = await refused(lambda: world.decide(of()))
        await world.decide(of("other"))
        await world.decide(a_call())

    assert isinstance(error, TooManyInFlight)
    assert error.message == "tenant 'acme' has as many calls in flight as it may: 2"
    assert error.retry_after_s == 0.1
    assert error.metadata == {"limit": "tenant", "name": "acme", "most": "2"}
    assert world.notes.refusals == ["tenant"]
    await world.decide(of())


async def test_a_tier_has_as_many_calls_in_flight_as_it_may_whoever_makes_them() -> None:
    policy = Policy(Metadata("standard"), (Tier("gold", 1, max_in_flight=2), Tier("silver", 4)))
    world = a_world([*limited(policy), a_tenant("third")])

    async with in_flight(world, [of(), of("third")]):
        error = await refused(lambda: world.decide(of()))
        await world.decide(of(tier="silver"))

    assert error.message == "tier 'gold' of policy 'standard' has as many calls in flight as it may: 2"
    assert world.notes.refusals == ["tier"]


async def test_a_route_has_as_many_calls_in_flight_as_it_may_and_its_model_more() -> None:
    world = a_world([*digits(), replace(a_single("narrow", "digits"), max_in_flight=1)])

    async with in_flight(world, [a_call("narrow")]):
        error = await refused(lambda: world.decide(a_call("narrow")))
        await world.decide(a_call("digits"))

    assert error.message == "route 'narrow' has as many calls in flight as it may: 1"
    assert world.notes.refusals == ["route"]
    await world.decide(a_call("narrow"))


async def test_the_first_limit_that_is_met_is_named_and_nothing_is_counted_in_the_others() -> None:
    route = replace(a_single("narrow", "digits"), max_in_flight=1)
    world = a_world([*limited(max_in_flight=2, rate_limit=RateLimit(1.0, 3)), route])

    async with in_flight(world, [of(name="narrow")]):
        errors = [await refused(lambda: world.decide(of(name="narrow"))) for _ in range(5)]
        async with in_flight(world, [of()]):
            errors.append(await refused(lambda: world.decide(of())))

    assert [error.metadata["limit"] for error in errors] == ["route"] * 5 + ["tenant"]
    await world.decide(of())  # the third token: none of the refused took one


async def test_routers_that_share_a_limit_keep_to_their_part() -> None:
    world = a_world(limited(max_in_flight=5), routers=2)

    async with in_flight(world, [of(), of()]):
        error = await refused(lambda: world.decide(of()))

    assert (
        error.message
        == "tenant 'acme' has as many calls in flight as it may: 2 here, its part of the 5 over all routers"
    )


@pytest.mark.parametrize("ending", ["an answer", "an error", "a cancellation"])
async def test_a_call_leaves_its_counts_however_it_ends(ending: str) -> None:
    policy = Policy(Metadata("standard"), (Tier("gold", 1, max_in_flight=1),))
    objects = [*digits(), policy, replace(a_tenant("acme"), max_in_flight=1)]
    world = a_world([*objects, replace(a_single("narrow", "digits"), max_in_flight=1)])
    held = world.hosts.held["digits"] = asyncio.Event()
    if ending == "an error":
        world.hosts.fail("h1", ModelFailed("it broke"))
    call = asyncio.ensure_future(world.decide(of(name="narrow")))
    await settled()
    await refused(lambda: world.decide(of(name="narrow")))

    if ending == "a cancellation":
        call.cancel()
    held.set()
    await asyncio.gather(call, return_exceptions=True)
    world.hosts.heal("h1")

    await world.decide(of(name="narrow"))


async def test_a_limit_that_was_lowered_holds_for_the_next_call_and_one_that_was_lifted_does_not() -> None:
    world = a_world(limited(max_in_flight=2))

    async with in_flight(world, [of(), of()]):
        hosts = list(world.catalog.current.hosts.values()) if world.catalog.current else []
        world.catalog.current = a_snapshot(limited(max_in_flight=1), hosts, revision=2)
        error = await refused(lambda: world.decide(of()))
        world.catalog.current = a_snapshot(limited(), hosts, revision=3)
        await world.decide(of())

    assert error.metadata["most"] == "1"
    world.catalog.current = a_snapshot(limited(max_in_flight=1), hosts, revision=4)
    await world.decide(of())


def bound(world: World) -> None:
    """Allow one call at once through `r` and of `acme`, and two in all."""
    assert world.catalog.current is not None
    view = world.catalog.current
    acme = replace(a_tenant("acme"), max_in_flight=1, rate_limit=RateLimit(1e-6, 2))
    route = replace(view.objects.routes["r"], max_in_flight=1)
    world.catalog.current = Snapshot(view.objects.changed(2, [POLICY, acme, route]), view.hosts)


@pytest.mark.parametrize("kind", ["cascade", "shadow"])
async def test_a_call_counts_once_whatever_its_route_asks(kind: str) -> None:
    world = test_cascade.a_world() if kind == "cascade" else test_shadow.a_world()
    call = test_graph.asking() if kind == "cascade" else test_shadow.asking()
    call = call._replace(options=replace(call.options, tenant="acme"))
    bound(world)

    for _ in range(2):
        await world.decide(call)
        await settled()
    error = await refused(lambda: world.decide(call))

    assert [key.model for _, key in world.hosts.calls] == 2 * (
        ["small", "large"] if kind == "cascade" else ["old", "new"]
    )
    assert isinstance(error, RateLimited)
    await world.pipeline.close()


# --- calls by time -----------------------------------------------------------------------------------


async def test_a_tenant_calls_as_fast_as_it_may_and_is_told_when_to_come_again() -> None:
    world = a_world(limited(rate_limit=RateLimit(2.0, 3)))
    world.hosts.took_s = 0.0

    for _ in range(3):
        await world.decide(of())
    error = await refused(lambda: world.decide(of()))

    assert isinstance(error, RateLimited)
    assert error.message == "tenant 'acme' may make 2 calls a second and 3 at once; the next in 0.5 s"
    assert error.retry_after_s == pytest.approx(0.5)
    assert error.metadata == {"limit": "tenant_rate", "name": "acme", "requests_per_s": "2", "burst": "3"}
    assert world.notes.refusals == ["tenant_rate"]
    await world.decide(of("other"))
    world.clock.advance(error.retry_after_s or math.inf)
    await world.decide(of())


async def test_another_rate_is_another_bucket() -> None:
    world = a_world(limited(rate_limit=RateLimit(1.0, 1)))
    await world.decide(of())
    await refused(lambda: world.decide(of()))
    assert world.catalog.current is not None

    hosts = world.catalog.current.hosts.values()
    world.catalog.current = a_snapshot(limited(rate_limit=RateLimit(1.0, 2)), hosts, revision=2)

    await world.decide(of())
    await world.decide(of())
    await refused(lambda: world.decide(of()))


async def test_routers_share_a_rate() -> None:
    world = a_world(limited(rate_limit=RateLimit(4.0, 4)), routers=2)
    world.hosts.took_s = 0.0

    await world.decide(of())
    await world.decide(of())
    error = await refused(lambda: world.decide(of()))

    assert error.retry_after_s == pytest.approx(0.5)
    assert "4 calls a second and 4 at once, of which 2 a second and 2 at once here" in error.message


# --- room in the router ------------------------------------------------------------------------------


async def test_a_router_that_is_nearly_full_keeps_what_is_left_for_those_that_go_before() -> None:
    world = a_world([*limited(), a_tenant("bulk", tier="bulk")], most_in_flight=20)

    async with in_flight(world, [a_call() for _ in range(16)]):
        error = await refused(lambda: world.decide(of("bulk")))
        await world.decide(of("other"))
        async with in_flight(world, [a_call() for _ in range(4)]):
            full = await refused(lambda: world.decide(of()))

    assert error.message == (
        "this router has 16 calls and takes those of band 8 that may be shed up to 16: what is left of the 20 it holds "
        "is kept for those that go before"
    )
    assert (error.reason, error.retry_after_s) == ("OVERLOADED", 0.1)
    assert full.message == "this router has 20 calls, the most it holds"
    assert world.notes.refusals == ["band", "router"]


# --- dry runs ----------------------------------------------------------------------------------------


async def test_explain_says_that_a_call_would_be_refused_and_takes_nothing() -> None:
    world = a_world(limited(rate_limit=RateLimit(2.0, 1)))
    world.hosts.took_s = 0.0

    before = [world.pipeline.explain(of(), remaining_s=None).refusal for _ in range(3)]
    await world.decide(of())
    after = world.pipeline.explain(of(), remaining_s=None)

    assert before == [""] * 3
    assert after.refusal == "tenant 'acme' may make 2 calls a second and 1 at once; the next in 0.5 s"
    assert after.host is not None
    assert world.notes.refusals == []


async def test_explain_says_that_too_much_is_in_flight() -> None:
    world = a_world(limited(max_in_flight=1), most_in_flight=2)

    async with in_flight(world, [of()]):
        tenant = world.pipeline.explain(of(), remaining_s=None).refusal
        async with in_flight(world, [a_call()]):
            full = world.pipeline.explain(a_call(), remaining_s=None).refusal

    assert tenant == "tenant 'acme' has as many calls in flight as it may: 1"
    assert full == "this router has 2 calls, the most it holds"
    assert world.pipeline.explain(of(), remaining_s=None).refusal == ""


def test_only_rules_that_bound_calls_are_looked_at() -> None:
    tenants: list[Tenant] = [
        a_tenant("a"),
        replace(a_tenant("a"), max_in_flight=1),
        replace(a_tenant("a"), rate_limit=RateLimit(1.0, 1)),
    ]
    views = [a_snapshot([POLICY, tenant], []) for tenant in tenants]

    assert [view.rules(RouteOptions(tenant="a")).limited for view in views] == [False, True, True]
