"""What makes a Policy or a Tenant valid by itself, and budgets wherever they stand."""

from services.domain.errors import Fault
from services.domain.objects import Policy, Tenant
from services.domain.tenancy import Balancing, BalancingStrategy, Budget, PriceRules, RateLimit, Tier
from services.domain.texts import line_faults, name_faults, note_faults, shown, too_many

MAX_TIERS = 32
MAX_BAND = 8
MAX_ATTEMPTS = 10
MAX_EXPLORATION = 0.1
MAX_RATE_PER_S = 1e9
MAX_PERIOD_S = 366 * 86_400.0
INTERVAL_S = (1.0, 60.0)
LOAD_FACTOR = (1.0, 100.0)
HYSTERESIS = (0.0, 10.0)
MARGIN_S = (0.0, 60.0)


def policy_faults(policy: Policy) -> list[Fault]:
    """Everything wrong with a policy by itself."""
    faults = note_faults(policy.description, "policy.description")
    if policy.metadata.tenant:
        faults.append(Fault("metadata.tenant", "a Policy is shared: it says what tenants may do"))
    if not policy.tiers:
        faults.append(Fault("policy.tiers", "at least one is needed"))
    if len(policy.tiers) > MAX_TIERS:
        return [*faults, too_many(len(policy.tiers), MAX_TIERS, "policy.tiers")]
    seen: set[str] = set()
    for index, tier in enumerate(policy.tiers):
        at = f"policy.tiers[{index}]"
        faults += _tier_faults(tier, at)
        if tier.name in seen:
            faults.append(Fault(f"{at}.name", f"{shown(tier.name)} stands twice"))
        seen.add(tier.name)
    reserved = sum(tier.reserved_share for tier in policy.tiers)
    if reserved > 1.0 + 1e-9:
        faults.append(Fault("policy.tiers", f"reserved_share is {reserved:g} in all, at most 1"))
    if policy.default_tier and policy.default_tier not in seen:
        faults.append(Fault("policy.default_tier", f"{shown(policy.default_tier)} is none of its tiers"))
    faults += range_faults(policy.retry.max_attempts, "policy.retry.max_attempts", 1, MAX_ATTEMPTS)
    faults += range_faults(policy.retry.budget_share, "policy.retry.budget_share", 0, 1)
    if not 0.5 <= policy.hedge.after_quantile < 1.0:
        faults.append(Fault("policy.hedge.after_quantile", f"{policy.hedge.after_quantile} must be in [0.5, 1)"))
    faults += _balancing_faults(policy.balancing)
    return faults if policy.price is None else faults + _price_faults(policy.price)


def tenant_faults(tenant: Tenant) -> list[Fault]:
    """Everything wrong with a tenant by itself."""
    faults = note_faults(tenant.description, "tenant.description") + line_faults(tenant.owner, "tenant.owner")
    if tenant.metadata.tenant:
        faults.append(Fault("metadata.tenant", "a Tenant belongs to no tenant"))
    faults += line_faults(tenant.policy, "tenant.policy", needed=True)
    faults += line_faults(tenant.tier, "tenant.tier", needed=True)
    for path, value in (
        ("quotas.max_models", tenant.quotas.max_models),
        ("quotas.max_versions", tenant.quotas.max_versions),
        ("quotas.max_routes", tenant.quotas.max_routes),
        ("quotas.max_replicas", tenant.quotas.max_replicas),
        ("quotas.max_memory_bytes", tenant.quotas.max_memory_bytes),
        ("max_in_flight", tenant.max_in_flight),
    ):
        if value < 0:
            faults.append(Fault(f"tenant.{path}", f"{value} must not be negative"))
    if tenant.rate_limit is not None:
        faults += _rate_faults(tenant.rate_limit)
    if tenant.budget is not None:
        faults += budget_faults(tenant.budget, "tenant.budget")
    return faults


def budget_faults(budget: Budget, path: str) -> list[Fault]:
    """Everything wrong with a budget."""
    faults = []
    if budget.amount_microusd <= 0:
        faults.append(Fault(f"{path}.amount_microusd", f"{budget.amount_microusd} must be positive"))
    if not 1.0 <= budget.period_s <= MAX_PERIOD_S:
        faults.append(Fault(f"{path}.period", f"{budget.period_s} s must be in 1 s to {MAX_PERIOD_S:g} s"))
    return faults


