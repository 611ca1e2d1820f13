import asyncio
from collections.abc import Awaitable, Callable

from services.chassis.process import FAILED, Process


def noting(notes: list[str], name: str) -> Callable[[], Awaitable[None]]:
    async def stop() -> None:
        notes.append(name)

    return stop


async def until_cancelled(notes: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        notes.append(name)


async def test_drain_ends_last_first_with_tasks_in_their_turn() -> None:
    process, notes = Process(), list[str]()
    process.on_stop("first", noting(notes, "first"))
    process.spawn("second", until_cancelled(notes, "second"))
    process.on_stop("third", noting(notes, "third"))
    await asyncio.sleep(0)

    await process.drain()

    assert notes == ["third", "second", "first"]
    assert process.exit_code == 0


async def test_step_that_hangs_or_fails_does_not_keep_the_next_from_running() -> None:
    process, notes = Process(), list[str]()

    async def fail() -> None:
        raise ValueError("broken")

    process.on_stop("first", noting(notes, "first"))
    process.on_stop("fails", fail)
    process.on_stop("hangs", lambda: until_cancelled(notes, "hangs"), timeout_s=0.01)

    await process.drain()

    assert notes == ["hangs", "first"]
    assert process.exit_code == FAILED


async def test_crashed_task_stops_the_process_with_code_1() -> None:
    process = Process()

    async def crash() -> None:
        raise ValueError("broken")

    process.spawn("task", crash())
    await process.stopping.wait()
    await process.drain()

    assert process.exit_code == FAILED


async def test_task_that_returns_or_is_cancelled_by_its_owner_stops_nothing() -> None:
    process, notes = Process(), list[str]()

    await process.spawn("returns", asyncio.sleep(0))
    task = process.spawn("cancelled", until_cancelled(notes, "cancelled"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)

    assert notes == ["cancelled"]
    assert not process.stopping.is_set()


async def test_first_exit_code_that_is_not_zero_is_kept() -> None:
    process = Process()

    process.request_stop("asked")
    process.request_stop("broke", exit_code=3)
    process.request_stop("broke again", exit_code=4)

    assert process.stopping.is_set()
    assert process.exit_code == 3
