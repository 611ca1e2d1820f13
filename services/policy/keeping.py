"""Which of the values that were kept stay, within so many bytes: SIEVE.

New ones enter at the front. A hand goes from the back to the front, over and over: what was asked for since it last
came by stays where it is, and what was not leaves (Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU",
NSDI 2024, section 3). A scan of values that nobody asks for again leaves before what is in use, and being asked for
moves nothing.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

LARGEST_SHARE = 8
"""A value may take one part in so many of the whole: a larger one would drive out too much for its own sake."""

OVERHEAD_BYTES = 600
"""What a value takes beside its own bytes: its key, its node, and what is noted of it."""

LOOKED_AT = 64
"""Most values that the hand passes by before one leaves all the same: nobody waits for a walk over all of them."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Node(Generic[K, V]):
    key: K
    value: V
    size_bytes: int
    dead_s: float
    asked_for: bool = False
    newer: "_Node[K, V] | None" = None
    older: "_Node[K, V] | None" = None


class Kept(Generic[K, V]):
    """Values by key, of at most so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        """Nothing is kept yet."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._nodes: dict[K, _Node[K, V]] = {}
        self._newest: _Node[K, V] | None = None
        self._oldest: _Node[K, V] | None = None
        self._hand: _Node[K, V] | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def size_bytes(self) -> int:
        """What all of them take."""
        return self._bytes

    def get(self, key: K, now_s: float) -> V | None:
        """What is kept under `key`."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if node.dead_s <= now_s:
            self._remove(node)
            return None
        node.asked_for = True
        return node.value

    def put(self, key: K, value: V, *, size_bytes: int, dead_s: float, now_s: float) -> bool:
        """Keep a value in place of the one under the same key.

        Args:
            key: Its key.
            value: It.
            size_bytes: Its own bytes.
            dead_s: When nobody can want it any more, in monotonic seconds.
            now_s: Monotonic seconds.

        Returns:
            Whether it was kept: not if it is too large.
        """
        if (before := self._nodes.get(key)) is not None:
            self._remove(before)
        size_bytes += OVERHEAD_BYTES
        if size_bytes * LARGEST_SHARE > self._most_bytes:
            return False
        while self._bytes + size_bytes > self._most_bytes:
            self._evict(now_s)
        node = self._nodes[key] = _Node(key, value, size_bytes, dead_s)
        node.older = self._newest
        if self._newest is not None:
            self._newest.newer = node
        self._newest = node
        if self._oldest is None:
            self._oldest = node
        self._bytes += size_bytes
        return True

    def _evict(self, now_s: float) -> None:
        node = self._hand or self._oldest
        assert node is not None
        for _ in range(LOOKED_AT):
            if not node.asked_for or node.dead_s <= now_s:
                break
            node.asked_for = False
            node = node.newer or self._oldest
            assert node is not None
        self._hand = node
        self._remove(node)

    def _remove(self, node: _Node[K, V]) -> None:
        if self._hand is node:
            self._hand = node.newer
        if node.newer is None:
            self._newest = node.older
        else:
            node.newer.older = node.older
        if node.older is None:
            self._oldest = node.newer
        else:
            node.older.newer = node.newer
        self._bytes -= node.size_bytes
        del self._nodes[node.key]
