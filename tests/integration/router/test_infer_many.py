"""InferMany over real sockets, on both engines: each call is routed by itself, whatever else is on its stream."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc, opaque_pb2
from modelyard.type.v1 import error_pb2
from services.chassis.codec import seconds_from
from services.chassis.errors import from_rpc_error
from services.domain.errors import Draining, InvalidRequest, MalformedMessage, YardError
from tests.integration.router.zoo import typed
from tests.support.otlp import Sink, otlp_sink
from tests.support.ports import free_ports
from tests.support.services import Bench, ServiceProcess, eventually

INFER_MANY = "/modelyard.inference.v1.InferenceService/InferMany"
NO_MESSAGE = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
SOON_S = 30.0
"""What must come comes within this, on however busy a machine."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def sink() -> Iterator[tuple[Sink, str]]:
    """Where the routers send their spans."""
    with otlp_sink() as made:
        yield made


def a_router(yard: Bench, directory: Path, engine: str, sink: str) -> ServiceProcess:
    """One more router of the yard."""
    (port,) = free_ports(1)
    return ServiceProcess(
        "router",
        port,
        directory / f"{engine}.log",
        *("--registry", yard.registry.address, "--snapshot", str(directory / f"{engine}.binpb"), "--engine", engine),
        *("--otlp-endpoint", sink, "--trace-ratio", "0"),
    )


async def start(router: ServiceProcess) -> None:
    """Start it, and wait until it routes to both hosts."""
    await router.start()

    async def knows_hosts() -> bool:
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                explained = await stub.Explain(pb.ExplainRequest(request=typed()), timeout=5.0)
            except grpc.aio.AioRpcError:
                return False
            return len(explained.decision.candidates[0].hosts) == 2

    await eventually(knows_hosts, "the router knowing the hosts")


