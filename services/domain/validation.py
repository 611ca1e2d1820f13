"""What makes a set of objects valid.

Looks at single objects and at what they refer to, and returns every fault, not the first.
Fault paths follow the protobuf message, such as `model_version.artifact.sha256`.
"""

import re
from collections.abc import Iterable, Mapping

from services.domain.errors import Fault
from services.domain.model import ITEM_BYTES, MAX_RANK, TensorSpec
from services.domain.objects import (
    Artifact,
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Pool,
    Route,
    Single,
    is_dns_label,
    is_semver,
)

BACKENDS = ("identity", "onnxruntime", "sklearn", "torch")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def validate(objects: Mapping[ObjectKey, Object], changed: Iterable[ObjectKey]) -> dict[ObjectKey, list[Fault]]:
    """Check a whole state.

    Args:
        objects: Every object of the state, after the change.
        changed: The keys whose own fields are checked. References are checked for all
            objects, since a deletion can break one that did not change.

    Returns:
        Faults by the object they are in; empty if the state is valid.
    """
    faults: dict[ObjectKey, list[Fault]] = {}
    for key in changed:
        item = objects.get(key)
        if item is not None and (own := object_faults(item)):
            faults.setdefault(key, []).extend(own)
    models = {key.name: item for key, item in objects.items() if isinstance(item, Model)}
    versions: dict[str, set[str]] = {}
    for key, item in objects.items():
        if isinstance(item, ModelVersion):
            versions.setdefault(key.name, set()).add(item.version)
    pools = {key.name: item for key, item in objects.items() if isinstance(item, Pool)}
    for key, item in objects.items():
        if broken := _reference_faults(item, models, versions, pools):
            faults.setdefault(key, []).extend(broken)
    return faults


def object_faults(item: Object) -> list[Fault]:
    """Everything wrong with one object by itself."""
    faults = _metadata_faults(item.metadata)
    match item:
        case Model():
            faults += _model_faults(item)
        case ModelVersion():
            faults += _version_faults(item)
        case Route():
            faults += _route_faults(item)
        case Pool():
            faults += _pool_faults(item)
    return faults


def _metadata_faults(metadata: Metadata) -> list[Fault]:
    if is_dns_label(metadata.name):
        return []
    return [
        Fault(
            "metadata.name",
            f"'{metadata.name}' must be 1 to 63 lower-case letters, digits and hyphens, not at either end a hyphen",
        )
    ]


def _tensor_spec_faults(specs: tuple[TensorSpec, ...], path: str) -> list[Fault]:
    if not specs:
        return [Fault(path, "at least one is needed")]
    faults = []
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        at = f"{path}[{index}]"
        if not spec.name:
            faults.append(Fault(f"{at}.name", "must not be empty"))
        elif spec.name in seen:
            faults.append(Fault(f"{at}.name", f"'{spec.name}' stands twice"))
        seen.add(spec.name)
        if spec.datatype not in ITEM_BYTES:
            faults.append(Fault(f"{at}.datatype", f"'{spec.datatype}' is none of {', '.join(ITEM_BYTES)}"))
        if len(spec.shape) > MAX_RANK:
            faults.append(Fault(f"{at}.shape", f"rank {len(spec.shape)} is over {MAX_RANK}"))
        if any(size < -1 or size == 0 for size in spec.shape):
            faults.append(Fault(f"{at}.shape", f"{list(spec.shape)}: a dimension is positive, or -1 for any size"))
    return faults


def _model_faults(model: Model) -> list[Fault]:
    faults = _tensor_spec_faults(model.inputs, "model.inputs") + _tensor_spec_faults(model.outputs, "model.outputs")
    if model.latency_slo_s is not None and model.latency_slo_s <= 0:
        faults.append(Fault("model.latency_slo", f"{model.latency_slo_s} s must be positive"))
    return faults


def _artifact_faults(artifact: Artifact, path: str) -> list[Fault]:
    faults = []
    if not artifact.uri.startswith("file:/"):
        faults.append(Fault(f"{path}.uri", f"'{artifact.uri}' must be 'file:' and an absolute path"))
    elif ".." in artifact.uri.split("/"):
        faults.append(Fault(f"{path}.uri", f"'{artifact.uri}' must not contain '..'"))
    if not _SHA256.fullmatch(artifact.sha256):
        faults.append(Fault(f"{path}.sha256", "must be 64 lower-case hexadecimal digits"))
    return faults


