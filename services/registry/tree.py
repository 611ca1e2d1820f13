"""The tree of a state: its objects by key, in shards that are named by the SHA-256 of what is stored of them. Pure.

The root has up to 256 shards, by the first byte of SHA-256 of a key. A shard of more than `SPLIT` objects is in turn a
tree, whose up to 16 shards go by the next hexadecimal digit, and so on. Therefore equal states have equal trees,
whatever their history. And a change of one among 100,000 objects makes three small nodes anew: the others are shared by
the trees before and after it, in memory as in the store.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Generic, NamedTuple, Protocol, TypeVar

from google.protobuf.message import Message

from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.objects import ObjectKey

SPLIT = 64
"""Most objects of a shard: it takes about 7 KB then, which every change to one of them writes anew."""


class Named(Protocol):
    """What is stored of an object, as a tree names it."""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        ...

    @property
    def line(self) -> bytes:
        """What `line_of` makes of its key and digest; kept, since a shard is written anew with all of its lines."""
        ...


E = TypeVar("E", bound=Named)


@dataclass(frozen=True, slots=True)
class _Shard(Generic[E]):
    digest: str
    line: bytes
    """Its place in the tree above, as stored there."""
    entries: Mapping[ObjectKey, E]
    """In the order of the keys' text."""

    @property
    def count(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class _Branch(Generic[E]):
    digest: str
    line: bytes
    children: Mapping[int, "_Shard[E] | _Branch[E]"]
    """In the order of their numbers."""
    count: int


_Node = _Shard[E] | _Branch[E]
_Change = tuple[str, ObjectKey, E | None]


class Tree(Mapping[ObjectKey, E], Generic[E]):
    """The objects of a state, by key; never changes."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        """Without objects."""
        self._root: _Branch[E] = _branch(0, {}, {})

    def __getitem__(self, key: ObjectKey) -> E:
        node: _Node[E] | None = self._root
        path, depth = _path(key), 0
        while isinstance(node, _Branch):
            node = node.children.get(_number(path, depth))
            depth += 1
        if node is None:
            raise KeyError(key)
        return node.entries[key]

    def __iter__(self) -> Iterator[ObjectKey]:
        for shard in _shards(self._root):
            yield from shard.entries

    def __len__(self) -> int:
        return self._root.count

    def entries(self) -> Iterator[E]:
        """Every object, in the order of the keys' digests."""
        for shard in _shards(self._root):
            yield from shard.entries.values()

    @property
    def digest(self) -> str:
        """Digest of the root."""
        return self._root.digest

    def changed(
        self, puts: Mapping[ObjectKey, E], drops: Iterable[ObjectKey] = ()
    ) -> "tuple[Tree[E], dict[str, bytes]]":
        """The tree with `puts` and without `drops`, which are in it.

        Returns:
            The tree, and the stored forms of its nodes that this one has not, by digest.
        """
        changes: list[_Change[E]] = [(_path(key), key, entry) for key, entry in puts.items()]
        changes += [(_path(key), key, None) for key in drops]
        made: dict[str, bytes] = {}
        root = _changed_branch(self._root, 0, changes, 0, made)
        return _tree(root), made

    def differing(self, before: "Tree[E]") -> tuple[list[ObjectKey], list[ObjectKey]]:
        """What came or changed since `before`, and what went; looks only into nodes that differ."""
        upserts: list[ObjectKey] = []
        deletes: list[ObjectKey] = []
        for old, new in _pairs(before._root, self._root):
            if len(old) == len(new) and all(map(is_, old, new)):  # without a hash for each key
                upserts += [
                    key for (key, entry), was in zip(new.items(), old.values(), strict=True) if not _alike(was, entry)
                ]
                continue
            upserts += [key for key, entry in new.items() if not _alike(old.get(key), entry)]
            deletes += [key for key in old if key not in new]
        return upserts, deletes


def line_of(key: ObjectKey, digest: str) -> bytes:
    """How a shard lists an object.

    In protobuf's wire format the elements of a list follow each other, so that the stored form of a shard is its lines
    in a row.
    """
    return _raw(pb.TreeShard(entries=[pb.TreeEntry(key=str(key), digest=digest)]))


class Line(NamedTuple):
    """An object of which the tree alone is known."""

    digest: str
    line: bytes


def digest_of(digests: Mapping[ObjectKey, str]) -> str:
    """Digest of the root of the tree that names these objects' digests; empty if there are none."""
    tree: Tree[Line] = Tree()
    lines = {key: Line(digest, line_of(key, digest)) for key, digest in digests.items()}
    return tree.changed(lines)[0].digest if lines else ""


# --- stored nodes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """What a stored node names."""

    nodes: Mapping[int, pb.TreeShardRef]
    """Trees and shards, by number."""
    objects: Mapping[str, str]
    """Digests of objects, by key."""


def listed(raw: bytes, *, split: bool) -> Listed:
    """What a stored node names.

    Args:
        raw: The node.
        split: Whether it is a tree; else it is a shard.

    Raises:
        DecodeError: It is neither.
    """
    if split:
        return Listed({ref.number: ref for ref in pb.Tree.FromString(raw).shards}, {})
    return Listed({}, {entry.key: entry.digest for entry in pb.TreeShard.FromString(raw).entries})


@dataclass(slots=True)
class _Unread(Generic[E]):
    """A node that is being read."""

    digest: str
    split: bool
    like: _Node[E] | None
    """What the other tree has in its place."""
    children: "dict[int, _Unread[E] | _Node[E]]" = field(default_factory=dict)
    objects: dict[ObjectKey, str] = field(default_factory=dict)


class Reading(Generic[E]):
    """A tree that is being read from the store, level by level; what another one has alike is taken from there."""

    def __init__(self, digest: str, base: Tree[E]) -> None:
        """Read the tree whose root has this digest; `base` is another tree."""
        self._root: _Unread[E] = _Unread(digest, True, base._root)
        self._base = base
        self._level: list[_Unread[E]] = [self._root]
        self.objects: dict[ObjectKey, str] = {}
        """Digests of the objects that the other tree has not, so far."""

    @property
    def nodes(self) -> list[str]:
        """Digests of the trees and shards to be read next; none once all of them were."""
        return [node.digest for node in self._level]

    def take(self, raws: Sequence[bytes]) -> None:
        """Take what is stored of `nodes`."""
        level, self._level = self._level, []
        for node, raw in zip(level, raws, strict=True):
            found = listed(raw, split=node.split)
            for number, ref in found.nodes.items():
                like = node.like.children.get(number) if isinstance(node.like, _Branch) else None
                if like is not None and like.digest == ref.digest:
                    node.children[number] = like
                else:
                    child: _Unread[E] = _Unread(ref.digest, ref.split, like)
                    node.children[number] = child
                    self._level.append(child)
            node.objects = {ObjectKey.parse(text): digest for text, digest in found.objects.items()}
            self.objects.update(
                (key, digest) for key, digest in node.objects.items() if self._held(key, digest) is None
            )

    def finish(self, entries: Mapping[ObjectKey, E]) -> Tree[E]:
        """The tree; `entries` are those of `objects`."""
        root = self._built(0, self._root, entries)
        assert isinstance(root, _Branch)
        return _tree(root)

    def _built(self, number: int, node: _Unread[E], entries: Mapping[ObjectKey, E]) -> _Node[E]:
        line = _line(number, node.digest, split=node.split)
        if not node.split:
            found = {key: self._held(key, digest) or entries[key] for key, digest in node.objects.items()}
            return _Shard(node.digest, line, found)
        children = {
            number: self._built(number, child, entries) if isinstance(child, _Unread) else child
            for number, child in node.children.items()
        }
        return _Branch(node.digest, line, children, sum(child.count for child in children.values()))

    def _held(self, key: ObjectKey, digest: str) -> E | None:
        held = self._base.get(key) if self._base else None
        return held if held is not None and held.digest == digest else None


# --- nodes -----------------------------------------------------------------------------------------


def _tree(root: _Branch[E]) -> Tree[E]:
    tree: Tree[E] = Tree()
    tree._root = root
    return tree


def _path(key: ObjectKey) -> str:
    return hashlib.sha256(str(key).encode()).hexdigest()


def _number(path: str, depth: int) -> int:
    """Number of the child at `depth` that a path leads into."""
    return int(path[:2], 16) if depth == 0 else int(path[depth + 1], 16)


def _changed(
    node: _Node[E] | None, number: int, changes: list[_Change[E]], depth: int, made: dict[str, bytes]
) -> _Node[E] | None:
    """A node below the root after changes; None if nothing is left of it."""
    if isinstance(node, _Branch):
        branch = _changed_branch(node, number, changes, depth, made)
        if branch.count > SPLIT:
            return branch
        _forget(branch, made)
        return _shard(number, _sorted(_all(branch)), made) if branch.count else None
    before: Mapping[ObjectKey, E] = {} if node is None else node.entries
    entries = dict(before)
    for _, key, entry in changes:
        if entry is None:
            del entries[key]
        else:
            entries[key] = entry
    if not entries:
        return None
    if len(entries) > SPLIT:
        return _divided(number, entries, depth, made)
    return _shard(number, entries if entries.keys() <= before.keys() else _sorted(entries), made)


def _changed_branch(
    node: _Branch[E], number: int, changes: list[_Change[E]], depth: int, made: dict[str, bytes]
) -> _Branch[E]:
    parts: dict[int, list[_Change[E]]] = {}
    for change in changes:
        parts.setdefault(_number(change[0], depth), []).append(change)
    children = dict(node.children)
    for part_number, part in parts.items():
        child = _changed(children.get(part_number), part_number, part, depth + 1, made)
        if child is None:
            del children[part_number]
        else:
            children[part_number] = child
    return _branch(number, children, made)


def _divided(number: int, entries: Mapping[ObjectKey, E], depth: int, made: dict[str, bytes]) -> _Branch[E]:
    parts: dict[int, dict[ObjectKey, E]] = {}
    for key, entry in entries.items():
        parts.setdefault(_number(_path(key), depth), {})[key] = entry
    children: dict[int, _Node[E]] = {}
    for part_number, part in parts.items():
        if len(part) > SPLIT:
            children[part_number] = _divided(part_number, part, depth + 1, made)
        else:
            children[part_number] = _shard(part_number, _sorted(part), made)
    return _branch(number, children, made)


def _branch(number: int, children: Mapping[int, _Node[E]], made: dict[str, bytes]) -> _Branch[E]:
    ordered = dict(sorted(children.items()))
    count = sum(child.count for child in ordered.values())
    digest = _stored(b"".join([*(child.line for child in ordered.values()), _raw(pb.Tree(object_count=count))]), made)
    return _Branch(digest, _line(number, digest, split=True), ordered, count)


def _shard(number: int, entries: Mapping[ObjectKey, E], made: dict[str, bytes]) -> _Shard[E]:
    digest = _stored(b"".join([entry.line for entry in entries.values()]), made)
    return _Shard(digest, _line(number, digest, split=False), entries)


def _sorted(entries: Mapping[ObjectKey, E]) -> Mapping[ObjectKey, E]:
    return dict(sorted(entries.items(), key=lambda each: str(each[0])))


def _line(number: int, digest: str, *, split: bool) -> bytes:
    """How a tree lists a node below it."""
    return _raw(pb.Tree(shards=[pb.TreeShardRef(number=number, digest=digest, split=split)]))


def _forget(node: _Node[E], made: dict[str, bytes]) -> None:
    """Take back what was made for a node that is put together again."""
    made.pop(node.digest, None)
    if isinstance(node, _Branch):
        for child in node.children.values():
            _forget(child, made)


def _stored(raw: bytes, made: dict[str, bytes]) -> str:
    digest = hashlib.sha256(raw).hexdigest()
    made[digest] = raw
    return digest


def _raw(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _alike(old: E | None, new: E) -> bool:
    return old is new or (old is not None and old.line == new.line)


def _shards(node: _Node[E]) -> Iterator[_Shard[E]]:
    """All shards below a node, in the order of their numbers."""
    if isinstance(node, _Shard):
        yield node
    else:
        for child in node.children.values():
            yield from _shards(child)


def _pairs(old: _Node[E] | None, new: _Node[E] | None) -> Iterator[tuple[Mapping[ObjectKey, E], Mapping[ObjectKey, E]]]:
    """Entries that stand in the same places, of nodes that differ."""
    if old is not None and new is not None and old.digest == new.digest:
        return
    if isinstance(old, _Branch) and isinstance(new, _Branch):
        for number in sorted({*old.children, *new.children}):
            before, after = old.children.get(number), new.children.get(number)
            if before is not after:
                yield from _pairs(before, after)
        return
    yield _all(old), _all(new)


def _all(node: _Node[E] | None) -> Mapping[ObjectKey, E]:
    """Every entry below a node."""
    if isinstance(node, _Shard):
        return node.entries
    shards = () if node is None else _shards(node)
    return {key: entry for shard in shards for key, entry in shard.entries.items()}
