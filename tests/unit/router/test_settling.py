from dataclasses import replace

import pytest

from services.domain.errors import InvalidRequest
from services.domain.objects import Metadata, Object, Policy, Tenant
from services.domain.request import RouteOptions
from services.domain.tenancy import Tier
from services.policy.admission import DeadlineSource
from services.router.settling import Settled, settle
from tests.unit.router.yards import a_call, a_single, a_snapshot, digits

HOUSE = Policy(
    Metadata("house"), (Tier("gold", 1, default_timeout_s=2.0), Tier("bronze", 6, max_timeout_s=5.0)), "", "bronze"
)
STRICT = Policy(Metadata("strict"), (Tier("all", 2, max_timeout_s=0.5),), "", "all")
ACME = Tenant(Metadata("acme"), "house", "gold")


def settled(
    options: RouteOptions, *, left_s: float | None = None, policy: str = "", more: tuple[Object, ...] = ()
) -> Settled:
    route = replace(a_single("front", "digits"), policy=policy)
    snapshot = a_snapshot([*digits(), route, HOUSE, ACME, STRICT, *more], [])
    return settle(a_call("front", options=options), snapshot, snapshot.destination("front"), left_s)


def test_a_call_lives_by_the_policy_and_the_tier_of_its_tenant() -> None:
    rules, allowed = settled(RouteOptions(tenant="acme"))
    assert (rules.policy, rules.tenant, rules.service_class.band) == (HOUSE, ACME, 1)
    assert allowed == (2.0, DeadlineSource.ROUTE_DEFAULT)


def test_a_routes_own_policy_goes_before_that_of_the_tenant() -> None:
    rules, allowed = settled(RouteOptions(tenant="acme"), policy="strict", left_s=3.0)
    assert (rules.policy, rules.service_class.tier, rules.service_class.band) == (STRICT, "all", 2)
    assert allowed == (0.5, DeadlineSource.ROUTE_MAXIMUM)


@pytest.mark.parametrize(("left_s", "duration_s"), [(3.0, 3.0), (8.0, 5.0), (None, 5.0)])
def test_a_tiers_longest_time_holds_beside_the_routes(left_s: float | None, duration_s: float) -> None:
    assert settled(RouteOptions(tenant="acme", tier="bronze"), left_s=left_s).allowed.duration_s == duration_s


def test_a_tier_that_the_routes_policy_lacks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'gold' is no tier of policy 'strict'"):
        settled(RouteOptions(tenant="acme", tier="gold"), policy="strict")
