"""The native protocol over real sockets: router, registry and hosts are processes."""

import asyncio
import re
from collections.abc import Callable

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from services.chassis.codec import seconds_from
from tests.integration.router.zoo import raw, typed
from tests.support.services import Bench, eventually

INFER = "/modelyard.inference.v1.InferenceService/Infer"
V2_INFER = "/inference.GRPCInferenceService/ModelInfer"


def stub(channel: grpc.aio.Channel) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
    return inference_pb2_grpc.InferenceServiceStub(channel)


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    metadata = dict(error.trailing_metadata() or ())
    raw_status = metadata["grpc-status-details-bin"]
    assert isinstance(raw_status, bytes)
    for detail in status_pb2.Status.FromString(raw_status).details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return info, bad


async def refused(channel: grpc.aio.Channel, request: pb.InferRequest, **options: float) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(channel).Infer(request, timeout=options.get("timeout", 10.0))
    return caught.value


async def test_a_typed_request_is_answered_typed(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).Infer(typed(), timeout=10.0)

    assert list(answer.outputs[0].contents.fp32_contents) == [0.0, 1.0, 2.0, 3.0]
    assert list(answer.raw_output_contents) == []
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1.1.0", "mine")


async def test_a_raw_request_is_answered_raw(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).Infer(raw(rows=3), timeout=10.0)

    assert list(answer.raw_output_contents) == list(raw(rows=3).raw_input_contents)
    assert not answer.outputs[0].HasField("contents")
    assert list(answer.outputs[0].shape) == [3, 4]