@pytest.fixture(scope="module", params=["aio", "native"])
def router(
    yard: Bench, sink: tuple[Sink, str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """A router on either engine."""
    process = a_router(yard, tmp_path_factory.mktemp("router"), request.param, sink[1])
    try:
        asyncio.run(start(process))
        yield process
    finally:
        process.stop()


@asynccontextmanager
async def channel_to(router: ServiceProcess) -> AsyncIterator[grpc.aio.Channel]:
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(router.address, options=options) as opened:
        yield opened


@pytest.fixture
async def channel(router: ServiceProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A caller's channel to the router."""
    async with channel_to(router) as opened:
        yield opened


class Stream:
    """A stream, as its caller has it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        timeout_s: float | None = 60.0,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.call = stub.InferMany(timeout=timeout_s, metadata=metadata)

    async def send(self, *calls: pb.ManyCall, cancels: tuple[int, ...] = ()) -> None:
        """Send a message."""
        await self.call.write(pb.InferManyRequest(calls=calls, cancels=cancels))

    async def read(self) -> pb.InferManyResponse | None:
        """The next message; None at the end of the stream."""
        async with asyncio.timeout(SOON_S):
            message = await self.call.read()
        return message if isinstance(message, pb.InferManyResponse) else None

    async def results(self, count: int) -> dict[int, pb.ManyResult]:
        """The next results by tag, once so many have come."""
        found: dict[int, pb.ManyResult] = {}
        while len(found) < count:
            message = await self.read()
            assert message is not None, f"the stream ended with {len(found)} of {count} results"
            for result in message.results:
                assert result.tag not in found
                found[result.tag] = result
        return found

    async def end(self) -> tuple[dict[int, pb.ManyResult], YardError | None]:
        """The results until the end of the stream, and what that was; None is OK."""
        found: dict[int, pb.ManyResult] = {}
        try:
            while (message := await self.read()) is not None:
                for result in message.results:
                    assert result.tag not in found
                    found[result.tag] = result
        except grpc.aio.AioRpcError as error:
            return found, from_rpc_error(error)
        assert await self.call.code() is grpc.StatusCode.OK
        return found, None


def a_call(
    tag: int, name: str = "echo", *, timeout_s: float | None = None, traceparent: str = "", rows: int = 1
) -> pb.ManyCall:
    """A call that is answered with its own tag."""
    values = np.full((rows, 4), tag, np.float32)
    request = pb.InferRequest(model_name=name, id=f"call-{tag}", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    call = pb.ManyCall(tag=tag, request=request, traceparent=traceparent)
    if timeout_s is not None:
        call.timeout.FromNanoseconds(round(timeout_s * 1e9))
    return call


def check_own(results: dict[int, pb.ManyResult]) -> None:
    """Each result is an answer, and its own call's."""
    for tag, result in results.items():
        assert not result.HasField("failure"), result.failure
        assert result.response.id == f"call-{tag}"
        values = np.frombuffer(result.response.raw_output_contents[0], np.float32)
        assert set(values.tolist()) == {float(tag)}


def why(result: pb.ManyResult) -> tuple[int, str]:
    """Status and reason of a failure."""
    assert not result.HasField("response")
    return result.failure.code, error_pb2.ErrorReason.Name(result.failure.reason).removeprefix("ERROR_REASON_")


async def statistics(yard: Bench, name: str) -> tuple[int, int]:
    """Calls of a model that all hosts have answered, and that they have dropped."""
    success = dropped = 0
    for host in yard.hosts.values():
        async with grpc.aio.insecure_channel(host.address) as to_host:
            stub = host_pb2_grpc.ModelHostServiceStub(to_host)
            answer = await stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10.0)
            for done in answer.statistics:
                if done.key.model == name:
                    success += done.success_count
                    dropped += done.dropped_count
    return success, dropped


async def idle(yard: Bench, name: str = "slow") -> None:
    """Wait until no host has calls of a model."""

    async def nothing() -> bool:
        return await held(yard, name) == 0

    await eventually(nothing, f"hosts idle of {name}", SOON_S)


async def held(yard: Bench, name: str = "slow") -> int:
    """Calls of a model that wait or run on the hosts."""
    total = 0
    for host in yard.hosts.values():
        async with grpc.aio.insecure_channel(host.address) as to_host:
            stub = host_pb2_grpc.ModelHostServiceStub(to_host)
            answer = await stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10.0)
            total += sum(load.queued + load.running for load in answer.load.models if load.key.model == name)
    return total


# --- calls and results -----------------------------------------------------------------------------


async def test_hundreds_of_calls_of_every_form_each_get_their_own_answer_and_decision(
    channel: grpc.aio.Channel,
) -> None:
    chance = random.Random(7)
    calls: dict[int, tuple[pb.ManyCall, np.ndarray[tuple[int, ...], np.dtype[np.float32]], bool]] = {}
    for tag in chance.sample(range(1 << 40), 600):
        name, rows, raw = chance.choice(["echo", "embed", "wide"]), chance.randint(1, 4), chance.random() < 0.7
        values = np.array([[chance.random() for _ in range(4)] for _ in range(rows)], np.float32)
        request = pb.InferRequest(
            model_name=name, id="i" * chance.randint(0, 3) and f"{'i' * chance.randint(1, 9)}{tag}"
        )
        tensor = request.inputs.add(name="x", datatype="FP32", shape=values.shape)
        if raw:
            request.raw_input_contents.append(values.tobytes())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
        calls[tag] = (pb.ManyCall(tag=tag, request=request), values, raw)
    stream, waiting = Stream(channel), [call for call, _, _ in calls.values()]

    async def send() -> None:
        while waiting:
            size = chance.randint(1, 60)
            portion, waiting[:] = waiting[:size], waiting[size:]
            await stream.send(*portion)
        await stream.call.done_writing()

    sending = asyncio.ensure_future(send())
    results, end = await stream.end()
    await sending

    assert end is None
    assert sorted(results) == sorted(calls)
    for tag, result in results.items():
        call, values, raw = calls[tag]
        answer, decision = result.response, result.response.decision
        if raw:
            came = np.frombuffer(answer.raw_output_contents[0], np.float32)
        else:
            came = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
        assert np.array_equal(came.reshape(tuple(answer.outputs[0].shape)), values)
        assert answer.id == decision.request_id
        assert answer.id == call.request.id or (not call.request.id and answer.id)
        assert (decision.route, decision.model) == (call.request.model_name, answer.model_name)
        assert [attempt.status for attempt in decision.attempts][-1] == "OK"
        assert decision.attempts[-1].host == decision.host
        assert 0.0 < seconds_from(decision.stages.total) <= seconds_from(decision.deadline)
    decisions = [result.response.decision for result in results.values()]
    assert {decision.host for decision in decisions} <= {"host-0", "host-1"}  # a busy machine's may be left alone
    assert len({decision.request_id for decision in decisions}) == 600
    assert max(decision.batch_size for decision in decisions) > 1


async def test_what_is_wrong_with_a_call_fails_that_call_alone(channel: grpc.aio.Channel) -> None:
    wrong, wish = a_call(3), a_call(5, "embed")
    wrong.request.inputs[0].shape[:] = [1, 3]
    wish.request.route.min_quality = 0.99
    stream = Stream(channel)

    await stream.send(a_call(1), a_call(2, "ekho"), wrong, a_call(4, "nowhere"), wish, pb.ManyCall(tag=6), a_call(7))
    await stream.call.done_writing()
    results, end = await stream.end()

    assert end is None
    check_own({tag: results[tag] for tag in (1, 7)})
    assert {tag: why(result) for tag, result in results.items() if tag not in (1, 7)} == {
        2: (5, "MODEL_NOT_FOUND"),
        3: (3, "INVALID_REQUEST"),
        4: (14, "NO_READY_HOST"),
        5: (9, "NO_CANDIDATE"),
        6: (3, "INVALID_REQUEST"),
    }
    assert "echo" in results[2].failure.message
    assert [violation.field for violation in results[3].failure.field_violations] == ["inputs[0]"]
    assert results[4].failure.HasField("retry_after")


async def test_a_request_that_is_no_message_fails_its_call_alone(channel: grpc.aio.Channel) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, pb.InferManyResponse] = channel.stream_stream(
        INFER_MANY, response_deserializer=pb.InferManyResponse.FromString
    )
    bad = opaque_pb2.OpaqueInferManyRequest()
    for tag, size in ((2, 0), (3, 50_000)):
        bad.calls.add(tag=tag, request=bytes(size) + NO_MESSAGE)
    call = method(timeout=20.0)

    await call.write(pb.InferManyRequest(calls=[a_call(1)]).SerializeToString() + bad.SerializeToString())
    await call.done_writing()
    results = {result.tag: result async for message in call for result in message.results}

    check_own({1: results.pop(1)})
    assert {tag: why(result) for tag, result in results.items()} == {
        2: (3, "MALFORMED_MESSAGE"),
        3: (3, "MALFORMED_MESSAGE"),
    }
    assert all("are not a modelyard.inference.v1.InferRequest" in result.failure.message for result in results.values())


