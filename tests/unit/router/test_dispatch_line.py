"""The router's side of Dispatch, against a host on loopback that answers, fails, stalls and goes as a test says."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import psutil
import pytest

from modelyard.host.v1 import host_pb2, opaque_pb2
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import open_channel
from services.chassis.codec import service_class_from
from services.chassis.errors import failure_to
from services.chassis.telemetry import Telemetry, TraceContext
from services.domain.clock import Clock, ManualClock, SystemClock
from services.domain.errors import (
    BudgetExhausted,
    Fault,
    HostUnavailable,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.domain.model import ModelKey
from services.domain.service_class import ORDINARY, ServiceClass
from services.router.attempting import AttemptFailed, HostAnswer
from services.router.dispatch_line import RENEW_S, WAITING_BYTES, DispatchLine, Sent, Streams
from services.router.frames import Payload
from services.router.host_client import HostClient
from tests.fakes.dispatch_server import FakeDispatchHost, HostStream, Script, answer_to, failure_of
from tests.fakes.objects import a_host

DISPATCH = "/modelyard.host.v1.ModelHostService/Dispatch"
KEY = model_pb2.ModelKey(model="m", version="1.0.0")
SOON_S = 10.0
"""What must come comes within this, on however busy a machine."""
LONG_S = 30.0
"""Deadline of calls that are not to meet it."""
LATER = resources_pb2.HostLoad(
    host_id="host-0", sequence=7, models=[resources_pb2.ModelLoad(key=KEY, queued=5, running=2, batch_cap=8)]
)


@dataclass
class Pair:
    """A line, and the host at its other end."""

    line: DispatchLine
    host: FakeDispatchHost

    def send(
        self,
        name: str = "call",
        *,
        timeout_s: float = LONG_S,
        trace: TraceContext | None = None,
        size: int = 0,
        of: ServiceClass = ORDINARY,
    ) -> Sent:
        """Send a call named `name`, with `size` bytes of tensors."""
        request = inference_pb2.InferRequest(id=name, raw_input_contents=[bytes(size)] if size else [])
        payload = Payload(request.SerializeToString())
        sent = self.line.send(KEY, payload, service_class=of, timeout_s=timeout_s, trace=trace)
        sent.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # looked at or not
        return sent

    async def stream(self, number: int = 0) -> HostStream:
        """The host's side of a stream, once it is open."""
        async with asyncio.timeout(SOON_S):
            return await self.host.stream(number)


@asynccontextmanager
async def pair(script: Script, *, clock: Clock | None = None) -> AsyncIterator[Pair]:
    host = FakeDispatchHost(script)
    await host.start()
    channel = open_channel(host.address)
    streams: Streams = channel.stream_stream(
        DISPATCH,
        request_serializer=opaque_pb2.OpaqueDispatchRequest.SerializeToString,
        response_deserializer=opaque_pb2.OpaqueDispatchResponse.FromString,
    )
    line = DispatchLine(
        streams,
        connected=lambda: channel.get_state() is grpc.ChannelConnectivity.READY,
        clock=clock or SystemClock(),
    )
    try:
        yield Pair(line, host)
    finally:
        await line.close()
        await channel.close()
        await host.stop()


@asynccontextmanager
async def hosts(lost: list[str]) -> AsyncIterator[HostClient]:
    """The client that callers use; hosts that it loses come into `lost`."""
    telemetry = Telemetry(service="test", instance="test-0", otlp_endpoint="", sample_ratio=0.0)
    client = HostClient(telemetry=telemetry, clock=SystemClock(), on_lost=lost.append)
    try:
        yield client
    finally:
        await client.close()


async def echo(stream: HostStream) -> None:
    """Answer each message at once."""
    while (message := await stream.read()) is not None:
        await stream.answer(*message.calls)


async def say_nothing(stream: HostStream) -> None:
    """Read, and answer nothing."""
    while await stream.read() is not None:
        pass


async def answer_of(sent: Sent) -> HostAnswer:
    async with asyncio.timeout(SOON_S):
        return await sent.answer


async def name_of(sent: Sent) -> str:
    """Whose answer came."""
    answer = await answer_of(sent)
    assert isinstance(answer.payload, bytes)
    return inference_pb2.InferResponse.FromString(answer.payload).id


