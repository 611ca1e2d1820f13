"""Answers in pieces through a router: the native contract, the V2 protocol, lost hosts and callers that go away."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.object_codec import object_from
from services.domain.objects import Model, ModelVersion
from services.router.decision_wire import DECISION_KEY
from tests.integration.router.zoo import ECHO, VERSIONS, raw
from tests.support import clients
from tests.support.llama import TinyLlama, infer_request, llama_model, llama_version, text_of, write_llama
from tests.support.services import Bench, bench, eventually

FOREVER = 200
"""Tokens that take long enough to be seen under way."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    """The model's files."""
    return write_llama(tmp_path_factory.mktemp("tiny"))


async def fill(yard: Bench, tiny: TinyLlama) -> None:
    """Apply the model that generates, and one that does not, and load both everywhere."""
    model, version = object_from(llama_model()), object_from(llama_version(tiny))
    assert isinstance(model, Model)
    assert isinstance(version, ModelVersion)
    echo = VERSIONS["echo"][0]
    await yard.apply(model, version, ECHO, echo)
    for host_id in yard.hosts:
        await yard.load(host_id, model, version)
        await yard.load(host_id, ECHO, echo)

    async def ready() -> bool:
        hosts = await yard.listed()
        return len(hosts) == len(yard.hosts) and all(
            sum(hosted.state == 2 for hosted in host.models) == 2 for host in hosts
        )

    await eventually(ready, "both models on every host")


@pytest.fixture(scope="module", params=["aio", "native"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: TinyLlama) -> Iterator[Bench]:
    """A router on either engine, and one host."""
    with asyncio.Runner() as runner:
        context = bench(tmp_path_factory.mktemp("yard"), hosts=1, router_arguments=("--engine", request.param))
        made = runner.run(context.__aenter__())
        try:
            runner.run(fill(made, tiny))
            yield made
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def channel(yard: Bench) -> AsyncIterator[grpc.aio.Channel]:
    """A caller's channel to the router."""
    async with grpc.aio.insecure_channel(yard.router.address) as opened:
        yield opened


def stub_of(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
    return inference_pb2_grpc.InferenceServiceStub(channel)


async def running(yard: Bench, host_id: str = "host-0") -> int:
    """Sequences that have a slot on a host."""
    async with grpc.aio.insecure_channel(yard.hosts[host_id].address) as opened:
        stub = host_pb2_grpc.ModelHostServiceStub(opened)
        status = await stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)
        return sum(load.running for load in status.load.models if load.key.model == "tiny")


async def to_the_end(call: Any) -> tuple[int, grpc.StatusCode]:
    """How many messages were left, and how the call ended."""
    count = 0
    try:
        while await call.read() is not grpc.aio.EOF:
            count += 1
    except grpc.aio.AioRpcError as error:
        return count, error.code()
    return count, grpc.StatusCode.OK


def v2_stream(channel: grpc.aio.Channel, *requests: pb.InferRequest) -> Any:
    """The answers of ModelStreamInfer to some requests."""
    method: Any = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.InferRequest.SerializeToString,
        response_deserializer=v2.ModelStreamInferResponse.FromString,
    )
    return method(iter(requests), timeout=30)


def v2_text(answer: v2.ModelStreamInferResponse) -> str:
    return text_of(pb.InferResponse.FromString(answer.infer_response.SerializeToString()))


async def test_pieces_come_as_they_are_made_and_the_last_one_brings_the_decision(channel: grpc.aio.Channel) -> None:
    call = stub_of(channel).InferStream(
        pb.InferStreamRequest(request=infer_request("a yard", max_tokens=12)), timeout=30
    )

    messages = [message async for message in call]
    whole = await stub_of(channel).Infer(infer_request("a yard", max_tokens=12), timeout=30)

    assert len(messages) > 3
    assert "".join(text_of(message.response) for message in messages) == text_of(whole)
    *pieces, last = messages
    assert not any(message.HasField("totals") or message.response.HasField("decision") for message in pieces)
    assert (last.totals.tokens, last.totals.finish_reason) == (12, "length")
    decision = last.response.decision
    assert (decision.model, decision.version, decision.host) == ("tiny", "1.0.0", "host-0")
    assert [attempt.status for attempt in decision.attempts] == ["OK"]
    assert decision.stages.compute.ToNanoseconds() > 0
    trailing = dict(await call.trailing_metadata())
    assert str(trailing[DECISION_KEY]).startswith("tiny/tiny:1.0.0@host-0")


async def test_a_model_that_does_not_generate_answers_with_one_piece(channel: grpc.aio.Channel) -> None:
    call = stub_of(channel).InferStream(pb.InferStreamRequest(request=raw()), timeout=30)

    (message,) = [message async for message in call]

    assert message.response.raw_output_contents == raw().raw_input_contents
    assert message.response.decision.model == "echo"
    assert message.HasField("totals")


