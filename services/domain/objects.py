"""What the mesh should be: the object kinds, how they are named, and what they refer to.

What makes a set of them valid is in `validation`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.domain.host import DeviceKind
from services.domain.model import ModelKey, TensorSpec

KINDS = ("Model", "ModelVersion", "Pool", "Route")
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 300.0
DEFAULT_ATTEMPTS = 3

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?"
)


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
    """What every object has."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


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
class Lineage:
    """Where a version came from."""

    code_commit: str = ""
    data: str = ""
    parent: str = ""
    license: str = ""


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

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("ModelVersion", self.metadata.name, self.version)

    @property
    def model_key(self) -> ModelKey:
        """Its identity on hosts."""
        return ModelKey(self.metadata.name, self.version)


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A model, or one version of it."""

    model: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Single:
    """Always the same model."""

    target: RouteTarget


@dataclass(frozen=True, slots=True)
class Choose:
    """The candidate of highest utility, scored for each call."""

    candidates: tuple[RouteTarget, ...]
    quality_weight: float = 1.0
    cost_weight: float = 0.001
    latency_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """The name callers use, and how a model behind it is chosen."""

    metadata: Metadata
    strategy: Single | Choose
    description: str = ""
    default_timeout_s: float = DEFAULT_TIMEOUT_S
    max_timeout_s: float = MAX_TIMEOUT_S
    max_attempts: int = DEFAULT_ATTEMPTS

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Route", self.metadata.name)

    @property
    def targets(self) -> tuple[RouteTarget, ...]:
        """Every model it may choose."""
        return (self.strategy.target,) if isinstance(self.strategy, Single) else self.strategy.candidates


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

    @property
    def key(self) -> ObjectKey:
        """Its identity."""
        return ObjectKey("Pool", self.metadata.name)


Object = Model | ModelVersion | Pool | Route


def is_semver(version: str) -> bool:
    """Whether `version` may name a version."""
    return _SEMVER.fullmatch(version) is not None


def semver_order(version: str) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
    """Sort key of a valid semver, by its section 11; build metadata does not count."""
    match = _SEMVER.fullmatch(version)
    if match is None:
        return ((-1, -1, -1), False, ())
    release = (int(match[1]), int(match[2]), int(match[3]))
    if match[4] is None:
        return (release, True, ())
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in match[4].split("."))
    return (release, False, parts)


def is_dns_label(name: str) -> bool:
    """Whether `name` may name an object."""
    return _DNS_LABEL.fullmatch(name) is not None


def references(item: Object) -> tuple[ObjectKey, ...]:
    """Keys of the objects that `item` needs, each once: those that may not be deleted while it stays."""
    match item:
        case ModelVersion():
            pool = (ObjectKey("Pool", item.pool),) if item.pool else ()
            return (ObjectKey("Model", item.metadata.name), *pool)
        case Route():
            models = [ObjectKey("Model", target.model) for target in item.targets]
            versions = [ObjectKey("ModelVersion", t.model, t.version) for t in item.targets if t.version]
            return tuple(dict.fromkeys([*models, *versions]))
        case _:
            return ()
