"""A thread that works off jobs one by one, for an event loop that must not wait."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from services.domain.clock import Clock

T = TypeVar("T")

_Done: TypeAlias = Callable[[Any, BaseException | None], None]


class Worker:
    """One thread and its jobs. The thread is a daemon: a job that hangs does not keep a process alive."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Start nothing yet."""
        self._clock = clock
        self._jobs: SimpleQueue[tuple[Callable[[], Any], _Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_since_s: float | None = None
        self._busy_s = 0.0
        self._poked_s: float | None = None

    def start(self) -> None:
        """Start the thread; results go to the loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after the jobs it has."""
        self._jobs.put(None)

    def post(self, job: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Have `job` done; `done` is called on the event loop with what it returned or raised."""
        self._jobs.put((job, done))

    async def run(self, job: Callable[[], T]) -> T:
        """Have `job` done, and return or raise what it does. Cancelling stops the waiting, not the job."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]  # None only if T is
            else:
                answer.set_exception(error)

        self.post(job, done)
        return await answer

    def busy_s(self, now_s: float) -> float:
        """Seconds spent on jobs so far."""
        since_s = self._busy_since_s
        return self._busy_s + (max(0.0, now_s - since_s) if since_s is not None else 0.0)

    def stalled_s(self, now_s: float) -> float:
        """For how long the job at hand has run, or an idle thread has not answered.

        Ask regularly: each time the thread is poked, to be found alive or not the next time.
        """
        since_s = self._busy_since_s
        if since_s is not None:
            return max(0.0, now_s - since_s)
        if self._poked_s is None:
            self._poked_s = now_s
            self._jobs.put((self._answer_poke, _ignore))
            return 0.0
        return now_s - self._poked_s

    def _answer_poke(self) -> None:
        self._poked_s = None

    def _work(self) -> None:
        loop = self._loop
        assert loop is not None
        now_s = self._clock.now_s
        while (item := self._jobs.get()) is not None:
            job, done = item
            began_s = self._busy_since_s = now_s()
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as raised:
                error = raised
            self._busy_s += now_s() - began_s
            self._busy_since_s = None
            try:
                loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            del item, job, done, result, error  # keep no array alive until the next job


def _ignore(result: object, error: BaseException | None) -> None:
    """Nobody waits for it."""
