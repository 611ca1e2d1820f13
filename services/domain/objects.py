"""What the mesh should be: the object kinds, how they are named, and what they refer to.

What makes a set of them valid is in `validation`. What routes, policies and tenants are made of is in
`strategies` and `tenancy`; the strategies' names can be had from here too, as parts of a Route.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.domain.caching import Cache
from services.domain.host import DeviceKind
from services.domain.model import ModelKey, TensorSpec
from services.domain.padding import Padding
from services.domain.strategies import Choose, Fallback, Pipeline, RouteName, RouteTarget, Single, Strategy, named
from services.domain.templates import Binding, Parameter
from services.domain.tenancy import (
    Balancing,
    Budget,
    HedgeRules,
    PriceRules,
    Protection,
    Quotas,
    RateLimit,
    RetryRules,
    Tier,
)
from services.domain.texts import is_dns_label

__all__ = [
    "DEFAULT_ATTEMPTS",
    "DEFAULT_TIMEOUT_S",
    "KINDS",
    "MAX_TIMEOUT_S",
    "Artifact",
    "Backend",
    "Cache",
    "Choose",
    "Generation",
    "Lineage",
    "Metadata",
    "Model",
    "ModelVersion",
    "Object",
    "ObjectKey",
    "Padding",
    "Policy",
    "Pool",
    "Route",
    "RouteTarget",
    "SegmentQuality",
    "Single",
    "Template",
    "Tenant",
    "WarmupTensor",
    "is_dns_label",
    "references",
]

KINDS = ("Model", "ModelVersion", "Policy", "Pool", "Route", "Template", "Tenant")
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 300.0
DEFAULT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Names one object; `version` is empty for every kind but ModelVersion."""

    kind: str
    name: str
    version: str = ""

    def __str__(self) -> str:
        """`Kind/name` or `Kind/name/version`, as in stored trees."""
        return f"{self.kind}/{self.name}/{self.version}" if self.version else f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> "ObjectKey":
        """The inverse of `str`."""
        kind, name, *version = text.split("/", 2)
        return cls(kind, name, version[0] if version else "")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What every object has; without a tenant it is shared."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A logical model: what goes in, what comes out, what may be expected."""

    metadata: Metadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str = ""
    modality: str = ""
    description: str = ""
    latency_slo_s: float | None = None
    owner: str = ""
    availability_slo: float | None = None
    deterministic: bool = False
    """The same inputs and parameters give the same outputs."""
    shareable_answers: bool = False
    """A kept answer may be given to other tenants."""

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Model", self.metadata.name)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file and the proof that it is the right one."""

    uri: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs a version."""

    name: str
    architecture: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    executes_code: bool = False


@dataclass(frozen=True, slots=True)
class WarmupTensor:
    """One tensor of a warm-up sample; empty `raw` means zeros."""

    shape: tuple[int, ...]
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """A sample that a version must answer on a staging host before it may land, and on each host that loads it."""

    inputs: Mapping[str, WarmupTensor]
    outputs: Mapping[str, WarmupTensor]
    """Expected; outputs that are not named may be anything."""
    tolerance: float = 0.0
    """Most that a number may be off."""
    max_latency_s: float | None = None
    """Most that the host may take, waiting and computing."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a version that answers in pieces does so."""

    sequences: int = 8
    """Answered together at most."""
    max_tokens: int = 1024
    """Most tokens of a prompt and its answer."""
    prefill_tokens: int = 32
    """Most tokens of prompts that are computed between two tokens of the others."""
    max_waiting: int = 64
    """Most sequences that wait for others to end."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from."""

    code_commit: str = ""
    data: str = ""
    parent: str = ""
    license: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    training_run: str = ""


@dataclass(frozen=True, slots=True)
class SegmentQuality:
    """Quality in one place: of a task, of a segment of users or inputs, or of both."""

    task: str
    segment: str
    quality: float
    metric: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model; `metadata.name` is the model's."""

    metadata: Metadata
    version: str
    backend: Backend
    artifact: Artifact | None = None
    files: Mapping[str, Artifact] = field(default_factory=dict)
    device_kind: DeviceKind | None = None
    memory_bytes: int = 0
    max_batch_size: int = 1
    max_wait_s: float = 0.0
    min_replicas: int = 0
    pool: str = ""
    cost_microusd: int = 0
    quality: float | None = None
    quality_metric: str = ""
    service_time_s: float = 0.010
    lineage: Lineage = field(default_factory=Lineage)
    warmup: tuple[Mapping[str, WarmupTensor], ...] = ()
    segment_qualities: tuple[SegmentQuality, ...] = ()
    failure_modes: tuple[str, ...] = ()
    owner: str = ""
    smoke: SmokeTest | None = None
    generation: Generation | None = None
    """Set if it answers in pieces."""
    on_demand: bool = False
    """It may leave memory when others need the room; calls bring it back."""
    padding: tuple[Padding, ...] = ()

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("ModelVersion", self.metadata.name, self.version)

    @property
    def model_key(self) -> ModelKey:
        """Its identity on hosts."""
        return ModelKey(self.metadata.name, self.version)