async def test_a_large_tensor_comes_back_whole(channel: grpc.aio.Channel) -> None:
    request = pb.InferRequest(model_name="wide")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1 << 20])
    request.raw_input_contents.append(bytes(range(64)) * (4 * (1 << 20) // 64))

    answer = await stub(channel).Infer(request, timeout=30.0)

    assert answer.raw_output_contents[0] == request.raw_input_contents[0]
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", answer.id)
    assert answer.decision.request_id == answer.id


async def test_text_is_answered_in_the_form_it_came(channel: grpc.aio.Channel) -> None:
    request = pb.InferRequest(model_name="text")
    words = [b"caf\xc3\xa9", b""]
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend(words)
    as_raw = pb.InferRequest(model_name="text")
    as_raw.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    as_raw.raw_input_contents.append(b"".join(len(word).to_bytes(4, "little") + word for word in words))

    assert list((await stub(channel).Infer(request, timeout=10.0)).outputs[0].contents.bytes_contents) == words
    assert list((await stub(channel).Infer(as_raw, timeout=10.0)).raw_output_contents) == list(
        as_raw.raw_input_contents
    )


async def test_the_decision_tells_everything(channel: grpc.aio.Channel) -> None:
    request = typed("embed")
    request.route.explain = True
    call = stub(channel).Infer(
        request, metadata=(("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),)
    )
    decision = (await call).decision
    trailing = dict(await call.trailing_metadata())

    assert (decision.route, decision.model, decision.version, decision.strategy) == (
        "embed",
        "large",
        "1.0.0",
        "choose",
    )
    assert decision.host in ("host-0", "host-1")
    assert decision.registry_revision == 1
    assert decision.reason.startswith("highest utility of 2")
    assert [(made.host, made.status) for made in decision.attempts] == [(decision.host, "OK")]
    assert decision.batch_size == 1
    assert (decision.cost_microusd, decision.quality) == (60, 0.92)
    assert decision.deadline_source == pb.DEADLINE_SOURCE_ROUTE_DEFAULT
    assert seconds_from(decision.deadline) == 30.0
    assert decision.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert decision.request_id == "mine"
    stages = decision.stages
    total_s = seconds_from(stages.total)
    parts = [stages.choose, stages.queue, stages.compute, stages.network]
    assert 0.0 < sum(map(seconds_from, parts)) <= total_s + 1e-6
    assert [candidate.model for candidate in decision.candidates] == ["small", "large"]
    assert str(trailing["x-modelyard-decision"]).startswith(f"embed/large:1.0.0@{decision.host}; strategy=choose;")


async def test_wishes_are_followed(channel: grpc.aio.Channel) -> None:
    cheap, good = typed("embed"), typed("embed")
    cheap.route.max_cost_microusd = 20
    good.parameters["min_quality"].double_param = 0.9
    header = pb.RouteOptions(prefer=pb.PREFERENCE_COST).SerializeToString()

    assert (await stub(channel).Infer(cheap, timeout=10.0)).model_name == "small"
    assert (await stub(channel).Infer(good, timeout=10.0)).model_name == "large"
    answer = await stub(channel).Infer(typed("embed"), timeout=10.0, metadata=(("x-modelyard-route-bin", header),))
    assert answer.decision.reason == "cheapest of 2: 10 µUSD"


@pytest.mark.parametrize(
    ("timeout", "source", "seconds"),
    [
        (None, pb.DEADLINE_SOURCE_ROUTE_DEFAULT, 2.0),
        (3.0, pb.DEADLINE_SOURCE_CALLER, 3.0),
        (60.0, pb.DEADLINE_SOURCE_ROUTE_MAXIMUM, 4.0),
    ],
)
async def test_the_applied_deadline_is_told(
    channel: grpc.aio.Channel, timeout: float | None, source: int, seconds: float
) -> None:
    decision = (await stub(channel).Infer(typed("quick"), timeout=timeout)).decision

    assert decision.deadline_source == source
    assert seconds_from(decision.deadline) == pytest.approx(seconds, abs=0.5)


async def test_the_timeout_parameter_ends_a_call_that_is_too_slow(channel: grpc.aio.Channel) -> None:
    request = typed("slow")
    request.parameters["timeout"].int64_param = 50_000

    error = await refused(channel, request)

    assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_explain_runs_nothing_and_needs_no_contents(channel: grpc.aio.Channel, yard: Bench) -> None:
    request = typed("embed")
    request.inputs[0].ClearField("contents")

    decision = (await stub(channel).Explain(pb.ExplainRequest(request=request), timeout=10.0)).decision

    assert (decision.model, decision.strategy) == ("large", "choose")
    assert decision.host
    assert list(decision.attempts) == []
    assert not decision.HasField("stages")
    assert [len(candidate.hosts) for candidate in decision.candidates] == [2, 2]


async def test_explain_of_what_no_host_has_says_why(channel: grpc.aio.Channel) -> None:
    decision = (await stub(channel).Explain(pb.ExplainRequest(request=typed("nowhere")), timeout=10.0)).decision

    assert decision.model == ""
    assert "no host has it ready" in decision.reason


def change(edit: Callable[[pb.InferRequest], object], request: pb.InferRequest) -> pb.InferRequest:
    edit(request)
    return request


def set_shape(*shape: int) -> Callable[[pb.InferRequest], object]:
    def edit(request: pb.InferRequest) -> None:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(shape)

    return edit


BAD_INPUTS: dict[str, tuple[pb.InferRequest, str]] = {
    "dtype": (change(lambda r: setattr(r.inputs[0], "datatype", "INT64"), raw()), "inputs[0]"),
    "no such dtype": (change(lambda r: setattr(r.inputs[0], "datatype", "FLOAT"), raw()), "inputs[0].datatype"),
    "rank": (change(set_shape(4), raw()), "inputs[0].shape"),
    "shape": (change(set_shape(2, 2), raw()), "inputs[0].shape"),
    "byte length": (change(lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 15), raw()), "inputs[0]"),
    "negative dims": (change(set_shape(-1, 4), raw()), "inputs[0].shape"),
    "absurd dims": (change(set_shape(1 << 62, 4), raw()), "inputs[0].shape"),
    "overflowing dims": (change(set_shape(1 << 32, 1 << 32), raw()), "inputs[0].shape"),
    "absurd rank": (change(set_shape(*[1] * 40), raw()), "inputs[0].shape"),
    "mixed": (change(lambda r: r.raw_input_contents.append(b"\0" * 16), typed()), "inputs[0].contents"),
    "no contents": (change(lambda r: r.inputs[0].ClearField("contents"), typed()), "inputs[0].contents"),
    "raw count": (change(lambda r: r.raw_input_contents.append(b""), raw()), "raw_input_contents"),
    "other name": (change(lambda r: setattr(r.inputs[0], "name", "z"), raw()), "inputs[0].name"),
    "missing": (pb.InferRequest(model_name="echo"), "inputs"),
    "wrong typed field": (
        change(lambda r: r.inputs[0].contents.CopyFrom(pb.InferTensorContents(int_contents=[1, 2, 3, 4])), typed()),
        "inputs[0].contents",
    ),
    "NaN": (
        change(lambda r: r.inputs[0].contents.fp32_contents.__setitem__(2, float("nan")), typed()),
        "inputs[0]",
    ),
    "infinity, raw": (
        change(lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 12 + b"\0\0\x80\x7f"), raw()),
        "inputs[0]",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
async def test_a_bad_tensor_is_refused_by_name(channel: grpc.aio.Channel, case: str) -> None:
    request, path = BAD_INPUTS[case]

    error = await refused(channel, request)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    info, bad = details(error)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "modelyard")
    assert any(violation.field.startswith(path) for violation in bad.field_violations), bad
    assert case in ("missing", "raw count") or f"'{request.inputs[0].name}'" in str(error.details())


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("ekho", "", (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "near it: echo")),
        ("echo", "9.9.9", (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND", "echo:1.1.0, echo:1.0.0")),
        ("nowhere", "", (grpc.StatusCode.UNAVAILABLE, "NO_READY_HOST", "no host has it ready")),
        ("", "", (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "model_name")),
    ],
)
async def test_a_name_that_cannot_be_served_says_what_exists(
    channel: grpc.aio.Channel, name: str, version: str, expected: tuple[grpc.StatusCode, str, str]
) -> None:
    code, reason, says = expected
    request = typed(name)
    request.model_version = version

    error = await refused(channel, request)

    assert error.code() is code
    assert details(error)[0].reason == reason
    assert says in str(error.details())


async def test_wishes_that_nothing_meets_are_a_failed_precondition(channel: grpc.aio.Channel) -> None:
    request = typed("embed")
    request.route.min_quality = 0.99

    error = await refused(channel, request)

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(error)[0].reason == "NO_CANDIDATE"


@pytest.mark.parametrize("path", [INFER, V2_INFER])
@pytest.mark.parametrize("size", [0, 100_000])
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    channel: grpc.aio.Channel, path: str, size: int
) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"\0" * size + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", timeout=10.0)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0].reason == "MALFORMED_MESSAGE"
    assert "Error" not in str(caught.value.details())


async def test_a_message_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    request = pb.InferRequest(model_name="wide")
    request.inputs.add(name="x", datatype="UINT8", shape=[1, 65 << 20])
    request.raw_input_contents.append(bytes(65 << 20))

    error = await refused(channel, request, timeout=60.0)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(error.details())


async def test_a_caller_that_goes_away_takes_its_calls_on_hosts_along(channel: grpc.aio.Channel, yard: Bench) -> None:
    async def dropped() -> int:
        total = 0
        for host in yard.hosts.values():
            async with grpc.aio.insecure_channel(host.address) as to_host:
                answer = await host_pb2_grpc.ModelHostServiceStub(to_host).GetStatus(
                    host_pb2.GetStatusRequest(), timeout=5.0
                )
                total += sum(done.dropped_count for done in answer.statistics if done.key.model == "slow")
        return total

    before = await dropped()
    calls = [asyncio.ensure_future(stub(channel).Infer(typed("slow"), timeout=30.0)) for _ in range(8)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    async def all_dropped() -> bool:
        return await dropped() - before >= 4  # two or so were being computed

    await eventually(all_dropped, "waiting calls dropped", 10.0)


async def test_calls_together_share_batches_and_hosts(channel: grpc.aio.Channel) -> None:
    async def shared() -> bool:
        calls = [stub(channel).Infer(typed("busy", rows=1), timeout=20.0) for _ in range(100)]
        decisions = [answer.decision for answer in await asyncio.gather(*calls)]
        hosts = {decision.host for decision in decisions}
        return hosts == {"host-0", "host-1"} and max(decision.batch_size for decision in decisions) > 1

    # On a busy machine a host may have said nothing for so long that it is left alone for some seconds.
    await eventually(shared, "calls on both hosts, in batches")


@pytest.mark.parametrize("service", ["", "modelyard.inference.v1.InferenceService", "inference.GRPCInferenceService"])
async def test_health_says_serving(channel: grpc.aio.Channel, service: str) -> None:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")

    answer = await check(b"\x0a" + bytes([len(service)]) + service.encode() if service else b"", timeout=5.0)

    assert answer == b"\x08\x01"
