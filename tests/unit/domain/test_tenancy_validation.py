"""Policies and tenants: each rule has an object that breaks it, and what they refer to must be there."""

from dataclasses import replace
from typing import Any

import pytest

from services.domain.objects import Metadata, Object, Policy, Tenant
from services.domain.tenancy import (
    Balancing,
    BalancingStrategy,
    Budget,
    HedgeRules,
    PriceRules,
    Quotas,
    RateLimit,
    RetryRules,
    SessionAffinity,
    Tier,
    ZoneSpill,
)
from services.domain.validation import object_faults, validate
from tests.fakes.objects import a_model, a_policy, a_pool, a_tenant, a_version

NAN = float("nan")
GOLD = Tier("gold", 1)


def of(item: Object) -> list[str]:
    return [str(fault) for fault in object_faults(item)]


def balanced(**rules: Any) -> Policy:
    return Policy(Metadata("p"), (GOLD,), balancing=Balancing(**rules))


def state_faults(*objects: Object) -> list[str]:
    state = {item.key: item for item in objects}
    return [f"{key}: {fault}" for key, faults in validate(state, state).items() for fault in faults]


def test_a_policy_and_a_tenant_with_everything_are_valid() -> None:
    policy = Policy(
        Metadata("standard"),
        (
            Tier("gold", 1, 1.0, 5.0, 0.5, 2.0, 100, quality_weight=3.0),
            Tier("silver", 1, reserved_share=0.5),
            Tier("batch", 8, sheddable=True),
        ),
        "For everybody.",
        "silver",
        RetryRules(5, 0.2),
        HedgeRules(True, 0.99),
        PriceRules(0.0, 0.0, 0.0, 1.0, 0.0),
        Balancing(affinity=SessionAffinity(True, 1.0), zones=ZoneSpill(0.0, 60.0)),
    )
    tenant = Tenant(
        Metadata("acme"), "standard", "gold", "Acme", "ann", Quotas(1, 1, 1, 1, 1), RateLimit.of(0.5), 10, Budget(1)
    )

    assert state_faults(policy, tenant) == []
    assert tenant.rate_limit == RateLimit(0.5, 1)


@pytest.mark.parametrize(
    ("tier", "fault"),
    [
        (replace(GOLD, name="Gold"), "name: 'Gold' must be 1 to 63 lower-case letters"),
        (replace(GOLD, priority_band=0), "priority_band: 0 must be in 1 to 8"),
        (replace(GOLD, priority_band=9), "priority_band: 9 must be in 1 to 8"),
        (replace(GOLD, reserved_share=-0.1), "reserved_share: -0.1 must be in 0 to 1"),
        (replace(GOLD, reserved_share=NAN), "reserved_share: nan must be in 0 to 1"),
        (replace(GOLD, weight=0.0), "weight: 0.0 must be finite and positive"),
        (replace(GOLD, max_in_flight=-1), "max_in_flight: -1 must not be negative"),
        (replace(GOLD, exploration=0.02), "exploration: calls of band 1 get the best candidate always"),
        (replace(GOLD, priority_band=2, exploration=0.2), "exploration: 0.2 must be in 0 to 0.1"),
        (replace(GOLD, quality_weight=NAN), "quality_weight: nan must be finite and not negative"),
        (replace(GOLD, default_timeout_s=0.0), "default_timeout: 0.0 s must be positive"),
        (replace(GOLD, default_timeout_s=2.0, max_timeout_s=1.0), "max_timeout: 1.0 s must not be below the default"),
    ],
)
def test_a_tier_that_makes_no_sense_is_refused(tier: Tier, fault: str) -> None:
    (found,) = of(Policy(Metadata("p"), (tier,)))

    assert found.startswith(f"policy.tiers[0].{fault}")


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (Policy(Metadata("p"), ()), "policy.tiers: at least one is needed"),
        (Policy(Metadata("p"), (GOLD,) * 33), "policy.tiers: has 33 entries, at most 32"),
        (Policy(Metadata("p"), (GOLD, GOLD)), "policy.tiers[1].name: 'gold' stands twice"),
        (
            Policy(Metadata("p"), (replace(GOLD, reserved_share=0.6), Tier("b", 2, reserved_share=0.6))),
            "policy.tiers: reserved_share is 1.2 in all, at most 1",
        ),
        (Policy(Metadata("p"), (GOLD,), default_tier="lead"), "policy.default_tier: 'lead' is none of its tiers"),
        (Policy(Metadata("p", tenant="acme"), (GOLD,)), "metadata.tenant: a Policy is shared"),
        (Policy(Metadata("p"), (GOLD,), retry=RetryRules(11)), "policy.retry.max_attempts: 11 must be in 1 to 10"),
        (Policy(Metadata("p"), (GOLD,), retry=RetryRules(3, 2.0)), "policy.retry.budget_share: 2.0 must be in 0 to 1"),
        (Policy(Metadata("p"), (GOLD,), hedge=HedgeRules(True, 1.0)), "policy.hedge.after_quantile: 1.0 must be in"),
        (Policy(Metadata("p"), (GOLD,), price=PriceRules(NAN)), "policy.price.cost_weight: nan must be finite"),
        (Policy(Metadata("p"), (GOLD,), price=PriceRules(1.0)), "policy.price.max_cost_weight: 0.1 must not be below"),
        (Policy(Metadata("p"), (GOLD,), price=PriceRules(step=2.0)), "policy.price.step: 2.0 must be in 0 to 1"),
        (Policy(Metadata("p"), (GOLD,), price=PriceRules(interval_s=0.5)), "policy.price.interval: 0.5 must be in 1"),
        (balanced(affinity=SessionAffinity(True, 0.9)), "policy.balancing.affinity.load_factor: 0.9 must be in 1 to"),
        (
            balanced(strategy=BalancingStrategy.RANDOM, affinity=SessionAffinity(True)),
            "policy.balancing.affinity.enabled: sessions are kept together by LEAST_COMPLETION alone, not by RANDOM",
        ),
        (balanced(zones=ZoneSpill(hysteresis=NAN)), "policy.balancing.zones.hysteresis: nan must be in 0 to 10"),
        (balanced(zones=ZoneSpill(margin_s=61.0)), "policy.balancing.zones.margin: 61.0 must be in 0 to 60"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: Policy, fault: str) -> None:
    (found,) = of(policy)

    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("tenant", "fault"),
    [
        (replace(a_tenant("a"), policy=""), "tenant.policy: must not be empty"),
        (replace(a_tenant("a"), tier=""), "tenant.tier: must not be empty"),
        (replace(a_tenant("a"), metadata=Metadata("a", tenant="b")), "metadata.tenant: a Tenant belongs to no tenant"),
        (replace(a_tenant("a"), owner="a\nb"), r"tenant.owner: 'a\nb' must be one line"),
        (replace(a_tenant("a"), max_in_flight=-1), "tenant.max_in_flight: -1 must not be negative"),
        (replace(a_tenant("a"), quotas=Quotas(max_routes=-1)), "tenant.quotas.max_routes: -1 must not be negative"),
        (
            replace(a_tenant("a"), rate_limit=RateLimit.of(NAN)),
            "tenant.rate_limit.requests_per_s: nan must be positive",
        ),
        (replace(a_tenant("a"), rate_limit=RateLimit(1.0, -1)), "tenant.rate_limit.burst: -1 must be positive"),
        (replace(a_tenant("a"), budget=Budget(0)), "tenant.budget.amount_microusd: 0 must be positive"),
        (replace(a_tenant("a"), budget=Budget(1, 0.0)), "tenant.budget.period: 0.0 s must be in 1 s to"),
    ],
)
def test_a_tenant_that_makes_no_sense_is_refused(tenant: Tenant, fault: str) -> None:
    (found,) = of(tenant)

    assert found.startswith(fault)


