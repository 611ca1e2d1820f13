"""Which objects of a state a reader asks for: one by its key, or a page by kind and labels."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelyard.registry.v1 import objects_pb2
from services.domain.errors import Fault, InvalidRequest, ObjectNotFound
from services.domain.objects import ObjectKey
from services.policy.change_check import nearest
from services.registry import wire
from services.registry.key_order import first_of
from services.registry.layout import Entry, State

DEFAULT_PAGE = 500
MAX_PAGE = 5000

LOOKED_AT = 500
"""Keys compared with one that is not there, in a state of more: those around it. Each takes some microseconds."""

PAGE_BYTES = 16 << 20
"""A page ends early when its objects take this much, well below the limit of a message."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the objects asked for."""

    entries: tuple[Entry, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class Query:
    """Which objects; `after` is the last key of the page before."""

    kind: str
    labels: Mapping[str, str]
    revision: int
    size: int
    after: ObjectKey | None

    @property
    def fingerprint(self) -> str:
        """Tells one query's pages from another's."""
        text = json.dumps([self.kind, sorted(self.labels.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def query(kind: str, labels: Mapping[str, str], revision: int, page_size: int, page_token: str) -> Query:
    """What a List asks for.

    Raises:
        InvalidRequest: With every fault.
    """
    faults = wire.kind_faults(kind, "kind") if kind else []
    faults += count_faults(revision, "revision") + count_faults(page_size, "page_size")
    if faults:
        raise InvalidRequest.of(faults)
    asked = Query(kind, labels, revision, min(page_size or DEFAULT_PAGE, MAX_PAGE), None)
    if not page_token:
        return asked
    at, key, fingerprint = wire.token_from(page_token, int, str, str)
    if fingerprint != asked.fingerprint:
        raise InvalidRequest.of([Fault("page_token", "belongs to a List of another kind or other labels")])
    return Query(kind, labels, int(at), asked.size, ObjectKey.parse(str(key)))


def count_faults(value: int, path: str) -> list[Fault]:
    """Whether a number that counts does so."""
    return [Fault(path, f"{value} must not be negative")] if value < 0 else []


def get(state: State, key: ObjectKey) -> Entry:
    """One object.

    Raises:
        ObjectNotFound: With what exists near it.
    """
    entry = state.entries.get(key)
    if entry is None:
        all_of_them = len(state.entries) <= LOOKED_AT
        near = nearest(key, state.entries if all_of_them else state.ordered.around(key, LOOKED_AT // 2))
        raise ObjectNotFound(
            f"revision {state.revision} has no {key}; {near}",
            metadata={"kind": key.kind, "name": key.name, "version": key.version, "revision": str(state.revision)},
        )
    return entry


def page(state: State, asked: Query) -> Page:
    """The objects asked for, in order of kind, name and version."""
    keys = state.ordered.following(asked.after or first_of(asked.kind)) if asked.after or asked.kind else state.ordered
    found: list[tuple[ObjectKey, Entry]] = []
    size_bytes = 0
    labels = [_label(name, value) for name, value in asked.labels.items()]
    for key in keys:
        if asked.kind and key.kind != asked.kind:
            break
        entry = state.entries[key]
        # The bytes say at once of most that they have not the labels.
        if not all(label in entry.raw for label in labels):
            continue
        if labels and not asked.labels.items() <= entry.message.metadata.labels.items():
            continue
        if len(found) == asked.size or (found and size_bytes + entry.size_bytes > PAGE_BYTES):
            return _page(found, wire.token_to(state.revision, str(found[-1][0]), asked.fingerprint))
        found.append((key, entry))
        size_bytes += entry.size_bytes
    return _page(found, "")


def _page(found: Sequence[tuple[ObjectKey, Entry]], next_token: str) -> Page:
    return Page(tuple(entry for _, entry in found), next_token)


def _label(name: str, value: str) -> bytes:
    """How a label stands in the stored form of an object."""
    return objects_pb2.Metadata(labels={name: value}).SerializeToString()