async def failed(sent: Sent) -> AttemptFailed:
    """How the call failed."""
    with pytest.raises(AttemptFailed) as caught:
        await answer_of(sent)
    return caught.value


async def failure(sent: Sent) -> YardError:
    """What the call failed with."""
    return (await failed(sent)).error


# --- many calls in a message -----------------------------------------------------------------------


async def test_calls_of_one_turn_travel_in_one_message_as_they_were_sent() -> None:
    async with pair(echo) as both:
        sent = [both.send(f"call-{n}", timeout_s=20.0 + n) for n in range(200)]

        assert [await name_of(each) for each in sent] == [f"call-{n}" for n in range(200)]
        (stream,) = both.host.streams
        first = stream.read_messages[0].calls
        assert [call.request.id for call in first] == [f"call-{n}" for n in range(200)]
        assert [call.timeout_s for call in first] == [20.0 + n for n in range(200)]
        assert len({call.number for call in first}) == 200
        assert {(call.key.model, call.key.version) for call in first} == {("m", "1.0.0")}


async def test_an_answer_says_how_it_came_about() -> None:
    async def with_load(stream: HostStream) -> None:
        await stream.answer(*(await stream.calls(1)), load=LATER)

    async with pair(with_load) as both:
        answer = await answer_of(both.send())

    assert (answer.queue_s, answer.compute_s, answer.batch_size) == (0.25, 0.5, 3)
    assert answer.load is not None
    assert (answer.load.host_id, answer.load.sequence) == ("host-0", 7)
    assert [(load.key, load.queued, load.running) for load in answer.load.models] == [(ModelKey("m", "1.0.0"), 5, 2)]


def answer_in_any_order(chance: random.Random) -> Script:
    """Answer what is there in an order and in portions by chance; calls with a 7 at the end fail."""

    def result_of(call: host_pb2.DispatchedCall) -> host_pb2.DispatchResult:
        name = call.request.id
        return failure_of(call, failure_to(ModelNotReady(name))) if name.endswith("7") else answer_to(call)

    async def script(stream: HostStream) -> None:
        has: list[host_pb2.DispatchedCall] = []
        reading = asyncio.ensure_future(stream.read())
        while True:
            await asyncio.wait({reading}, timeout=0.0 if has else None)
            if reading.done():
                message = reading.result()
                if message is None:
                    return
                has.extend(message.calls)
                reading = asyncio.ensure_future(stream.read())
            chance.shuffle(has)
            size = chance.randint(0, 20)
            portion, has = has[:size], has[size:]
            await stream.send(*map(result_of, portion))

    return script


@pytest.mark.parametrize("seed", range(4))
async def test_no_caller_ever_gets_anothers_answer_whatever_their_order(seed: int) -> None:
    chance = random.Random(seed)
    gone: list[Sent] = []

    async def caller(both: Pair, name: str) -> None:
        for _ in range(chance.randint(0, 40)):
            await asyncio.sleep(0)
        sent = both.send(name)
        if name.endswith("3"):
            for _ in range(chance.randint(0, 5)):
                await asyncio.sleep(0)
            sent.cancel()
            gone.append(sent)
        elif name.endswith("7"):
            error = await failure(sent)
            assert (type(error), error.message) == (ModelNotReady, name)
        else:
            assert await name_of(sent) == name

    async with pair(answer_in_any_order(chance)) as both:
        await asyncio.gather(*(caller(both, f"call-{n}") for n in range(400)))

        (stream,) = both.host.streams
        assert len(stream.read_messages) < 100, "calls travel together"
        assert len(gone) == 40


async def test_results_that_nobody_waits_for_and_that_come_twice_are_no_ones() -> None:
    async def confused(stream: HostStream) -> None:
        first, second = await stream.calls(2)
        stranger = host_pb2.DispatchResult(number=999_999)
        again = failure_of(first, failure_to(ModelNotReady("again")))
        await stream.send(stranger, answer_to(first), again, answer_to(first))
        await stream.answer(second)

    async with pair(confused) as both:
        first, second = both.send("first"), both.send("second")

        assert await name_of(second) == "second"
        assert await name_of(first) == "first"