def test_a_tenant_needs_its_policy_and_its_tier_in_it() -> None:
    assert state_faults(a_tenant("acme")) == ["Tenant/acme: tenant.policy: there is no Policy 'standard'"]
    assert state_faults(a_policy(), a_tenant("acme", tier="lead")) == [
        "Tenant/acme: tenant.tier: Policy 'standard' has no tier 'lead'; it has gold, bronze"
    ]


def test_an_object_needs_the_tenant_it_belongs_to() -> None:
    model = replace(a_model("m"), metadata=Metadata("m", tenant="acme"))

    assert state_faults(model) == ["Model/m: metadata.tenant: there is no Tenant 'acme'"]
    assert state_faults(a_policy(), a_tenant("acme"), model) == []


def test_a_version_belongs_where_its_model_does() -> None:
    owned = Metadata("m", tenant="acme")
    tenants = (a_policy(), a_tenant("acme"))

    assert state_faults(*tenants, a_model("m"), replace(a_version("m"), metadata=owned)) == [
        "ModelVersion/m/1.0.0: metadata.tenant: Model 'm' is shared: a version belongs where its model does"
    ]
    assert state_faults(*tenants, replace(a_model("m"), metadata=owned), a_version("m")) == [
        "ModelVersion/m/1.0.0: metadata.tenant: Model 'm' belongs to tenant 'acme': a version belongs where its model "
        "does"
    ]


def test_a_pool_of_another_tenant_is_out_of_bounds() -> None:
    pool = replace(a_pool(), metadata=Metadata("cpu", tenant="acme"))

    assert state_faults(a_policy(), a_tenant("acme"), pool, a_model("m"), a_version("m", pool="cpu")) == [
        "ModelVersion/m/1.0.0: model_version.pool: Pool 'cpu' belongs to tenant 'acme': only objects of that tenant "
        "may refer to it"
    ]


def test_quotas_bound_what_belongs_to_a_tenant_and_nothing_else() -> None:
    owned = Metadata("m", tenant="acme")
    version = replace(a_version("m", replicas=3, mib=2), metadata=owned)
    things = (a_policy(), a_model("shared"), a_version("shared"), replace(a_model("m"), metadata=owned), version)

    assert state_faults(*things, a_tenant("acme", quotas=Quotas(1, 1, 1, 3, 6 << 20))) == []
    assert state_faults(*things, a_tenant("acme", quotas=Quotas(max_replicas=2, max_memory_bytes=1 << 20))) == [
        "Tenant/acme: tenant.quotas.max_memory_bytes: 6291456 would belong to it, at most 1048576 may",
        "Tenant/acme: tenant.quotas.max_replicas: 3 would belong to it, at most 2 may",
    ]
