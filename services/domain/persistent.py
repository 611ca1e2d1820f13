"""A mapping that changes into another one, which shares with it whatever is the same.

To copy a dict costs what is in it. A change of a `Trie` costs what changes, and the old one stays as it was: for states
that follow each other, are read while the next one is made, and are kept for a while.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_LEAF = 16
"""Most entries of a node before it is divided by five more bits of the keys' hashes. Fewer were smaller to copy, and
more to walk through."""

_BITS = 5
_WIDTH = 1 << _BITS
_DEEPEST = 12
"""Here the bits are used up: keys whose hashes are equal stay together."""


class _Gone:
    """In the place of a value that is taken out."""


_GONE: Final = _Gone()

_Node = dict[K, V] | tuple["_Node[K, V]", ...]
_Change = tuple[int, K, V | _Gone]


class Trie(Mapping[K, V], Generic[K, V]):
    """An immutable mapping of hashable keys."""

    __slots__ = ("_root", "_size")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        """Hold `entries`."""
        self._root: _Node[K, V] = {}
        self._size = 0
        if entries:
            self._root = _changed(self._root, [(_bits(key), key, value) for key, value in entries.items()], 0)
            self._size = len(entries)

    def __getitem__(self, key: K) -> V:
        node, bits = self._root, _bits(key)
        while isinstance(node, tuple):
            node, bits = node[bits % _WIDTH], bits >> _BITS
        return node[key]

    def __iter__(self) -> Iterator[K]:
        return _keys(self._root)

    def __len__(self) -> int:
        return self._size

    def changed(self, puts: Mapping[K, V], drops: Iterable[K] = ()) -> "Trie[K, V]":
        """The mapping without `drops`, those that are not there apart, and then with `puts`."""
        changes: dict[K, V | _Gone] = {key: _GONE for key in drops if key not in puts and key in self}
        size = self._size - len(changes) + sum(key not in self for key in puts)
        changes.update(puts)
        if not changes:
            return self
        made: Trie[K, V] = Trie()
        made._root = _changed(self._root, [(_bits(key), key, value) for key, value in changes.items()], 0)
        made._size = size
        return made


def _bits(key: object) -> int:
    return hash(key) % (1 << _BITS * _DEEPEST)


def _changed(node: _Node[K, V], changes: list[_Change[K, V]], depth: int) -> _Node[K, V]:
    """A node after changes; each begins with the bits that are not used up yet."""
    if isinstance(node, tuple):
        children = list(node)
        parts: dict[int, list[_Change[K, V]]] = {}
        for bits, key, value in changes:
            parts.setdefault(bits % _WIDTH, []).append((bits >> _BITS, key, value))
        for number, part in parts.items():
            children[number] = _changed(children[number], part, depth + 1)
        return tuple(children)
    leaf = dict(node)
    for _, key, value in changes:
        if isinstance(value, _Gone):
            del leaf[key]
        else:
            leaf[key] = value
    return leaf if len(leaf) <= _LEAF or depth == _DEEPEST else _divided(leaf, depth)


def _divided(leaf: dict[K, V], depth: int) -> _Node[K, V]:
    children: list[dict[K, V]] = [{} for _ in range(_WIDTH)]
    for key, value in leaf.items():
        children[(_bits(key) >> _BITS * depth) % _WIDTH][key] = value
    return tuple(
        _divided(child, depth + 1) if len(child) > _LEAF and depth + 1 < _DEEPEST else child for child in children
    )


def _keys(node: _Node[K, V]) -> Iterator[K]:
    if isinstance(node, tuple):
        for child in node:
            yield from _keys(child)
    else:
        yield from node
