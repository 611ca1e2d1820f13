"""How state is laid out: key names, stored forms, and trees in shards. Pure; reads and writes nothing.

Everything immutable is named by the SHA-256 of its bytes. A tree has up to 256 shards, so that a change
to one of 100,000 objects writes one small shard and not the whole list.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelyard.registry.v1 import objects_pb2, registry_pb2
from services.chassis.object_codec import object_from, object_to
from services.domain.errors import Internal, InvalidRequest
from services.domain.objects import Object, ObjectKey, semver_order
from services.policy.tree_diff import Change
from services.registry import wire
from services.registry.ports import Note

PREFIX = "/modelyard/v1/"
HEAD = f"{PREFIX}head"
OLDEST = f"{PREFIX}oldest"
"""Number of the oldest revision that is kept, in decimal; not there while all are."""

SWEEP = f"{PREFIX}sweep"
"""Written at the start of each collection of garbage; an apply that looked at the store before cannot end."""

OBJECTS = f"{PREFIX}objects/"
TREES = f"{PREFIX}trees/"
REVISIONS = f"{PREFIX}revisions/"
REQUESTS = f"{PREFIX}requests/"
HOSTS = f"{PREFIX}live/hosts/"
HOST_ORDERS = f"{PREFIX}hosts/orders/"
"""What operators want of hosts; not bound to any lease."""

KNOWN_HOSTS = f"{PREFIX}hosts/known/"
"""Hosts as they were last; kept for a while after they are gone."""

ATTEMPTS = f"{PREFIX}attempts/"
"""Changes that a gate kept out; ids sort by time."""

APPROVALS = f"{PREFIX}approvals/"

PLAN = f"{PREFIX}live/plan"
PLANNER_ELECTION = f"{PREFIX}elections/resource-manager/"

LISTED_CHANGES = 100
"""Changes that a revision's record names; the trees have all of them."""


def object_key(digest: str) -> str:
    """Where a stored object is."""
    return f"{OBJECTS}{digest}"


def tree_key(digest: str) -> str:
    """Where a stored tree or shard is."""
    return f"{TREES}{digest}"


def revision_key(number: int) -> str:
    """Where a revision's record is; padded, so that keys sort as numbers do."""
    return f"{REVISIONS}{number:016d}"


def request_key(request_id: str) -> str:
    """Where it says how a request ended."""
    return f"{REQUESTS}{request_id}"


def attempt_key(attempt_id: str) -> str:
    """Where a change is that a gate kept out."""
    return f"{ATTEMPTS}{attempt_id}"


def approval_key(change_digest: str) -> str:
    """Where it says who approved of a change."""
    return f"{APPROVALS}{change_digest}"


def host_key(host_id: str) -> str:
    """Where a host's record is."""
    return f"{HOSTS}{host_id}"


def host_order_key(host_id: str) -> str:
    """Where it says what is wanted of a host."""
    return f"{HOST_ORDERS}{host_id}"


def known_host_key(host_id: str, pid: int) -> str:
    """Where a host is as it was last; each process of that name by itself."""
    return f"{KNOWN_HOSTS}{host_id}/{pid}"


def digest_of(raw: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def raw_of(message: Message) -> bytes:
    """The stored form of a message: equal messages give equal bytes."""
    return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in its stored form."""

    digest: str
    raw: bytes
    item: Object
    message: objects_pb2.Object

    @property
    def size_bytes(self) -> int:
        """Length of the stored form."""
        return len(self.raw)


def entry_to(item: Object) -> Entry:
    """The stored form of an object."""
    message = object_to(item)
    raw = raw_of(message)
    return Entry(digest_of(raw), raw, item, message)


def entry_from(digest: str, raw: bytes) -> Entry:
    """The object that is stored as `raw`.

    Raises:
        Internal: It was written by a later release, with kinds of its own.
    """
    message = objects_pb2.Object.FromString(raw)
    try:
        return Entry(digest, raw, object_from(message), message)
    except InvalidRequest as error:
        raise Internal(f"stored object {digest} cannot be read by this release: {error}") from error


def check_digest(raw: bytes, digest: str) -> None:
    """Make sure that stored bytes are those of their name.

    Raises:
        Internal: They are not.
    """
    if digest_of(raw) != digest:
        raise Internal(f"the store's bytes of {digest} have another digest: it was tampered with, or is damaged")


def shard_of(key: ObjectKey) -> int:
    """Number of the shard that lists an object."""
    return hashlib.sha256(str(key).encode()).digest()[0]


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a tree: digests by key."""

    digest: str
    digests: Mapping[ObjectKey, str]


def shard_to(digests: Mapping[ObjectKey, str]) -> tuple[Shard, bytes]:
    """A shard and its stored form."""
    entries = sorted((str(key), digest) for key, digest in digests.items())
    raw = raw_of(
        registry_pb2.TreeShard(entries=[registry_pb2.TreeEntry(key=key, digest=digest) for key, digest in entries])
    )
    return Shard(digest_of(raw), digests), raw


def shard_from(digest: str, raw: bytes) -> Shard:
    """The shard that is stored as `raw`."""
    entries = registry_pb2.TreeShard.FromString(raw).entries
    return Shard(digest, {ObjectKey.parse(entry.key): entry.digest for entry in entries})


def tree_to(shards: Mapping[int, Shard]) -> bytes:
    """The stored form of a tree's root."""
    refs = [registry_pb2.TreeShardRef(number=number, digest=shards[number].digest) for number in sorted(shards)]
    return raw_of(registry_pb2.Tree(shards=refs, object_count=sum(len(shard.digests) for shard in shards.values())))


@dataclass(frozen=True)
class State:
    """Everything at one revision, in memory."""

    revision: int = 0
    digest: str = ""
    """Of the revision's stored form; empty before the first."""
    parent_digest: str = ""
    shards: Mapping[int, Shard] = field(default_factory=dict, repr=False)
    entries: Mapping[ObjectKey, Entry] = field(default_factory=dict, repr=False)
    objects: Mapping[ObjectKey, Object] = field(default_factory=dict, repr=False)
    mark: int = 0
    """Store revision at which the head key came to name this; 0 if it was not read as head, or there is none."""
    sweep: int = 0
    """Store revision of the last collection's start, when this was read for an apply."""

    def digest_of(self, key: ObjectKey) -> str | None:
        """Digest of an object's stored form; None if there is no such object."""
        entry = self.entries.get(key)
        return None if entry is None else entry.digest

    def differing(self, other: "State") -> list[ObjectKey]:
        """Keys of the objects that `other` has not, or not alike, and of those that it alone has."""
        upserts, deletes = changed_keys(other, self)
        return [*upserts, *deletes]

    @cached_property
    def tree_digest(self) -> str:
        """Digest of the root of its tree; empty for the empty state."""
        return digest_of(tree_to(self.shards)) if self.shards else ""

    @cached_property
    def ordered(self) -> tuple[ObjectKey, ...]:
        """Every key, by kind, name and version."""
        return tuple(sorted(self.entries, key=order_of))

    def followed_by(
        self,
        *,
        revision: int,
        digest: str,
        shards: Mapping[int, Shard],
        upserts: Mapping[ObjectKey, Entry],
        deletes: Iterable[ObjectKey],
        parent_digest: str,
        mark: int = 0,
    ) -> "State":
        """The state that differs from this one by `upserts` and `deletes`."""
        entries, objects = dict(self.entries), dict(self.objects)
        for key, entry in upserts.items():
            entries[key], objects[key] = entry, entry.item
        for key in deletes:
            del entries[key], objects[key]
        return State(revision, digest, parent_digest, shards, entries, objects, mark)


def order_of(
    key: ObjectKey,
) -> tuple[str, str, tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]], str]:
    """Sort key: kind, name, then versions as semver orders them."""
    return key.kind, key.name, semver_order(key.version), key.version


