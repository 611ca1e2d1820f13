"""How many calls are in flight: in this process, or over all workers of one service.

The workers share one page of memory without locks: each has a slot on a cache line of its own, which it alone
writes, and whoever wants the sum reads them all. An aligned eight-byte store is seen whole or not at all.
Two workers that enter at the same instant may each miss the other, or each see the other: a limit kept by
these counts can be passed, or met too early, by at most one call for each other worker, for that instant.

Behind these counts the page has those of `named_counts`.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable

from services.chassis.named_counts import (
    REGION_WORDS,
    LocalCell,
    LocalCells,
    Name,
    SharedCell,
    SharedCells,
    forget_in_flight,
)

SLOT_BYTES = 64
"""One cache line: a worker's count does not slow another's."""

_SLOT_WORDS = SLOT_BYTES // 8
_WORKER_BYTES = SLOT_BYTES + 8 * REGION_WORDS


class LocalCounts:
    """Calls in flight in this process alone."""

    __slots__ = ("_cells", "_own")

    def __init__(self) -> None:
        """None yet."""
        self._own = 0
        self._cells = LocalCells()

    def in_flight(self) -> int:
        """Calls in flight."""
        return self._own

    def cell(self, name: Name) -> LocalCell:
        """Counts of what has a limit of its own."""
        return self._cells.cell(name)

    def enter(self) -> int:
        """Count one call in; returns how many there were before it."""
        before = self._own
        self._own = before + 1
        return before

    def leave(self) -> None:
        """Count one call out."""
        self._own -= 1


class CountsTable:
    """The page, as the parent of the workers has it: memory without a name, gone with the last who maps it."""

    def __init__(self, workers: int) -> None:
        """Make a page with a slot, at 0, for each of `workers`.

        Raises:
            OSError: The system gives no memory for it.
        """
        self.fd = os.memfd_create("modelyard-counts")
        """What a worker inherits, to open the page by."""
        os.ftruncate(self.fd, workers * _WORKER_BYTES)
        self._memory = mmap.mmap(self.fd, workers * _WORKER_BYTES)
        self._workers = workers
        self._slots = memoryview(self._memory).cast("q")

    def clear(self, worker: int) -> None:
        """Forget the calls of a worker that ended; they ended with it."""
        self._slots[worker * _SLOT_WORDS] = 0
        forget_in_flight(self._slots, self._workers * _SLOT_WORDS + worker * REGION_WORDS)

    def in_flight(self) -> int:
        """Calls of all workers."""
        return sum(self._slots[: self._workers * _SLOT_WORDS])  # what is between the counts stays 0

    def close(self) -> None:
        """Let go of it; workers that have it keep it."""
        self._slots.release()
        self._memory.close()
        os.close(self.fd)


class SharedCounts:
    """The page, as one worker has it: `LocalCounts`, but over all workers."""

    __slots__ = ("_at", "_cells", "_memory", "_own", "_read", "_slots")

    def __init__(self, fd: int, *, workers: int, worker: int) -> None:
        """Map the page and start this worker's count at 0.

        Args:
            fd: The page, as inherited; good to close afterwards.
            workers: How many share it.
            worker: Which of them this is, from 0.

        Raises:
            OSError: It is no such page.
        """
        if os.fstat(fd).st_size != workers * _WORKER_BYTES:
            raise OSError(errno.EINVAL, f"descriptor {fd} does not hold the counts of {workers} workers")
        self._memory = mmap.mmap(fd, workers * _WORKER_BYTES)
        self._slots = memoryview(self._memory).cast("q")
        # Reads every count at once, in half the time of a loop over them.
        self._read: Callable[[mmap.mmap], tuple[int, ...]] = struct.Struct(f"q{SLOT_BYTES - 8}x" * workers).unpack_from
        self._at = worker * _SLOT_WORDS
        self._own = 0
        self._slots[self._at] = 0
        with memoryview(self._memory) as page:
            self._cells = SharedCells(page, first=workers * _SLOT_WORDS, workers=workers, worker=worker)

    def enter(self) -> int:
        """Count one call in; returns how many all workers had before it. Only one thread may call it."""
        own = self._own = self._own + 1
        self._slots[self._at] = own
        return sum(self._read(self._memory)) - 1

    def leave(self) -> None:
        """Count one call out."""
        own = self._own = self._own - 1
        self._slots[self._at] = own

    def in_flight(self) -> int:
        """Calls in flight of all workers."""
        return sum(self._read(self._memory))

    def cell(self, name: Name) -> SharedCell | LocalCell:
        """Counts of what has a limit of its own, over all workers."""
        return self._cells.cell(name)

    def close(self) -> None:
        """Unmap it; its counts stay."""
        self._cells.close()
        self._slots.release()
        self._memory.close()