async def test_an_answer_that_no_message_has_room_for_fails_its_call_alone(channel: grpc.aio.Channel) -> None:
    values = bytes(64 * MIB - 2048)  # with the Decision, which has this id once more, over 64 MiB
    request = pb.InferRequest(model_name="wide", id="\N{SLIGHTLY SMILING FACE}" * 256, raw_input_contents=[values])
    request.inputs.add(name="x", datatype="FP32", shape=[1, len(values) // 4])
    request.route.explain = True
    stream = Stream(channel)

    await stream.send(pb.ManyCall(tag=1, request=request))
    await stream.send(a_call(2))
    results = await stream.results(2)
    await stream.send(a_call(3))
    results |= await stream.results(1)
    stream.call.cancel()

    assert why(results.pop(1)) == (13, "MODEL_FAILED")
    check_own(results)


async def test_bytes_that_are_no_message_end_the_stream(channel: grpc.aio.Channel) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(INFER_MANY)
    call = method(timeout=20.0)
    await call.write(NO_MESSAGE)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert type(from_rpc_error(caught.value)) is MalformedMessage


async def test_a_message_of_more_calls_than_a_router_holds_is_answered_whole(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)

    await stream.send(*(a_call(tag) for tag in range(6000)))
    await stream.call.done_writing()
    results, end = await stream.end()

    assert end is None
    assert len(results) == 6000
    check_own(results)


async def test_a_stream_without_calls_ends_in_good_order(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)

    await stream.send()
    await stream.call.done_writing()

    assert await stream.end() == ({}, None)


# --- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [0.050, 0.0, -1.0])
async def test_a_call_past_its_own_timeout_fails_alone(channel: grpc.aio.Channel, timeout_s: float) -> None:
    stream = Stream(channel)

    await stream.send(a_call(1, "slow", timeout_s=timeout_s), a_call(2, "echo", timeout_s=20.0))
    results = await stream.results(2)
    stream.call.cancel()

    check_own({2: results[2]})
    assert why(results[1]) in ((4, "BUDGET_EXHAUSTED"), (8, "OVERLOADED"))


async def test_each_call_has_its_own_timeout_else_the_rest_of_the_streams_else_the_default(
    channel: grpc.aio.Channel,
) -> None:
    limited, unlimited = Stream(channel, timeout_s=3.5), Stream(channel, timeout_s=None)

    await limited.send(a_call(1, "quick"), a_call(2, "quick", timeout_s=1.5), a_call(3, "quick", timeout_s=100.0))
    await unlimited.send(a_call(4, "quick"), a_call(5, "quick", timeout_s=1.5))
    results = await limited.results(3) | await unlimited.results(2)
    limited.call.cancel()
    unlimited.call.cancel()

    told = {tag: result.response.decision for tag, result in results.items()}
    assert {tag: pb.DeadlineSource.Name(each.deadline_source) for tag, each in told.items()} == {
        1: "DEADLINE_SOURCE_CALLER",
        2: "DEADLINE_SOURCE_CALLER",
        3: "DEADLINE_SOURCE_ROUTE_MAXIMUM",
        4: "DEADLINE_SOURCE_ROUTE_DEFAULT",
        5: "DEADLINE_SOURCE_CALLER",
    }
    deadlines = {tag: seconds_from(each.deadline) for tag, each in told.items()}
    assert 0.0 < deadlines.pop(1) < 3.6  # gRPC rounds it up on its way
    assert deadlines == {2: 1.5, 3: 4.0, 4: 2.0, 5: 1.5}


# --- calls that nobody waits for -------------------------------------------------------------------


async def test_cancelled_calls_have_no_result_and_leave_the_hosts(channel: grpc.aio.Channel, yard: Bench) -> None:
    await idle(yard)
    stream = Stream(channel)
    _, before = await statistics(yard, "slow")

    await stream.send(*(a_call(tag, "slow") for tag in range(1, 11)))
    await stream.send(a_call(11), cancels=(3, 4, 5, 6, 7, 8, 9, 10, 99))
    await stream.call.done_writing()
    results, end = await stream.end()

    assert end is None
    check_own(results)
    assert sorted(results) == [1, 2, 11]

    async def all_dropped() -> bool:
        return (await statistics(yard, "slow"))[1] - before >= 6  # one or two were being computed

    await eventually(all_dropped, "the cancelled calls dropped", SOON_S)


async def test_cancels_are_taken_from_a_stream_with_more_calls_than_may_begin(channel: grpc.aio.Channel) -> None:
    stream, tags = Stream(channel), range(1, 2001)

    for start in range(0, len(tags), 100):  # of 200 ms each: over a minute and a half on two hosts
        await stream.send(*(a_call(tag, "held", timeout_s=290.0) for tag in tags[start : start + 100]))
    await stream.send(a_call(3000), cancels=tuple(tags))
    await stream.call.done_writing()
    results, end = await stream.end()

    assert end is None
    check_own(results)
    assert 3000 in results
    assert len(results) < 200


async def test_a_stream_that_is_killed_takes_its_calls_on_the_hosts_along(
    channel: grpc.aio.Channel, yard: Bench
) -> None:
    await idle(yard)
    stream = Stream(channel)
    success, _ = await statistics(yard, "slow")
    await stream.send(*(a_call(tag, "slow") for tag in range(1, 41)))

    async def there() -> bool:
        return await held(yard) > 20

    await eventually(there, "the calls on the hosts", SOON_S)
    stream.call.cancel()
    await idle(yard)

    assert (await statistics(yard, "slow"))[0] - success < 30


# --- tags ------------------------------------------------------------------------------------------


async def test_a_tag_in_use_ends_the_stream_and_its_calls(channel: grpc.aio.Channel, yard: Bench) -> None:
    await idle(yard)
    stream = Stream(channel)
    success, _ = await statistics(yard, "slow")

    await stream.send(a_call(1), *(a_call(tag, "slow") for tag in range(2, 42)), a_call(5))
    results, end = await stream.end()
    await idle(yard)

    assert type(end) is InvalidRequest
    assert [fault.path for fault in end.faults] == ["calls.tag"]
    assert "5" in end.message
    check_own(results)
    assert (await statistics(yard, "slow"))[0] - success < 30


async def test_a_tag_is_free_again_once_its_result_has_come(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)

    for number in range(50):
        call = a_call(7, "ekho" if number % 5 == 4 else "echo")
        call.request.id = f"call-{number}"
        await stream.send(call)
        result = (await stream.results(1))[7]
        if number % 5 == 4:
            assert why(result) == (5, "MODEL_NOT_FOUND")
        else:
            assert result.response.id == f"call-{number}"
    await stream.call.done_writing()

    assert await stream.end() == ({}, None)


async def test_a_tag_is_free_again_once_its_call_is_cancelled(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)
    await stream.send(a_call(7, "slow"))

    again = a_call(7, "echo")
    again.request.id = "call-again"
    await stream.send(again, cancels=(7,))
    await stream.call.done_writing()
    results, end = await stream.end()

    assert end is None
    assert [result.response.id for result in results.values()] == ["call-again"]


# --- traces ----------------------------------------------------------------------------------------

CALLER = "b7ad6b7169203331"


def traceparent(number: int, *, sampled: bool) -> str:
    return f"00-{number:032x}-{CALLER}-0{int(sampled)}"


async def test_each_call_without_a_trace_begins_one_of_its_own(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)

    await stream.send(*(a_call(tag) for tag in range(50)))
    await stream.send(*(a_call(tag) for tag in range(50, 100)))
    results = await stream.results(100)
    stream.call.cancel()

    assert len({result.response.decision.trace_id for result in results.values()}) == 100


async def test_a_calls_own_trace_goes_before_the_streams(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel, metadata=(("traceparent", traceparent(0xABC, sampled=False)),))

    await stream.send(
        a_call(1), a_call(2, traceparent=traceparent(0xDEF, sampled=False)), a_call(3, traceparent="nonsense")
    )
    results = await stream.results(3)
    stream.call.cancel()

    traces = {tag: int(result.response.decision.trace_id, 16) for tag, result in results.items()}
    assert traces == {1: 0xABC, 2: 0xDEF, 3: 0xABC}


async def test_a_sampled_call_is_a_span_of_its_callers_trace_and_others_are_not(
    channel: grpc.aio.Channel, sink: tuple[Sink, str]
) -> None:
    chance, stream = random.SystemRandom(), Stream(channel)
    seen, silent = ([chance.getrandbits(120) for _ in range(3)] for _ in range(2))

    await stream.send(
        *(a_call(n, traceparent=traceparent(trace, sampled=True)) for n, trace in enumerate(seen)),
        *(a_call(10 + n, traceparent=traceparent(trace, sampled=False)) for n, trace in enumerate(silent)),
        a_call(20, "ekho", traceparent=traceparent(seen[0], sampled=True)),
    )
    await stream.call.done_writing()
    results, _ = await stream.end()
    assert why(results.pop(20)) == (5, "MODEL_NOT_FOUND")
    check_own(results)

    def spans() -> list[tuple[int, str, str, int]]:
        return sorted(
            (int(span.trace_id.hex(), 16), span.parent_span_id.hex(), span.name, span.status.code)
            for _, span in sink[0].spans
            if span.name.endswith("/InferMany")
        )

    wanted = sorted(
        (trace, CALLER, "modelyard.inference.v1.InferenceService/InferMany", code)
        for trace, code in [*((trace, 0) for trace in seen), (seen[0], 2)]
    )

    async def came() -> bool:
        return [span for span in spans() if span[0] in seen] == wanted

    await eventually(came, "the spans of the sampled calls", SOON_S)
    assert not [span for span in spans() if span[0] in silent]


# --- callers that do not read ----------------------------------------------------------------------

CALLS = 1500
ROW = 15_000
"""60 KB in and out: 90 MB each way."""


async def test_a_caller_that_does_not_read_is_not_read_from_and_loses_nothing(
    router: ServiceProcess, channel: grpc.aio.Channel, yard: Bench
) -> None:
    stream, process = Stream(channel), psutil.Process(router.pid)
    await idle(yard, "wide")
    before, _ = await statistics(yard, "wide")

    async def write() -> None:
        for tag in range(CALLS):
            request = pb.InferRequest(model_name="wide", id=f"call-{tag}")
            request.inputs.add(name="x", datatype="FP32", shape=[1, ROW])
            request.raw_input_contents.append(np.full(ROW, tag, np.float32).tobytes())
            await stream.send(pb.ManyCall(tag=tag, request=request))
            if tag % 50 == 0:  # so that it is unread results that pile up, and not calls
                await idle(yard, "wide")

    before_bytes = process.memory_info().rss
    writing = asyncio.ensure_future(write())
    answered, standing = 0, 0
    while standing < 20 and not writing.done():  # until the router had its turns, and did nothing more
        now = (await statistics(yard, "wide"))[0] - before
        standing = standing + 1 if now == answered > 0 else 0
        answered = now
        await stub_answers(channel)
    grown_bytes = process.memory_info().rss - before_bytes

    assert not writing.done()
    assert answered < CALLS / 2
    assert grown_bytes < 60 * MIB
    results = await stream.results(CALLS)
    await writing
    stream.call.cancel()
    check_own(results)
    assert len(results) == CALLS


async def stub_answers(channel: grpc.aio.Channel) -> None:
    """Other calls on the connection go on."""
    await inference_pb2_grpc.InferenceServiceStub(channel).Infer(typed(), timeout=SOON_S)


# --- the end of the router -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["aio", "native"])
async def test_a_router_that_stops_finishes_open_calls_and_ends_its_streams_with_draining(
    yard: Bench, sink: tuple[Sink, str], tmp_path: Path, engine: str
) -> None:
    router = a_router(yard, tmp_path, engine, sink[1])
    try:
        await start(router)
        await idle(yard)
        async with channel_to(router) as channel:
            busy, quiet, endless = Stream(channel), Stream(channel), Stream(channel)
            await quiet.send(a_call(1))
            check_own(await quiet.results(1))
            await busy.send(*(a_call(tag, "slow") for tag in range(1, 13)), a_call(13))  # 1.2 s on two hosts
            results = await busy.results(1)
            await endless.send(*(a_call(tag) for tag in range(60_000)))

            router.send(signal.SIGTERM)
            (endless_results, endless_end), (quiet_results, quiet_end), (more, end) = await asyncio.gather(
                endless.end(), quiet.end(), busy.end()
            )

        assert [type(each) for each in (end, quiet_end, endless_end)] == [Draining] * 3
        results |= more
        check_own(results)
        assert sorted(results) == list(range(1, 14))
        assert quiet_results == {}
        check_own(endless_results)
        assert 0 < len(endless_results) < 60_000, "what was not begun has no result"
        assert await asyncio.to_thread(psutil.Process(router.pid).wait, SOON_S) == 0
    finally:
        router.stop()
