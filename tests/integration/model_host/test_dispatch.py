"""The host's side of Dispatch in a real process: what shares a stream, what ends with it, and what does not."""

import asyncio
import math
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
import pytest_asyncio

from modelyard.host.v1 import host_pb2, host_pb2_grpc, opaque_pb2
from modelyard.type.v1 import error_pb2, service_class_pb2
from services.chassis.errors import from_rpc_error
from services.domain.errors import DeadlineRequired, InvalidRequest, MalformedMessage
from services.model_host.dispatching import MOST_CALLS
from tests.support.host import (
    HostProcess,
    echo_request,
    execute_request,
    model_object,
    raw_outputs,
    running_host,
    spec,
    version_object,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISPATCH = "/modelyard.host.v1.ModelHostService/Dispatch"
SOON_S = 30.0
"""What must come comes within this, on however busy a machine."""
HELD_MS = 600
"""How long a call of the model `held` computes: long enough to let others wait behind it."""
MIB = 1 << 20
NO_MESSAGE = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

Result = host_pb2.DispatchResult


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    """One for all tests here that break nothing, with `held`; other models each test loads by a name of its own."""
    async with running_host(tmp_path_factory.mktemp("host")) as running:
        await load_held(running)
        yield running


class Stream:
    """A stream to a host, as a router has it."""

    def __init__(
        self, host: HostProcess, channel: grpc.aio.Channel | None = None, timeout_s: float | None = 60.0
    ) -> None:
        stub: host_pb2_grpc.ModelHostServiceAsyncStub = host_pb2_grpc.ModelHostServiceStub(channel or host.channel)
        self.call = stub.Dispatch(timeout=timeout_s)
        self.messages: list[host_pb2.DispatchResponse] = []
        """What has come."""

    async def send(
        self,
        *calls: host_pb2.DispatchedCall,
        cancels: tuple[int, ...] = (),
        classes: tuple[host_pb2.DeclaredClass, ...] = (),
    ) -> None:
        """Send a message."""
        await self.call.write(host_pb2.DispatchRequest(calls=calls, cancels=cancels, classes=classes))

    async def read(self) -> host_pb2.DispatchResponse | None:
        """The next message; None at the end of the stream."""
        async with asyncio.timeout(SOON_S):
            message = await self.call.read()
        if not isinstance(message, host_pb2.DispatchResponse):
            return None
        self.messages.append(message)
        return message

    async def results(self, count: int) -> dict[int, Result]:
        """The next results by number, once so many have come."""
        found: dict[int, Result] = {}
        while len(found) < count:
            message = await self.read()
            assert message is not None, f"the stream ended with {len(found)} of {count} results"
            for result in message.results:
                assert result.number not in found
                found[result.number] = result
        return found

    async def end(self) -> tuple[dict[int, Result], grpc.StatusCode]:
        """The results until the end of the stream, and its status."""
        found: dict[int, Result] = {}
        while (message := await self.read()) is not None:
            found.update({result.number: result for result in message.results})
        return found, await self.call.code()

    async def refusal(self) -> BaseException:
        """What the stream is ended with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.end()
        return from_rpc_error(caught.value)


def a_call(
    number: int, *, model: str, timeout_s: float = 30.0, row: tuple[float, ...] | None = None
) -> host_pb2.DispatchedCall:
    """A call that is answered with its own number."""
    return dispatched(number, echo_request(row or (number, 0, 0, 0), model=model), timeout_s=timeout_s)


def dispatched(number: int, asked: host_pb2.ExecuteRequest, *, timeout_s: float = 30.0) -> host_pb2.DispatchedCall:
    asked.request.id = f"call-{number}"
    return host_pb2.DispatchedCall(number=number, key=asked.key, timeout_s=timeout_s, request=asked.request)


def check_own(results: dict[int, Result]) -> None:
    """Each result is an answer, and its own call's."""
    for number, result in results.items():
        assert not result.HasField("failure"), result.failure
        assert result.response.id == f"call-{number}"
        assert raw_outputs(result.response)["y"].tolist() == [[number, 0, 0, 0]]


def reason(result: Result) -> str:
    assert not result.HasField("response")
    return error_pb2.ErrorReason.Name(result.failure.reason).removeprefix("ERROR_REASON_")


async def statistics(host: HostProcess, name: str) -> host_pb2.ModelStatistics:
    status = await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10)
    (found,) = [item for item in status.statistics if item.key.model == name]
    return found


