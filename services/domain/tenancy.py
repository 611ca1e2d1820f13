"""What the kinds Policy and Tenant are made of. What makes them valid is in `tenancy_validation`."""

import enum
import math
from dataclasses import dataclass, field

BUDGET_PERIOD_S = 86_400.0


class Preemption(enum.Enum):
    """Whom a call may push out of a full queue."""

    LOWER_BANDS = "LOWER_BANDS"
    NEVER = "NEVER"


@dataclass(frozen=True, slots=True)
class Tier:
    """One class of calls; band 1 goes first. A time or a worth that is None is the route's."""

    name: str
    priority_band: int
    default_timeout_s: float | None = None
    max_timeout_s: float | None = None
    reserved_share: float = 0.0
    weight: float = 1.0
    max_in_flight: int = 0
    sheddable: bool = False
    preemption: Preemption = Preemption.LOWER_BANDS
    quality_weight: float | None = None
    exploration: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryRules:
    """When failed calls are tried again."""

    max_attempts: int = 3
    budget_share: float = 0.1


@dataclass(frozen=True, slots=True)
class HedgeRules:
    """When a second call races a slow first one."""

    enabled: bool = False
    after_quantile: float = 0.95


@dataclass(frozen=True, slots=True)
class Protection:
    """Which signs of trouble with hosts calls regard."""

    penalties: bool = True
    ejection: bool = True
    circuits: bool = True
    shedding: bool = True


PROTECTED = Protection()
"""All of them."""


@dataclass(frozen=True, slots=True)
class PriceRules:
    """What money and lateness are worth, and how the price of money follows what is spent of a tenant's budget."""

    cost_weight: float = 0.001
    max_cost_weight: float = 0.1
    step: float = 0.1
    interval_s: float = 5.0
    latency_weight: float = 1.0


class BalancingStrategy(enum.Enum):
    """How hosts are compared; all but the first are yardsticks."""

    LEAST_COMPLETION = "LEAST_COMPLETION"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    LEAST_LOADED = "LEAST_LOADED"


@dataclass(frozen=True, slots=True)
class SessionAffinity:
    """Keeps a session's calls on one host, while that has at most `load_factor` times its share."""

    enabled: bool = False
    load_factor: float = 1.25


@dataclass(frozen=True, slots=True)
class ZoneSpill:
    """When calls leave the router's zone."""

    hysteresis: float = 0.1
    margin_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Balancing:
    """Which of the hosts that have a version ready gets a call."""

    strategy: BalancingStrategy = BalancingStrategy.LEAST_COMPLETION
    affinity: SessionAffinity = field(default_factory=SessionAffinity)
    zones: ZoneSpill = field(default_factory=ZoneSpill)


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many objects may belong to a tenant, and what they may ask for; 0 is no limit."""

    max_models: int = 0
    max_versions: int = 0
    max_routes: int = 0
    max_replicas: int = 0
    max_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket."""

    requests_per_s: float
    burst: int

    @classmethod
    def of(cls, requests_per_s: float, burst: int = 0) -> "RateLimit":
        """With the calls of one second at once, at least 1, where no burst is given."""
        finite = 0.0 < requests_per_s < 1e9
        return cls(requests_per_s, burst or (math.ceil(requests_per_s) if finite else 1))


@dataclass(frozen=True, slots=True)
class Budget:
    """Money by time."""

    amount_microusd: int
    period_s: float = BUDGET_PERIOD_S
