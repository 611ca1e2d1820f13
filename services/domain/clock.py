"""The only door to time. Everything else is handed a `Clock`, or the `now_s` read from one."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time for measuring, wall time for writing down."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def thread_s(self) -> float:
        """Seconds that the calling thread has computed; only differences mean anything."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait for at least `duration_s` seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    # Called several times in each call: a method around them would cost twice as much as they do.
    now_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)
    thread_s = staticmethod(time.thread_time)

    async def sleep(self, duration_s: float) -> None:
        """Wait for at least `duration_s` seconds."""
        await asyncio.sleep(duration_s)


class ManualClock:
    """A clock that stands until it is moved; for tests and for simulated time."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        """Start at `start_s`, monotonic and wall alike."""
        self._now_s = start_s

    def now_s(self) -> float:
        """Seconds, as moved."""
        return self._now_s

    def wall_s(self) -> float:
        """Seconds, as moved."""
        return self._now_s

    def thread_s(self) -> float:
        """None: whatever takes time here is waiting."""
        return 0.0

    def advance(self, duration_s: float) -> None:
        """Move forward by `duration_s` seconds."""
        self._now_s += duration_s

    async def sleep(self, duration_s: float) -> None:
        """Move forward by `duration_s` at once, and let other tasks run."""
        self._now_s += duration_s
        await asyncio.sleep(0)
