"""protobuf ⇄ domain for the kinds Policy and Tenant, and for budgets."""

from google.protobuf.duration_pb2 import Duration

from modelyard.registry.v1 import tenancy_pb2
from services.chassis.codec import duration_to, seconds_from
from services.domain import objects, tenancy

_PREEMPTIONS = {
    tenancy.Preemption.LOWER_BANDS: tenancy_pb2.PREEMPTION_LOWER_BANDS,
    tenancy.Preemption.NEVER: tenancy_pb2.PREEMPTION_NEVER,
}
_PREEMPTIONS_FROM = {number: preemption for preemption, number in _PREEMPTIONS.items()}
_BALANCING = {
    tenancy.BalancingStrategy.LEAST_COMPLETION: tenancy_pb2.BALANCING_STRATEGY_LEAST_COMPLETION,
    tenancy.BalancingStrategy.ROUND_ROBIN: tenancy_pb2.BALANCING_STRATEGY_ROUND_ROBIN,
    tenancy.BalancingStrategy.RANDOM: tenancy_pb2.BALANCING_STRATEGY_RANDOM,
    tenancy.BalancingStrategy.LEAST_LOADED: tenancy_pb2.BALANCING_STRATEGY_LEAST_LOADED,
}
_BALANCING_FROM = {number: strategy for strategy, number in _BALANCING.items()}


def policy_from(metadata: objects.Metadata, spec: tenancy_pb2.PolicySpec) -> objects.Policy:
    """A policy."""
    return objects.Policy(
        metadata=metadata,
        tiers=tuple(_tier_from(tier) for tier in spec.tiers),
        description=spec.description,
        default_tier=spec.default_tier,
        retry=_retry_from(spec.retry),
        hedge=_hedge_from(spec.hedge),
        price=_price_from(spec.price) if spec.HasField("price") else None,
        balancing=_balancing_from(spec.balancing),
        protection=_protection_from(spec.protection),
    )


def policy_to(policy: objects.Policy) -> tenancy_pb2.PolicySpec:
    """A policy."""
    return tenancy_pb2.PolicySpec(
        description=policy.description,
        tiers=[_tier_to(tier) for tier in policy.tiers],
        default_tier=policy.default_tier,
        retry=tenancy_pb2.RetryRules(max_attempts=policy.retry.max_attempts, budget_share=policy.retry.budget_share),
        hedge=tenancy_pb2.HedgeRules(enabled=policy.hedge.enabled, after_quantile=policy.hedge.after_quantile),
        price=None if policy.price is None else _price_to(policy.price),
        balancing=_balancing_to(policy.balancing),
        protection=tenancy_pb2.Protection(
            penalties=policy.protection.penalties,
            ejection=policy.protection.ejection,
            circuits=policy.protection.circuits,
            shedding=policy.protection.shedding,
        ),
    )


def tenant_from(metadata: objects.Metadata, spec: tenancy_pb2.TenantSpec) -> objects.Tenant:
    """A tenant."""
    rate, quotas = spec.rate_limit, spec.quotas
    return objects.Tenant(
        metadata=metadata,
        policy=spec.policy,
        tier=spec.tier,
        description=spec.description,
        owner=spec.owner,
        quotas=tenancy.Quotas(
            max_models=quotas.max_models,
            max_versions=quotas.max_versions,
            max_routes=quotas.max_routes,
            max_replicas=quotas.max_replicas,
            max_memory_bytes=quotas.max_memory_bytes,
        ),
        rate_limit=tenancy.RateLimit.of(rate.requests_per_s, rate.burst) if spec.HasField("rate_limit") else None,
        max_in_flight=spec.max_in_flight,
        budget=budget_from(spec.budget) if spec.HasField("budget") else None,
    )


def tenant_to(tenant: objects.Tenant) -> tenancy_pb2.TenantSpec:
    """A tenant."""
    rate, quotas = tenant.rate_limit, tenant.quotas
    return tenancy_pb2.TenantSpec(
        description=tenant.description,
        policy=tenant.policy,
        tier=tenant.tier,
        owner=tenant.owner,
        quotas=None
        if quotas == tenancy.Quotas()
        else tenancy_pb2.Quotas(
            max_models=quotas.max_models,
            max_versions=quotas.max_versions,
            max_routes=quotas.max_routes,
            max_replicas=quotas.max_replicas,
            max_memory_bytes=quotas.max_memory_bytes,
        ),
        rate_limit=None
        if rate is None
        else tenancy_pb2.RateLimit(requests_per_s=rate.requests_per_s, burst=rate.burst),
        max_in_flight=tenant.max_in_flight,
        budget=budget_to(tenant.budget),
    )


def budget_from(budget: tenancy_pb2.Budget) -> tenancy.Budget:
    """Money by time."""
    period_s = seconds_from(budget.period) if budget.HasField("period") else tenancy.BUDGET_PERIOD_S
    return tenancy.Budget(budget.amount_microusd, period_s)


def budget_to(budget: tenancy.Budget | None) -> tenancy_pb2.Budget | None:
    """Money by time; None stays None."""
    if budget is None:
        return None
    return tenancy_pb2.Budget(amount_microusd=budget.amount_microusd, period=duration_to(budget.period_s))


