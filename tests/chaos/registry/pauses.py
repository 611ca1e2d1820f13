"""Leaders paused beyond their time to live: what they write when they wake must change nothing.

Two processes with a candidate in each of many elections. The one that leads is frozen until the other leads in its
stead, and thawed; then it is the other's turn. Whether a write came too late is judged by the independent recorder.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.registry import events
from tests.chaos.registry.cluster import ROOT, environ, recording
from tests.chaos.registry.fencing import Fences, StaleWrite
from tests.chaos.registry.recorder import read as read_record
from tests.support.etcd import EtcdProcess
from tests.support.members import DIES_WITH_US
from tests.support.signals import freeze

TTL_S = 2
WAIT_S = 60.0
STOP_S = 20.0


@dataclass(slots=True)
class Paused:
    """What came of it."""

    pauses: int = 0
    """Leaders that were paused beyond their time to live, and wrote when they woke."""
    answers: Counter[str] = field(default_factory=Counter)
    """What they were told of it: two writes each."""
    held: int = 0
    """Leaders that still held themselves for that after such a pause."""
    led: int = 0
    """All writes of leaders that were accepted."""
    stale: list[StaleWrite] = field(default_factory=list)
    """Those of them that came after the leader had lost its place."""


class Sleeper:
    """One process of candidates."""

    def __init__(self, who: str, process: asyncio.subprocess.Process) -> None:
        """Begin to read what it says."""
        self.who = who
        self.leads: dict[int, int] = {}
        """Election to token, of the last time that it began to lead."""
        self.woke: dict[int, list[str]] = {}
        """Token to what it said after a pause."""
        self._process = process
        self._reading = asyncio.create_task(self._read())

    def freeze(self) -> None:
        """Stop it where it is."""
        freeze(self._process.pid)

    def check(self) -> None:
        """Fail if it has ended, or said what makes no sense."""
        if self._reading.done():
            self._reading.result()
            raise AssertionError(f"{self.who} ended")

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Ask it to end; it must not have failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(STOP_S):
            code = await self._process.wait()
            await self._reading
        assert code == 0, f"{self.who} failed with {code}"

    async def kill(self) -> None:
        """Make sure that it is gone."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            what, election, token, *rest = line.decode().split()
            if what == "leads":
                self.leads[int(election)] = int(token)
            else:
                self.woke[int(token)] = rest


async def pause_leaders(directory: Path, *, pauses: int, elections: int, bug: str = "none") -> Paused:
    """Pause leaders until so many pauses are counted.

    Args:
        directory: For etcd's data and logs.
        pauses: How many to count at least.
        elections: How many leaders to pause at once.
        bug: `no-fencing` leaves the fence out of the leaders' writes.
    """
    done = Paused()
    etcd = EtcdProcess(directory / "etcd")
    etcd.start()
    try:
        async with recording([etcd.endpoint], directory / "record") as record:
            async with _sleepers(directory, etcd.endpoint, elections, bug) as (first, second):
                frozen, other = first, second
                while done.pauses < pauses:
                    await _pause(frozen, other, elections, done)
                    frozen, other = other, frozen
                await first.end()
                await second.end()
            await record.end()
        fences = Fences()
        for revision, group in events.transactions(read_record(record.log)):
            fences.take(revision, group)
        done.led, done.stale = fences.led, fences.stale
        return done
    finally:
        etcd.stop()


async def _pause(frozen: Sleeper, other: Sleeper, elections: int, done: Paused) -> None:
    """Freeze one process until the other leads everywhere, and count what the frozen one did when it woke."""
    both = (frozen, other)
    await _until(lambda: len({**frozen.leads, **other.leads}) == elections, "a leader in each election", *both)
    # A little later in each round, so that leaders are frozen in every phase of what they do.
    await asyncio.sleep(0.1 + 0.37 * (done.pauses % 7) / 7)
    frozen.freeze()
    tokens = {number: token for number, token in frozen.leads.items() if token == _newest(number, both)}
    # Those that lead nothing are not waited for; they may have lost their place by themselves.
    await _until(
        lambda: all(other.leads.get(number, 0) > token for number, token in tokens.items()), "the other", *both
    )
    frozen.thaw()
    await _until(lambda: all(_spoke(frozen, number, token) for number, token in tokens.items()), "what they did", *both)
    for token in tokens.values():
        said = frozen.woke.get(token)
        if said is not None and "unknown" not in said[:2]:
            done.pauses += 1
            done.answers.update(said[:2])
            done.held += said[2] == "holds"


def _newest(number: int, both: tuple[Sleeper, Sleeper]) -> int:
    return max(each.leads.get(number, 0) for each in both)


def _spoke(sleeper: Sleeper, number: int, token: int) -> bool:
    """Whether it told of its pause, or leads anew: then it had lost its place before."""
    return token in sleeper.woke or sleeper.leads.get(number, 0) > token


async def _until(done: Callable[[], bool], what: str, *processes: Sleeper) -> None:
    end_s = time.monotonic() + WAIT_S
    while not done():
        for process in processes:
            process.check()
        assert time.monotonic() < end_s, f"{what} did not come about in {WAIT_S:g} s"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _sleepers(directory: Path, endpoint: str, elections: int, bug: str) -> AsyncIterator[tuple[Sleeper, Sleeper]]:
    made: list[Sleeper] = []
    try:
        for who in ("first", "second"):
            with (directory / f"{who}.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *(*DIES_WITH_US, sys.executable, "-m", "tests.chaos.registry.sleeper"),
                    *(who, str(elections), str(TTL_S), bug, endpoint),
                    cwd=ROOT,
                    env=environ(),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                )
            made.append(Sleeper(who, process))
            sleeper = made[-1]
            if who == "first":
                await _until(lambda: len(sleeper.leads) == elections, "the first leaders", sleeper)  # noqa: B023
        yield made[0], made[1]
    finally:
        for sleeper in made:
            await sleeper.kill()
