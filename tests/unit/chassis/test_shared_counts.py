"""Counts of calls in flight, of one process and of several."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.shared_counts import SLOT_BYTES, CountsTable, LocalCounts, SharedCounts

WORKERS = 3


@pytest.fixture
def table() -> Iterator[CountsTable]:
    with closing(CountsTable(WORKERS)) as made:
        yield made


@pytest.fixture
def workers(table: CountsTable) -> Iterator[list[SharedCounts]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(SharedCounts(table.fd, workers=WORKERS, worker=number)))
            for number in range(WORKERS)
        ]


def test_a_process_by_itself_counts_its_own_calls() -> None:
    counts = LocalCounts()

    assert [counts.enter(), counts.enter()] == [0, 1]
    counts.leave()
    assert counts.enter() == 1


def test_each_worker_sees_the_calls_of_all(table: CountsTable, workers: list[SharedCounts]) -> None:
    first, second, third = workers

    assert [first.enter(), second.enter(), third.enter(), first.enter()] == [0, 1, 2, 3]
    second.leave()
    assert table.in_flight() == 3
    assert second.enter() == 3


def test_the_calls_of_a_worker_that_ended_are_forgotten(table: CountsTable, workers: list[SharedCounts]) -> None:
    for _ in range(5):
        workers[1].enter()
    workers[2].enter()

    table.clear(1)

    assert workers[0].enter() == 1


def test_a_worker_starts_from_nothing(table: CountsTable, workers: list[SharedCounts]) -> None:
    workers[1].enter()

    with closing(SharedCounts(table.fd, workers=WORKERS, worker=1)) as again:
        assert again.enter() == 0


def test_counts_stay_when_the_descriptor_is_closed(table: CountsTable) -> None:
    inherited = os.dup(table.fd)
    with closing(SharedCounts(inherited, workers=WORKERS, worker=0)) as counts:
        os.close(inherited)
        counts.enter()

        assert table.in_flight() == 1


def test_a_page_for_another_number_of_workers_is_refused(table: CountsTable) -> None:
    with pytest.raises(OSError, match="does not hold the counts of 4 workers"):
        SharedCounts(table.fd, workers=WORKERS + 1, worker=0)


def test_workers_write_on_cache_lines_of_their_own(table: CountsTable, workers: list[SharedCounts]) -> None:
    for worker in workers:
        worker.enter()

    page = os.pread(table.fd, WORKERS * SLOT_BYTES, 0)

    assert [index for index, byte in enumerate(page) if byte] == [0, 64, 128]


@given(st.lists(st.tuples(st.integers(0, WORKERS - 1), st.booleans()), max_size=60))
def test_enter_says_what_was_in_flight_whoever_it_was(steps: list[tuple[int, bool]]) -> None:
    with ExitStack() as stack:
        table = stack.enter_context(closing(CountsTable(WORKERS)))
        workers = [
            stack.enter_context(closing(SharedCounts(table.fd, workers=WORKERS, worker=number)))
            for number in range(WORKERS)
        ]
        calls = [0] * WORKERS
        for number, enters in steps:
            if enters:
                assert workers[number].enter() == sum(calls)
                calls[number] += 1
            elif calls[number]:
                workers[number].leave()
                calls[number] -= 1
            assert table.in_flight() == sum(calls)
