"""One InferMany stream at its limit: who waits, how much waits, and what still gets through."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import opaque_pb2
from services.chassis.shared_counts import LocalCounts
from services.chassis.telemetry import Telemetry
from services.domain.clock import ManualClock
from services.domain.errors import Draining, InvalidRequest
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.domain.rng import KeyedRng
from services.domain.service_class import ServiceClass
from services.router.attempting import HostAnswer
from services.router.composing import Composer
from services.router.frames import Payload
from services.router.host_picking import Fleet
from services.router.many import CALL_BYTES, MOST_OPEN, WAITING_BYTES, Context, Many
from services.router.pipeline import Limits, Pipeline
from services.router.servicer import Calls, encoded, request_ids
from tests.fakes.objects import a_host, hosted
from tests.unit.router.yards import FixedCatalog, Notes, a_snapshot, digits

SOON_S = 30.0
"""What must come comes within this, on however busy a machine."""
TURNS = 500
"""Turns of the loop after which nothing more happens by itself."""


class HeldHosts:
    """Hosts that answer once they may."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may = asyncio.Event()

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        assert isinstance(payload, Payload)
        name = pb.InferRequest.FromString(payload.raw).id
        self.begun.append(int(name))
        await self.may.wait()
        return HostAnswer(pb.InferResponse(id=name).SerializeToString(), 0.0, 0.0, 1, None)


class Caller:
    """The other side of a stream; stands in for its ServicerContext."""

    def __init__(self) -> None:
        self.results: dict[int, pb.ManyResult] = {}
        self.read = 0
        """Messages that the router has read."""
        self._sent: list[pb.InferManyRequest] = []
        self._more = asyncio.Event()
        self._ended = False

    def send(self, calls: Iterable[int] = (), *, cancels: Iterable[int] = (), padding: int = 0) -> None:
        self._sent.append(pb.InferManyRequest(calls=[a_call(tag, padding) for tag in calls], cancels=cancels))
        self._more.set()

    def end(self) -> None:
        self._ended = True
        self._more.set()

    async def messages(self) -> AsyncIterator[opaque_pb2.OpaqueInferManyRequest]:
        while True:
            while self.read < len(self._sent):
                message = self._sent[self.read]
                self.read += 1
                yield opaque_pb2.OpaqueInferManyRequest.FromString(message.SerializeToString())
            if self._ended:
                return
            self._more.clear()
            await self._more.wait()

    async def write(self, message: opaque_pb2.OpaqueInferManyResponse) -> None:
        for result in pb.InferManyResponse.FromString(message.SerializeToString()).results:
            assert result.tag not in self.results
            self.results[result.tag] = result

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float:
        return 300.0


class Running:
    """A stream that is served."""

    def __init__(self) -> None:
        self.hosts, self.caller = HeldHosts(), Caller()
        pipeline = Pipeline(
            catalog=FixedCatalog(a_snapshot(digits(), [a_host("h1", hosted("digits"))])),
            hosts=self.hosts,
            feedback=Notes(),
            clock=ManualClock(),
            rng=KeyedRng(0),
            fleet=Fleet(routers=1, zone="", zone_way_s=0.0),
            limits=Limits(most_in_flight=4 * MOST_OPEN, reserve_s=0.0, retry_share=1.0, money_share=1.0),
            counts=LocalCounts(),
            composes=Composer(),
        )
        telemetry = Telemetry(service="test", instance="test-0", otlp_endpoint="", sample_ratio=0.0)
        self.many = Many(calls=Calls(pipeline=pipeline, ids=request_ids()), telemetry=telemetry, encode=encoded)
        context = cast("Context", self.caller)
        self.serving = asyncio.ensure_future(self.many.serve(self.caller.messages(), context))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not done():  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0)

    async def settled(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    stream = Running()
    try:
        yield stream
    finally:
        stream.serving.cancel()
        await asyncio.gather(stream.serving, return_exceptions=True)


def a_call(tag: int, padding: int = 0) -> pb.ManyCall:
    request = pb.InferRequest(model_name="digits", id=str(tag), raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    if padding:
        request.parameters["padding"].string_param = "-" * padding
    return pb.ManyCall(tag=tag, request=request)


async def test_a_cancel_is_taken_at_the_limit_and_makes_room_for_those_that_wait_longest() -> None:
    async with running() as stream:
        stream.caller.send(range(MOST_OPEN + 300))
        stream.caller.send(range(5000, 5200))
        await stream.until(lambda: len(stream.hosts.begun) == MOST_OPEN)
        stream.caller.send(cancels=range(10))
        await stream.settled()

        assert stream.hosts.begun == list(range(MOST_OPEN + 10))


async def test_a_waiting_call_that_is_cancelled_never_begins_and_its_tag_is_free_again() -> None:
    async with running() as stream:
        stream.caller.send(range(MOST_OPEN + 3))
        stream.caller.send(cancels=[MOST_OPEN, MOST_OPEN + 2])
        stream.caller.send([MOST_OPEN + 2])
        await stream.settled()
        stream.hosts.may.set()
        stream.caller.end()
        await stream.serving

        assert stream.hosts.begun == [*range(MOST_OPEN), MOST_OPEN + 1, MOST_OPEN + 2]
        assert sorted(stream.caller.results) == stream.hosts.begun


async def test_the_tag_of_a_waiting_call_is_in_use() -> None:
    async with running() as stream:
        stream.caller.send(range(MOST_OPEN + 1))
        stream.caller.send([MOST_OPEN])

        with pytest.raises(InvalidRequest, match=str(MOST_OPEN)):
            await stream.serving


@pytest.mark.parametrize("padding", [0, 64 << 10])
async def test_what_waits_is_bounded_what_comes_behind_it_is_not_read_and_nothing_is_lost(padding: int) -> None:
    size = a_call(MOST_OPEN, padding).ByteSize() + CALL_BYTES
    fit = WAITING_BYTES // size
    count = MOST_OPEN + 2 * fit
    async with running() as stream:
        for tag in range(count):
            stream.caller.send([tag], padding=padding if tag >= MOST_OPEN else 0)
        stream.caller.end()
        await stream.until(lambda: len(stream.hosts.begun) == MOST_OPEN)
        await stream.settled()
        assert MOST_OPEN + 0.9 * fit < stream.caller.read < MOST_OPEN + fit + 3

        stream.hosts.may.set()
        await stream.serving

        assert stream.hosts.begun == list(range(count))
        assert len(stream.caller.results) == count


async def test_calls_that_begin_as_others_end_have_traces_of_their_own() -> None:
    async with running() as stream:
        stream.caller.send(range(2 * MOST_OPEN))
        await stream.until(lambda: len(stream.hosts.begun) == MOST_OPEN)
        stream.hosts.may.set()
        stream.caller.end()
        await stream.serving

    traces = {result.response.decision.trace_id for result in stream.caller.results.values()}
    assert len(traces) == 2 * MOST_OPEN


async def test_calls_that_wait_when_the_router_stops_do_not_begin() -> None:
    async with running() as stream:
        stream.caller.send(range(MOST_OPEN + 5))
        stream.caller.end()
        await stream.until(lambda: len(stream.hosts.begun) == MOST_OPEN)
        stream.many.wind_down()
        stream.hosts.may.set()

        with pytest.raises(Draining):
            await stream.serving

    assert sorted(stream.caller.results) == list(range(MOST_OPEN))
