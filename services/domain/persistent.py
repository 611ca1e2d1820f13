"""Collections that change into other ones, which share with them whatever is the same.

To copy a dict, or to sort a list anew, costs what is in it. A change of a `Trie` or a `Sorted` costs what changes, and
the old one stays as it was: for states that follow each other, are read while the next one is made, and are kept for a
while.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_BLOCK = 256
"""Items of a block of a `Sorted` when it is made; one that has grown to twice as many is cut in two."""

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

    def differing(self, before: "Trie[K, V]") -> tuple[dict[K, V], list[K]]:
        """What came or is another value than in `before`, and the keys that went; skips what both share."""
        puts: dict[K, V] = {}
        drops: list[K] = []
        for old, new in _pairs(before._root, self._root):
            puts.update((key, value) for key, value in new.items() if key not in old or not _same(old[key], value))
            drops += [key for key in old if key not in new]
        return puts, drops


class Sorted(Generic[K]):
    """Different items in order, in blocks; never changes.

    An item that comes or goes changes one block.
    """

    __slots__ = ("_blocks", "_rank")

    def __init__(self, items: Iterable[K] = (), *, rank: Callable[[K], Any]) -> None:
        """Sort `items` by their ranks, which differ."""
        self._rank = rank
        self._blocks = tuple(_cut(sorted(items, key=rank)))

    def __iter__(self) -> Iterator[K]:
        """Every item."""
        for block in self._blocks:
            yield from block

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def following(self, item: K) -> Iterator[K]:
        """The items after `item`, which need not be among them."""
        if not self._blocks:
            return
        number = self._block_of(item)
        block = self._blocks[number]
        yield from block[bisect.bisect_right(block, self._rank(item), key=self._rank) :]
        for block in self._blocks[number + 1 :]:
            yield from block

    def around(self, item: K, count: int) -> list[K]:
        """The last `count` items up to `item`, and the first `count` after it, as far as there are so many."""
        if not self._blocks:
            return []
        number = self._block_of(item)
        block = self._blocks[number]
        before = list(block[: bisect.bisect_right(block, self._rank(item), key=self._rank)])
        while number and len(before) <= count:
            number -= 1
            before[:0] = self._blocks[number]
        return [*before[-count:], *islice(self.following(item), count)]

    def changed(self, came: Iterable[K], gone: Iterable[K] = ()) -> "Sorted[K]":
        """The same with items that are not among these, and without others that are."""
        if not self._blocks:
            return Sorted(came, rank=self._rank)
        touched: dict[int, list[K]] = {}
        for item in gone:
            self._touched(touched, item).remove(item)
        for item in came:
            bisect.insort(self._touched(touched, item), item, key=self._rank)
        if not touched:
            return self
        blocks: list[tuple[K, ...]] = []
        rest = 0
        for number in sorted(touched):
            block = touched[number]
            blocks += self._blocks[rest:number]
            blocks += _cut(block) if len(block) > 2 * _BLOCK else (tuple(block),) if block else ()
            rest = number + 1
        made = Sorted[K](rank=self._rank)
        made._blocks = (*blocks, *self._blocks[rest:])
        return made

    def _block_of(self, item: K) -> int:
        """Number of the block that `item` belongs into."""
        return max(0, bisect.bisect_right(self._blocks, self._rank(item), key=self._first) - 1)

    def _first(self, block: tuple[K, ...]) -> Any:
        return self._rank(block[0])

    def _touched(self, touched: dict[int, list[K]], item: K) -> list[K]:
        number = self._block_of(item)
        if number not in touched:
            touched[number] = list(self._blocks[number])
        return touched[number]


def _cut(items: list[K]) -> Iterator[tuple[K, ...]]:
    return (tuple(items[start : start + _BLOCK]) for start in range(0, len(items), _BLOCK))


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


def _pairs(old: _Node[K, V], new: _Node[K, V]) -> Iterator[tuple[dict[K, V], dict[K, V]]]:
    """Entries that stand in the same places, of nodes that are not shared."""
    if old is new:
        return
    if isinstance(old, tuple) and isinstance(new, tuple):
        for before, after in zip(old, new, strict=True):
            yield from _pairs(before, after)
    else:
        yield dict(_items(old)), dict(_items(new))


def _items(node: _Node[K, V]) -> Iterator[tuple[K, V]]:
    if isinstance(node, tuple):
        for child in node:
            yield from _items(child)
    else:
        yield from node.items()


def _same(old: V, new: V) -> bool:
    return old is new or old == new
