"""What differs between two states: which objects, and in which fields.

Owns the order of changes and the text of values. Which fields an object has is in `object_fields`; where states are
kept is the registry's business.
"""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from services.domain.objects import ModelVersion, Object, ObjectKey
from services.domain.semver import semver_order
from services.policy.object_fields import fields
from services.policy.strategy_fields import Leaf

_KIND_ORDER = {"Policy": 0, "Tenant": 1, "Pool": 2, "Model": 3, "ModelVersion": 4, "Route": 5, "Template": 6}
"""What others refer to comes first; deletions go the other way. Routes that name routes are not told apart."""

_MUTABLE = (
    "metadata.labels[",
    "metadata.annotations[",
    "metadata.tenant",
    "model_version.min_replicas",
    "model_version.failure_modes[",
    "model_version.owner",
)
"""Where a ModelVersion may change: how many, whose, and what people have learned of it. Hosts tell versions apart by
name alone, so anything else would leave two different models running under one name."""

_TEXT_LENGTH = 200
"""Longest text of a value in a change; the object itself has all of it."""


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
        Changes without fields, in an order in which they could be done one by one: policies, tenants, pools, models,
        versions, routes and templates created or updated, then those deleted the other way round.
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
    old, new = dict(fields(before)), dict(fields(after))
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
