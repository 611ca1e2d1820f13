"""What waits to be sent on a stream: everything that is there when the loop turns goes into one message.

While a message is being sent the next one fills: batches grow with load, and nobody waits for company but on a
saturated thread, where small messages cost more than the wait. What waits is counted, so that whoever fills it
can stop in time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.chassis.channels import MAX_MESSAGE_BYTES
from services.chassis.thread_load import ThreadLoad

M = TypeVar("M")

MESSAGE_BYTES = 1 << 20
"""Contents beyond this start another message; a single larger one goes alone."""

LARGEST_BYTES = MAX_MESSAGE_BYTES - (64 << 10)
"""What is larger does not fit into a message with what else is in it: it would end the stream, and every call on it."""

FEW = 16
"""With fewer items than this, and its thread saturated, a message waits `PAUSE_S` for more: docs/decisions/0009."""

PAUSE_S = 0.001
"""Far below the time that a call takes on a saturated thread."""


class Outbox(Generic[M]):
    """Messages that fill until they are sent."""

    def __init__(self, new: Callable[[], M], *, most_bytes: int, load: ThreadLoad | None = None) -> None:
        """Fill messages made by `new`; there is `room` while no more than `most_bytes` wait.

        With `load`, the load of the loop's thread, small messages wait for more while that is saturated.
        """
        self._load = load
        self.waiting_bytes = 0
        self.ready = asyncio.Event()
        """Set when something waits; whoever sends clears it."""
        self.room = asyncio.Event()
        """Clear while too much waits."""
        self.room.set()
        self._new = new
        self._most_bytes = most_bytes
        self._messages: list[M] = []
        self._filling_bytes = 0
        self._items = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits, or is being sent."""
        return not self._messages and not self.waiting_bytes

    def message(self, size: int) -> M:
        """The message to put the next `size` bytes into."""
        messages = self._messages
        if not messages or self._filling_bytes + size > MESSAGE_BYTES:
            messages.append(self._new())
            self._filling_bytes = 0
            self.ready.set()
        self._filling_bytes += size
        self._items += 1
        self.waiting_bytes += size
        if self.waiting_bytes > self._most_bytes:
            self.room.clear()
        return messages[-1]

    async def send(self, write: Callable[[M], Awaitable[None]]) -> None:
        """Send what waits, and what comes meanwhile."""
        self.ready.clear()
        while self._messages:
            if self._items < FEW and self._load is not None and self._load.saturated:
                await asyncio.sleep(PAUSE_S)
            messages, waited_bytes = self._messages, self.waiting_bytes
            self._messages, self._filling_bytes, self._items = [], 0, 0
            for message in messages:
                await write(message)
            self.waiting_bytes -= waited_bytes
            if self.waiting_bytes <= self._most_bytes:
                self.room.set()