def range_faults(value: float, path: str, least: float, most: float) -> list[Fault]:
    """Whether a number is in a range, its ends included."""
    return [] if least <= value <= most else [Fault(path, f"{value} must be in {least:g} to {most:g}")]


def worth_faults(value: float, path: str) -> list[Fault]:
    """Whether a number can be a weight."""
    return [] if 0.0 <= value < float("inf") else [Fault(path, f"{value} must be finite and not negative")]


def _tier_faults(tier: Tier, at: str) -> list[Fault]:
    faults = name_faults(tier.name, f"{at}.name")
    faults += range_faults(tier.priority_band, f"{at}.priority_band", 1, MAX_BAND)
    faults += range_faults(tier.reserved_share, f"{at}.reserved_share", 0, 1)
    if not 0.0 < tier.weight < float("inf"):
        faults.append(Fault(f"{at}.weight", f"{tier.weight} must be finite and positive"))
    if tier.max_in_flight < 0:
        faults.append(Fault(f"{at}.max_in_flight", f"{tier.max_in_flight} must not be negative"))
    if tier.quality_weight is not None:
        faults += worth_faults(tier.quality_weight, f"{at}.quality_weight")
    faults += range_faults(tier.exploration, f"{at}.exploration", 0, MAX_EXPLORATION)
    if tier.exploration > 0.0 and tier.priority_band == 1:
        text = "calls of band 1 get the best candidate always: leave it out, or try a shadow route"
        faults.append(Fault(f"{at}.exploration", text))
    for name, timeout_s in (("default_timeout", tier.default_timeout_s), ("max_timeout", tier.max_timeout_s)):
        if timeout_s is not None and timeout_s <= 0:
            faults.append(Fault(f"{at}.{name}", f"{timeout_s} s must be positive"))
    default_s, longest_s = tier.default_timeout_s, tier.max_timeout_s
    if default_s is not None and longest_s is not None and longest_s < default_s:
        faults.append(Fault(f"{at}.max_timeout", f"{longest_s} s must not be below the default of {default_s} s"))
    return faults


def _price_faults(price: PriceRules) -> list[Fault]:
    at = "policy.price"
    faults = worth_faults(price.cost_weight, f"{at}.cost_weight")
    faults += worth_faults(price.max_cost_weight, f"{at}.max_cost_weight")
    if price.max_cost_weight < price.cost_weight:
        text = f"{price.max_cost_weight} must not be below cost_weight, {price.cost_weight}"
        faults.append(Fault(f"{at}.max_cost_weight", text))
    faults += range_faults(price.step, f"{at}.step", 0, 1)
    faults += range_faults(price.interval_s, f"{at}.interval", *INTERVAL_S)
    return faults + worth_faults(price.latency_weight, f"{at}.latency_weight")


def _balancing_faults(balancing: Balancing) -> list[Fault]:
    at, affinity = "policy.balancing", balancing.affinity
    faults = []
    if affinity.enabled and balancing.strategy is not BalancingStrategy.LEAST_COMPLETION:
        text = f"sessions are kept together by LEAST_COMPLETION alone, not by {balancing.strategy.value}"
        faults.append(Fault(f"{at}.affinity.enabled", text))
    faults += range_faults(affinity.load_factor, f"{at}.affinity.load_factor", *LOAD_FACTOR)
    faults += range_faults(balancing.zones.hysteresis, f"{at}.zones.hysteresis", *HYSTERESIS)
    return faults + range_faults(balancing.zones.margin_s, f"{at}.zones.margin", *MARGIN_S)


def _rate_faults(rate: RateLimit) -> list[Fault]:
    faults = []
    if not 0.0 < rate.requests_per_s <= MAX_RATE_PER_S:
        text = f"{rate.requests_per_s} must be positive, at most {MAX_RATE_PER_S:g}"
        faults.append(Fault("tenant.rate_limit.requests_per_s", text))
    if rate.burst < 1:
        faults.append(Fault("tenant.rate_limit.burst", f"{rate.burst} must be positive"))
    return faults