@pytest.mark.parametrize("sampled", [False, True])
async def test_trace_context_travels_with_each_call(sampled: bool) -> None:
    traces = [
        TraceContext(f"{n:032x}", f"{n:016x}", sampled, f"vendor=state-{n}", f"tenant=t-{n},user=u") for n in (1, 2)
    ]

    async with pair(echo) as both:
        sent = [both.send(trace=trace) for trace in (*traces, None)]
        for each in sent:
            await answer_of(each)
        first, second, without = both.host.streams[0].read_messages[0].calls

    for call, trace in ((first, traces[0]), (second, traces[1])):
        assert TraceContext.from_headers(call.traceparent, call.tracestate, call.baggage) == trace
    assert (without.traceparent, without.tracestate, without.baggage) == ("", "", "")


# --- failures --------------------------------------------------------------------------------------


async def test_a_failed_call_fails_alone_with_its_error_and_the_hosts_load() -> None:
    sent_error = InvalidRequest("bad", retry_after_s=0.5, faults=[Fault("inputs[0]", "bad")], metadata={"model": "m"})

    async def fail_one(stream: HostStream) -> None:
        bad, good = await stream.calls(2)
        await stream.send(failure_of(bad, failure_to(sent_error)), answer_to(good), load=LATER)

    async with pair(fail_one) as both:
        bad, good = both.send("bad"), both.send("good")
        with pytest.raises(AttemptFailed) as caught:
            await answer_of(bad)

        assert await name_of(good) == "good"
    error, load = caught.value.error, caught.value.load
    assert type(error) is InvalidRequest
    assert (error.message, error.retry_after_s, error.faults, error.metadata) == (
        "bad",
        0.5,
        sent_error.faults,
        {"model": "m"},
    )
    assert load is not None
    assert [(each.queued, each.running) for each in load.models] == [(5, 2)]


async def test_a_call_past_its_deadline_fails_here_and_the_host_is_told() -> None:
    async with pair(say_nothing) as both:
        patient, hasty = both.send(), both.send(timeout_s=0.05)

        error = await failure(hasty)

        stream = await both.stream()
        assert type(error) is BudgetExhausted
        assert not patient.answer.done()
        async with asyncio.timeout(SOON_S):
            await stream.has_read(lambda messages: any(message.cancels for message in messages))
        assert [list(message.cancels) for message in stream.read_messages if message.cancels] == [[hasty.number]]


async def test_each_call_has_a_deadline_of_its_own_whatever_their_order() -> None:
    async with pair(say_nothing) as both:
        longest = both.send(timeout_s=LONG_S)
        sent = [both.send(timeout_s=timeout_s) for timeout_s in (0.15, 0.05, 0.10, 0.01)]
        ended: list[Sent] = []

        def note(sent: Sent, _: "asyncio.Future[HostAnswer]") -> None:
            ended.append(sent)

        for each in sent:
            each.answer.add_done_callback(partial(note, each))

        errors = [await failure(each) for each in sent]

        assert {type(error) for error in errors} == {BudgetExhausted}
        assert ended == sorted(sent, key=lambda each: each.deadline_at_s)
        assert not longest.answer.done()


async def test_an_answer_after_the_deadline_is_dropped_and_the_line_goes_on() -> None:
    late = asyncio.Event()

    async def answer_late(stream: HostStream) -> None:
        calls = await stream.calls(1)
        await late.wait()
        await stream.answer(*calls)
        await echo(stream)

    async with pair(answer_late) as both:
        hasty = both.send("hasty", timeout_s=0.02)
        assert type(await failure(hasty)) is BudgetExhausted
        late.set()

        assert await name_of(both.send("next")) == "next"


async def test_a_caller_that_goes_away_takes_its_call_on_the_host_along() -> None:
    async with pair(say_nothing) as both, hosts([]) as client:
        request = Payload(inference_pb2.InferRequest(id="call").SerializeToString())
        record = a_host("host-0", address=both.host.address)
        calling = asyncio.ensure_future(
            client.execute(record, ModelKey("m", "1.0.0"), request, service_class=ORDINARY, timeout_s=LONG_S)
        )
        stream = await both.stream()
        async with asyncio.timeout(SOON_S):
            await stream.has_read(lambda messages: len(messages) == 1)
            calling.cancel()
            await asyncio.wait({calling})
            await stream.has_read(lambda messages: len(messages) == 2)

        (call,) = stream.read_messages[0].calls
        assert calling.cancelled()
        assert list(stream.read_messages[1].cancels) == [call.number]


