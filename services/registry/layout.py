"""How state is laid out: key names, and stored forms. Pure; reads and writes nothing.

Everything immutable is named by the SHA-256 of its bytes. What lists the objects of a state is in `tree`.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelyard.registry.v1 import objects_pb2, registry_pb2
from services.chassis.object_codec import object_to
from services.domain.errors import Internal
from services.domain.objects import Object, ObjectKey
from services.policy.tree_diff import Change
from services.registry import wire
from services.registry.decoding import Decoder
from services.registry.index import Index
from services.registry.key_order import KeyOrder, order_of
from services.registry.ports import Note
from services.registry.tree import Tree, line_of

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

Changed = tuple[list[ObjectKey], list[ObjectKey]]
"""Keys of objects that came or are other ones, and of those that went."""

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


_decoder = Decoder()


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in its stored form."""

    digest: str
    raw: bytes = field(repr=False)
    line: bytes = field(repr=False)
    """How a tree lists it."""

    @property
    def size_bytes(self) -> int:
        """Length of the stored form."""
        return len(self.raw)

    @property
    def item(self) -> Object:
        """The object.

        Raises:
            Internal: It was written by a later release.
        """
        return _decoder.item(self.digest, self.raw)

    @property
    def message(self) -> objects_pb2.Object:
        """The object as it travels; a new message each time."""
        return objects_pb2.Object.FromString(self.raw)


def entry_to(item: Object) -> Entry:
    """The stored form of an object."""
    raw = raw_of(object_to(item))
    digest = digest_of(raw)
    _decoder.keep(digest, raw, item)
    return Entry(digest, raw, line_of(item.key, digest))


def entry_from(key: ObjectKey, digest: str, raw: bytes) -> Entry:
    """The object that is stored as `raw`.

    Raises:
        Internal: It was written by a later release, with kinds of its own.
    """
    if objects_pb2.Object.FromString(raw).WhichOneof("spec") is None:
        raise Internal(f"stored object {digest}, {key}, is of no kind that this release knows")
    return Entry(digest, raw, line_of(key, digest))


def item_from(digest: str, raw: bytes) -> Object:
    """The object that is stored as `raw`.

    Raises:
        Internal: It was written by a later release.
    """
    return _decoder.item(digest, raw)


def check_digest(raw: bytes, digest: str) -> None:
    """Make sure that stored bytes are those of their name.

    Raises:
        Internal: They are not.
    """
    if digest_of(raw) != digest:
        raise Internal(f"the store's bytes of {digest} have another digest: it was tampered with, or is damaged")


@dataclass(frozen=True)
class State:
    """Everything at one revision, in memory."""

    revision: int = 0
    digest: str = ""
    """Of the revision's stored form; empty before the first."""
    parent_digest: str = ""
    entries: Tree[Entry] = field(default_factory=Tree, repr=False)
    """Every object in its stored form."""
    index: Index = field(default_factory=lambda: Index({}), repr=False)
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

    @property
    def objects(self) -> Mapping[ObjectKey, Object]:
        """Every object; each is read when it is asked for, and known to this view from then on."""
        return _Objects(self.entries)

    @property
    def tree_digest(self) -> str:
        """Digest of the root of its tree; empty for the empty state."""
        return self.entries.digest if self.entries else ""

    @property
    def ordered(self) -> KeyOrder:
        """Every key, by kind, name and version."""
        return self.index.order

    @property
    def knows_users(self) -> bool:
        """Whether `users_of` is at hand; else it takes a look at every object."""
        return self.index.knows_users

    def users_of(self, key: ObjectKey) -> Collection[ObjectKey]:
        """Keys of the objects that refer to an object."""
        return self.index.users_of(key)

    def followed_by(
        self, *, revision: int, digest: str, entries: Tree[Entry], changed: Changed, parent_digest: str
    ) -> "State":
        """The state with `entries`, which differ from those of this one by what has `changed`."""
        index = self.index.followed_by(entries, *changed)
        return State(revision, digest, parent_digest, entries, index)


class _Objects(Mapping[ObjectKey, Object]):
    """A state's objects, out of their stored form; keeps those that were asked for."""

    def __init__(self, entries: Tree[Entry]) -> None:
        self._entries = entries
        self._read: dict[ObjectKey, Object] = {}

    def __getitem__(self, key: ObjectKey) -> Object:
        item = self._read.get(key)
        if item is None:
            item = self._read[key] = self._entries[key].item
        return item

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def changed_keys(before: State, after: State) -> Changed:
    """What came or changed, and what went, between two states; looks only into what differs."""
    upserts, deletes = after.entries.differing(before.entries)
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
    entries, nodes = base.entries.changed(put, gone)
    blobs = {object_key(entry.digest): entry.raw for entry in put.values()}
    blobs.update((tree_key(digest), node) for digest, node in nodes.items())

    number = base.revision + 1
    record = registry_pb2.Revision(
        number=number,
        parent_digest=base.digest,
        tree_digest=entries.digest,
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
        revision=number, digest=digest_of(raw), entries=entries, changed=(list(put), gone), parent_digest=base.digest
    )
    return Draft(base, state, note.request_id, blobs, raw)


def timestamp(time_s: float) -> Timestamp:
    """Seconds since the Unix epoch, to the nanosecond as far as a double has them."""
    nanos = round(time_s * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
