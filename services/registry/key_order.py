"""The keys of a state in order of kind, name and version, carried on from state to state.

Sorting 100,000 keys takes a quarter of a second. So they stand in blocks: a key that comes or goes changes one block,
and an update of what is there changes none.
"""

import bisect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice

from services.domain.objects import ObjectKey, semver_order

_BLOCK = 256
"""Keys of a block when it is made; one that has grown to twice as many is cut in two."""

_Block = tuple[ObjectKey, ...]
_SortKey = tuple[str, str, tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]], str]
_semver_order = lru_cache(maxsize=4096)(semver_order)


def order_of(key: ObjectKey) -> _SortKey:
    """Sort key: kind, name, then versions as semver orders them."""
    return key.kind, key.name, _semver_order(key.version), key.version


class KeyOrder:
    """Keys in order; never changes."""

    def __init__(self, keys: Iterable[ObjectKey] = ()) -> None:
        """Sort `keys`."""
        self._blocks: tuple[_Block, ...] = tuple(_cut(sorted(keys, key=order_of)))

    def __iter__(self) -> Iterator[ObjectKey]:
        """Every key."""
        for block in self._blocks:
            yield from block

    def following(self, key: ObjectKey) -> Iterator[ObjectKey]:
        """The keys after `key`, which need not be among them."""
        if not self._blocks:
            return
        number = self._block_of(key)
        block = self._blocks[number]
        yield from block[bisect.bisect_right(block, order_of(key), key=order_of) :]
        for block in self._blocks[number + 1 :]:
            yield from block

    def around(self, key: ObjectKey, count: int) -> list[ObjectKey]:
        """About `count` keys before `key` and as many after it."""
        if not self._blocks:
            return []
        number, reach = self._block_of(key), -(-count // _BLOCK)
        before = [each for block in self._blocks[max(0, number - reach) : number] for each in block]
        after = [each for block in self._blocks[number : number + reach + 1] for each in block]
        return before + after

    def changed(self, came: Iterable[ObjectKey], gone: Iterable[ObjectKey]) -> "KeyOrder":
        """The order with keys that are not among these, and without others that are."""
        if not self._blocks:
            return KeyOrder(came)
        touched: dict[int, list[ObjectKey]] = {}
        for key in gone:
            self._touched(touched, key).remove(key)
        for key in came:
            bisect.insort(self._touched(touched, key), key, key=order_of)
        if not touched:
            return self
        blocks: list[_Block] = []
        rest = 0
        for number in sorted(touched):
            blocks += self._blocks[rest:number]
            block = touched[number]
            blocks += _cut(block) if len(block) > 2 * _BLOCK else (tuple(block),) if block else ()
            rest = number + 1
        made = KeyOrder()
        made._blocks = (*blocks, *self._blocks[rest:])
        return made

    def _block_of(self, key: ObjectKey) -> int:
        """Number of the block that `key` belongs into."""
        return max(0, bisect.bisect_right(self._blocks, order_of(key), key=_first) - 1)

    def _touched(self, touched: dict[int, list[ObjectKey]], key: ObjectKey) -> list[ObjectKey]:
        number = self._block_of(key)
        if number not in touched:
            touched[number] = list(self._blocks[number])
        return touched[number]


def first_of(kind: str) -> ObjectKey:
    """A key before every one of its kind, and after those of the kinds before."""
    return ObjectKey(kind, "")


def _first(block: _Block) -> _SortKey:
    return order_of(block[0])


def _cut(keys: list[ObjectKey]) -> Iterator[_Block]:
    rest = iter(keys)
    while block := tuple(islice(rest, _BLOCK)):
        yield block
