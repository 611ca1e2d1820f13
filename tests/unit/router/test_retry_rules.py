"""A policy's word on retries, beside the route's."""

import pytest

from services.domain.errors import ModelFailed
from services.domain.objects import Metadata, Policy, Route, RouteTarget, Single
from services.domain.request import RouteOptions
from services.domain.strategies import Fallback
from services.domain.tenancy import RetryRules, Tier
from services.policy.retrying import BUDGET_BURST
from tests.fakes.objects import a_host, a_tenant, hosted
from tests.unit.router.yards import World, a_call, digits

HOSTS = 6


def failing(route: Route, rules: RetryRules | None) -> World:
    """A yard where every host fails, whose tenant lives by a policy with these rules, if any."""
    policies = [] if rules is None else [Policy(Metadata("standard"), (Tier("gold", 1),), retry=rules)]
    hosts = [a_host(f"h{number}", hosted("digits")) for number in range(HOSTS)]
    world = World([*digits(), *policies, a_tenant("acme"), route], hosts)
    for host in hosts:
        world.hosts.fail(host.host_id, ModelFailed("it broke"))
    return world


async def attempts(world: World, number: int = 1) -> int:
    """How many a call makes."""
    before = len(world.hosts.calls)
    with pytest.raises(ModelFailed):
        await world.decide(a_call("hand", request_id=f"r{number}", options=RouteOptions(tenant="acme")))
    return len(world.hosts.calls) - before


@pytest.mark.parametrize(
    ("of_route", "rules", "most"),
    [
        (5, None, 5),
        (5, RetryRules(max_attempts=2), 2),
        (2, RetryRules(max_attempts=4), 2),
        (4, RetryRules(max_attempts=4), 4),
        (5, RetryRules(max_attempts=1), 1),
    ],
)
async def test_attempts_are_bounded_by_the_route_and_by_the_policy(
    of_route: int, rules: RetryRules | None, most: int
) -> None:
    world = failing(Route(Metadata("hand"), Single(RouteTarget("digits")), max_attempts=of_route), rules)

    assert await attempts(world) == most


async def test_the_policys_bound_holds_for_all_that_a_route_asks() -> None:
    fallback = Fallback((RouteTarget("digits"), RouteTarget("digits", "1.0.0")))
    world = failing(Route(Metadata("hand"), fallback, max_attempts=5), RetryRules(max_attempts=2))

    assert await attempts(world) <= 3  # whoever is asked first is always tried


@pytest.mark.parametrize(("share", "retries"), [(0.0, 0), (0.1, 10), (0.5, BUDGET_BURST)])
async def test_answered_calls_pay_for_as_many_retries_as_the_policy_says(share: float, retries: float) -> None:
    route = Route(Metadata("hand"), Single(RouteTarget("digits")), max_attempts=2)
    world = failing(route, RetryRules(budget_share=share))

    spent = sum([await attempts(world, number) for number in range(100)]) - 100
    assert spent == pytest.approx(BUDGET_BURST if share else 0, abs=2)
    for number in range(HOSTS):
        world.hosts.heal(f"h{number}")
    for number in range(100):
        await world.decide(a_call("hand", request_id=f"h{number}", options=RouteOptions(tenant="acme")))
    for number in range(HOSTS):
        world.hosts.fail(f"h{number}", ModelFailed("it broke"))

    made = sum([await attempts(world, number) for number in range(100, 200)]) - 100

    assert made == pytest.approx(retries, abs=3)
