"""One change in etcd as the independent recorder saw it."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Event:
    """One key's change."""

    revision: int
    """etcd's, of the transaction."""
    key: str
    value: bytes | None
    """None if it was deleted."""
    create_revision: int = 0
    """When the key came to be; 0 if it was deleted."""


def transactions(events: Iterable[Event]) -> Iterator[tuple[int, list[Event]]]:
    """Events in order, together as they were committed."""
    for revision, group in groupby(events, key=lambda event: event.revision):
        yield revision, list(group)


def digest(events: Iterable[Event]) -> str:
    """Tells one transaction's events from any others'."""
    whole = hashlib.sha256()
    for event in sorted(events, key=lambda each: each.key):
        value = b"-" if event.value is None else hashlib.sha256(event.value).digest()
        whole.update(f"{event.key}\0{event.create_revision}\0".encode() + value)
    return whole.hexdigest()
