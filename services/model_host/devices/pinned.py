"""Page-locked memory to gather batches in: a bounded pool that is reused by reference, never by promise.

An answer may alias its input, so what was handed out comes back only when nothing refers to it or to a
view of it any more; and a copy to the device may still read it, so it is reused only once the device is idle.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from services.model_host.tensors import NDArray

LEAST_BYTES = 4096
"""Smallest block; sizes are powers of two, so that batches of many sizes share few blocks."""


class PinnedPool:
    """Blocks of page-locked memory. Taken from on one thread; given back from any."""

    def __init__(self, *, allocate: Callable[[int], NDArray], idle: Callable[[], bool], most_bytes: int) -> None:
        """Allocate nothing yet.

        Args:
            allocate: Gives an array of so many uint8 that is new to this process and owns its block.
            idle: Whether every copy that was begun on the calling thread is done.
            most_bytes: Most that the pool allocates; what is asked beyond comes from plain memory.
        """
        self._allocate = allocate
        self._idle = idle
        self._most_bytes = most_bytes
        self._free: dict[int, list[NDArray]] = {}
        self._returned: deque[NDArray] = deque()
        self.allocated_bytes = 0
        """What the pool has allocated, in use or not."""
        self.plain = 0
        """How often it had to hand out plain memory."""

    def take(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray:
        """An array of undefined contents; of plain memory where the pool is exhausted or cannot hold the type."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or size_bytes == 0:
            return np.empty(shape, dtype)
        block = self._block(_rounded(size_bytes))
        if block is None:
            self.plain += 1
            return np.empty(shape, dtype)
        # A fresh exporter for each turn: numpy makes it the base of every view, so that it lives as long as they do.
        lease: NDArray = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lease, self._returned.append, block).atexit = False
        return lease[:size_bytes].view(dtype).reshape(shape)

    def trim(self) -> None:
        """Give up the blocks that nobody has."""
        self._settle()
        for blocks in self._free.values():
            self.allocated_bytes -= sum(block.nbytes for block in blocks)
        self._free.clear()

    def _block(self, size_bytes: int) -> NDArray | None:
        self._settle()
        if free := self._free.get(size_bytes):
            return free.pop()
        if self.allocated_bytes + size_bytes > self._most_bytes:
            self.trim()
        if self.allocated_bytes + size_bytes > self._most_bytes:
            return None
        block = self._allocate(size_bytes)
        self.allocated_bytes += size_bytes
        return block

    def _settle(self) -> None:
        """Take in what came back, if no copy can still read it."""
        if self._returned and self._idle():
            while self._returned:
                block = self._returned.popleft()
                self._free.setdefault(block.nbytes, []).append(block)


def _rounded(size_bytes: int) -> int:
    return max(LEAST_BYTES, 1 << (size_bytes - 1).bit_length())