async def test_a_refusal_comes_as_a_status(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (
            stub_of(channel)
            .InferStream(pb.InferStreamRequest(request=infer_request("x", max_tokens=0)), timeout=30)
            .read()
        )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "max_tokens" in str(caught.value.details())


async def test_a_caller_that_goes_away_frees_its_slot(channel: grpc.aio.Channel, yard: Bench) -> None:
    call = stub_of(channel).InferStream(
        pb.InferStreamRequest(request=infer_request("x", max_tokens=FOREVER)), timeout=60
    )
    await call.read()
    assert await running(yard) == 1

    call.cancel()

    async def free() -> bool:
        return await running(yard) == 0

    await eventually(free, "the slot being free", within_s=10.0)


async def test_a_deadline_goes_along(channel: grpc.aio.Channel) -> None:
    full = stub_of(channel).InferStream(
        pb.InferStreamRequest(request=infer_request("x", max_tokens=FOREVER)), timeout=60
    )
    messages = [message async for message in full]
    took_s = messages[-1].totals.compute.ToNanoseconds() * 1e-9

    for part in (3, 6, 12, 24):  # on a busy machine the first one may have taken several times as long as it needs
        short = infer_request("x", max_tokens=FOREVER, timeout=int(took_s / part * 1e6))
        call = stub_of(channel).InferStream(pb.InferStreamRequest(request=short), timeout=60)
        count, status = await to_the_end(call)
        if count < len(messages):
            break

    assert 0 < count < len(messages)
    assert status is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_v2_streams_of_a_model_that_generates_are_decoupled(channel: grpc.aio.Channel) -> None:
    wanted = text_of(await stub_of(channel).Infer(infer_request("a yard", max_tokens=9), timeout=30))
    asked = infer_request("a yard", max_tokens=9, request_id="empty", triton_enable_empty_final_response=True)
    plain = infer_request("a yard", max_tokens=9, request_id="plain")
    one = raw()
    wrong = infer_request("a yard", max_tokens=0, request_id="wrong")

    by_id: dict[str, list[v2.ModelStreamInferResponse]] = {}
    async for answer in v2_stream(channel, asked, one, plain, wrong):
        by_id.setdefault(answer.infer_response.id, []).append(answer)

    assert [len(by_id["mine"]), len(by_id["wrong"])] == [1, 1]
    assert "max_tokens" in by_id["wrong"][0].error_message
    for name in ("empty", "plain"):
        assert "".join(map(v2_text, by_id[name])) == wanted
        flags = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in by_id[name]]
        assert flags == [False] * (len(flags) - 1) + [True]
    assert len(by_id["empty"][-1].infer_response.outputs) == 0
    assert len(by_id["plain"][-1].infer_response.outputs) == 2


async def test_the_configuration_says_that_it_is_decoupled(channel: grpc.aio.Channel) -> None:
    config: Any = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelConfig",
        request_serializer=v2.ModelConfigRequest.SerializeToString,
        response_deserializer=v2.ModelConfigResponse.FromString,
    )

    decoupled = {
        name: (await config(v2.ModelConfigRequest(name=name), timeout=5)).config.model_transaction_policy.decoupled
        for name in ("tiny", "echo")
    }

    assert decoupled == {"tiny": True, "echo": False}


@pytest.mark.timeout(700)  # the first run installs the clients
def test_tritonclient_reads_a_decoupled_stream(yard: Bench) -> None:
    got = clients.run("triton_stream.py", yard.router.address, "tiny", "a yard")

    for client in ("sync", "aio"):
        assert "".join(got[client]["pieces"]) == got["whole"]
        assert got[client]["final"] == [False] * (len(got[client]["final"]) - 1) + [True]
    assert got["decoupled"]
    assert json.dumps(got)


async def test_a_host_that_dies_before_the_first_piece_is_replaced_and_after_it_is_not(
    tmp_path: Path, tiny: TinyLlama
) -> None:
    async with bench(tmp_path, hosts=2) as yard:
        await fill(yard, tiny)
        async with grpc.aio.insecure_channel(yard.router.address) as opened:
            call = stub_of(opened).InferStream(
                pb.InferStreamRequest(request=infer_request("x", max_tokens=FOREVER)), timeout=60
            )
            first = await call.read()
            assert isinstance(first, pb.InferStreamResponse)
            (busy,) = [host_id for host_id in yard.hosts if await running(yard, host_id)]
            (other,) = set(yard.hosts) - {busy}

            yard.hosts[busy].kill()
            _, status = await to_the_end(call)
            assert status is grpc.StatusCode.UNAVAILABLE

            # The router may still send to the dead one first: that costs an attempt, and no error.
            for _ in range(4):
                again = stub_of(opened).InferStream(
                    pb.InferStreamRequest(request=infer_request("x", max_tokens=4)), timeout=60
                )
                messages = [message async for message in again]
                assert messages[-1].response.decision.host == other
