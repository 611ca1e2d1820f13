"""Which of the versions that may come and go are in the device's memory.

A call of one that is away brings it in; for that, versions that nobody calls leave, the least worth first
(`policy.eviction`). What is pinned never leaves, nor does what has calls. Versions come in one at a time, those
first whose calls have waited longest.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from services.domain.clock import Clock
from services.model_host.lane import Lane
from services.policy.eviction import Ages, Residence, victims

RETRY_S = 0.010
"""How often it is looked again whether something may leave, while nothing may."""

LOAD_WEIGHT = 0.5
"""Weight of the last load in what a load takes."""


@dataclass(slots=True, eq=False)
class Guest:
    """One version that may come and go."""

    lane: Lane
    residence: Residence
    noted_uses: int = 0


@dataclass(slots=True)
class Residency:
    """The guests of one host."""

    clock: Clock
    free_bytes: Callable[[], int]
    """What is free of the device's memory."""
    leave: Callable[[Guest], Awaitable[None]]
    """Takes a guest out of memory."""
    wake: Callable[[], None]
    """Called when a guest is to be brought in."""
    _guests: dict[Lane, Guest] = field(default_factory=dict)
    _wanted: dict[Lane, None] = field(default_factory=dict)
    _ages: Ages = field(default_factory=Ages)

    def came(self, lane: Lane, *, memory_bytes: int, load_s: float) -> None:
        """A version was loaded for the first time. It was called by nobody yet: it may leave at once."""
        residence = Residence(memory_bytes, load_s)
        self._guests[lane] = Guest(lane, residence)
        lane.wanted = lambda: self._want(lane)

    def gone(self, lane: Lane) -> None:
        """A version is not on this host any more."""
        self._guests.pop(lane, None)
        self._wanted.pop(lane, None)

    def next_wanted(self) -> Guest | None:
        """Who is to be brought in next; None if nobody is called who is away."""
        while self._wanted:
            lane = next(iter(self._wanted))
            guest = self._guests.get(lane)
            if guest is not None and not lane.resident and (lane.queued or not lane.closed):
                return guest
            del self._wanted[lane]
        return None

    def back(self, guest: Guest, *, load_s: float) -> None:
        """It was brought in, in `load_s`."""
        residence = guest.residence
        residence.load_s += LOAD_WEIGHT * (load_s - residence.load_s)
        residence.loaded_at_s = self.clock.now_s()
        self.not_back(guest)

    def not_back(self, guest: Guest) -> None:
        """Nobody needs to bring it in any more."""
        self._wanted.pop(guest.lane, None)
        self._tell_absence()

    async def make_room(self, need_bytes: int, *, wanted: Callable[[], bool]) -> bool:
        """Free so much memory, as soon as what is in the way has no calls.

        Args:
            need_bytes: What is needed in all.
            wanted: Whether it still is.

        Returns:
            Whether it is free; False once it is not wanted any more.
        """
        while True:
            lacking_bytes = need_bytes - self.free_bytes()
            if lacking_bytes <= 0:
                return True
            if not await self._evict(lacking_bytes):
                if not wanted():
                    return False
                await self.clock.sleep(RETRY_S)

    async def _evict(self, need_bytes: int) -> bool:
        """Free so much, if what may leave now has that much."""
        now_s = self.clock.now_s()
        self._note_uses(now_s)
        idle = {guest.residence: guest for guest in self._guests.values() if guest.lane.resident and guest.lane.idle}
        chosen = victims(idle, need_bytes=need_bytes, now_s=now_s)
        if chosen is None:
            return False
        for residence in chosen:
            guest = idle[residence]
            if guest.lane.idle:  # else a call came while the one before left
                self._ages.evicted(residence)
                guest.lane.resident = False
                guest.lane.statistics.evictions += 1
                self._tell_absence()
                await self.leave(guest)
        return True

    def _want(self, lane: Lane) -> None:
        if lane not in self._wanted:
            self._wanted[lane] = None
            self._tell_absence()
            self.wake()

    def _note_uses(self, now_s: float) -> None:
        for guest in self._guests.values():
            self._ages.used(guest.residence, guest.lane.uses - guest.noted_uses, now_s)
            guest.noted_uses = guest.lane.uses

    def _tell_absence(self) -> None:
        """Tell every guest that is away how long a call would wait for it."""
        before_s = 0.0
        for lane in self._wanted:
            guest = self._guests.get(lane)
            if guest is not None and not lane.resident:
                before_s += guest.residence.load_s
                lane.absent_s = before_s
        for lane, guest in self._guests.items():
            if not lane.resident and lane not in self._wanted:
                lane.absent_s = before_s + guest.residence.load_s

    def largest_bytes(self) -> int:
        """Most that one guest takes: room that pinned versions must leave."""
        return max((guest.residence.memory_bytes for guest in self._guests.values()), default=0)
