"""What limits by name are kept by: calls in flight and tokens taken, in this process or over all workers of a service.

Over workers without locks, as in `shared_counts`: each worker has a region of the page that it alone writes, a hash
table from the digest of a name to a cell, and whoever wants a sum looks the name up in every region. Names are never
taken out, so a cell that was found stays where it is, for as long as the page. A region outlives its worker: the
next one goes on with what was taken, and only the calls in flight end with their process.

A worker reads what the others wrote, decides, and then writes: calls that come to several workers at the same
instant may each not see the others. So many can be let in too many, at most one for each other worker. They are
counted all the same: what is taken too much of a bucket is missing from it afterwards.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

SLOTS = 4096
"""Names that a worker tells apart; a power of two."""

PROBES = 64
"""Slots looked at for a name, from the one that its digest says. One of them is free until the table is nearly full."""

_DIGESTS, _IN_FLIGHT, _TAKEN, _SPILLED = (column * SLOTS for column in range(4))

REGION_WORDS = 4 * SLOTS
"""Eight-byte words of a worker's region; what was never written takes no memory."""

Name: TypeAlias = tuple[str | float, ...]
"""What a limit is for: a kind, and the names and numbers that tell it from others of the kind."""


class LocalCell:
    """Counts of one name, in this process."""

    __slots__ = ("_in_flight", "_spilled", "_taken", "share")

    def __init__(self, share: float = 1.0) -> None:
        """Start at nothing; `share` is the part of the whole that is counted here."""
        self.share = share
        self._in_flight = 0
        self._taken = 0
        self._spilled = 0.0

    def in_flight(self) -> int:
        """Calls in flight."""
        return self._in_flight

    def enter(self) -> None:
        """Count one call in."""
        self._in_flight += 1

    def leave(self) -> None:
        """Count one call out."""
        self._in_flight -= 1

    def taken(self) -> int:
        """Tokens taken."""
        return self._taken

    def spilled(self) -> float:
        """Tokens lost."""
        return self._spilled

    def take(self, spilled: float) -> None:
        """Take a token, so many being lost by now."""
        self._taken += 1
        self._spilled = spilled


class LocalCells:
    """Counts by name, in this process."""

    __slots__ = ("_cells", "_share")

    def __init__(self, share: float = 1.0) -> None:
        """Count `share` of the whole."""
        self._cells: dict[Name, LocalCell] = {}
        self._share = share

    def cell(self, name: Name) -> LocalCell:
        """That of a name."""
        found = self._cells.get(name)
        if found is None:
            if len(self._cells) >= SLOTS:  # objects come and go: forget those that nothing is in flight of
                self._cells = {known: cell for known, cell in self._cells.items() if cell.in_flight()}
            found = self._cells[name] = LocalCell(self._share)
        return found


class SharedCell:
    """Counts of one name, over all workers."""

    __slots__ = ("_at", "_digest", "_floats", "_home", "_others", "_words", "share")

    def __init__(self, home: "SharedCells", digest: int, at: int) -> None:
        """Those whose `digest` is the word `at` of the page."""
        self.share = 1.0
        self._home = home
        self._digest = digest
        self._at = at
        self._words, self._floats = home.words, home.floats
        self._others = [-1] * len(home.others)
        """Where each other worker has it; -1 as long as it does not."""

    def _cells(self) -> Sequence[int]:
        """Where every worker that has it does."""
        others = self._others
        if -1 in others:
            home = self._home
            for index, at in enumerate(others):
                if at < 0:
                    others[index] = home.find(home.others[index], self._digest)
            return [self._at, *(at for at in others if at >= 0)]
        return [self._at, *others]

    def in_flight(self) -> int:
        """Calls in flight."""
        words = self._words
        return sum([words[at + _IN_FLIGHT] for at in self._cells()])

    def enter(self) -> None:
        """Count one call in."""
        self._words[self._at + _IN_FLIGHT] += 1

    def leave(self) -> None:
        """Count one call out."""
        self._words[self._at + _IN_FLIGHT] -= 1

    def taken(self) -> int:
        """Tokens taken."""
        words = self._words
        return sum([words[at + _TAKEN] for at in self._cells()])

    def spilled(self) -> float:
        """Tokens lost: who looked last knows of most."""
        floats = self._floats
        return max([floats[at + _SPILLED] for at in self._cells()])

    def take(self, spilled: float) -> None:
        """Take a token, so many being lost by now."""
        self._words[self._at + _TAKEN] += 1
        self._floats[self._at + _SPILLED] = spilled


class SharedCells:
    """Counts by name, over all workers, as one of them has them. Only one thread may use it."""

    __slots__ = ("_base", "_cells", "_rest", "floats", "others", "words")

    def __init__(self, page: memoryview, *, first: int, workers: int, worker: int) -> None:
        """Take over the region of a worker: of what it had in flight nothing is any more.

        Args:
            page: The bytes of the page.
            first: The word of it that the first region begins with.
            workers: How many regions there are.
            worker: Whose this is, from 0.
        """
        self.words, self.floats = page.cast("q"), page.cast("d")
        bases = [first + number * REGION_WORDS for number in range(workers)]
        self._base = bases.pop(worker)
        self.others = bases
        """Words that the other workers' regions begin with."""
        self._cells: dict[Name, SharedCell | LocalCell] = {}
        self._rest = LocalCells(1.0 / workers)
        """Of names that there is no slot left for: each worker keeps to its part of the limit by itself."""
        forget_in_flight(self.words, self._base)

    def cell(self, name: Name) -> SharedCell | LocalCell:
        """That of a name."""
        found = self._cells.get(name)
        if found is None:
            digest = int.from_bytes(blake2b(repr(name).encode(), digest_size=8).digest(), "little", signed=True) or 1
            at = self.find(self._base, digest, takes=True)
            if at < 0:
                return self._rest.cell(name)
            found = self._cells[name] = SharedCell(self, digest, at)
        return found

    def find(self, base: int, digest: int, *, takes: bool = False) -> int:
        """Where the region that begins with the word `base` has a digest.

        Args:
            base: The region.
            digest: The digest; not 0, which is none.
            takes: Write it into the first free slot if it is not there yet. Only into the worker's own region.

        Returns:
            The word that it is; -1 if the region does not have it, or has no room for it.
        """
        words = self.words
        for probe in range(PROBES):
            at = base + _DIGESTS + ((digest + probe) & (SLOTS - 1))
            if words[at] == digest:
                return at
            if words[at] == 0:
                if takes:
                    words[at] = digest
                    return at
                return -1
        return -1

    def close(self) -> None:
        """Let go of the page."""
        self.words.release()
        self.floats.release()


def forget_in_flight(words: memoryview, base: int) -> None:
    """Set to 0 what is in flight in the region that begins with the word `base`."""
    words[base + _IN_FLIGHT : base + _IN_FLIGHT + SLOTS] = memoryview(bytes(8 * SLOTS)).cast("q")