# --- calls and results -----------------------------------------------------------------------------


async def test_calls_of_one_message_share_a_batch_and_each_gets_its_own(host: HostProcess) -> None:
    await host.load(version_object("together", options={"base_ms": "20"}))
    stream = Stream(host)

    await stream.send(*(a_call(n, model="together") for n in range(1, 9)))
    results = await stream.results(8)

    check_own(results)
    assert {result.batch_size for result in results.values()} == {8}
    assert all(result.compute_s >= 0.020 and result.queue_s >= 0.0 for result in results.values())
    assert dict((await statistics(host, "together")).batch_counts) == {8: 1}
    (message,) = stream.messages
    assert not message.closing
    stream.call.cancel()


async def test_hundreds_of_calls_over_several_streams_each_get_their_own(host: HostProcess) -> None:
    await host.load(version_object("many", options={"base_ms": "1"}))

    async def run(numbers: range) -> dict[int, Result]:
        stream = Stream(host)
        for start in range(0, len(numbers), 25):
            await stream.send(*(a_call(n, model="many") for n in numbers[start : start + 25]))
        results = await stream.results(len(numbers))
        await stream.call.done_writing()
        assert await stream.end() == ({}, grpc.StatusCode.OK)
        return results

    for results, numbers in zip(
        await asyncio.gather(*(run(range(n, n + 200)) for n in (0, 1000, 2000))), (0, 1000, 2000), strict=True
    ):
        assert sorted(results) == list(range(numbers, numbers + 200))
        check_own(results)


async def test_a_large_typed_call_is_answered_whole_and_beside_small_ones(host: HostProcess) -> None:
    wide = [-1, 70_000]
    await host.load(
        version_object("typed", max_batch_size=2),
        model_object("typed", inputs=[spec("x", shape=wide)], outputs=[spec("y", shape=wide)]),
    )
    await host.load(version_object("small"))
    values = np.arange(70_000, dtype=np.float32).reshape(1, -1)
    large = dispatched(1, execute_request({"x": ("FP32", values)}, model="typed"))
    large.request.ClearField("raw_input_contents")
    large.request.inputs[0].contents.fp32_contents.extend(values[0].tolist())
    stream = Stream(host)

    await stream.send(large, *(a_call(n, model="small") for n in range(2, 30)))
    results = await stream.results(29)
    stream.call.cancel()

    answer = results.pop(1).response
    assert np.array_equal(answer.outputs[0].contents.fp32_contents, values[0])
    check_own(results)


async def test_what_is_wrong_with_a_call_fails_that_call_alone(host: HostProcess) -> None:
    await host.load(version_object("picky"))
    unknown = a_call(3, model="picky")
    unknown.key.version = "9.9.9"
    stream = Stream(host)

    await stream.send(
        a_call(1, model="picky"),
        a_call(2, model="picky", row=(1, 2, math.nan, 4)),
        unknown,
        a_call(4, model="picky", row=(1, 2, 3)),
        host_pb2.DispatchedCall(number=5),
        a_call(6, model="picky"),
    )
    results = await stream.results(6)
    stream.call.cancel()

    check_own({number: results[number] for number in (1, 6)})
    for number in (2, 4):
        assert (reason(results[number]), results[number].failure.code) == ("INVALID_REQUEST", 3)
        (violation,) = results[number].failure.field_violations
        assert violation.field.startswith("inputs[0]")
        assert "'x'" in violation.description
    assert (reason(results[3]), results[3].failure.code) == ("MODEL_NOT_READY", 14)
    assert "picky:9.9.9" in results[3].failure.message
    assert reason(results[5]) == "BUDGET_EXHAUSTED"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, -math.inf, math.nan])
async def test_a_call_without_time_left_fails_with_its_deadline(host: HostProcess, timeout_s: float) -> None:
    await host.load(version_object("timed"))
    stream = Stream(host)

    await stream.send(a_call(1, model="timed", timeout_s=timeout_s), a_call(2, model="timed", timeout_s=math.inf))
    results = await stream.results(2)
    stream.call.cancel()

    assert (reason(results[1]), results[1].failure.code) == ("BUDGET_EXHAUSTED", 4)
    check_own({2: results[2]})


