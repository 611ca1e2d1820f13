"""Answers in pieces: when another host is tried, and messages that are framed without being parsed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from modelyard.host.v1 import host_pb2
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.encoding import Buffer
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.domain.errors import BudgetExhausted, Draining, HostUnavailable, Internal, ModelFailed, YardError
from services.domain.model import ModelKey
from services.domain.service_class import ORDINARY, ServiceClass
from services.policy import scoring
from services.policy.admission import DeadlineSource
from services.router.attempting import AttemptFailed, HostAnswer
from services.router.decision import Decision
from services.router.frames import Payload, open_response
from services.router.host_client import HostClient
from services.router.pipeline import Answer
from services.router.streaming import Finished, Streamed, last_message, piece_message
from tests.fakes.objects import a_host, hosted
from tests.unit.router.yards import World, a_call, digits

KEY = ModelKey("tiny", "1.0.0")
REQUEST = pb.InferRequest(model_name="tiny", id="r")


def a_piece(text: str) -> pb.InferResponse:
    response = pb.InferResponse(model_name="tiny", raw_output_contents=[text.encode()])
    response.outputs.add(name="text", datatype="BYTES", shape=[1])
    return response


def a_world() -> World:
    return World(digits(), [a_host("h0", hosted("digits")), a_host("h1", hosted("digits"))])


class TestAttempts:
    @pytest.mark.parametrize("error", [HostUnavailable("gone"), Draining("draining"), ModelFailed("failed")])
    async def test_before_the_first_piece_another_host_is_tried(self, error: YardError) -> None:
        world = a_world()
        world.hosts.fail("h0", error)
        world.hosts.fail("h1", error)

        with pytest.raises(type(error)):
            await world.decide(a_call())

        assert {host for host, _ in world.hosts.calls} == {"h0", "h1"}

    @pytest.mark.parametrize("error", [HostUnavailable("gone"), Draining("draining"), ModelFailed("failed")])
    async def test_after_it_none_is(self, error: YardError) -> None:
        world = a_world()
        for host in ("h0", "h1"):
            world.hosts.fail(host, error)
            world.hosts.begun.add(host)

        with pytest.raises(type(error)) as caught:
            await world.decide(a_call())

        assert len(world.hosts.calls) == 1
        assert caught.value.metadata["gave_up"] == "a part of the answer had been sent"

    async def test_a_deadline_that_ends_a_stream_speaks_not_against_its_host(self) -> None:
        world = a_world()

        def late() -> YardError:
            world.clock.advance(60.0)
            return BudgetExhausted("late")

        for host in ("h0", "h1"):
            world.hosts.behaviour[host] = late
            world.hosts.begun.add(host)

        with pytest.raises(BudgetExhausted):
            await world.decide(a_call())

        snapshot = world.catalog.snapshot()
        assert snapshot is not None
        states = world.pipeline._book.states(snapshot.destination("digits").options[0])
        assert [scoring.penalty_s(state, world.clock.now_s()) for state in states] == [0.0, 0.0]


class TestMessages:
    def test_a_piece_is_taken_out_of_its_frame_and_put_into_another(self) -> None:
        raw = host_pb2.ExecuteStreamResponse(response=a_piece("yard")).SerializeToString()

        response, rest = open_response(raw, host_pb2.ExecuteStreamResponse)

        assert not rest.HasField("totals")
        message = pb.InferStreamResponse.FromString(piece_message(response).SerializeToString())
        assert message == pb.InferStreamResponse(response=a_piece("yard"))

    def test_a_frame_in_another_order_is_read_as_well(self) -> None:
        response = host_pb2.ExecuteStreamResponse(response=a_piece("yard")).SerializeToString()
        totals = host_pb2.ExecuteStreamResponse(totals=pb.StreamTotals(tokens=3)).SerializeToString()

        inner, rest = open_response(totals + response, host_pb2.ExecuteStreamResponse)

        assert pb.InferResponse.FromString(bytes(inner)) == a_piece("yard")
        assert rest.totals.tokens == 3

    def test_the_last_message_has_decision_and_totals(self) -> None:
        decision = Decision("r", "id", "", 1.0, DeadlineSource.CALLER, "single", 7)
        finished = Finished(a_piece("yard").SerializeToString(), pb.StreamTotals(tokens=3))

        message = pb.InferStreamResponse.FromString(last_message(Answer(finished, decision)).SerializeToString())

        assert message.totals.tokens == 3
        assert message.response.decision.registry_revision == 7
        message.response.ClearField("decision")
        assert message.response == a_piece("yard")


class StreamHost:
    """A host over real gRPC that says what the test gave it, and then fails or ends."""

    def __init__(self) -> None:
        self.says: list[host_pb2.ExecuteStreamResponse] = []
        self.fails: grpc.StatusCode | None = None
        self.asked: list[host_pb2.ExecuteStreamRequest] = []
        self.hangs = False
        self.left = asyncio.Event()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler: Any = grpc.unary_stream_rpc_method_handler(
            self.execute,
            host_pb2.ExecuteStreamRequest.FromString,
            host_pb2.ExecuteStreamResponse.SerializeToString,
        )
        name = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ExecuteStream": handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(0)

    async def execute(self, request: host_pb2.ExecuteStreamRequest, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        try:
            for message in self.says:
                yield message
            if self.hangs:
                await asyncio.Event().wait()
            if self.fails is not None:
                await context.abort(self.fails, "as the test says")
        finally:
            self.left.set()


@pytest.fixture
async def host() -> AsyncIterator[StreamHost]:
    made = StreamHost()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client() -> AsyncIterator[HostClient]:
    telemetry = Telemetry(service="router", instance="test", otlp_endpoint=None, sample_ratio=0.0)
    made = HostClient(telemetry=telemetry, clock=SystemClock(), on_lost=lambda _: None)
    yield made
    await made.close()


async def execute(
    client: HostClient,
    host: StreamHost,
    pieces: list[bytes],
    *,
    service_class: ServiceClass = ORDINARY,
    came: asyncio.Event | None = None,
) -> HostAnswer:
    async def piece(response: Buffer) -> None:
        pieces.append(bytes(response))
        if came is not None:
            came.set()

    record = a_host("h0", address=f"127.0.0.1:{host.port}")
    payload = Streamed(Payload(REQUEST.SerializeToString()), piece)
    return await client.execute(record, KEY, payload, service_class=service_class, timeout_s=10.0)


LAST = host_pb2.ExecuteStreamResponse(
    response=a_piece("c"),
    totals=pb.StreamTotals(tokens=3, beside=2),
    load=resources_pb2.HostLoad(host_id="h0", sequence=4),
)


class TestHop:
    async def test_pieces_are_handed_on_and_the_last_message_is_the_answer(
        self, client: HostClient, host: StreamHost
    ) -> None:
        host.says = [host_pb2.ExecuteStreamResponse(response=a_piece(text)) for text in "ab"] + [LAST]
        pieces: list[bytes] = []

        answer = await execute(client, host, pieces, service_class=ServiceClass(band=2))

        assert [pb.InferResponse.FromString(piece) for piece in pieces] == [a_piece("a"), a_piece("b")]
        assert isinstance(answer.payload, Finished)
        assert pb.InferResponse.FromString(bytes(answer.payload.response)) == a_piece("c")
        assert (answer.payload.totals.tokens, answer.batch_size) == (3, 2)
        assert answer.load is not None
        assert answer.load.sequence == 4
        (asked,) = host.asked
        assert (asked.key.model, asked.request, asked.service_class.band) == ("tiny", REQUEST, 2)

    @pytest.mark.parametrize("begun", [False, True])
    async def test_a_failure_says_whether_a_piece_had_come(
        self, client: HostClient, host: StreamHost, begun: bool
    ) -> None:
        host.says = [host_pb2.ExecuteStreamResponse(response=a_piece("a"))] * begun
        host.fails = grpc.StatusCode.UNAVAILABLE

        with pytest.raises(AttemptFailed) as caught:
            await execute(client, host, [])

        assert caught.value.begun == begun
        assert isinstance(caught.value.error, HostUnavailable)

    async def test_a_stream_without_an_end_is_no_answer(self, client: HostClient, host: StreamHost) -> None:
        host.says = [host_pb2.ExecuteStreamResponse(response=a_piece("a"))]

        with pytest.raises(AttemptFailed) as caught:
            await execute(client, host, [])

        assert isinstance(caught.value.error, Internal)
        assert caught.value.begun

    async def test_who_goes_away_takes_the_call_on_the_host_along(self, client: HostClient, host: StreamHost) -> None:
        host.says = [host_pb2.ExecuteStreamResponse(response=a_piece("a"))]
        host.hangs = True
        came = asyncio.Event()
        call = asyncio.ensure_future(execute(client, host, [], came=came))
        await asyncio.wait_for(came.wait(), 10)

        call.cancel()

        await asyncio.wait_for(host.left.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await call
