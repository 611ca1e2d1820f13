"""Histories made by hand, right by construction; the tests of the checker spoil them."""

from collections.abc import Iterable

from modelyard.registry.v1 import registry_pb2 as pb
from tests.chaos.registry.asked import Asked, Attempt, Outcome, sha256
from tests.chaos.registry.checker import Verdict, judge
from tests.chaos.registry.events import Event, transactions
from tests.chaos.registry.fencing import Fences
from tests.chaos.registry.truth import PREFIX, Truth


class Story:
    """What happened in etcd, and what clients asked and were told."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.events: list[Event] = []
        self.asked: dict[str, Asked] = {}
        self.revision = 1
        self.head = pb.Head()
        self._objects: dict[str, str] = {}
        self._created: dict[str, int] = {}

    def put(self, values: dict[str, bytes | None]) -> None:
        """One transaction; None deletes."""
        self.revision += 1
        for key, value in values.items():
            full = PREFIX + key
            if value is None:
                self._created.pop(full, None)
                self.events.append(Event(self.revision, full, None))
            else:
                created = self._created.setdefault(full, self.revision)
                self.events.append(Event(self.revision, full, value, created))

    def ask(self, request_id: str, *keys: str, deletes: Iterable[str] = (), restores: int = 0) -> Asked:
        """Ask for `keys` to have new content."""
        upserts = {key: sha256(_raw(request_id, key)) for key in keys}
        asked = Asked(request_id, upserts, frozenset(deletes), restores=restores)
        self.asked[request_id] = asked
        return asked

    def do(self, asked: Asked, *, number: int = 0, restored: dict[str, str] | None = None) -> int:
        """Carry a request out as the registry does; returns the revision."""
        blobs = {f"objects/{digest}": _raw(asked.request_id, key) for key, digest in asked.upserts.items()}
        before = self._objects
        self._objects = {**before, **asked.upserts} if restored is None else dict(restored)
        for key in asked.deletes:
            self._objects.pop(key, None)
        root, trees = _trees(self._objects)
        record = pb.Revision(
            number=number or self.head.revision + 1,
            parent_digest=self.head.digest,
            tree_digest=root,
            request_id=asked.request_id,
            restores=asked.restores,
        )
        for key in sorted({*before, *self._objects}):
            if before.get(key) != self._objects.get(key):
                record.change_count += 1
                record.changes.add()
        raw = record.SerializeToString(deterministic=True)
        self.head = pb.Head(revision=record.number, digest=sha256(raw))
        head = self.head.SerializeToString(deterministic=True)
        self.put(dict[str, bytes | None]({**blobs, **trees}))
        self.put({f"requests/{asked.request_id}": head, "head": head, f"revisions/{record.number:016d}": raw})
        return record.number

    def note(self, asked: Asked) -> int:
        """Carry a request out that has nothing to change."""
        self.put({f"requests/{asked.request_id}": self.head.SerializeToString(deterministic=True)})
        return self.head.revision

    def apply(self, request_id: str, *keys: str, deletes: Iterable[str] = ()) -> Asked:
        """Ask, carry out, and acknowledge, one after the other."""
        asked = self.ask(request_id, *keys, deletes=deletes)
        start_s = float(self.revision)
        tell(asked, "acknowledged", start_s, self.do(asked), end_s=start_s + 0.5)
        return asked

    @property
    def objects(self) -> dict[str, str]:
        """Key to digest, at the head."""
        return dict(self._objects)

    def stored(self) -> dict[str, bytes]:
        """What etcd lists in the end."""
        found: dict[str, bytes] = {}
        for event in self.events:
            if event.value is None:
                found.pop(event.key, None)
            else:
                found[event.key] = event.value
        return found

    def truth(self) -> Truth:
        """The replay."""
        truth = Truth()
        for revision, group in transactions(self.events):
            truth.take(revision, group)
        return truth

    def verdict(self) -> Verdict:
        """What the checker says."""
        fences = Fences()
        for revision, group in transactions(self.events):
            fences.take(revision, group)
        return judge(asked=self.asked, truth=self.truth(), fences=fences)


def tell(asked: Asked, outcome: Outcome, start_s: float, revision: int = 0, *, end_s: float | None = None) -> None:
    """One attempt and its answer."""
    asked.attempts.append(Attempt(start_s, start_s + 1.0 if end_s is None else end_s, outcome, revision))


def _raw(request_id: str, key: str) -> bytes:
    return f"{key} by {request_id}".encode()


def _trees(objects: dict[str, str]) -> tuple[str, dict[str, bytes]]:
    """The tree of a state: digest of its root, and its values by key."""
    shards: dict[int, pb.TreeShard] = {}
    for key in sorted(objects):
        shard = shards.setdefault(int(sha256(key.encode())[:2], 16), pb.TreeShard())
        shard.entries.add(key=key, digest=objects[key])
    values: dict[str, bytes] = {}
    root = pb.Tree(object_count=len(objects))
    for number in sorted(shards):
        raw = shards[number].SerializeToString(deterministic=True)
        values[f"trees/{sha256(raw)}"] = raw
        root.shards.add(number=number, digest=sha256(raw))
    raw = root.SerializeToString(deterministic=True)
    return sha256(raw), {**values, f"trees/{sha256(raw)}": raw}
