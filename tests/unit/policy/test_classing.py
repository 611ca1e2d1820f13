import pytest

from services.domain.errors import Fault
from services.domain.objects import Metadata, Policy, Tenant
from services.domain.service_class import ORDINARY, ServiceClass
from services.domain.tenancy import Preemption, Tier
from services.policy.classing import rules_of

POLICY = Policy(
    Metadata("house"),
    (
        Tier("gold", 1, reserved_share=0.3),
        Tier("silver", 3, weight=2.0),
        Tier("bronze", 6, sheddable=True, preemption=Preemption.NEVER),
    ),
    default_tier="silver",
)
ACME = Tenant(Metadata("acme"), "house", "silver")


def asked(
    policy: Policy | None = POLICY,
    tenant: Tenant | None = ACME,
    *,
    name: str = "acme",
    tier: str = "",
    priority: int = 0,
) -> ServiceClass | Fault:
    made = rules_of(policy, tenant, tenant_name=name, tier_name=tier, priority=priority)
    return made if isinstance(made, Fault) else made.service_class


def tier_of(asked: ServiceClass | Fault) -> str:
    assert isinstance(asked, ServiceClass)
    return asked.tier


def test_a_tenants_calls_are_of_its_tier() -> None:
    assert asked() == ServiceClass("acme", "silver", band=3, weight=2.0)


def test_a_tier_brings_its_rules_along() -> None:
    assert asked(tier="bronze") == ServiceClass("acme", "bronze", band=6, sheddable=True, preempts=False)


def test_a_tenant_may_ask_for_a_later_tier_and_not_for_an_earlier_one() -> None:
    assert tier_of(asked(tier="bronze")) == "bronze"
    refused = asked(tier="gold")
    assert isinstance(refused, Fault)
    assert refused.message == "tenant 'acme' is of tier 'silver', and 'gold' goes before it"


@pytest.mark.parametrize(
    ("priority", "tier"), [(1, "silver"), (3, "silver"), (4, "bronze"), (6, "bronze"), (7, "bronze"), (1000, "bronze")]
)
def test_a_priority_asks_for_the_first_tier_of_its_band_or_a_later_one(priority: int, tier: str) -> None:
    assert tier_of(asked(priority=priority)) == tier


def test_without_a_tenant_the_default_policy_decides() -> None:
    assert tier_of(asked(tenant=None, name="")) == "silver"
    assert tier_of(asked(tenant=None, name="", tier="gold")) == "gold"
    assert tier_of(asked(tenant=None, name="", priority=1)) == "gold"


def test_a_policy_without_a_default_tier_has_its_last_one() -> None:
    policy = Policy(Metadata("default"), (Tier("a", 2), Tier("b", 5), Tier("c", 5), Tier("d", 1)))
    assert tier_of(asked(policy, None, name="")) == "c"


def test_without_any_policy_a_call_is_ordinary_and_a_priority_is_its_band() -> None:
    assert asked(None, None, name="") is ORDINARY
    assert asked(None, None, name="", priority=2) == ServiceClass(band=2)
    assert asked(None, None, name="", priority=99) == ServiceClass(band=8)


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        (asked(tenant=None, name="nobody"), "route.tenant"),
        (asked(tier="platinum"), "route.tier"),
        (asked(None, None, name="", tier="gold"), "route.tier"),
        (asked(priority=-1), "route.priority"),
    ],
)
def test_what_is_wrong_is_named(fault: ServiceClass | Fault, path: str) -> None:
    assert isinstance(fault, Fault)
    assert fault.path == path
