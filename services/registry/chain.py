"""The chain of digests: every stored value has the name of its own SHA-256, from the head back to the oldest revision.

Walks it newest first, each value before what it names, and no value twice. Verifying and exporting a history are
the same walk; importing one is it the other way round.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from google.protobuf.message import DecodeError, Message

from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.errors import Internal, StoreUnavailable
from services.registry import layout, tree
from services.registry.values import TXN_OPS, Values

Kind = Literal["revision", "tree", "object"]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Link:
    """One stored value whose digest is right."""

    kind: Kind
    revision: int
    """The newest revision that names it."""
    raw: bytes = field(repr=False)


class Broken(Exception):
    """A value is not what was once written, or is not there."""

    def __init__(self, revision: int, key: str, what: str) -> None:
        """Say which value, and the newest revision that names it."""
        super().__init__(f"revision {revision}: {key} {what}")
        self.revision = revision
        self.key = key
        self.what = what


async def head_of(values: Values, timeout_s: float) -> pb.Head:
    """Which revision is current, and its digest; an empty message before the first.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    (kv,) = await values.read([layout.HEAD], timeout_s)
    return pb.Head() if kv is None else pb.Head.FromString(kv.value)


async def oldest_kept(values: Values, timeout_s: float) -> int:
    """The oldest revision that was not collected.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    (kv,) = await values.read([layout.OLDEST], timeout_s)
    return 1 if kv is None else int(kv.value)


async def walk(values: Values, head: pb.Head, *, timeout_s: float) -> AsyncGenerator[Link, None]:
    """Everything that a head leads to. Close it (`aclosing`).

    Args:
        values: Where it is stored.
        head: Where to begin.
        timeout_s: How long etcd may leave one step unanswered.

    Raises:
        Broken: At the first value that is wrong.
        StoreUnavailable: etcd does not answer, or a revision was collected half-way.
    """
    seen: set[str] = set()
    number, digest = head.revision, head.digest
    while number > 0:
        told = False
        try:
            async with aclosing(_revision(values, number, digest, seen, timeout_s)) as links:
                async for link in links:
                    if link.kind == "revision":
                        digest = pb.Revision.FromString(link.raw).parent_digest
                        told = True
                    yield link
        except Broken:
            if number >= await oldest_kept(values, timeout_s):
                raise
            if told or number == head.revision:
                text = f"revision {number} was collected while it was read: begin again"
                raise StoreUnavailable(text, retry_after_s=0.1) from None
            return
        number -= 1
    if digest:
        raise Broken(1, layout.revision_key(1), "names a revision before it")


async def _revision(
    values: Values, number: int, digest: str, seen: set[str], timeout_s: float
) -> AsyncGenerator[Link, None]:
    """A revision's record, and what of its tree was not seen yet."""
    key = layout.revision_key(number)
    (raw,) = await _fetch(values, number, [key], [digest], timeout_s)
    record = pb.Revision.FromString(raw)
    if record.number != number:
        raise Broken(number, key, f"calls itself revision {record.number}")
    yield Link("revision", number, raw)
    async with aclosing(_tree(values, number, record.tree_digest, seen, timeout_s)) as links:
        async for link in links:
            yield link


async def _tree(
    values: Values, number: int, root_digest: str, seen: set[str], timeout_s: float
) -> AsyncGenerator[Link, None]:
    """The root, shards and objects of a revision that were not seen yet."""
    level = [(root_digest, True)]
    objects: list[str] = []
    while level:
        split = dict(level)
        level = []
        for some in _cut(_unseen(iter(split), seen)):
            for digest, raw in zip(some, await _fetch_trees(values, number, some, timeout_s), strict=True):
                yield Link("tree", number, raw)
                found = tree.listed(raw, split=split[digest])
                level += [(ref.digest, ref.split) for ref in found.nodes.values()]
                objects += _unseen(iter(found.objects.values()), seen)
    for some in _cut(objects):
        for raw in await _fetch(values, number, [layout.object_key(each) for each in some], some, timeout_s):
            yield Link("object", number, raw)