async def test_a_call_with_less_time_than_it_takes_is_not_computed(host: HostProcess) -> None:
    await host.load(version_object("slower", options={"base_ms": "200"}, max_batch_size=1))
    stream = Stream(host)

    await stream.send(a_call(1, model="slower", timeout_s=0.010))
    results = await stream.results(1)
    stream.call.cancel()

    assert reason(results[1]) == "BUDGET_EXHAUSTED"
    counts = await statistics(host, "slower")
    assert (counts.dropped_count, counts.execution_count) == (1, 0)


async def test_calls_beyond_the_most_of_a_message_are_refused_to_come_again_and_hold_up_nobody(
    host: HostProcess,
) -> None:
    await host.load(version_object("others"))
    count = MOST_CALLS + 300_000
    stream, other, process = Stream(host), Stream(host), psutil.Process(host.pid)
    before_bytes = process.memory_info().rss

    await stream.send(*(host_pb2.DispatchedCall(number=n) for n in range(count)))
    await other.send(a_call(1, model="others"))
    check_own(await other.results(1))
    results = await stream.results(1)  # it is being taken; no more is read for now
    for number in range(2, 50):
        await other.send(a_call(number, model="others"))
        check_own(await other.results(1))
    grown_bytes = process.memory_info().rss - before_bytes
    results |= await stream.results(count - len(results))
    stream.call.cancel()
    other.call.cancel()

    assert len(results) == count
    assert grown_bytes < 85 * MIB
    for number, result in results.items():
        if number < MOST_CALLS:
            assert reason(result) == "BUDGET_EXHAUSTED"
        else:
            assert (reason(result), result.failure.code) == ("OVERLOADED", 8)
            assert result.failure.retry_after.ToNanoseconds() > 0


async def test_an_answer_larger_than_a_message_fails_its_call_alone(host: HostProcess) -> None:
    wide = [-1, 9 * MIB]  # twice 36 MiB come out
    await host.load(
        version_object("huge", max_batch_size=1),
        model_object("huge", inputs=[spec("x", shape=wide)], outputs=[spec("y", shape=wide), spec("x", shape=wide)]),
    )
    await host.load(version_object("beside"))
    values = np.zeros((1, 9 * MIB), np.float32)
    stream = Stream(host)

    await stream.send(dispatched(1, execute_request({"x": ("FP32", values)}, model="huge")))
    await stream.send(a_call(2, model="beside"))
    results = await stream.results(2)
    await stream.send(a_call(3, model="beside"))
    results |= await stream.results(1)
    stream.call.cancel()

    assert (reason(results[1]), results[1].failure.code) == ("MODEL_FAILED", 13)
    check_own({number: results[number] for number in (2, 3)})


# --- load ------------------------------------------------------------------------------------------


def loads(message: host_pb2.DispatchResponse) -> list[str]:
    """The models that its load is of."""
    return sorted(load.key.model for load in message.load.models)


async def test_every_message_carries_the_load_of_the_versions_of_its_results(host: HostProcess) -> None:
    for name in ("one", "two"):
        await host.load(version_object(name))
    stream = Stream(host)

    for number, names in enumerate((["one"], ["two"], ["one", "two"])):
        await stream.send(*(a_call(10 * number + n, model=name) for n, name in enumerate(names)))
        await stream.results(len(names))
    stream.call.cancel()

    of_results: set[str] = set()
    for message in stream.messages:
        names = sorted({result.response.model_name for result in message.results})
        assert loads(message) == names
        of_results.update(names)
        assert message.load.host_id == "test-0"
        assert all(load.batch_cap >= 1 for load in message.load.models)
    assert of_results == {"one", "two"}
    sequences = [message.load.sequence for message in stream.messages]
    assert sequences == sorted(set(sequences))


async def test_a_host_that_computes_says_meanwhile_that_it_lives(host: HostProcess) -> None:
    await host.load(version_object("long", options={"base_ms": "700"}))
    stream = Stream(host)
    await stream.send(a_call(1, model="long"))

    check_own(await stream.results(1))
    stream.call.cancel()

    beats = [message for message in stream.messages if not message.results]
    assert len(beats) >= 3
    assert all(loads(beat) == ["long"] and beat.load.models[0].running == 1 for beat in beats)


