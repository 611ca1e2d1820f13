"""Whether memory came back after an unload, and what is done where it did not.

What is lost is logged and counted at once. Its host ends as soon as no version is left on it, or while it still serves
if too much is lost: it finishes the calls it has and ends with `RECYCLE`, and whoever keeps it running starts it
again. When is `policy.recycling`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.chassis import instruments
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.model import ModelKey
from services.policy.recycling import recycles, unreturned_bytes

LOOKS = 3
"""How often memory is looked at before it counts as lost: a batch of another version may have taken some meanwhile."""

BETWEEN_LOOKS_S = 0.5


class Recycling:
    """The memory that a host has lost."""

    def __init__(
        self,
        *,
        held_bytes: Callable[[], Awaitable[int]],
        release: Callable[[], Awaitable[None]],
        budget_bytes: int,
        versions: Callable[[], int],
        recycle: Callable[[], None],
        clock: Clock,
    ) -> None:
        """Nothing is lost yet.

        Args:
            held_bytes: Measures what the process holds.
            release: Gives back what is free.
            budget_bytes: What models may take in all.
            versions: How many are loaded, loading or unloading here.
            recycle: Ends the process in good order; called once.
            clock: Time.
        """
        self._held_bytes = held_bytes
        self._release = release
        self._budget_bytes = budget_bytes
        self._versions = versions
        self._recycle = recycle
        self._clock = clock
        self._took_bytes: dict[ModelKey, int] = {}
        self._loads = 0
        self._recycled = False
        self.lost_bytes = 0
        """What unloads have left behind."""

    def loaded(self, key: ModelKey, took_bytes: int) -> None:
        """A version was loaded, and keeps so much for as long as it is."""
        self._loads += 1
        self._took_bytes[key] = took_bytes

    def left(self, key: ModelKey) -> None:
        """A version left the device for a while: what it kept is not looked for when it is unloaded."""
        self._took_bytes.pop(key, None)

    @asynccontextmanager
    async def unloading(self, key: ModelKey) -> AsyncIterator[None]:
        """Drop the version inside; then its memory is given back, and measured if it was here."""
        took_bytes = self._took_bytes.pop(key, 0)
        loads = self._loads
        before_bytes = await self._held_bytes()
        yield
        await self._release()
        lost_bytes = await self._lost(took_bytes, before_bytes, loads)
        if lost_bytes:
            self.lost_bytes += lost_bytes
            instruments.HOST_UNRETURNED_BYTES.inc(lost_bytes)
            logger().error(
                "an unload did not give its memory back",
                model=str(key),
                took_bytes=took_bytes,
                lost_bytes=lost_bytes,
                lost_in_all_bytes=self.lost_bytes,
            )

    def consider(self) -> None:
        """End the process if enough is lost for that. Call when a version has come or gone."""
        versions = self._versions()
        if self._recycled or not recycles(
            lost_bytes=self.lost_bytes, budget_bytes=self._budget_bytes, versions=versions
        ):
            return
        self._recycled = True
        logger().warning(
            "this host ends to be started anew: memory was lost", lost_bytes=self.lost_bytes, versions=versions
        )
        self._recycle()

    async def _lost(self, took_bytes: int, before_bytes: int, loads: int) -> int:
        lost_bytes = 0
        for look in range(LOOKS):
            if look:
                await self._clock.sleep(BETWEEN_LOOKS_S)
                await self._release()
            freed_bytes = before_bytes - await self._held_bytes()
            if self._loads != loads:
                return 0  # another version came in between: what it takes cannot be told apart
            lost_bytes = unreturned_bytes(took_bytes=took_bytes, freed_bytes=freed_bytes)
            if not lost_bytes:
                break
        return lost_bytes
