"""The parent of workers, with workers that are next to nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.chassis.process import Process
from services.chassis.shared_counts import CountsTable
from services.chassis.workers import WorkerFailed, Workers
from services.domain.clock import SystemClock
from tests.support.services import eventually

SERVE = """
import socket, struct, sys
link = socket.socket(fileno=0)
link.sendall(struct.pack("!cI", b"s", 0))
"""
UNTIL_TOLD = SERVE + "while link.recv(1) not in (b'd', b''): pass\n"


class Bench:
    """What a parent is made of."""

    def __init__(self, table: CountsTable) -> None:
        self.table = table
        self.registry = CollectorRegistry()
        self.serving = Gauge("serving", "Workers.", registry=self.registry)
        self.restarts = Counter("restarts", "Restarts.", registry=self.registry)
        self.rests: list[int] = []
        self.process = Process()

    def workers(self, count: int, script: Callable[[int], str]) -> Workers:
        return Workers(
            lambda number: (sys.executable, "-S", "-c", script(number)),
            table=self.table,
            count=count,
            rest_s=self._rest_s,
            serving=self.serving,
            restarts=self.restarts,
            clock=SystemClock(),
        )

    def _rest_s(self, in_a_row: int) -> float:
        self.rests.append(in_a_row)
        return 0.0 if in_a_row < 4 else 60.0

    async def rested(self, times: int) -> None:
        """Wait until workers have ended so often."""

        async def done() -> bool:
            return len(self.rests) >= times

        await eventually(done, f"{times} ends")

    def value(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0


@pytest.fixture
def table() -> Iterator[CountsTable]:
    with closing(CountsTable(2)) as made:
        yield made


@pytest.fixture
async def bench(table: CountsTable) -> AsyncIterator[Bench]:
    made = Bench(table)
    yield made
    await made.process.drain()


async def test_all_serve_once_started_and_none_once_drained(bench: Bench) -> None:
    await bench.workers(2, lambda _: UNTIL_TOLD).start(bench.process)
    assert bench.value("serving") == 2

    await bench.process.drain()

    assert bench.value("serving") == 0
    assert (bench.process.exit_code, bench.value("restarts_total")) == (0, 0)


async def test_a_worker_that_ends_before_it_serves_fails_the_start(bench: Bench) -> None:
    workers = bench.workers(2, lambda number: "raise SystemExit(3)" if number else UNTIL_TOLD)

    with pytest.raises(WorkerFailed, match="worker 1 ended with code 3 before all served"):
        await workers.start(bench.process)


async def test_a_program_that_is_not_there_fails_the_start(bench: Bench) -> None:
    workers = bench.workers(1, lambda _: UNTIL_TOLD)
    workers._command = lambda _: ("no-such-program",)

    with pytest.raises(WorkerFailed, match="worker 0 could not be started: No such file or directory"):
        await workers.start(bench.process)


async def test_one_that_ends_again_and_again_rests_longer_and_a_rest_does_not_hold_up_the_drain(bench: Bench) -> None:
    await bench.workers(1, lambda _: SERVE).start(bench.process)

    await bench.rested(4)
    await asyncio.wait_for(bench.process.drain(), 30)

    assert bench.rests == [1, 2, 3, 4]
    assert bench.value("restarts_total") == 3


async def test_the_calls_of_a_worker_that_ended_no_longer_count(bench: Bench) -> None:
    enters = (
        f"import mmap; mmap.mmap({bench.table.fd}, 128)[64] = 5\n" + SERVE + "link.recv(1)\n"  # says nothing when asked
    )
    workers = bench.workers(2, lambda number: enters if number else UNTIL_TOLD)
    await workers.start(bench.process)
    assert bench.table.in_flight() == 5

    await workers.metrics()  # the word it ends on
    await bench.rested(1)

    assert bench.table.in_flight() in (0, 5)  # 5 once the next one has begun
    await bench.process.drain()
    assert bench.table.in_flight() == 0


async def test_metrics_do_not_wait_for_a_worker_that_does_not_answer(bench: Bench) -> None:
    workers = bench.workers(1, lambda _: UNTIL_TOLD)
    await workers.start(bench.process)

    found = await asyncio.wait_for(workers.metrics(), 30)

    assert "process_resident_memory_bytes" in {metric.name for metric in found}
