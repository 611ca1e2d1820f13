"""What differs between two states: which objects, and in which fields.

Owns the order of changes, the field paths (those of the protobuf message) and the text of values.
Where states are kept is the registry's business.
"""

import enum
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.domain.model import TensorSpec
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
    RouteTarget,
    Single,
    semver_order,
)

_KIND_ORDER = {"Pool": 0, "Model": 1, "ModelVersion": 2, "Route": 3}
"""What others refer to comes first; deletions go the other way."""

_MUTABLE = ("metadata.labels[", "metadata.annotations[", "model_version.min_replicas")
"""Where a ModelVersion may change. Hosts tell versions apart by name alone, so anything else would
leave two different models running under one name."""

_TEXT_LENGTH = 200
"""Longest text of a value in a change; the object itself has all of it."""

Leaf = str | int | float | bool | bytes | tuple[int, ...] | None


class Action(enum.Enum):
    """What happens to an object."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs; a side that is not set is empty."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs; `fields` say how, for UPDATE."""

    action: Action
    key: ObjectKey
    fields: tuple[FieldChange, ...] = ()


def diff(before: Mapping[ObjectKey, str], after: Mapping[ObjectKey, str]) -> tuple[Change, ...]:
    """Compare two trees.

    Args:
        before: Digest of each object. Parts of trees will do, if the same keys were left out of both.
        after: Likewise.

    Returns:
        Changes without fields, in an order in which they could be done one by one: pools, models, versions
        and routes created or updated, then routes, versions, models and pools deleted.
    """
    upserts = [
        Change(Action.UPDATE if key in before else Action.CREATE, key)
        for key, digest in after.items()
        if before.get(key) != digest
    ]
    deletes = [Change(Action.DELETE, key) for key in before if key not in after]
    upserts.sort(key=lambda change: _position(change.key))
    deletes.sort(key=lambda change: (-_position(change.key)[0], *_position(change.key)[1:]))
    return (*upserts, *deletes)


def _position(
    key: ObjectKey,
) -> tuple[int, str, tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]], str]:
    return _KIND_ORDER.get(key.kind, len(_KIND_ORDER)), key.name, semver_order(key.version), key.version


def with_fields(change: Change, before: Mapping[ObjectKey, Object], after: Mapping[ObjectKey, Object]) -> Change:
    """The change with the fields that differ, if it is an UPDATE."""
    if change.action is not Action.UPDATE:
        return change
    return Change(change.action, change.key, field_changes(before[change.key], after[change.key]))


def field_changes(before: Object, after: Object) -> tuple[FieldChange, ...]:
    """Fields in which two forms of an object differ, in the order of its message."""
    old, new = dict(_fields(before)), dict(_fields(after))
    paths = dict.fromkeys([*new, *old])
    return tuple(
        FieldChange(path, _text(old.get(path)), _text(new.get(path)))
        for path in paths
        if old.get(path) != new.get(path)
    )


def immutable_changes(before: Object, after: Object) -> tuple[FieldChange, ...]:
    """Fields in which two forms of an object differ although they may not; all others are free."""
    if not isinstance(before, ModelVersion):
        return ()
    return tuple(change for change in field_changes(before, after) if not change.path.startswith(_MUTABLE))


def _text(value: Leaf) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case bytes():
            return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}" if value else "zeros"
        case tuple():
            return str(list(value))
        case _:
            text = str(value)
            return text if len(text) <= _TEXT_LENGTH else f"{text[: _TEXT_LENGTH - 3]}..."


def _seconds(value: float) -> str:
    return f"{value!r}s"


def _or_none(value: str) -> str | None:
    return value or None


def _fields(item: Object) -> Iterator[tuple[str, Leaf]]:
    yield from _metadata_fields(item.metadata)
    match item:
        case Model():
            yield from _model_fields(item)
        case ModelVersion():
            yield from _version_fields(item)
        case Route():
            yield from _route_fields(item)
        case Pool():
            yield from _pool_fields(item)


def _metadata_fields(metadata: Metadata) -> Iterator[tuple[str, Leaf]]:
    for name, value in sorted(metadata.labels.items()):
        yield f"metadata.labels[{name}]", value
    for name, value in sorted(metadata.annotations.items()):
        yield f"metadata.annotations[{name}]", value