async def test_a_refusal_carries_the_load_of_the_version_that_refused(host: HostProcess) -> None:
    first, stream = Stream(host), Stream(host)
    await behind_one(host, first, 3)

    await stream.send(a_call(5, model="held", timeout_s=1.5 * HELD_MS / 1e3))
    refused = (await stream.results(1))[5]
    await stream.send(a_call(6, model="held", row=(1, 2, 3)))
    wrong = (await stream.results(1))[6]
    first.call.cancel()
    stream.call.cancel()

    assert (reason(refused), refused.failure.code) == ("OVERLOADED", 8)
    assert refused.failure.retry_after.ToNanoseconds() > 0
    assert reason(wrong) == "INVALID_REQUEST"
    for message in stream.messages:
        (load,) = message.load.models
        assert (load.key.model, load.running) == ("held", 1)
        assert load.queued >= 1


async def test_results_that_need_several_messages_carry_their_load_in_each(host: HostProcess) -> None:
    wide = [-1, 200_000]  # 800 KB: two do not fit into a message
    await host.load(
        version_object("wide", options={"base_ms": "1"}, max_batch_size=4),
        model_object("wide", inputs=[spec("x", shape=wide)], outputs=[spec("y", shape=wide)]),
    )
    values = np.zeros((1, 200_000), np.float32)
    stream = Stream(host)

    await stream.send(*(dispatched(n, execute_request({"x": ("FP32", values)}, model="wide")) for n in range(1, 5)))
    results = await stream.results(4)
    stream.call.cancel()

    assert {result.batch_size for result in results.values()} == {4}
    answers = [message for message in stream.messages if message.results]
    assert [len(message.results) for message in answers] == [1] * 4
    assert [loads(message) for message in answers] == [["wide"]] * 4


# --- calls that nobody waits for -------------------------------------------------------------------


async def load_held(host: HostProcess) -> None:
    await host.load(version_object("held", options={"base_ms": str(HELD_MS)}, max_batch_size=1))


async def behind_one(host: HostProcess, stream: Stream, count: int) -> None:
    """Calls 2, 3, ... wait while call 1 computes."""
    await host.busy(queued=0, running=0, name="held")
    await stream.send(a_call(1, model="held"))
    await host.busy(queued=0, name="held")
    await stream.send(*(a_call(n, model="held") for n in range(2, count + 2)))
    await host.busy(queued=count, name="held")


async def dropped(host: HostProcess) -> int:
    return (await statistics(host, "held")).dropped_count


async def test_cancelled_calls_leave_the_queue_and_have_no_result(host: HostProcess) -> None:
    stream, before = Stream(host), await dropped(host)
    await behind_one(host, stream, 6)

    await stream.send(cancels=(2, 3, 5, 99))
    await host.busy(queued=3, name="held")
    await stream.send(cancels=(4, 6, 7))
    await host.busy(queued=0, name="held")
    await stream.call.done_writing()
    results, status = await stream.end()

    check_own(results)
    assert (sorted(results), status) == ([1], grpc.StatusCode.OK)
    assert await dropped(host) - before == 6


async def test_a_call_that_is_cancelled_in_its_own_message_is_not_computed(host: HostProcess) -> None:
    await host.load(version_object("regretted"))
    stream = Stream(host)

    await stream.send(*(a_call(n, model="regretted") for n in (1, 2, 3)), cancels=(1, 2))
    await stream.call.done_writing()
    results, _ = await stream.end()

    check_own(results)
    assert sorted(results) == [3]
    counts = await statistics(host, "regretted")
    assert (counts.dropped_count, counts.success_count) == (2, 1)


async def test_a_stream_that_is_killed_takes_its_calls_out_of_the_queue_and_no_other(host: HostProcess) -> None:
    stream, other, before = Stream(host), Stream(host), await dropped(host)
    await behind_one(host, stream, 5)
    await other.send(a_call(100, model="held"))
    await host.busy(queued=6, name="held")

    stream.call.cancel()
    await host.busy(queued=1, name="held")

    check_own(await other.results(1))
    other.call.cancel()
    assert await dropped(host) - before == 5