def _version_faults(version: ModelVersion) -> list[Fault]:
    at = "model_version"
    faults = []
    if not is_semver(version.version):
        faults.append(Fault(f"{at}.version", f"'{version.version}' is no semantic version such as 1.0.0"))
    if version.backend.name not in BACKENDS:
        faults.append(Fault(f"{at}.backend.name", f"'{version.backend.name}' is none of {', '.join(BACKENDS)}"))
    if version.backend.name == "torch" and not version.backend.architecture:
        faults.append(Fault(f"{at}.backend.architecture", "torch needs the name of a registered architecture"))
    if version.artifact is not None:
        faults += _artifact_faults(version.artifact, f"{at}.artifact")
    elif version.backend.name in ("onnxruntime", "sklearn", "torch"):
        faults.append(Fault(f"{at}.artifact", f"{version.backend.name} needs an artifact"))
    for name, artifact in version.files.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            faults.append(Fault(f"{at}.files", f"'{name}' must be a plain file name"))
        faults += _artifact_faults(artifact, f"{at}.files[{name}]")
    for path, value in (
        ("resources.memory_bytes", version.memory_bytes),
        ("batching.max_batch_size", version.max_batch_size),
        ("batching.max_wait", version.max_wait_s),
        ("min_replicas", version.min_replicas),
        ("cost_microusd", version.cost_microusd),
    ):
        if value < 0:
            faults.append(Fault(f"{at}.{path}", f"{value} must not be negative"))
    if version.service_time_s <= 0:
        faults.append(Fault(f"{at}.service_time", f"{version.service_time_s} s must be positive"))
    if version.quality is not None and not 0.0 <= version.quality <= 1.0:
        faults.append(Fault(f"{at}.quality", f"{version.quality} must be in [0, 1]"))
    return faults


def _route_faults(route: Route) -> list[Fault]:
    faults = []
    if not route.targets:
        faults.append(Fault("route.choose.candidates", "at least one is needed"))
    if isinstance(route.strategy, Choose):
        for path, weight in (
            ("quality_weight", route.strategy.quality_weight),
            ("cost_weight", route.strategy.cost_weight),
            ("latency_weight", route.strategy.latency_weight),
        ):
            if not 0.0 <= weight < float("inf"):
                faults.append(Fault(f"route.choose.{path}", f"{weight} must be finite and not negative"))
    if route.default_timeout_s <= 0:
        faults.append(Fault("route.default_timeout", f"{route.default_timeout_s} s must be positive"))
    if route.max_timeout_s < route.default_timeout_s:
        faults.append(
            Fault(
                "route.max_timeout",
                f"{route.max_timeout_s} s must not be below the default of {route.default_timeout_s} s",
            )
        )
    if not 1 <= route.max_attempts <= 10:
        faults.append(Fault("route.max_attempts", f"{route.max_attempts} must be in 1 to 10"))
    return faults


def _pool_faults(pool: Pool) -> list[Fault]:
    faults = []
    if pool.memory_bytes <= 0:
        faults.append(Fault("pool.memory_bytes", f"{pool.memory_bytes} must be positive"))
    if pool.min_hosts < 0:
        faults.append(Fault("pool.min_hosts", f"{pool.min_hosts} must not be negative"))
    if pool.max_hosts < pool.min_hosts:
        faults.append(Fault("pool.max_hosts", f"{pool.max_hosts} must not be below min_hosts, {pool.min_hosts}"))
    return faults


def _reference_faults(
    item: Object, models: Mapping[str, Model], versions: Mapping[str, set[str]], pools: Mapping[str, Pool]
) -> list[Fault]:
    match item:
        case ModelVersion():
            return _version_reference_faults(item, models, pools)
        case Route():
            return _route_reference_faults(item, models, versions)
        case _:
            return []


def _version_reference_faults(
    version: ModelVersion, models: Mapping[str, Model], pools: Mapping[str, Pool]
) -> list[Fault]:
    faults = []
    name = version.metadata.name
    if name not in models:
        faults.append(Fault("metadata.name", f"there is no Model '{name}' for this version"))
    if version.pool:
        pool = pools.get(version.pool)
        if pool is None:
            faults.append(Fault("model_version.pool", f"there is no Pool '{version.pool}'"))
        elif version.device_kind not in (None, pool.device_kind):
            faults.append(Fault("model_version.pool", f"Pool '{version.pool}' has {pool.device_kind.value} devices"))
        elif version.backend.executes_code and not pool.trusts_artifacts:
            faults.append(
                Fault("model_version.pool", f"Pool '{version.pool}' does not trust artifacts that execute code")
            )
    return faults


def _route_reference_faults(route: Route, models: Mapping[str, Model], versions: Mapping[str, set[str]]) -> list[Fault]:
    faults = []
    path = "route.single.target" if isinstance(route.strategy, Single) else "route.choose.candidates"
    schemas = set()
    for index, target in enumerate(route.targets):
        at = path if isinstance(route.strategy, Single) else f"{path}[{index}]"
        model = models.get(target.model)
        if model is None:
            faults.append(Fault(f"{at}.model", f"there is no Model '{target.model}'"))
            continue
        if target.version and target.version not in versions.get(target.model, set()):
            faults.append(Fault(f"{at}.version", f"Model '{target.model}' has no version '{target.version}'"))
        schemas.add(frozenset((spec.name, spec.datatype, spec.shape) for spec in model.inputs))
    if len(schemas) > 1:
        faults.append(Fault(path, "its models take different inputs, so that no request could fit all of them"))
    if route.metadata.name in models and any(target.model != route.metadata.name for target in route.targets):
        faults.append(
            Fault(
                "metadata.name",
                f"a Model is called '{route.metadata.name}' too, and is not among the route's own: callers could "
                "not tell which of the two they name",
            )
        )
    return faults
