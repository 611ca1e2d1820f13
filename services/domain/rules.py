"""The rules that one call lives by: its policy, the tier it falls into, whose it is, and what it may spend."""

from dataclasses import dataclass, field
from typing import NamedTuple

from services.domain.objects import Policy, Tenant
from services.domain.service_class import ORDINARY, ServiceClass
from services.domain.tenancy import PROTECTED, Balancing, HedgeRules, PriceRules, Protection, RetryRules, Tier

_RETRY, _HEDGE, _BALANCING = RetryRules(), HedgeRules(), Balancing()


class Money(NamedTuple):
    """What a call may spend, as its tenant's budget stands."""

    left_microusd: int
    """What there is for it."""
    cost_weight: float | None = None
    """The price of a microdollar by now; None if the call's policy has no prices."""
    refill_per_s: float = 0.0
    """Microdollars by which more there is with each second."""

    def until_s(self, cost_microusd: int) -> float | None:
        """Seconds until there is so much; None if there is no telling."""
        short = cost_microusd - self.left_microusd
        return max(0.0, short / self.refill_per_s) if self.refill_per_s > 0.0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Found once for all calls that are alike; compared by identity."""

    service_class: ServiceClass = ORDINARY
    policy: Policy | None = None
    """None if no policy holds: the defaults do."""
    tier: Tier | None = None
    tenant: Tenant | None = None
    money: Money | None = None
    """None if no budget bounds it."""
    limited: bool = field(init=False)
    """Whether its tier or its tenant bounds how many calls there may be."""

    def __post_init__(self) -> None:
        """Look once, not at every call."""
        tier, tenant = self.tier, self.tenant
        of_tenant = tenant is not None and (tenant.max_in_flight > 0 or tenant.rate_limit is not None)
        object.__setattr__(self, "limited", of_tenant or (tier is not None and tier.max_in_flight > 0))

    def most_attempts(self, of_route: int) -> int:
        """Attempts that a call may have, whose route allows so many."""
        return of_route if self.policy is None else min(of_route, self.policy.retry.max_attempts)

    @property
    def retry(self) -> RetryRules:
        """When failed calls are tried again."""
        return _RETRY if self.policy is None else self.policy.retry

    @property
    def hedge(self) -> HedgeRules:
        """When a second call races a slow first one."""
        return _HEDGE if self.policy is None else self.policy.hedge

    @property
    def protection(self) -> Protection:
        """Which signs of trouble with hosts are regarded."""
        return PROTECTED if self.policy is None else self.policy.protection

    @property
    def price(self) -> PriceRules | None:
        """What money and lateness are worth; None if its policy does not say, and then its route does."""
        return None if self.policy is None else self.policy.price

    @property
    def cost_weight(self) -> float | None:
        """The price of a microdollar by now; None if it is the route's to say."""
        if self.money is not None and self.money.cost_weight is not None:
            return self.money.cost_weight
        return None if (price := self.price) is None else price.cost_weight

    @property
    def balancing(self) -> Balancing:
        """Which of a version's hosts gets a call."""
        return _BALANCING if self.policy is None else self.policy.balancing


NO_RULES = Rules()
"""Of calls that no policy says anything about."""