def _spec_fields(path: str, specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, Leaf]]:
    for index, spec in enumerate(specs):
        yield f"{path}[{index}].name", spec.name
        yield f"{path}[{index}].datatype", spec.datatype
        yield f"{path}[{index}].shape", spec.shape
        yield f"{path}[{index}].optional", spec.optional
        yield f"{path}[{index}].allow_non_finite", spec.allow_non_finite


def _model_fields(model: Model) -> Iterator[tuple[str, Leaf]]:
    yield "model.description", _or_none(model.description)
    yield "model.task", _or_none(model.task)
    yield "model.modality", _or_none(model.modality)
    yield from _spec_fields("model.inputs", model.inputs)
    yield from _spec_fields("model.outputs", model.outputs)
    yield "model.latency_slo", None if model.latency_slo_s is None else _seconds(model.latency_slo_s)
    yield "model.owner", _or_none(model.owner)


def _artifact_fields(path: str, artifact: Artifact) -> Iterator[tuple[str, Leaf]]:
    yield f"{path}.uri", artifact.uri
    yield f"{path}.sha256", artifact.sha256


def _version_fields(version: ModelVersion) -> Iterator[tuple[str, Leaf]]:
    at = "model_version"
    if version.artifact is not None:
        yield from _artifact_fields(f"{at}.artifact", version.artifact)
    for name, artifact in sorted(version.files.items()):
        yield from _artifact_fields(f"{at}.files[{name}]", artifact)
    yield f"{at}.backend.name", version.backend.name
    yield f"{at}.backend.architecture", _or_none(version.backend.architecture)
    for name, value in sorted(version.backend.options.items()):
        yield f"{at}.backend.options[{name}]", value
    yield f"{at}.backend.executes_code", version.backend.executes_code
    yield f"{at}.resources.device_kind", None if version.device_kind is None else version.device_kind.value
    yield f"{at}.resources.memory_bytes", version.memory_bytes
    yield f"{at}.batching.max_batch_size", version.max_batch_size
    yield f"{at}.batching.max_wait", _seconds(version.max_wait_s)
    yield f"{at}.min_replicas", version.min_replicas
    yield f"{at}.pool", _or_none(version.pool)
    yield f"{at}.cost_microusd", version.cost_microusd
    yield f"{at}.quality", version.quality
    yield f"{at}.quality_metric", _or_none(version.quality_metric)
    yield f"{at}.service_time", _seconds(version.service_time_s)
    yield f"{at}.lineage.code_commit", _or_none(version.lineage.code_commit)
    yield f"{at}.lineage.data", _or_none(version.lineage.data)
    yield f"{at}.lineage.parent", _or_none(version.lineage.parent)
    yield f"{at}.lineage.license", _or_none(version.lineage.license)
    yield f"{at}.warmup", f"{len(version.warmup)} samples" if version.warmup else None
    for index, sample in enumerate(version.warmup):
        for name, tensor in sorted(sample.items()):
            yield f"{at}.warmup[{index}].inputs[{name}].shape", tensor.shape
            yield f"{at}.warmup[{index}].inputs[{name}].raw", tensor.raw


def _target_fields(path: str, target: RouteTarget) -> Iterator[tuple[str, Leaf]]:
    yield f"{path}.model", target.model
    yield f"{path}.version", _or_none(target.version)


def _route_fields(route: Route) -> Iterator[tuple[str, Leaf]]:
    yield "route.description", _or_none(route.description)
    match route.strategy:
        case Single(target):
            yield from _target_fields("route.single.target", target)
        case Choose(candidates, quality_weight, cost_weight, latency_weight):
            for index, target in enumerate(candidates):
                yield from _target_fields(f"route.choose.candidates[{index}]", target)
            yield "route.choose.quality_weight", quality_weight
            yield "route.choose.cost_weight", cost_weight
            yield "route.choose.latency_weight", latency_weight
    yield "route.default_timeout", _seconds(route.default_timeout_s)
    yield "route.max_timeout", _seconds(route.max_timeout_s)
    yield "route.max_attempts", route.max_attempts


def _pool_fields(pool: Pool) -> Iterator[tuple[str, Leaf]]:
    yield "pool.description", _or_none(pool.description)
    yield "pool.device_kind", pool.device_kind.value
    yield "pool.zone", _or_none(pool.zone)
    yield "pool.memory_bytes", pool.memory_bytes
    yield "pool.min_hosts", pool.min_hosts
    yield "pool.max_hosts", pool.max_hosts
    yield "pool.trusts_artifacts", pool.trusts_artifacts