async def _fetch_trees(values: Values, number: int, digests: Sequence[str], timeout_s: float) -> list[bytes]:
    return await _fetch(values, number, [layout.tree_key(each) for each in digests], digests, timeout_s)


def _unseen(digests: Iterator[str], seen: set[str]) -> list[str]:
    found = [digest for digest in digests if digest not in seen]
    seen.update(found)
    return found


def _cut(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    return (digests[start : start + TXN_OPS] for start in range(0, len(digests), TXN_OPS))


async def _fetch(
    values: Values, number: int, keys: Sequence[str], digests: Sequence[str], timeout_s: float
) -> list[bytes]:
    raws = []
    for kv, key, digest in zip(await values.read(keys, timeout_s), keys, digests, strict=True):
        if kv is None:
            raise Broken(number, key, "is missing")
        found = layout.digest_of(kv.value)
        if found != digest:
            raise Broken(number, key, f"has the digest {found}, and {digest} is named")
        raws.append(kv.value)
    return raws


class Completion:
    """Takes the links of a walk, and says whether they make a whole chain."""

    def __init__(self, head_digest: str) -> None:
        """Expect the chain of this head."""
        self._revision: str = head_digest
        self._number = 0
        self._wanted: dict[str, Literal["tree", "shard", "object"]] = {}
        self._had: set[str] = set()
        self.head = 0
        """Number of the newest revision."""

    @property
    def oldest(self) -> int:
        """Number of the oldest revision so far."""
        return self._number

    def take(self, kind: Kind, raw: bytes) -> str:
        """The next value.

        Returns:
            The key to store it at.

        Raises:
            ValueError: Nothing before it names it.
        """
        digest = layout.digest_of(raw)
        if kind == "revision":
            return self._take_revision(digest, _parsed(pb.Revision, raw))
        role = self._wanted.pop(digest, None)
        if role is None or (role == "object") != (kind == "object"):
            raise ValueError(f"has a value that nothing in it names, {kind} {digest}")
        self._had.add(digest)
        if role != "object":
            found = _listed(raw, split=role == "tree")
            self._want("tree", (ref.digest for ref in found.nodes.values() if ref.split))
            self._want("shard", (ref.digest for ref in found.nodes.values() if not ref.split))
            self._want("object", iter(found.objects.values()))
        else:
            try:
                layout.item_from(digest, raw)
            except (DecodeError, Internal) as error:
                raise ValueError(f"has an object that this release cannot read: {error}") from None
        return layout.object_key(digest) if role == "object" else layout.tree_key(digest)

    def finish(self) -> None:
        """Nothing more comes.

        Raises:
            ValueError: Something is missing.
        """
        if self._wanted:
            raise ValueError(f"lacks {len(self._wanted)} values that it names, such as {next(iter(self._wanted))}")
        if not self.head and self._revision:
            raise ValueError("lacks the revision that it begins with")
        if self._number == 1 and self._revision:
            raise ValueError("names a revision before the first")

    def _take_revision(self, digest: str, record: pb.Revision) -> str:
        if digest != self._revision:
            raise ValueError(f"has a revision {record.number} that is not the one named by what comes before")
        if record.number < 1 or (self._number and record.number != self._number - 1):
            raise ValueError(f"has revision {record.number} after revision {self._number}")
        self.head = self.head or record.number
        self._number, self._revision = record.number, record.parent_digest
        self._want("tree", iter((record.tree_digest,)))
        return layout.revision_key(record.number)

    def _want(self, role: Literal["tree", "shard", "object"], digests: Iterator[str]) -> None:
        self._wanted.update((digest, role) for digest in digests if digest not in self._had)


def _listed(raw: bytes, *, split: bool) -> tree.Listed:
    try:
        return tree.listed(raw, split=split)
    except DecodeError:
        raise ValueError(f"has a value that is no {'Tree' if split else 'TreeShard'}") from None


def _parsed(cls: type[M], raw: bytes) -> M:
    try:
        return cls.FromString(raw)
    except DecodeError:
        raise ValueError(f"has a value that is no {cls.DESCRIPTOR.name}") from None
