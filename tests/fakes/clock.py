"""A clock whose sleepers wake when a test moves it, and not before."""

import asyncio


class SteppedClock:
    """Stands until it is moved. Unlike `ManualClock`, a sleep does not move it."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        """Start at `start_s`, monotonic and wall alike."""
        self._now_s = start_s
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        """Seconds, as moved."""
        return self._now_s

    def wall_s(self) -> float:
        """Seconds, as moved."""
        return self._now_s

    def thread_s(self) -> float:
        """None."""
        return 0.0

    async def sleep(self, duration_s: float) -> None:
        """Wait until it has been moved that far."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + duration_s, woken))
        await woken

    async def advance(self, duration_s: float, *, turns: int = 100) -> None:
        """Move, wake who is due, and let everybody run until nobody has anything to do, for so many turns at most."""
        await settle(turns)
        self._now_s += duration_s
        due = [woken for at_s, woken in self._sleepers if at_s <= self._now_s]
        self._sleepers = [(at_s, woken) for at_s, woken in self._sleepers if at_s > self._now_s]
        for woken in due:
            if not woken.done():
                woken.set_result(None)
        await settle(turns)


async def settle(turns: int = 100) -> None:
    """Let every task run that can."""
    for _ in range(turns):
        await asyncio.sleep(0)
