"""One call as the decisions see it: names, shapes and wishes. The payload stays opaque."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.caching import CachePolicy
from services.domain.model import TensorMeta


class Preference(enum.Enum):
    """What the caller values most where a route may choose."""

    BALANCED = "BALANCED"
    LATENCY = "LATENCY"
    COST = "COST"
    QUALITY = "QUALITY"


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """What the caller wants of the choice."""

    max_cost_microusd: int | None = None
    min_quality: float | None = None
    prefer: Preference = Preference.BALANCED
    zone: str = ""
    idempotent: bool = True
    explain: bool = False
    tenant: str = ""
    """Whom it is for; as the caller claims."""
    tier: str = ""
    priority: int = 0
    """1 is the most urgent; 0 says nothing."""
    session: str = ""
    """What a split keeps together; empty says nothing."""
    cache: CachePolicy = CachePolicy.DEFAULT
    hedge: bool = True
    """Whether a second host may be asked while the first is slow to answer."""
    labels: tuple[tuple[str, str], ...] = ()
    """Whom or what it is for, such as `language` and `de`; sorted by key."""
    domain: str = ""
    """What it is about; empty says nothing."""
    complexity: str = ""
    """How hard it is, as declared; empty has it measured."""


NO_WISHES = RouteOptions()
"""Of callers that say nothing."""


class InferCall(NamedTuple):
    """One inference to be routed."""

    name: str
    """A route or a model."""
    version: str
    """A version; empty lets the mesh choose."""
    request_id: str
    inputs: tuple[TensorMeta, ...]
    options: RouteOptions
    timeout_s: float | None
    """The request parameter `timeout`, a queueing bound; None if there is none."""
    trace_id: str
    payload: object
    """The caller's message, never looked into by a decision."""
