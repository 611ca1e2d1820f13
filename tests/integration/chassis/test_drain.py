import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from services.chassis.channels import call, open_channel
from services.chassis.engines import EngineName, ServerLimits
from services.chassis.errors import from_rpc_error
from services.domain.errors import Draining, HostUnavailable, YardError
from tests.integration.chassis.conftest import Served, close, serve
from tests.integration.chassis.notes import Note, Stub

SENDERS = 4
CALLS_AT_LEAST = 50
HEALTH_EVERY_S = 0.05


@dataclass
class Tally:
    sent: int = 0
    lost: int = 0
    told: bool = False
    """Whether the senders know that the server takes no more calls."""


async def send(stub: Stub, tally: Tally) -> None:
    while not tally.told:
        tally.sent += 1
        try:
            await call(stub.One, Note(), timeout_s=10)
        except YardError:
            tally.lost += 1


async def ask_health(channel: grpc.aio.Channel, tally: Tally) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    while not tally.told:
        await asyncio.sleep(HEALTH_EVERY_S)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            tally.told = True
        else:
            tally.told = answer.status != health_pb2.HealthCheckResponse.SERVING


async def drained_under_load(lame_duck_s: float, engine: EngineName) -> Tally:
    served, tally = await serve(engine=engine), Tally()
    async with open_channel(served.address) as channel:
        senders = [asyncio.ensure_future(send(Stub(channel), tally)) for _ in range(SENDERS)]
        async with asyncio.timeout(30):
            while tally.sent < CALLS_AT_LEAST:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            asking = asyncio.ensure_future(ask_health(channel, tally))
            await served.server.drain(lame_duck_s=lame_duck_s)
            await asyncio.gather(asking, *senders)
    await served.channel.close()
    return tally


async def test_lame_duck_loses_no_call_of_callers_who_heed_health(engine: EngineName) -> None:
    tally = await drained_under_load(lame_duck_s=1.0, engine=engine)

    assert tally.sent >= CALLS_AT_LEAST
    assert tally.lost == 0


async def test_stop_without_lame_duck_loses_calls(engine: EngineName) -> None:
    """What the test above would look like with its defence removed."""
    tally = await drained_under_load(lame_duck_s=0.0, engine=engine)

    assert tally.lost > 0


async def asks_until_refused(ask: Callable[[], Awaitable[None]], codes: list[grpc.StatusCode]) -> None:
    while True:
        try:
            await ask()
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
            return


async def test_stop_breaks_off_no_call_of_callers_who_heed_nothing(engine: EngineName) -> None:
    """gRPC's own stop ends most of them as CANCELLED."""
    served = await serve(engine=engine)
    answered, codes = 0, list[grpc.StatusCode]()

    async def one() -> None:
        nonlocal answered
        await served.stub.One(Note(), timeout=10)
        answered += 1

    async def several() -> None:
        nonlocal answered
        assert [note.number async for note in served.stub.Repeat(Note(number=2), timeout=10)] == [0, 1]
        answered += 1

    callers = [asyncio.ensure_future(asks_until_refused(ask, codes)) for ask in [one, several] * SENDERS]
    async with asyncio.timeout(30):
        while answered < CALLS_AT_LEAST:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await served.server.drain(lame_duck_s=0.0)
        await asyncio.gather(*callers)
    await served.channel.close()

    assert codes == [grpc.StatusCode.UNAVAILABLE] * len(callers)


async def test_old_connections_are_replaced_without_losing_a_call() -> None:
    served, tally = await serve(ServerLimits(max_connection_age_s=0.3, max_connection_age_grace_s=5.0)), Tally()
    peers: set[str] = set()
    served.notes.on_call = lambda context: peers.add(context.peer())
    async with open_channel(served.address) as channel:
        senders = [asyncio.ensure_future(send(Stub(channel), tally)) for _ in range(SENDERS)]
        async with asyncio.timeout(60):
            while len(peers) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        tally.told = True
        await asyncio.gather(*senders)
    await close(served)

    assert tally.sent >= CALLS_AT_LEAST
    assert tally.lost == 0


async def refused(channel: grpc.aio.Channel) -> bool:
    try:
        await call(Stub(channel).One, Note(), timeout_s=5)
    except HostUnavailable:
        return True
    return False


async def test_call_in_progress_ends_well_after_the_server_has_stopped_to_listen(served: Served) -> None:
    waiting = asyncio.ensure_future(call(served.stub.One, Note(text="wait"), timeout_s=30))
    await served.notes.entered.wait()

    draining = asyncio.ensure_future(served.server.drain(lame_duck_s=0.0, grace_s=30.0))
    async with asyncio.timeout(20), open_channel(served.address) as late:
        while not await refused(late):
            pass
    served.notes.release.set()

    assert (await waiting).text == "wait"
    await draining


async def test_call_that_outlasts_the_grace_is_cut_as_unavailable(served: Served) -> None:
    waiting = asyncio.ensure_future(call(served.stub.One, Note(text="wait"), timeout_s=30))
    await served.notes.entered.wait()

    await served.server.drain(lame_duck_s=0.0, grace_s=0.01)

    with pytest.raises(HostUnavailable):
        await waiting
    await served.notes.was_cancelled.wait()


async def test_endless_stream_is_ended_as_draining_and_not_waited_for(served: Served) -> None:
    stream = served.stub.Follow(Note(), timeout=600)
    first = await stream.read()

    async with asyncio.timeout(30):  # far below the grace
        await served.server.drain(lame_duck_s=0.0, grace_s=300.0)

    assert first == Note(text="following")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert type(from_rpc_error(caught.value)) is Draining
    assert served.notes.was_cancelled.is_set()
    assert served.server.draining


async def test_endless_stream_is_ended_as_draining_in_the_middle_of_its_first_message(served: Served) -> None:
    writing = asyncio.Event()
    served.notes.on_call = lambda _: writing.set()
    stream = served.stub.Follow(Note(number=32 << 20), timeout=600)
    await writing.wait()

    async with asyncio.timeout(30):  # far below the grace
        draining = asyncio.ensure_future(served.server.drain(lame_duck_s=0.0, grace_s=300.0))
        first = await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        await draining

    assert isinstance(first, Note)
    assert len(first.text) > 32 << 20
    assert type(from_rpc_error(caught.value)) is Draining


async def test_endless_stream_that_comes_during_the_stop_is_refused_and_not_waited_for(served: Served) -> None:
    async with asyncio.timeout(30):  # far below the grace
        draining = asyncio.ensure_future(served.server.drain(lame_duck_s=0.0, grace_s=300.0))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Follow(Note(), timeout=600).read()
        await draining

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_server_that_has_drained_drains_again(engine: EngineName) -> None:
    served = await serve(engine=engine)
    await close(served)
    await served.server.drain(lame_duck_s=0.0)
