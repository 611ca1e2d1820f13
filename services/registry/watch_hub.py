"""Who hears what: one watch of the store per replica, fanned out to every reader.

Owns the order of messages: a reader gets every revision after its first, in order and none left out, or
is told to begin anew with a snapshot. Readers that do not keep up are cut, so that they cost a bounded
amount of memory. While the store is away, readers stay and hear heartbeats at the last head.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Protocol

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.instruments import REGISTRY_HEAD_AGE, REGISTRY_HEAD_REVISION, REGISTRY_WATCHERS
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import Internal, RevisionNotFound, StoreUnavailable
from services.registry.layout import State
from services.registry.leases import HostChange
from services.registry.watch_reader import Item, Message, Reader, all_hosts, delta, heartbeat, responses

HEARTBEAT_S = 2.0
"""Time between heartbeats; readers take a stream for dead after about three."""

RECENT_DELTAS = 256
"""Deltas kept for readers that resume; older ones are computed from the trees."""

RECENT_BYTES = 16 << 20
"""Bytes of deltas kept: in memory, messages take several times as much."""

MAX_CATCH_UP = 1000
"""A reader further behind than this many revisions gets a snapshot."""

LOOK_S = 2.0
"""How often the store is asked for the head, so that readers learn how fresh that is."""

AUDIT_S = 10.0
"""How often the store is asked whether the watches have missed anything, as they do if it was emptied."""

STEP_TIMEOUT_S = 3.0
"""How long the store may leave one step unanswered."""

FIRST_SYNC_S = 2.0
"""How long a reader of a replica that has just started waits for its first state."""

OUTAGE_S = 1.0
"""How long a listing waits for the store before it takes what is known."""

RETRY_S = 0.2
"""Wait before the store is asked again."""


class Revisions(Protocol):
    """Where states come from."""

    async def head(self, *, timeout_s: float) -> State:
        """The state at the head now."""
        ...

    async def at(self, revision: int, *, timeout_s: float) -> State:
        """The state at a revision."""
        ...

    def moves(self) -> AsyncGenerator[None, None]:
        """Yields at once, and whenever the head has moved since."""
        ...


class Hosts(Protocol):
    """Where hosts come from."""

    async def hosts(self, *, timeout_s: float) -> HostChange:
        """Every host listed now."""
        ...

    def changes(self) -> AsyncGenerator[HostChange, None]:
        """All hosts, then what changes."""
        ...


class StoreReplaced(Exception):
    """The store is behind what was heard of it: its watches wait for a past that will not come again."""


class WatchHub:
    """Follows the store for all readers of this replica."""

    def __init__(self, *, revisions: Revisions, hosts: Hosts, clock: Clock) -> None:
        """Store the arguments.

        Args:
            revisions: Where states come from.
            hosts: Where hosts come from.
            clock: Time.
        """
        self._revisions = revisions
        self._source = hosts
        self._clock = clock
        self._state: State | None = None
        self._recent: deque[tuple[int, Message]] = deque(maxlen=RECENT_DELTAS)
        self._hosts: dict[str, resources_pb2.HostRecord] | None = None
        self._hosts_revision = 0
        self._readers: set[Reader] = set()
        self._ready = asyncio.Event()
        self._follow = asyncio.Lock()
        self._heard_s = clock.now_s()
        """When the store was last asked for the head, and answered."""

    @property
    def ready(self) -> asyncio.Event:
        """Set once state and hosts were heard for the first time."""
        return self._ready

    @property
    def known_hosts(self) -> list[resources_pb2.HostRecord]:
        """The hosts listed, as last heard."""
        return list((self._hosts or {}).values())

    async def listed(self, *, timeout_s: float) -> list[resources_pb2.HostRecord]:
        """The hosts listed now, by id; while the store is away, as last heard.

        Raises:
            StoreUnavailable: The store does not answer, and never did.
        """
        try:
            # Half of the time at most, so that the rest is enough to answer from memory.
            change = await self._source.hosts(timeout_s=min(OUTAGE_S, timeout_s / 2))
        except StoreUnavailable:
            if self._hosts is None:
                raise
            return [self._hosts[host_id] for host_id in sorted(self._hosts)]
        return list(change.listed)

    async def run(self) -> None:
        """Follow the store, and send heartbeats, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            while True:
                await self._follow_until_replaced()

    async def watch(self, from_revision: int, *, include_hosts: bool) -> AsyncGenerator[pb.WatchResponse, None]:
        """Everything from a revision on; see `RegistryService.Watch`. Close it (`aclosing`) to end it.

        Args:
            from_revision: Last revision the reader has seen; 0 for a snapshot first.
            include_hosts: Whether hosts are wanted.

        Raises:
            StoreUnavailable: Nothing is known yet; or the reader was too slow and was cut.
        """
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(FIRST_SYNC_S):
                    await self._ready.wait()
            except TimeoutError:
                raise StoreUnavailable("the registry has not reached its store yet", retry_after_s=1.0) from None
        if self._state is not None and from_revision > self._state.revision:
            await self._catch_up()  # another replica may have told the reader of it first
        state, hosts = self._state, self._hosts
        assert state is not None
        assert hosts is not None
        reader = Reader(include_hosts=include_hosts)
        self._readers.add(reader)
        REGISTRY_WATCHERS.inc()
        try:
            # From here on the reader's queue has everything after `state`, so awaiting loses nothing.
            for item in await self._opening(from_revision, state):
                for response in responses(item):
                    yield response
            if include_hosts:
                yield all_hosts(hosts.values())
            async with contextlib.aclosing(reader.items()) as items:
                async for item in items:
                    for response in responses(item):
                        yield response
        finally:
            self._readers.discard(reader)
            REGISTRY_WATCHERS.dec()

    async def _opening(self, from_revision: int, state: State) -> list[Item]:
        """What brings a reader from the last revision it has seen to `state`."""
        if from_revision == state.revision and from_revision > 0:
            return [heartbeat(state, self._age_s())]
        if not 0 < state.revision - from_revision <= MAX_CATCH_UP or from_revision == 0:
            return [state]
        recent: dict[int, Item] = {revision: item for revision, item in self._recent if revision <= state.revision}
        items: list[Item] = []
        before: State | None = None
        try:
            for revision in range(from_revision + 1, state.revision + 1):
                item = recent.get(revision)
                if item is None:
                    before = before or await self._revisions.at(revision - 1, timeout_s=STEP_TIMEOUT_S)
                    after = await self._revisions.at(revision, timeout_s=STEP_TIMEOUT_S)
                    item, before = delta(before, after), after
                else:
                    before = None
                if isinstance(item, State):
                    return [state]
                items.append(item)
        except (RevisionNotFound, StoreUnavailable):
            return [state]
        return items

    async def _follow_until_replaced(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_head())
                group.create_task(self._follow_hosts())
                group.create_task(self._look())
                group.create_task(self._audit())
        except* StoreReplaced:
            logger().error("the store is behind what it said before; everything is read anew")
            self._hosts_revision = 0

    async def _follow_head(self) -> None:
        async with contextlib.aclosing(self._revisions.moves()) as moves:
            async for _ in moves:
                while True:
                    try:
                        await self._catch_up()
                        break
                    except (StoreUnavailable, Internal) as error:
                        logger().warning("the head cannot be read", cause=error.message)
                        await self._clock.sleep(RETRY_S)

    async def _catch_up(self) -> None:
        """Tell the readers of every revision up to the head."""
        async with self._follow:
            asked_s = self._clock.now_s()
            head = await self._revisions.head(timeout_s=STEP_TIMEOUT_S)
            self._heard_s = asked_s
            held = self._state
            if held is None:
                self._state = head
                self._mark_ready()
            elif held.digest != head.digest:
                for item, state in await self._between(held, head):
                    self._state = state
                    if isinstance(item, State):
                        self._recent.clear()
                    else:
                        self._recall(state.revision, item)
                    self._send(item)
            REGISTRY_HEAD_REVISION.set(head.revision)

    async def _between(self, held: State, head: State) -> list[tuple[Item, State]]:
        """What leads from one head to a later one, revision by revision; a snapshot if nothing does."""
        if not 0 < head.revision - held.revision <= MAX_CATCH_UP:
            return [(head, head)]
        steps: list[tuple[Item, State]] = []
        before = held
        for revision in range(held.revision + 1, head.revision + 1):
            try:
                after = (
                    head if revision == head.revision else await self._revisions.at(revision, timeout_s=STEP_TIMEOUT_S)
                )
            except RevisionNotFound:
                return [(head, head)]
            if after.parent_digest != before.digest:
                return [(head, head)]  # another history
            steps.append((delta(before, after), after))
            before = after
        return steps

    async def _follow_hosts(self) -> None:
        async with contextlib.aclosing(self._source.changes()) as changes:
            async for change in changes:
                self._take(change)

    def _take(self, change: HostChange) -> None:
        """Tell the readers what is new about the hosts; a record written again as it was is not."""
        if change.revision < self._hosts_revision:
            return
        self._hosts_revision = change.revision
        known = self._hosts or {}
        listed = [record for record in change.listed if known.get(record.host_id) != record]
        gone = [host_id for host_id in change.gone if host_id in known]
        if change.reset:
            still = {record.host_id for record in change.listed}
            gone = sorted(host_id for host_id in known if host_id not in still)
        # A new dict, since a reader that begins may hold the old one.
        self._hosts = {host_id: record for host_id, record in known.items() if host_id not in gone}
        self._hosts.update((record.host_id, record) for record in listed)
        self._mark_ready()
        if listed or gone:
            message = Message(pb.WatchResponse(hosts=pb.WatchHosts(listed=listed, gone=gone)))
            for reader in self._readers:
                if reader.include_hosts:
                    reader.push(message)

    def _mark_ready(self) -> None:
        if self._state is not None and self._hosts is not None:
            self._ready.set()

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            if self._ready.is_set():
                with contextlib.suppress(StoreUnavailable, Internal):
                    await self._catch_up()

    async def _audit(self) -> None:
        """Make up for what a watch may have missed.

        Raises:
            StoreReplaced: The store was emptied or restored under us.
        """
        while True:
            await self._clock.sleep(AUDIT_S)
            if not self._ready.is_set():
                continue
            heard = self._hosts_revision
            try:
                listed = await self._source.hosts(timeout_s=STEP_TIMEOUT_S)
            except (StoreUnavailable, Internal) as error:
                logger().warning("the store cannot be checked", cause=error.message)
                continue
            if listed.revision < heard:
                raise StoreReplaced
            self._take(listed)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(HEARTBEAT_S)
            REGISTRY_HEAD_AGE.set(self._age_s())
            if self._state is not None:
                beat = heartbeat(self._state, self._age_s())
                for reader in self._readers:
                    if reader.idle:  # else it will hear something anyway
                        reader.push(beat)

    def _age_s(self) -> float:
        return self._clock.now_s() - self._heard_s

    def _recall(self, revision: int, item: Message) -> None:
        """Keep a delta for readers that resume, within bounds."""
        self._recent.append((revision, item))
        while sum(kept.size_bytes for _, kept in self._recent) > RECENT_BYTES:
            self._recent.popleft()

    def _send(self, item: Item) -> None:
        for reader in self._readers:
            reader.push(item)
