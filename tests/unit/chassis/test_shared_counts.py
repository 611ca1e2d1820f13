"""Counts of calls in flight, of one process and of several."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.named_counts import SLOTS
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


@settings(deadline=None)
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


# --- by name ---------------------------------------------------------------------------------------

ACME = ("tenant", "acme")


def test_calls_in_flight_by_name_are_those_of_all_workers(workers: list[SharedCounts]) -> None:
    cells = [worker.cell(ACME) for worker in workers]
    other = workers[0].cell(("tenant", "other"))

    for cell in (*cells, cells[2], other):
        cell.enter()
    cells[1].leave()

    assert [cell.in_flight() for cell in cells] == [3, 3, 3]
    assert other.in_flight() == 1
    assert workers[2].cell(("tier", "acme")).in_flight() == 0


def test_a_name_that_another_worker_comes_to_later_is_seen_then(workers: list[SharedCounts]) -> None:
    mine = workers[0].cell(ACME)
    assert mine.in_flight() == 0

    workers[1].cell(ACME).enter()

    assert mine.in_flight() == 1


def test_tokens_are_those_of_all_workers(workers: list[SharedCounts]) -> None:
    first, second, _ = (worker.cell(("rate", "acme", 50.0, 10)) for worker in workers)

    first.take(7.5)
    second.take(9.25)
    first.take(9.0)

    assert [(cell.taken(), cell.spilled()) for cell in (first, second)] == [(3, 9.25)] * 2


def test_a_worker_that_ended_leaves_nothing_in_flight_and_what_it_took(
    table: CountsTable, workers: list[SharedCounts]
) -> None:
    lost, kept = workers[1].cell(ACME), workers[2].cell(ACME)
    lost.enter()
    lost.take(4.0)
    kept.enter()

    table.clear(1)

    assert (kept.in_flight(), kept.taken(), kept.spilled()) == (1, 1, 4.0)


def test_the_next_worker_goes_on_where_one_ended(table: CountsTable, workers: list[SharedCounts]) -> None:
    lost, kept = workers[1].cell(ACME), workers[2].cell(ACME)
    lost.enter()
    lost.take(4.0)

    with closing(SharedCounts(table.fd, workers=WORKERS, worker=1)) as again:
        next_one = again.cell(ACME)
        assert kept.in_flight() == 0
        next_one.enter()
        next_one.take(5.0)

        assert (kept.in_flight(), kept.taken(), kept.spilled()) == (1, 2, 5.0)


def test_names_beyond_what_a_worker_can_share_count_for_its_part(workers: list[SharedCounts]) -> None:
    cells = [workers[0].cell(("tenant", str(number))) for number in range(SLOTS + 1)]

    shares = {cell.share for cell in cells}
    assert shares == {1.0, 1.0 / WORKERS}
    assert sum(cell.share < 1.0 for cell in cells) < SLOTS / 20
    alone = next(at for at, cell in enumerate(cells) if cell.share < 1.0)
    cells[alone].enter()
    assert workers[0].cell(("tenant", str(alone))).in_flight() == 1
    assert workers[1].cell(("tenant", str(alone))).in_flight() == 0


def test_a_process_by_itself_forgets_names_that_nothing_is_in_flight_of() -> None:
    counts = LocalCounts()
    counts.cell(ACME).enter()
    for number in range(3 * SLOTS):
        counts.cell(("tenant", str(number)))

    assert counts.cell(ACME).in_flight() == 1
    assert counts.in_flight() == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, WORKERS - 1), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_every_worker_sees_the_same_counts_of_every_name(steps: list[tuple[int, str, bool]]) -> None:
    with ExitStack() as stack:
        table = stack.enter_context(closing(CountsTable(WORKERS)))
        workers = [
            stack.enter_context(closing(SharedCounts(table.fd, workers=WORKERS, worker=number)))
            for number in range(WORKERS)
        ]
        calls: Counter[tuple[int, str]] = Counter()
        for number, name, enters in steps:
            cell = workers[number].cell(("tenant", name))
            if enters:
                cell.enter()
                calls[number, name] += 1
            elif calls[number, name]:
                cell.leave()
                calls[number, name] -= 1
            expected = sum(count for (_, of), count in calls.items() if of == name)
            assert [worker.cell(("tenant", name)).in_flight() for worker in workers] == [expected] * WORKERS
