"""Versions that generate, on a real host: pieces over gRPC, many at once, and callers that go away."""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from modelyard.host.v1 import host_pb2
from services.chassis.errors import from_rpc_error
from services.chassis.telemetry import TraceContext
from tests.support.host import HostProcess, echo_request, running_host, version_object
from tests.support.llama import (
    TinyLlama,
    llama_model,
    llama_version,
    stream_request,
    text_of,
    write_llama,
)
from tests.support.otlp import otlp_sink

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREVER = 200
"""Tokens that take long enough to be seen under way."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    """The model's files."""
    return write_llama(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory, tiny: TinyLlama) -> AsyncIterator[HostProcess]:
    """A host with the model, and a version beside it that does not generate."""
    async with running_host(tmp_path_factory.mktemp("host")) as running:
        await running.load(llama_version(tiny), llama_model())
        await running.load(version_object("echo"))
        yield running


async def collected(host: HostProcess, request: host_pb2.ExecuteStreamRequest) -> list[host_pb2.ExecuteStreamResponse]:
    """Every message of a stream."""
    return [message async for message in host.stub.ExecuteStream(request, timeout=30)]


async def into(
    pieces: list[host_pb2.ExecuteStreamResponse], messages: AsyncIterable[host_pb2.ExecuteStreamResponse]
) -> None:
    async for message in messages:
        pieces.append(message)  # noqa: PERF401 - also those before an error count


def text(messages: list[host_pb2.ExecuteStreamResponse]) -> str:
    return "".join(text_of(message.response) for message in messages)


async def until_active(host: HostProcess, active: int, waiting: int = 0) -> None:
    await host.busy(queued=waiting, running=active, name="tiny")


async def test_an_answer_comes_in_pieces_and_the_last_one_has_the_totals(host: HostProcess) -> None:
    messages = await collected(host, stream_request("a yard", max_tokens=12, request_id="r-1"))

    assert len(messages) > 3
    assert [message.HasField("totals") for message in messages] == [False] * (len(messages) - 1) + [True]
    totals = messages[-1].totals
    assert (totals.prompt_tokens, totals.tokens, totals.finish_reason) == (6, 12, "length")
    assert totals.first_token.ToNanoseconds() > 0
    assert messages[-1].load.host_id == "test-0"
    assert {message.response.id for message in messages} == {"r-1"}
    assert {message.response.model_version for message in messages} == {"1.0.0"}


async def test_a_unary_call_gets_the_same_answer_as_a_whole(host: HostProcess) -> None:
    request = stream_request("a yard", max_tokens=12)

    streamed = text(await collected(host, request))
    whole = await host.stub.Execute(host_pb2.ExecuteRequest(key=request.key, request=request.request), timeout=30)

    assert text_of(whole.response) == streamed
    assert whole.batch_size >= 1


async def test_answers_are_the_same_alone_and_in_company(host: HostProcess) -> None:
    prompts = [f"{number} " + "models in a yard, " * number for number in range(1, 7)]
    wishes: list[dict[str, Any]] = [{"max_tokens": 24}, {"max_tokens": 24, "temperature": 0.9, "top_p": 0.9, "seed": 7}]

    alone = [text(await collected(host, stream_request(p, **w))) for p in prompts for w in wishes]
    together = await asyncio.gather(*(collected(host, stream_request(p, **w)) for p in prompts for w in wishes))

    assert [text(messages) for messages in together] == alone
    assert max(messages[-1].totals.beside for messages in together) == 4


async def test_among_callers_who_come_and_go_everybody_gets_the_own_answer(host: HostProcess) -> None:
    rng = random.Random(9)
    prompts = ["yard " * number for number in range(1, 9)]
    alone = {prompt: text(await collected(host, stream_request(prompt, max_tokens=40))) for prompt in prompts}

    async def caller(number: int) -> int:
        complete = 0
        for _ in range(6):
            prompt, leaves_after = rng.choice(prompts), rng.choice([1, 5, 20, 1000])
            call = host.stub.ExecuteStream(stream_request(prompt, max_tokens=40), timeout=60)
            said = ""
            while leaves_after and (message := await call.read()) is not grpc.aio.EOF:
                assert isinstance(message, host_pb2.ExecuteStreamResponse)
                said += text_of(message.response)
                leaves_after -= 1
            call.cancel()
            assert alone[prompt].startswith(said)
            complete += said == alone[prompt]
        return complete

    complete = await asyncio.gather(*(caller(number) for number in range(10)))

    assert sum(complete) > 10
    await until_active(host, 0)


async def test_a_caller_that_goes_away_frees_its_slot_for_those_that_wait(host: HostProcess) -> None:
    calls = [host.stub.ExecuteStream(stream_request(f"{n}", max_tokens=FOREVER), timeout=60) for n in range(4)]
    for call in calls:
        await call.read()
    waiting = host.stub.ExecuteStream(stream_request("next", max_tokens=4), timeout=60)
    first = asyncio.ensure_future(waiting.read())
    await until_active(host, 4, 1)

    calls[0].cancel()
    answer = await first

    assert answer is not grpc.aio.EOF
    for call in (*calls, waiting):
        call.cancel()
    await until_active(host, 0)


