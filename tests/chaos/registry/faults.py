"""What goes wrong in a run: seeded, bounded, and undone again.

A deck of cards is dealt, so that every kind of fault comes round as often as it should. A part has one fault at a time,
and of etcd's members one at a time is disturbed, but for the card that takes the majority away.
"""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from tests.chaos.registry.cluster import Cluster, Registry
from tests.support.members import Member

DECK = {
    "kill_registry": 5,
    "kill_leading_registry": 2,
    "restart_registry": 2,
    "stop_registry": 4,
    "stop_leading_registry_beyond_its_ttl": 1,
    "kill_etcd_leader": 5,
    "stop_etcd_leader": 2,
    "kill_etcd_follower": 1,
    "kill_etcd_majority": 1,
    "lose_answers": 3,
    "cut_registry_from_etcd": 3,
    "cut_registry_from_etcd_leader_one_way": 2,
    "cut_etcd_leader_from_its_peers": 3,
    "cut_etcd_leader_from_all": 2,
}
"""How many of each there are in a deck."""

TWO = 0.35
"""Share of rounds in which two things go wrong."""

BEYOND_TTL_S = 6.5
"""Longer than the registry's election lets a leader be silent."""

Fault = Callable[[], Awaitable[bool]]


class Faults:
    """Deals faults."""

    def __init__(self, cluster: Cluster, *, seed: int, first: Sequence[str] = ()) -> None:
        """Break `cluster`; deal the cards of `first` before any deck."""
        self._cluster = cluster
        self._dealing = random.Random(f"{seed}/deck")
        self._rng = random.Random(f"{seed}/faults")
        self._deck = [card for card in reversed(first) if self._can(card)]
        self._busy: set[str] = set()
        self._lasting: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []
        """Registries that did not end in good order when asked to."""
        self.done = Counter[str]()
        """How many of each were carried out."""

    async def round(self) -> None:
        """One or two faults, begun and undone; one that lasts longer goes on into the next rounds."""
        cards = [self._deal() for _ in range(2 if self._dealing.random() < TWO else 1)]
        await asyncio.gather(*(self._play(card) for card in cards))

    async def end(self) -> None:
        """Wait for those that last."""
        await asyncio.gather(*self._lasting)

    def _deal(self) -> str:
        if not self._deck:
            self._deck = [card for card, count in DECK.items() for _ in range(count) if self._can(card)]
            self._dealing.shuffle(self._deck)
        return self._deck.pop()

    def _can(self, card: str) -> bool:
        return self._cluster.network is not None or not card.startswith("cut_")

    async def _play(self, card: str) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.3))
        play: Callable[[], Awaitable[bool]] = getattr(self, f"_{card}")
        if card == "stop_leading_registry_beyond_its_ttl":
            task = asyncio.create_task(self._count(card, play))
            self._lasting.add(task)
            task.add_done_callback(self._lasting.discard)
        else:
            await self._count(card, play)

    async def _count(self, card: str, play: Callable[[], Awaitable[bool]]) -> None:
        if await play():
            self.done[card] += 1
        else:
            self._deck.insert(0, card)  # what it is about was broken already: later

    async def _hold(self, shortest_s: float, longest_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(shortest_s, longest_s))

    @contextlib.asynccontextmanager
    async def _taken(self, *names: str) -> AsyncIterator[bool]:
        """Whether all of these can be broken now; nobody else breaks them meanwhile."""
        if not self._busy.isdisjoint(names):
            yield False
            return
        self._busy.update(names)
        try:
            yield True
        finally:
            self._busy.difference_update(names)

    def _a_registry(self) -> Registry | None:
        """One that is whole."""
        whole = [registry for registry in self._cluster.registries if registry.name not in self._busy]
        return self._rng.choice(whole) if whole else None

    async def _etcd_leader(self) -> Member | None:
        return await asyncio.to_thread(self._cluster.etcd.leader)

    async def _kill(self, registry: Registry | None) -> bool:
        if registry is None:
            return False
        async with self._taken(registry.name) as free:
            if free:
                registry.kill()
                await self._hold(0.0, 0.8)
                registry.start()
            return free

    async def _kill_registry(self) -> bool:
        return await self._kill(self._a_registry())

    async def _kill_leading_registry(self) -> bool:
        return await self._kill(await asyncio.to_thread(self._cluster.leading_registry))

    async def _restart_registry(self) -> bool:
        """In good order, as an upgrade does."""
        registry = self._a_registry()
        if registry is None:
            return False
        async with self._taken(registry.name) as free:
            if free and registry.running:
                code = await asyncio.to_thread(registry.stop)
                if code not in (0, -signal.SIGTERM):  # the latter if it had hardly begun
                    self.failed.append(f"{registry.name} ended with {code} when it was asked to")
                registry.start()
            return free

    async def _stop(self, registry: Registry | None, shortest_s: float, longest_s: float) -> bool:
        if registry is None:
            return False
        async with self._taken(registry.name) as free:
            if free:
                registry.freeze()
                await self._hold(shortest_s, longest_s)
                registry.thaw()
            return free

    async def _stop_registry(self) -> bool:
        return await self._stop(self._a_registry(), 0.2, 1.8)

    async def _stop_leading_registry_beyond_its_ttl(self) -> bool:
        leading = await asyncio.to_thread(self._cluster.leading_registry)
        return await self._stop(leading, BEYOND_TTL_S, BEYOND_TTL_S + 1.0)

    async def _kill_members(self, victims: Sequence[Member | None]) -> bool:
        async with self._taken("etcd") as free:
            some = [member for member in victims if member is not None]
            if not free or len(some) < len(victims):
                return False
            for member in some:
                member.kill()
            await self._hold(0.2, 1.0)
            for member in some:
                self._cluster.etcd.start(member)
            await asyncio.to_thread(self._cluster.etcd.wait_leader)
            return True

    async def _kill_etcd_leader(self) -> bool:
        return await self._kill_members([await self._etcd_leader()])

    async def _kill_etcd_follower(self) -> bool:
        leader = await self._etcd_leader()
        others = [member for member in self._cluster.etcd.all if member is not leader]
        return leader is not None and await self._kill_members([self._rng.choice(others)])

    async def _kill_etcd_majority(self) -> bool:
        leader = await self._etcd_leader()
        others = [member for member in self._cluster.etcd.all if member is not leader]
        return await self._kill_members([leader, self._rng.choice(others)])

    async def _stop_etcd_leader(self) -> bool:
        async with self._taken("etcd") as free:
            leader = await self._etcd_leader() if free else None
            if leader is None:
                return False
            leader.freeze()
            await self._hold(0.3, 1.8)
            leader.thaw()
            return True

    async def _lose_answers(self) -> bool:
        """What is asked of a replica arrives, and its answers do not."""
        registry = self._a_registry()
        if registry is None:
            return False
        async with self._taken(registry.name) as free:
            if free:
                relay = self._cluster.relays[self._cluster.registries.index(registry)]
                relay.lose_answers()
                await self._hold(0.4, 1.4)
                relay.heal()
            return free

    async def _cut(self, pairs: Sequence[tuple[str, str]], *names: str) -> bool:
        network = self._cluster.network
        assert network is not None
        async with self._taken(*names) as free:
            if free:
                for pair in pairs:
                    network.cut(*pair)
                await self._hold(0.5, 2.0)
                for pair in pairs:
                    network.join(*pair)
            return free

    async def _cut_registry_from_etcd(self) -> bool:
        """From all members."""
        registry = self._a_registry()
        if registry is None:
            return False
        return await self._cut([pair for e in self._etcd_names() for pair in _both(registry.name, e)], registry.name)

    async def _cut_registry_from_etcd_leader_one_way(self) -> bool:
        """What it asks does not arrive, or the answer does not."""
        registry, leader = self._a_registry(), await self._etcd_leader()
        if registry is None or leader is None:
            return False
        return await self._cut([self._rng.choice(_both(registry.name, leader.name))], registry.name)

    async def _cut_etcd_leader_from_its_peers(self) -> bool:
        """Registries still reach it, and it does not know at first that it leads no longer."""
        leader = await self._etcd_leader()
        if leader is None:
            return False
        pairs = [pair for e in self._etcd_names() if e != leader.name for pair in _both(leader.name, e)]
        return await self._cut(pairs, "etcd")

    async def _cut_etcd_leader_from_all(self) -> bool:
        leader = await self._etcd_leader()
        if leader is None:
            return False
        others = [name for name in self._etcd_names() if name != leader.name]
        others += [registry.name for registry in self._cluster.registries]
        return await self._cut([pair for other in others for pair in _both(leader.name, other)], "etcd")

    def _etcd_names(self) -> list[str]:
        return [member.name for member in self._cluster.etcd.all]


def _both(one: str, other: str) -> list[tuple[str, str]]:
    return [(one, other), (other, one)]