async def test_a_call_that_was_answered_is_not_cancelled_afterwards() -> None:
    async with pair(echo) as both:
        first = both.send("first")
        await answer_of(first)
        first.cancel()

        await answer_of(both.send("second"))

        assert not any(message.cancels for message in both.host.streams[0].read_messages)


# --- streams that end ------------------------------------------------------------------------------

BREAKS = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.OK,
]


@pytest.mark.parametrize("status", BREAKS, ids=lambda status: status.name)
async def test_a_stream_that_breaks_off_fails_its_calls_like_a_host_out_of_reach(status: grpc.StatusCode) -> None:
    async def break_off(stream: HostStream) -> None:
        await stream.calls(20)
        if status is not grpc.StatusCode.OK:
            await stream.context.abort(status, "enough")

    async with pair(break_off) as both:
        sent = [both.send() for _ in range(20)]

        failures = [await failed(each) for each in sent]

    assert {type(each.error) for each in failures} == {HostUnavailable}
    assert not any(each.never_sent for each in failures)
    assert len({id(each.error) for each in failures}) == 20, "each caller's to add to"


async def test_a_host_that_breaks_off_is_reported_and_named() -> None:
    async def break_off(stream: HostStream) -> None:
        await stream.calls(1)
        await stream.context.abort(grpc.StatusCode.INTERNAL, "enough")

    lost: list[str] = []
    async with pair(break_off) as both, hosts(lost) as client:
        record = a_host("host-7", address=both.host.address)
        with pytest.raises(AttemptFailed) as caught:
            await client.execute(record, ModelKey("m", "1.0.0"), Payload(b""), service_class=ORDINARY, timeout_s=LONG_S)

    assert lost == ["host-7"]
    assert caught.value.error.message == "host host-7 is out of reach: INTERNAL: enough"


async def test_a_host_that_goes_away_fails_its_calls_at_once() -> None:
    async with pair(say_nothing) as both:
        sent = [both.send() for _ in range(20)]
        await both.stream()

        await both.host.stop()

        assert {type(await failure(each)) for each in sent} == {HostUnavailable}


async def test_a_host_that_is_not_there_fails_calls_like_one_out_of_reach() -> None:
    async with pair(say_nothing) as both:
        await both.host.stop()

        attempt = await failed(both.send())

    assert type(attempt.error) is HostUnavailable
    assert attempt.never_sent


async def test_what_is_sent_the_moment_a_stream_breaks_goes_on_another() -> None:
    async def break_the_first(stream: HostStream) -> None:
        if stream.number == 0:
            await stream.calls(20)
            await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        await echo(stream)

    async def insist(both: Pair, name: str) -> str:
        sent = both.send(name)
        with pytest.raises(AttemptFailed):
            await sent.answer
        return await name_of(both.send(f"{name} again"))

    async with pair(break_the_first) as both:
        names = await asyncio.gather(*(insist(both, f"call-{n}") for n in range(20)))

        assert names == [f"call-{n} again" for n in range(20)]
        assert len(both.host.streams) == 2


async def test_a_host_that_takes_no_more_calls_gets_them_on_a_new_stream_and_answers_the_old() -> None:
    told, finish = asyncio.Event(), asyncio.Event()

    async def close_the_first(stream: HostStream) -> None:
        if stream.number == 0:
            calls = await stream.calls(2)
            await stream.send(answer_to(calls[0]), closing=True)
            told.set()
            await finish.wait()
            assert await stream.read() is None, "the router ends its side"
            await stream.answer(calls[1])
        else:
            await echo(stream)

    async with pair(close_the_first) as both:
        first, old = both.send("first"), both.send("old")
        assert await name_of(first) == "first"
        await told.wait()

        new = [both.send(f"new-{n}") for n in range(10)]
        assert [await name_of(each) for each in new] == [f"new-{n}" for n in range(10)]
        assert not old.answer.done()
        finish.set()

        assert await name_of(old) == "old"
        assert len(both.host.streams) == 2