def _tier_from(tier: tenancy_pb2.Tier) -> tenancy.Tier:
    return tenancy.Tier(
        name=tier.name,
        priority_band=tier.priority_band,
        default_timeout_s=seconds_from(tier.default_timeout) if tier.HasField("default_timeout") else None,
        max_timeout_s=seconds_from(tier.max_timeout) if tier.HasField("max_timeout") else None,
        reserved_share=tier.reserved_share,
        weight=tier.weight if tier.HasField("weight") else 1.0,
        max_in_flight=tier.max_in_flight,
        sheddable=tier.sheddable,
        preemption=_PREEMPTIONS_FROM.get(tier.preemption, tenancy.Preemption.LOWER_BANDS),
        quality_weight=tier.quality_weight if tier.HasField("quality_weight") else None,
        exploration=tier.exploration,
    )


def _tier_to(tier: tenancy.Tier) -> tenancy_pb2.Tier:
    return tenancy_pb2.Tier(
        name=tier.name,
        priority_band=tier.priority_band,
        default_timeout=_duration_or_none(tier.default_timeout_s),
        max_timeout=_duration_or_none(tier.max_timeout_s),
        reserved_share=tier.reserved_share,
        weight=tier.weight,
        max_in_flight=tier.max_in_flight,
        sheddable=tier.sheddable,
        preemption=_PREEMPTIONS[tier.preemption],
        quality_weight=tier.quality_weight,
        exploration=tier.exploration or None,
    )


def _duration_or_none(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to(seconds)


def _retry_from(rules: tenancy_pb2.RetryRules) -> tenancy.RetryRules:
    default = tenancy.RetryRules()
    return tenancy.RetryRules(
        max_attempts=rules.max_attempts or default.max_attempts,
        budget_share=rules.budget_share if rules.HasField("budget_share") else default.budget_share,
    )


def _hedge_from(rules: tenancy_pb2.HedgeRules) -> tenancy.HedgeRules:
    default = tenancy.HedgeRules()
    return tenancy.HedgeRules(
        enabled=rules.enabled,
        after_quantile=rules.after_quantile if rules.HasField("after_quantile") else default.after_quantile,
    )


def _protection_from(rules: tenancy_pb2.Protection) -> tenancy.Protection:
    default = tenancy.Protection()
    return tenancy.Protection(
        penalties=rules.penalties if rules.HasField("penalties") else default.penalties,
        ejection=rules.ejection if rules.HasField("ejection") else default.ejection,
        circuits=rules.circuits if rules.HasField("circuits") else default.circuits,
        shedding=rules.shedding if rules.HasField("shedding") else default.shedding,
    )


def _price_to(rules: tenancy.PriceRules) -> tenancy_pb2.PriceRules:
    return tenancy_pb2.PriceRules(
        cost_weight=rules.cost_weight,
        max_cost_weight=rules.max_cost_weight,
        step=rules.step,
        interval=duration_to(rules.interval_s),
        latency_weight=rules.latency_weight,
    )


def _price_from(rules: tenancy_pb2.PriceRules) -> tenancy.PriceRules:
    default = tenancy.PriceRules()
    return tenancy.PriceRules(
        cost_weight=rules.cost_weight if rules.HasField("cost_weight") else default.cost_weight,
        max_cost_weight=rules.max_cost_weight if rules.HasField("max_cost_weight") else default.max_cost_weight,
        step=rules.step if rules.HasField("step") else default.step,
        interval_s=seconds_from(rules.interval) if rules.HasField("interval") else default.interval_s,
        latency_weight=rules.latency_weight if rules.HasField("latency_weight") else default.latency_weight,
    )


def _balancing_from(message: tenancy_pb2.Balancing) -> tenancy.Balancing:
    affinity, zones = tenancy.SessionAffinity(), tenancy.ZoneSpill()
    return tenancy.Balancing(
        strategy=_BALANCING_FROM.get(message.strategy, tenancy.BalancingStrategy.LEAST_COMPLETION),
        affinity=tenancy.SessionAffinity(
            enabled=message.affinity.enabled,
            load_factor=message.affinity.load_factor
            if message.affinity.HasField("load_factor")
            else affinity.load_factor,
        ),
        zones=tenancy.ZoneSpill(
            hysteresis=message.zones.hysteresis if message.zones.HasField("hysteresis") else zones.hysteresis,
            margin_s=seconds_from(message.zones.margin) if message.zones.HasField("margin") else zones.margin_s,
        ),
    )


def _balancing_to(balancing: tenancy.Balancing) -> tenancy_pb2.Balancing:
    return tenancy_pb2.Balancing(
        strategy=_BALANCING[balancing.strategy],
        affinity=tenancy_pb2.SessionAffinity(
            enabled=balancing.affinity.enabled, load_factor=balancing.affinity.load_factor
        ),
        zones=tenancy_pb2.ZoneSpill(
            hysteresis=balancing.zones.hysteresis, margin=duration_to(balancing.zones.margin_s)
        ),
    )