async def test_a_connection_that_breaks_takes_its_calls_out_of_the_queue(host: HostProcess) -> None:
    before = await dropped(host)
    async with grpc.aio.insecure_channel(host.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        await behind_one(host, Stream(host, channel), 5)

    await host.busy(queued=0, name="held")

    assert await dropped(host) - before == 5


async def test_a_side_that_is_ended_gets_its_answers_and_an_orderly_end(host: HostProcess) -> None:
    await host.load(version_object("ended", options={"base_ms": "50"}, max_batch_size=4))
    stream = Stream(host)

    await stream.send(*(a_call(n, model="ended") for n in range(1, 13)))
    await stream.call.done_writing()
    results, status = await stream.end()

    check_own(results)
    assert (sorted(results), status) == (list(range(1, 13)), grpc.StatusCode.OK)
    assert not any(message.closing for message in stream.messages)


# --- streams that are refused ----------------------------------------------------------------------


async def test_a_number_used_twice_ends_the_stream_and_its_calls(host: HostProcess) -> None:
    stream, before = Stream(host), await dropped(host)
    await behind_one(host, stream, 3)

    await stream.send(a_call(3, model="held"))
    error = await stream.refusal()

    assert type(error) is InvalidRequest
    assert [fault.path for fault in error.faults] == ["calls.number"]
    assert "3" in str(error)
    await host.busy(queued=0, name="held")
    assert await dropped(host) - before == 3


async def test_bytes_that_are_no_message_end_the_stream(host: HostProcess) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = host.channel.stream_stream(DISPATCH)
    call = method(timeout=20.0)
    await call.write(b"\x0a" + NO_MESSAGE)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert type(from_rpc_error(caught.value)) is MalformedMessage


async def test_a_request_that_is_no_message_fails_its_call_alone(host: HostProcess) -> None:
    await host.load(version_object("framed"))
    method: grpc.aio.StreamStreamMultiCallable[bytes, host_pb2.DispatchResponse] = host.channel.stream_stream(
        DISPATCH, response_deserializer=host_pb2.DispatchResponse.FromString
    )
    call = method(timeout=20.0)
    good = host_pb2.DispatchRequest(calls=[a_call(1, model="framed")])
    bad = opaque_pb2.OpaqueDispatchRequest()
    bad.calls.add(number=2, key=good.calls[0].key, timeout_s=10.0, request=NO_MESSAGE)

    await call.write(good.SerializeToString() + bad.SerializeToString())
    await call.done_writing()
    results = {result.number: result async for message in call for result in message.results}

    check_own({1: results[1]})
    assert (reason(results[2]), results[2].failure.code) == ("MALFORMED_MESSAGE", 3)
    assert "are not a modelyard.inference.v1.InferRequest" in results[2].failure.message


async def test_a_stream_without_a_deadline_is_refused(host: HostProcess) -> None:
    assert type(await Stream(host, timeout_s=None).refusal()) is DeadlineRequired


# --- a router that does not keep up ----------------------------------------------------------------

CALLS = 1000
ELEMENTS = 15_000
"""60 KB in, 120 KB out: 120 MB in all."""


async def test_a_router_that_does_not_read_is_not_read_from_and_loses_nothing(host: HostProcess) -> None:
    wide = [-1, ELEMENTS]
    await host.load(
        version_object("flood"),
        model_object("flood", inputs=[spec("x", shape=wide)], outputs=[spec("y", shape=wide), spec("x", shape=wide)]),
    )
    stream, process = Stream(host), psutil.Process(host.pid)

    async def write() -> None:
        for number in range(CALLS):
            values = np.full((1, ELEMENTS), number, np.float32)
            await stream.send(dispatched(number, execute_request({"x": ("FP32", values)}, model="flood")))
            if number % 20 == 0:  # so that it is unread results that pile up, and not calls
                await host.busy(queued=0, running=0, name="flood")

    before_bytes = process.memory_info().rss
    writing = asyncio.ensure_future(write())
    answered, standing = 0, 0
    while standing < 20 and not writing.done():  # until the host had its turns, and did nothing more
        now = (await statistics(host, "flood")).success_count
        standing = standing + 1 if now == answered > 0 else 0
        answered = now
        await asyncio.sleep(0.005)
    grown_bytes = process.memory_info().rss - before_bytes

    assert not writing.done()
    assert answered < CALLS / 2
    assert grown_bytes < 60 * MIB
    results = await stream.results(CALLS)
    await writing
    stream.call.cancel()
    assert sorted(results) == list(range(CALLS))
    for number, result in results.items():
        y = raw_outputs(result.response)["y"]
        assert (y.shape, float(y.min()), float(y.max())) == ((1, ELEMENTS), number, number)


# --- the end of the host ---------------------------------------------------------------------------


async def test_a_host_that_stops_says_so_answers_what_it_has_and_ends_its_streams(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await load_held(host)
        busy, idle = Stream(host), Stream(host)
        await idle.send(host_pb2.DispatchedCall(number=50))
        assert reason((await idle.results(1))[50]) == "BUDGET_EXHAUSTED"
        await behind_one(host, busy, 3)

        host.process.send_signal(signal.SIGTERM)
        results: dict[int, Result] = {}
        while not busy.messages or not busy.messages[-1].closing:
            message = await busy.read()
            assert message is not None
            results.update({result.number: result for result in message.results})
        await busy.send(a_call(60, model="held"))
        rest, status = await busy.end()
        results |= rest
        after, idle_status = await idle.end()

        assert (status, idle_status) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
        assert reason(results.pop(60)) == "DRAINING"
        check_own(results)
        assert sorted(results) == [1, 2, 3, 4]
        assert after == {}
        assert [message.closing for message in idle.messages] == [False, True]
        assert [message.closing for message in busy.messages].count(True) == 1
        assert busy.messages[-1].load.draining
        assert await host.wait_exit() == 0


async def test_a_drain_by_order_answers_what_was_taken_and_refuses_the_rest(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await load_held(host)
        stream = Stream(host)
        await behind_one(host, stream, 1)

        await host.stub.Drain(host_pb2.DrainRequest(), timeout=10)
        await stream.send(a_call(60, model="held"))
        results, status = await stream.end()

        assert reason(results.pop(60)) == "DRAINING"
        check_own(results)
        assert (sorted(results), status) == ([1, 2], grpc.StatusCode.OK)
        assert await host.wait_exit() == 0


def a_class(number: int, tenant: str, band: int) -> host_pb2.DeclaredClass:
    return host_pb2.DeclaredClass(
        number=number, service_class=service_class_pb2.ServiceClass(tenant=tenant, tier=f"t{band}", band=band)
    )


async def test_calls_of_an_earlier_band_are_computed_first_and_counted_apart(host: HostProcess) -> None:
    stream = Stream(host)
    calls = [a_call(number, model="held") for number in range(5)]
    for call, number in zip(calls[1:], (2, 2, 1, 1), strict=True):
        call.class_number = number
    await stream.send(calls[0])
    await stream.send(*calls[1:], classes=(a_class(1, "a", 1), a_class(2, "b", 8)))
    order: list[int] = []
    while len(order) < 5:
        message = await stream.read()
        assert message is not None
        check_own({result.number: result for result in message.results})
        order += [result.number for result in message.results]

    assert order == [0, 3, 4, 1, 2]
    bands = {each.band: each for each in (await statistics(host, "held")).bands}
    assert (bands[1].success_count, bands[8].success_count) == (2, 2)
    assert bands[8].queue_total.ToTimedelta() > bands[1].queue_total.ToTimedelta()


async def test_a_class_that_was_not_declared_fails_its_call_alone(host: HostProcess) -> None:
    stream = Stream(host)
    await host.load(version_object("classless"))
    lost, well = a_call(1, model="classless"), a_call(2, model="classless")
    lost.class_number = 77
    await stream.send(lost, well)
    results = await stream.results(2)

    assert results[1].failure.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
    assert "77 was not declared" in results[1].failure.field_violations[0].description
    check_own({2: results[2]})


@pytest.mark.parametrize("number", [0, 5])
async def test_a_class_number_that_is_none_or_taken_ends_the_stream(host: HostProcess, number: int) -> None:
    stream = Stream(host)
    await stream.send(classes=(a_class(5, "a", 1), a_class(number, "b", 2)))
    refusal = await stream.refusal()

    assert isinstance(refusal, InvalidRequest)
    assert "declared once" in str(refusal.faults[0])