def changed_keys(before: State, after: State) -> tuple[list[ObjectKey], list[ObjectKey]]:
    """What came or changed, and what went, between two states; looks only into shards that differ."""
    upserts: list[ObjectKey] = []
    deletes: list[ObjectKey] = []
    for number in sorted({*before.shards, *after.shards}):
        old, new = before.shards.get(number), after.shards.get(number)
        if old is not None and new is not None and old.digest == new.digest:
            continue
        had = old.digests if old is not None else {}
        has = new.digests if new is not None else {}
        upserts += [key for key, digest in has.items() if had.get(key) != digest]
        deletes += [key for key in had if key not in has]
    return sorted(upserts, key=order_of), sorted(deletes, key=order_of)


@dataclass(frozen=True, slots=True)
class Draft:
    """A revision that is not the head yet, and what has to be written for it."""

    base: State
    state: State
    """What the state will be; `base` if nothing changes."""
    request_id: str
    blobs: Mapping[str, bytes] = field(repr=False)
    """Immutable values to write before, by key."""
    record: bytes = field(repr=False)
    """The revision's stored form; empty if nothing changes."""


def draft(base: State, upserts: Mapping[ObjectKey, Entry], changes: Sequence[Change], note: Note) -> Draft:
    """Lay out the revision that follows `base` by `changes`.

    Args:
        base: The head.
        upserts: At least every object that is created or updated.
        changes: What differs; without any, the draft only notes that the request is done.
        note: What the history keeps.
    """
    if not changes:
        return Draft(base, base, note.request_id, {}, b"")
    put = {change.key: upserts[change.key] for change in changes if change.key in upserts}
    gone = [change.key for change in changes if change.key not in upserts]
    blobs = {object_key(entry.digest): entry.raw for entry in put.values()}
    parts: dict[int, dict[ObjectKey, str]] = {}
    for number, key, digest in _moves(put, gone):
        if number not in parts:
            parts[number] = dict(base.shards[number].digests) if number in base.shards else {}
        if digest is None:
            del parts[number][key]
        else:
            parts[number][key] = digest
    shards = dict(base.shards)
    for number, digests in parts.items():
        if digests:
            shards[number], raw = shard_to(digests)
            blobs[tree_key(shards[number].digest)] = raw
        else:
            del shards[number]
    root = tree_to(shards)
    blobs[tree_key(digest_of(root))] = root

    number = base.revision + 1
    record = registry_pb2.Revision(
        number=number,
        parent_digest=base.digest,
        tree_digest=digest_of(root),
        author=note.author,
        reason=note.reason,
        time=timestamp(note.time_s),
        request_id=note.request_id,
        changes=[wire.change_to(change) for change in changes[:LISTED_CHANGES]],
        change_count=len(changes),
        restores=note.restores,
    )
    raw = raw_of(record)
    state = base.followed_by(
        revision=number, digest=digest_of(raw), shards=shards, upserts=put, deletes=gone, parent_digest=base.digest
    )
    return Draft(base, state, note.request_id, blobs, raw)


def _moves(put: Mapping[ObjectKey, Entry], gone: Iterable[ObjectKey]) -> Iterator[tuple[int, ObjectKey, str | None]]:
    for key, entry in put.items():
        yield shard_of(key), key, entry.digest
    for key in gone:
        yield shard_of(key), key, None


def timestamp(time_s: float) -> Timestamp:
    """Seconds since the Unix epoch, to the nanosecond as far as a double has them."""
    nanos = round(time_s * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