async def test_a_deadline_ends_a_stream_after_what_it_has_streamed(host: HostProcess) -> None:
    before = await collected(host, stream_request("long", max_tokens=FOREVER))
    took_s = before[-1].totals.compute.ToNanoseconds() * 1e-9

    pieces: list[host_pb2.ExecuteStreamResponse] = []
    request = stream_request("long", max_tokens=FOREVER)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await into(pieces, host.stub.ExecuteStream(request, timeout=took_s / 3))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < len(pieces) < len(before)
    await until_active(host, 0)


async def test_what_cannot_be_followed_is_refused_with_every_fault(host: HostProcess) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collected(host, stream_request("x", max_tokens=0, temperature=-1.0, stop=7))
    error = from_rpc_error(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [fault.path for fault in error.faults] == [
        "parameters[max_tokens]",
        "parameters[temperature]",
        "parameters[stop]",
    ]
    with pytest.raises(grpc.aio.AioRpcError, match="256 are the most"):
        await collected(host, stream_request("x" * 300))


async def test_a_version_that_does_not_generate_answers_with_one_piece(host: HostProcess) -> None:
    echo = echo_request([1, 2, 3, 4])

    (message,) = await collected(host, host_pb2.ExecuteStreamRequest(key=echo.key, request=echo.request))

    assert message.totals.tokens == 0
    assert message.response.raw_output_contents[0] == echo.request.raw_input_contents[0]


async def test_batches_of_others_get_their_turn_between_steps(host: HostProcess) -> None:
    call = host.stub.ExecuteStream(stream_request("on and on", max_tokens=FOREVER), timeout=60)
    await call.read()

    for number in range(5):
        await host.stub.Execute(echo_request([number, 0, 0, 0]), timeout=5)
    (load,) = [load for load in (await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)).load.models
               if load.key.model == "tiny"]  # fmt: skip

    assert load.running == 1
    call.cancel()
    await until_active(host, 0)


async def test_unloading_lets_answers_under_way_come_to_their_end(tmp_path: Path, tiny: TinyLlama) -> None:
    request = stream_request("to the end", max_tokens=60)
    unload = host_pb2.UnloadModelRequest(key=request.key, decision_id="u", fencing_token=1)
    async with running_host(tmp_path) as own:
        await own.load(llama_version(tiny), llama_model())
        messages: list[host_pb2.ExecuteStreamResponse] = []

        async for message in own.stub.ExecuteStream(request, timeout=60):
            if not messages:
                await own.stub.UnloadModel(unload, timeout=5)
            messages.append(message)

        assert messages[-1].totals.tokens == 60
        await own.gone("tiny")


async def test_a_sampled_call_has_spans_of_its_wait_its_prompt_and_its_answer(tmp_path: Path, tiny: TinyLlama) -> None:
    caller = TraceContext.new(True)
    with otlp_sink() as (sink, endpoint):
        async with running_host(tmp_path, "--otlp-endpoint", endpoint, "--trace-ratio", "0") as own:
            await own.load(llama_version(tiny), llama_model())
            call = own.stub.ExecuteStream(
                stream_request("traced", max_tokens=5), timeout=30, metadata=caller.metadata()
            )
            assert len([message async for message in call]) >= 2
            spans = {span.name: span for _, span in await asyncio.to_thread(sink.wait_for, 4)}

    server = spans.pop("modelyard.host.v1.ModelHostService/ExecuteStream")
    assert server.parent_span_id.hex() == caller.span_id
    assert set(spans) == {"queue", "prefill", "decode"}
    assert {span.parent_span_id for span in spans.values()} == {server.span_id}
    counts = {
        name: {item.key: item.value.int_value for item in span.attributes if item.value.HasField("int_value")}
        for name, span in spans.items()
    }
    assert counts["prefill"] == {"modelyard.tokens": 6}
    assert counts["decode"] == {"modelyard.tokens": 5, "modelyard.beside": 1}


async def test_a_host_that_drains_lets_answers_under_way_come_to_their_end(tmp_path: Path, tiny: TinyLlama) -> None:
    async with running_host(tmp_path) as own:
        await own.load(llama_version(tiny), llama_model())
        messages: list[host_pb2.ExecuteStreamResponse] = []

        async for message in own.stub.ExecuteStream(stream_request("to the end", max_tokens=60), timeout=60):
            if not messages:
                await own.stub.Drain(host_pb2.DrainRequest(), timeout=5)
                with pytest.raises(grpc.aio.AioRpcError, match="draining"):
                    await collected(own, stream_request("late"))
            messages.append(message)

        assert messages[-1].totals.tokens == 60
        assert await own.wait_exit() == 0