@dataclass(frozen=True, slots=True)
class Route:
    """The name callers use, and how a model behind it is chosen."""

    metadata: Metadata
    strategy: Strategy
    description: str = ""
    default_timeout_s: float = DEFAULT_TIMEOUT_S
    max_timeout_s: float = MAX_TIMEOUT_S
    max_attempts: int = DEFAULT_ATTEMPTS
    policy: str = ""
    owner: str = ""
    protected: bool = False
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_in_flight: int = 0
    """Calls at once, over all routers; 0 is no limit."""
    cache: Cache | None = None
    """None keeps no answers."""

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Route", self.metadata.name)

    @property
    def targets(self) -> tuple[RouteTarget, ...]:
        """Every model it names itself."""
        return tuple(callee for _, callee in named(self.strategy) if isinstance(callee, RouteTarget))

    @property
    def routes(self) -> tuple[str, ...]:
        """Every route it names; only few strategies can."""
        if not isinstance(self.strategy, Fallback | Pipeline):
            return ()
        return tuple(callee.route for _, callee in named(self.strategy) if isinstance(callee, RouteName))


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of like hosts."""

    metadata: Metadata
    device_kind: DeviceKind
    memory_bytes: int
    min_hosts: int
    max_hosts: int
    zone: str = ""
    description: str = ""
    trusts_artifacts: bool = False
    staging: bool = False
    """Whether only the registry loads anything on its hosts, to test it."""
    max_version_bytes: int = 0
    """Most memory that a version in it may declare; 0 is no limit."""
    min_latency_slo_s: float = 0.0
    """Tightest latency that the models of its versions may promise; 0 is no limit."""

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Pool", self.metadata.name)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules that calls live by."""

    metadata: Metadata
    tiers: tuple[Tier, ...]
    description: str = ""
    default_tier: str = ""
    retry: RetryRules = field(default_factory=RetryRules)
    hedge: HedgeRules = field(default_factory=HedgeRules)
    price: PriceRules | None = None
    """None: the weights of routes hold, and nothing follows what is spent."""
    balancing: Balancing = field(default_factory=Balancing)
    protection: Protection = field(default_factory=Protection)

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Policy", self.metadata.name)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose objects and calls are kept apart from others'."""

    metadata: Metadata
    policy: str
    tier: str
    description: str = ""
    owner: str = ""
    quotas: Quotas = field(default_factory=Quotas)
    rate_limit: RateLimit | None = None
    max_in_flight: int = 0
    budget: Budget | None = None

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Tenant", self.metadata.name)


@dataclass(frozen=True, slots=True)
class Template:
    """A reviewed set of objects with parameters."""

    metadata: Metadata
    parameters: tuple[Parameter, ...]
    body: tuple[bytes, ...] = field(repr=False)
    """What it makes: serialized objects with placeholders, which are closed here."""
    bindings: tuple[Binding, ...] = ()
    description: str = ""
    owner: str = ""
    requires_approval: bool = False
    requires_smoke: bool = False

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Template", self.metadata.name)


Object = Model | ModelVersion | Policy | Pool | Route | Template | Tenant


def references(item: Object) -> tuple[ObjectKey, ...]:
    """Keys of the objects that `item` needs, each once: those that may not be deleted while it stays."""
    needs: list[ObjectKey] = []
    match item:
        case ModelVersion():
            needs.append(ObjectKey("Model", item.metadata.name))
            if item.pool:
                needs.append(ObjectKey("Pool", item.pool))
        case Route():
            targets = item.targets
            needs += [ObjectKey("Model", target.model) for target in targets]
            needs += [ObjectKey("ModelVersion", target.model, target.version) for target in targets if target.version]
            needs += [ObjectKey("Route", name) for name in item.routes]
            if item.policy:
                needs.append(ObjectKey("Policy", item.policy))
        case Tenant():
            needs.append(ObjectKey("Policy", item.policy))
        case _:
            pass
    if item.metadata.tenant:
        needs.append(ObjectKey("Tenant", item.metadata.tenant))
    return tuple(dict.fromkeys(needs))
