"""What etcd itself saw: its transactions in order, replayed into the history of the registry.

Shares nothing with the product but the contract's messages: key names, digests and trees are worked out anew here.
Says where what is stored contradicts itself; whether it is what clients asked for is told in `checker`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelyard.registry.v1 import registry_pb2 as pb
from tests.chaos.registry.asked import Content, sha256
from tests.chaos.registry.events import Event

PREFIX = "/modelyard/v1/"
_HEAD = f"{PREFIX}head"
_OLDEST = f"{PREFIX}oldest"
_OBJECTS, _TREES = f"{PREFIX}objects/", f"{PREFIX}trees/"
_REVISIONS, _REQUESTS = f"{PREFIX}revisions/", f"{PREFIX}requests/"
LISTED_CHANGES = 100


@dataclass(frozen=True, slots=True)
class Move:
    """One move of the head."""

    number: int
    store_revision: int
    request_id: str
    restores: int
    delta: Mapping[str, str | None]
    """What differs from the state before: key to digest, None for what went."""
    sum: int
    """Of the content after it; see `Content`."""


class Truth:
    """Takes every transaction from the first on."""

    def __init__(self) -> None:
        """Begin with an empty store."""
        self.moves: list[Move] = []
        self.notes: dict[str, int] = {}
        """Every request that was ever noted as done, with the revision that was noted first."""
        self.faults: list[str] = []
        """What is torn: contradictions of the store with itself."""
        self.stored: dict[str, bytes] = {}
        self.deleted = Counter[str]()
        """How many keys were deleted, by kind."""
        self._content = Content()
        self._shards: dict[int, str] = {}
        self._shard_keys: dict[int, dict[str, str]] = {}
        self._root = ""
        self._head = pb.Head()
        self._live = Counter[str]()
        self._last_named: dict[str, int] = {}
        self._oldest = 1

    def take(self, revision: int, events: Sequence[Event]) -> None:
        """The next transaction."""
        puts = {event.key: event.value for event in events if event.value is not None}
        for key, value in puts.items():
            self._check_put(revision, key, value)
            self.stored[key] = value
        if _HEAD in puts:
            self._move(revision, puts)
        for key, value in puts.items():
            if key.startswith(_REQUESTS):
                self._note(revision, key.removeprefix(_REQUESTS), pb.Head.FromString(value).revision)
            elif key.startswith(_REVISIONS) and _HEAD not in puts:
                self._fault(revision, f"{key} was written without the head")
        for event in events:
            if event.value is None:
                self._check_delete(revision, event.key)
                self.stored.pop(event.key, None)

    def compare(self, listing: Mapping[str, bytes]) -> None:
        """Compare what all transactions led to with what etcd lists in the end."""
        for key in sorted({*self.stored, *listing}):
            if self.stored.get(key) != listing.get(key):
                self.faults.append(f"{key} is not what its last transaction made of it")

    def _fault(self, revision: int, text: str) -> None:
        self.faults.append(f"etcd revision {revision}: {text}")

    def _check_put(self, revision: int, key: str, value: bytes) -> None:
        """What is immutable has the name of its digest, and is never anything else."""
        for prefix in (_OBJECTS, _TREES):
            if key.startswith(prefix) and sha256(value) != key.removeprefix(prefix):
                self._fault(revision, f"{key} was written with the digest {sha256(value)}")
        if key.startswith(_REVISIONS) and self.stored.get(key, value) != value:
            self._fault(revision, f"{key} was written over")
        if key == _OLDEST:
            if int(value) < self._oldest:
                self._fault(revision, f"the oldest revision kept went back from {self._oldest} to {int(value)}")
            self._oldest = int(value)

    def _check_delete(self, revision: int, key: str) -> None:
        """Nothing goes that a kept revision names."""
        kind, _, name = key.removeprefix(PREFIX).partition("/")
        self.deleted[kind] += 1
        if key in (_HEAD, _OLDEST):
            self._fault(revision, f"{key} was deleted")
        elif kind == "revisions" and int(name) >= self._oldest:
            self._fault(revision, f"{key} was deleted although {self._oldest} is the oldest kept")
        elif kind in ("objects", "trees") and (self._live[name] or self._last_named.get(name, 0) >= self._oldest):
            self._fault(revision, f"{key} was deleted although a kept revision names it")

    def _note(self, revision: int, request_id: str, number: int) -> None:
        if self.notes.setdefault(request_id, number) != number:
            self._fault(revision, f"request {request_id} was noted at {self.notes[request_id]}, then at {number}")
        if number != self._head.revision:
            self._fault(revision, f"request {request_id} was noted at {number}, the head is {self._head.revision}")

    def _move(self, revision: int, puts: Mapping[str, bytes]) -> None:
        before, head = self._head, pb.Head.FromString(puts[_HEAD])
        self._head = head
        if head.revision != before.revision + 1:
            self._fault(revision, f"the head moved from {before.revision} to {head.revision}")
        raw = puts.get(f"{_REVISIONS}{head.revision:016d}")
        if raw is None:
            self._fault(revision, f"the head moved to {head.revision} without its record")
            return
        if sha256(raw) != head.digest:
            self._fault(revision, f"the head names {head.digest}, the record of {head.revision} is {sha256(raw)}")
        record = pb.Revision.FromString(raw)
        if (record.number, record.parent_digest) != (head.revision, before.digest):
            self._fault(revision, f"the record of {head.revision} is of {record.number} after {record.parent_digest}")
        if f"{_REQUESTS}{record.request_id}" not in puts:
            self._fault(revision, f"revision {head.revision} was made without a note of {record.request_id}")
        delta = self._walk(revision, record.tree_digest, before.revision)
        if record.change_count != len(delta) or len(record.changes) != min(LISTED_CHANGES, len(delta)):
            self._fault(revision, f"revision {head.revision} tells of {record.change_count} changes of {len(delta)}")
        self.moves.append(Move(head.revision, revision, record.request_id, record.restores, delta, self._content.sum))

    def _walk(self, revision: int, root: str, number_before: int) -> dict[str, str | None]:
        """Come from the tree before to the one that `root` names; looks only at what differs."""
        raw = self._named(revision, _TREES, root)
        try:
            tree = pb.Tree.FromString(raw) if raw is not None else None
        except DecodeError:
            tree = None
        if tree is None:
            self._fault(revision, f"there is no tree {root}")
            return {}
        shards = {ref.number: ref.digest for ref in tree.shards}
        if [ref.number for ref in tree.shards] != sorted(shards):
            self._fault(revision, f"the shards of tree {root} are not in order")
        delta: dict[str, str | None] = {}
        for number in sorted({*shards, *self._shards}):
            if shards.get(number) == self._shards.get(number):
                continue
            old, new = self._shard_keys.get(number, {}), self._shard(revision, number, shards.get(number))
            delta.update({key: None for key in old if key not in new})
            delta.update({key: digest for key, digest in new.items() if old.get(key) != digest})
            self._shard_keys[number] = new
            self._swap(revision, _TREES, self._shards.get(number), shards.get(number), number_before)
        self._swap(revision, _TREES, self._root or None, root, number_before)
        self._shards, self._root = shards, root
        for key, digest in delta.items():
            self._swap(revision, _OBJECTS, self._content.digests.get(key), digest, number_before)
            if digest is None:
                self._content.drop(key)
            else:
                self._content.put(key, digest)
        if tree.object_count != len(self._content.digests):
            self._fault(revision, f"tree {root} counts {tree.object_count} of {len(self._content.digests)} objects")
        return delta

    def _shard(self, revision: int, number: int, digest: str | None) -> dict[str, str]:
        raw = None if digest is None else self._named(revision, _TREES, digest)
        if raw is None:
            return {}
        entries = {entry.key: entry.digest for entry in pb.TreeShard.FromString(raw).entries}
        if not entries or any(int(sha256(key.encode())[:2], 16) != number for key in entries):
            self._fault(revision, f"shard {number} {digest} has keys of others, or none")
        return entries

    def _swap(self, revision: int, prefix: str, old: str | None, new: str | None, number_before: int) -> None:
        """The head names `new` instead of `old`."""
        if old == new:
            return
        if new is not None:
            self._named(revision, prefix, new)
            self._live[new] += 1
        if old is not None:
            self._live[old] -= 1
            if not self._live[old]:
                del self._live[old]
                self._last_named[old] = number_before

    def _named(self, revision: int, prefix: str, digest: str) -> bytes | None:
        """A value that must be there when the head comes to name it."""
        raw = self.stored.get(f"{prefix}{digest}")
        if raw is None:
            self._fault(revision, f"the head came to name {prefix}{digest}, which is not there")
        return raw
