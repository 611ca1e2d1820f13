import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio

from services.chassis.intake import MOST_TICKS, TICK_S, Intake


class Server:
    """A grpc.aio server that stops at once."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.grace_s: float | None = None

    async def stop(self, grace_s: float) -> None:
        self.events.append("stop")
        self.grace_s = grace_s


class Call:
    """What is asked of a call's context."""

    def __init__(self, remaining_s: float | None = None) -> None:
        self.remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self.remaining_s


def behind(intake: Intake, events: list[str]) -> Callable[[str, Call], Awaitable[str]]:
    async def answer(request: str, context: Call) -> str:
        del context
        events.append(request)
        await asyncio.sleep(0)
        return request

    handlers = intake.over({"a.Service": {"One": grpc.unary_unary_rpc_method_handler(answer)}})
    return cast("Callable[[str, Call], Awaitable[str]]", handlers["a.Service"]["One"].unary_unary)


def stopping(intake: Intake, server: Server, grace_s: float) -> "asyncio.Task[None]":
    return asyncio.ensure_future(intake.stop(cast(Any, server), grace_s))


async def test_call_that_comes_during_the_stop_is_answered_after_it_was_told() -> None:
    events: list[str] = []
    intake, server = Intake(), Server(events)
    ask = behind(intake, events)
    await ask("before", Call())

    stop = stopping(intake, server, 10.0)
    await asyncio.sleep(0)
    answer = await ask("during", Call())
    await stop

    assert answer == "during"
    assert events == ["before", "stop", "during"]


async def test_call_that_ends_during_the_stop_is_answered_after_it_was_told() -> None:
    events: list[str] = []
    intake = Intake()
    ask = behind(intake, events)
    asking = asyncio.ensure_future(ask("in progress", Call()))

    stop = stopping(intake, Server(events), 10.0)
    asking.add_done_callback(lambda _: events.append("answered"))
    await asyncio.gather(asking, stop)

    assert events == ["in progress", "stop", "answered"]


async def test_server_stops_although_calls_go_on_coming() -> None:
    events: list[str] = []
    intake, server = Intake(), Server(events)
    ask = behind(intake, events)
    stop = stopping(intake, server, 10.0)
    await asyncio.sleep(0)

    while not stop.done():
        await ask("hurried", Call(remaining_s=TICK_S / 2))  # so it is not held for long, and the next one comes

    assert server.grace_s == 10.0 - MOST_TICKS * TICK_S


async def test_call_in_a_hurry_keeps_half_of_its_time() -> None:
    events: list[str] = []
    intake = Intake()
    ask = behind(intake, events)
    stop = stopping(intake, Server(events), 10.0)
    await asyncio.sleep(0)

    await ask("hurried", Call(remaining_s=TICK_S))
    await stop

    assert events == ["hurried", "stop"]


async def test_stop_without_grace_holds_nothing() -> None:
    server = Server([])
    intake = Intake()

    stop = stopping(intake, server, 0.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert server.grace_s == 0.0
    await stop
