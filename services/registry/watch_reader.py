"""What a watch says, and what waits for one reader of it.

Owns the messages' form and size, and the bound on what a slow reader costs. Who hears what, and when, is
`watch_hub`'s.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import duration_to
from services.chassis.instruments import REGISTRY_WATCHERS_CUT
from services.chassis.object_codec import object_key_to
from services.domain.errors import StoreUnavailable
from services.registry.layout import State, changed_keys

CHUNK_BYTES = 1 << 20
"""Objects in one message of a snapshot take about this much."""

MAX_DELTA_BYTES = 8 << 20
"""A revision whose objects take more is sent as a snapshot, in parts."""

MAX_WAITING = 1000
"""Messages that may wait for one reader; then it is cut."""

MAX_WAITING_BYTES = 64 << 20
"""Bytes that may wait for one reader; then it is cut."""


class Message:
    """A message for many readers, and what it takes."""

    __slots__ = ("response", "size_bytes")

    def __init__(self, response: pb.WatchResponse) -> None:
        """Weigh the response once, for all readers."""
        self.response = response
        self.size_bytes = response.ByteSize()


Item = Message | State


class Reader:
    """What waits for one reader."""

    def __init__(self, *, include_hosts: bool) -> None:
        """Made by `WatchHub.watch`."""
        self.include_hosts = include_hosts
        self._items: deque[Item] = deque()
        self._size_bytes = 0
        self._wake = asyncio.Event()
        self._cut = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def push(self, item: Item) -> None:
        """Add to what waits; too much of it cuts the reader off."""
        if self._cut:
            return
        self._items.append(item)
        if isinstance(item, Message):
            self._size_bytes += item.size_bytes
        if len(self._items) > MAX_WAITING or self._size_bytes > MAX_WAITING_BYTES:
            self._cut = True
            self._items.clear()
            REGISTRY_WATCHERS_CUT.inc()
        self._wake.set()

    async def items(self) -> AsyncGenerator[Item, None]:
        """What waits, as it comes.

        Raises:
            StoreUnavailable: The reader was too slow and was cut.
        """
        while True:
            if self._cut:
                raise StoreUnavailable(
                    "this watch was too slow and too much waited for it; resume from the last revision seen",
                    retry_after_s=0.0,
                )
            if not self._items:
                self._wake.clear()
                await self._wake.wait()
                continue
            item = self._items.popleft()
            if isinstance(item, Message):
                self._size_bytes -= item.size_bytes
            yield item


def heartbeat(state: State, age_s: float) -> Message:
    """Nothing new, as far as the store said so long ago."""
    beat = pb.WatchHeartbeat(revision=state.revision, tree_digest=state.tree_digest, age=duration_to(age_s))
    return Message(pb.WatchResponse(heartbeat=beat))


def delta(before: State, after: State) -> Item:
    """What changed with one revision; the whole state where a message could not hold it."""
    upserts, deletes = changed_keys(before, after)
    entries = [after.entries[key] for key in upserts]
    if sum(entry.size_bytes for entry in entries) > MAX_DELTA_BYTES:
        return after
    return Message(
        pb.WatchResponse(
            delta=pb.WatchDelta(
                revision=after.revision,
                upserts=[entry.message for entry in entries],
                deletes=[object_key_to(key) for key in deletes],
                tree_digest=after.tree_digest,
            )
        )
    )


def responses(item: Item) -> Iterator[pb.WatchResponse]:
    """The messages that carry an item."""
    if isinstance(item, State):
        yield from _snapshot(item)
    else:
        yield item.response


def _snapshot(state: State) -> Iterator[pb.WatchResponse]:
    """A whole state, in parts."""
    part = pb.WatchSnapshot(revision=state.revision, first=True)
    size_bytes = 0
    for entry in state.entries.entries():
        if part.objects and size_bytes + entry.size_bytes > CHUNK_BYTES:
            yield pb.WatchResponse(snapshot=part)
            part, size_bytes = pb.WatchSnapshot(revision=state.revision), 0
        part.objects.add().MergeFromString(entry.raw)
        size_bytes += entry.size_bytes
    part.last = True
    part.tree_digest = state.tree_digest
    yield pb.WatchResponse(snapshot=part)


def all_hosts(records: Iterable[resources_pb2.HostRecord]) -> pb.WatchResponse:
    """The whole list."""
    listed = sorted(records, key=lambda record: record.host_id)
    return pb.WatchResponse(hosts=pb.WatchHosts(reset=True, listed=listed))