async def test_a_stream_is_renewed_in_time_and_no_call_is_lost() -> None:
    clock, finish = ManualClock(), asyncio.Event()

    async def answer_the_old_late(stream: HostStream) -> None:
        calls = await stream.calls(1)
        if not calls[0].request.id.startswith("old"):
            await stream.answer(*calls)
            await echo(stream)
            return
        calls += await stream.calls(101 - len(calls))
        await finish.wait()
        assert await stream.read() is None, "the router ends its side"
        await stream.answer(*calls)

    async with pair(answer_the_old_late, clock=clock) as both:
        old = [both.send("old-0", timeout_s=2 * LONG_S)]
        clock.advance(RENEW_S)
        old += [both.send(f"old-{n}", timeout_s=2 * LONG_S) for n in range(1, 101)]
        clock.advance(0.001)
        new = [both.send(f"new-{n}", timeout_s=2 * LONG_S) for n in range(100)]  # the old ones still wait to be sent

        assert [await name_of(each) for each in new] == [f"new-{n}" for n in range(100)]
        assert not any(each.answer.done() for each in old)
        finish.set()

        assert [await name_of(each) for each in old] == [f"old-{n}" for n in range(101)]
        assert len(both.host.streams) == 2


async def test_a_finished_line_answers_what_it_has_and_ends_its_streams() -> None:
    async with pair(echo) as both:
        sent = [both.send(f"call-{n}") for n in range(10)]

        both.line.finish()

        assert [await name_of(each) for each in sent] == [f"call-{n}" for n in range(10)]
        async with asyncio.timeout(SOON_S):
            await both.line.ended()


async def test_a_closed_line_fails_its_calls() -> None:
    async with pair(say_nothing) as both:
        sent = [both.send() for _ in range(10)]
        await both.stream()

        await both.line.close()

        assert {type(await failure(each)) for each in sent} == {HostUnavailable}


# --- a host that does not keep up ------------------------------------------------------------------

CALL_BYTES = 60_000
WINDOW_BYTES = 8 << 20
"""More than the two ends of a connection hold of a stream that nobody reads."""


async def test_a_host_that_does_not_read_gets_no_more_than_may_wait_and_later_calls_are_refused() -> None:
    reads = asyncio.Event()

    async def read_later(stream: HostStream) -> None:
        await reads.wait()
        await echo(stream)

    async with pair(read_later) as both:
        before_bytes = psutil.Process().memory_info().rss
        taken: list[Sent] = []
        refusal: AttemptFailed | None = None
        for number in range(1000):  # 60 MB
            try:
                taken.append(both.send(f"call-{number}", size=CALL_BYTES))
            except AttemptFailed as refused:
                refusal = refused
                break
            await asyncio.sleep(0)  # what can be sent is sent
        with pytest.raises(AttemptFailed):
            both.send("one more")
        grown_bytes = psutil.Process().memory_info().rss - before_bytes

        assert refusal is not None
        assert type(refusal.error) is Overloaded
        assert refusal.error.retry_after_s is not None
        assert (refusal.load, refusal.never_sent) == (None, True)
        assert WAITING_BYTES < len(taken) * CALL_BYTES < WAITING_BYTES + WINDOW_BYTES
        assert grown_bytes < 4 * WAITING_BYTES
        reads.set()
        assert [await name_of(sent) for sent in taken] == [f"call-{n}" for n in range(len(taken))]
        assert await name_of(both.send("afterwards")) == "afterwards"


async def test_a_class_is_declared_once_and_named_by_its_number() -> None:
    gold, bronze = ServiceClass("a", "gold", band=1), ServiceClass("b", "bronze", band=8, weight=2.0, sheddable=True)
    async with pair(echo) as both:
        for of in (ORDINARY, gold, bronze, gold):
            await name_of(both.send(of=of))
        await name_of(both.send(of=bronze))

        messages = both.host.streams[0].read_messages
        declared = [each for message in messages for each in message.classes]
        called = [call.class_number for message in messages for call in message.calls]

        assert {each.number: service_class_from(each.service_class) for each in declared} == {1: gold, 2: bronze}
        assert len(declared) == 2
        assert called == [0, 1, 2, 1, 2]
