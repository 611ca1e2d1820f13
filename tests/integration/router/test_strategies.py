"""Routes that lead over others: a real router, a real registry, real hosts."""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from tests.integration.router.test_inference import V2_INFER, details, refused, stub
from tests.integration.router.zoo import ECHO, FLOAT, LATE, ROUTES, VERSIONS, raw, typed
from tests.support.services import Bench, bench, eventually


async def metrics(yard: Bench) -> str:
    """What the router counts."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{yard.router.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


def counter(text: str, name: str, **labels: str) -> float:
    """One number of it; 0 if it is not there."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"modelyard_router_{name}" and sample.labels == labels:
                return float(sample.value)
    return 0.0


async def test_a_split_keeps_sessions_together_and_its_shares(channel: grpc.aio.Channel) -> None:
    seen: dict[str, set[str]] = {}
    for number in range(300):
        request = typed("canary")
        request.route.session = f"s{number % 100}"
        decision = (await stub(channel).Infer(request, timeout=10.0)).decision
        assert decision.strategy == "split"
        assert decision.arm == f"echo:{decision.version}"
        assert decision.propensity == (0.9 if decision.version == "1.0.0" else 0.1)
        seen.setdefault(request.route.session, set()).add(decision.version)

    assert all(len(versions) == 1 for versions in seen.values())
    shares = Counter(version for versions in seen.values() for version in versions)
    assert 1 <= shares["1.1.0"] <= 25


async def test_a_sequence_of_the_v2_protocol_is_a_session(channel: grpc.aio.Channel) -> None:
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(V2_INFER)
    versions = set()
    for number in range(20):
        request = raw("canary")
        request.id = str(number)
        request.parameters["sequence_id"].int64_param = 4711
        call = infer(request.SerializeToString(), timeout=10.0)
        versions.add(pb.InferResponse.FromString(await call).model_version)
        said = dict(await call.trailing_metadata() or ())["x-modelyard-decision"]
        assert "strategy=split; arm=echo:1." in str(said)

    assert len(versions) == 1


async def test_explain_says_the_part_that_infer_takes(channel: grpc.aio.Channel) -> None:
    for number in range(10):
        request = typed("canary")
        request.route.session = f"x{number}"
        dry = (await stub(channel).Explain(pb.ExplainRequest(request=request), timeout=10.0)).decision
        ran = (await stub(channel).Infer(request, timeout=10.0)).decision
        assert (dry.arm, dry.version, dry.propensity) == (ran.arm, ran.version, ran.propensity)
        assert not dry.attempts


async def test_a_fallback_asks_the_next_where_the_first_has_no_host(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).Infer(typed("always"), timeout=10.0)

    decision = answer.decision
    assert list(answer.outputs[0].contents.fp32_contents) == [0.0, 1.0, 2.0, 3.0]
    assert (decision.model, decision.strategy) == ("echo", "fallback")
    assert decision.degraded_reason.startswith("nowhere: no host is ready for 'nowhere'")
    assert [(step.name, step.status) for step in decision.steps] == [("nowhere", "UNAVAILABLE"), ("route quick", "OK")]
    assert len(decision.attempts) == 1


@pytest.mark.parametrize("form", [typed, raw])
async def test_a_static_answer_comes_in_the_form_asked(
    channel: grpc.aio.Channel, form: Callable[[str], pb.InferRequest]
) -> None:
    answer = await stub(channel).Infer(form("zeros"), timeout=10.0)

    assert (answer.model_name, answer.model_version, answer.id) == ("zeros", "", "mine")
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [("y", "FP32", [1, 4])]
    if form is typed:
        assert list(answer.outputs[0].contents.fp32_contents) == [0.5] * 4
    else:
        assert list(answer.raw_output_contents) == [FLOAT.pack(0.5) * 4]
    assert answer.decision.reason == "the route's static answer"
    assert (answer.decision.model, answer.decision.host, list(answer.decision.attempts)) == ("", "", [])


async def test_a_static_answer_ends_a_stream_too(channel: grpc.aio.Channel) -> None:
    request = pb.InferStreamRequest(request=typed("zeros"))

    pieces = [piece async for piece in stub(channel).InferStream(request, timeout=10.0)]

    assert [list(piece.response.outputs[0].contents.fp32_contents) for piece in pieces] == [[0.5] * 4]
    assert pieces[-1].response.decision.degraded_reason


async def test_explain_says_the_order_of_a_fallback(channel: grpc.aio.Channel) -> None:
    dry = (await stub(channel).Explain(pb.ExplainRequest(request=typed("always")), timeout=10.0)).decision

    assert [(step.name, step.model, step.status) for step in dry.steps] == [
        ("nowhere", "", ""),
        ("route quick", "echo", ""),
    ]
    assert dry.model == "echo"
    assert not dry.attempts


async def test_a_shadow_gets_copies_that_are_compared_and_counted(yard: Bench, channel: grpc.aio.Channel) -> None:
    for _ in range(5):
        answer = await stub(channel).Infer(raw("shadowed"), timeout=10.0)
        assert (answer.model_name, answer.decision.strategy) == ("echo", "shadow")

    async def counted() -> bool:
        return counter(await metrics(yard), "shadow_copies_total", route="shadowed", outcome="equal") == 5.0

    await eventually(counted, "copies that were compared")
    assert counter(await metrics(yard), "shadow_difference_count", route="shadowed") == 5.0


async def test_a_slow_shadow_delays_nobody_and_has_no_more_copies_than_its_bound(
    yard: Bench, channel: grpc.aio.Channel
) -> None:
    answers = await asyncio.gather(*(stub(channel).Infer(raw("shaded"), timeout=10.0) for _ in range(20)))

    # The shadow takes 200 ms for each copy: had anybody waited for one, that would show.
    assert min(answer.decision.stages.total.ToTimedelta().total_seconds() for answer in answers) < 0.2
    assert all(answer.model_name == "echo" for answer in answers)

    async def counted() -> bool:
        found = await metrics(yard)
        made = counter(found, "shadow_copies_total", route="shaded", outcome="equal")
        return made + counter(found, "shadow_copies_total", route="shaded", outcome="over_in_flight") == 20.0

    await eventually(counted, "copies made and not made")
    assert counter(await metrics(yard), "shadow_copies_total", route="shaded", outcome="over_in_flight") >= 10.0


@pytest.mark.parametrize("form", [typed, raw])
async def test_a_pipeline_hands_tensors_from_host_to_host(
    channel: grpc.aio.Channel, form: Callable[[str], pb.InferRequest]
) -> None:
    answer = await stub(channel).Infer(form("graph"), timeout=10.0)

    assert [output.name for output in answer.outputs] == ["y", "z"]
    if form is typed:
        assert [list(output.contents.fp32_contents) for output in answer.outputs] == [[0.0, 1.0, 2.0, 3.0]] * 2
    else:
        assert list(answer.raw_output_contents) == list(raw().raw_input_contents) * 2
    decision = answer.decision
    assert (answer.model_name, answer.id, decision.strategy, decision.model) == ("graph", "mine", "pipeline", "")
    assert {step.name: step.status for step in decision.steps} == {
        "one": "OK",
        "two": "OK",
        "beside/nowhere": "UNAVAILABLE",
        "beside/route quick": "OK",
        "beside": "OK",
    }
    assert len(decision.attempts) == 3
    assert decision.degraded_reason.startswith("beside: nowhere: no host is ready")


async def test_large_tensors_pass_through_a_pipeline_whole(channel: grpc.aio.Channel) -> None:
    request = pb.InferRequest(model_name="deep")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1 << 20])
    request.raw_input_contents.append(bytes(range(64)) * (4 * (1 << 20) // 64))

    answer = await stub(channel).Infer(request, timeout=30.0)

    assert answer.raw_output_contents[0] == request.raw_input_contents[0]
    assert [step.name for step in answer.decision.steps] == ["one", "two"]


async def test_a_callers_mistake_is_named_before_any_step(channel: grpc.aio.Channel) -> None:
    request = raw("graph")
    request.inputs[0].shape[:] = [2, 4]

    error = await refused(channel, request)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)[1].field_violations[0].field == "inputs[0]"


async def test_the_v2_protocol_knows_what_a_pipeline_takes_and_gives(channel: grpc.aio.Channel) -> None:
    service = "/inference.GRPCInferenceService"
    ready: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{service}/ModelReady")
    metadata: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{service}/ModelMetadata")

    is_ready = await ready(v2.ModelReadyRequest(name="graph").SerializeToString(), timeout=10.0)
    said = await metadata(v2.ModelMetadataRequest(name="graph").SerializeToString(), timeout=10.0)

    assert v2.ModelReadyResponse.FromString(is_ready).ready
    schema = v2.ModelMetadataResponse.FromString(said)
    assert [tensor.name for tensor in schema.inputs] == ["x"]
    assert [tensor.name for tensor in schema.outputs] == ["y", "z"]


@pytest.mark.parametrize("form", [typed, raw])
async def test_an_ensemble_combines_what_its_members_answer(
    channel: grpc.aio.Channel, form: Callable[[str], pb.InferRequest]
) -> None:
    answer = await stub(channel).Infer(form("council"), timeout=10.0)

    if form is typed:
        assert list(answer.outputs[0].contents.fp32_contents) == [0.0, 1.0, 2.0, 3.0]
    else:
        assert list(answer.raw_output_contents) == list(raw().raw_input_contents)
    assert {(step.name, step.status) for step in answer.decision.steps} == {("small", "OK"), ("large", "OK")}
    assert answer.decision.reason == "mean of 2 of 2 members"
    assert answer.decision.cost_microusd == 70


async def test_an_ensemble_does_not_wait_for_one_that_is_late(tmp_path: Path) -> None:
    quick, late = VERSIONS["echo"][0], VERSIONS["late"][0]
    (rash,) = [route for route in ROUTES if route.metadata.name == "rash"]
    async with bench(tmp_path, hosts=2) as made:  # on one device either may have to wait for the other
        await made.apply(ECHO, LATE, quick, late, rash)
        await made.load("host-0", ECHO, quick)
        await made.load("host-1", LATE, late)
        async with grpc.aio.insecure_channel(made.router.address) as channel:

            async def asked() -> pb.Decision:
                return (await stub(channel).Infer(raw("rash"), timeout=10.0)).decision

            async def both() -> bool:
                try:
                    return {step.name for step in (await asked()).steps if step.status != "UNAVAILABLE"} == {
                        "echo",
                        "late",
                    }
                except grpc.aio.AioRpcError:
                    return False

            await eventually(both, "both members on their hosts")
            for _ in range(20):  # on a busy machine the quick one may take as long as the other now and then
                decision = await asked()
                if decision.degraded_reason:
                    break

    assert {step.name: step.status for step in decision.steps} == {"echo": "OK", "late": "CANCELLED"}
    assert decision.degraded_reason == "1 of 2 members answered; late: it was not waited for"


async def test_a_cascade_asks_on_as_long_as_the_answer_is_unsure(channel: grpc.aio.Channel) -> None:
    sure = (await stub(channel).Infer(raw("frugal"), timeout=10.0)).decision  # its scores go up to 3
    request = raw("frugal")
    request.raw_input_contents[0] = bytes(16)
    unsure = (await stub(channel).Infer(request, timeout=10.0)).decision

    assert (sure.model, sure.cost_microusd, len(sure.attempts)) == ("small", 10, 1)
    assert (unsure.model, unsure.cost_microusd, len(unsure.attempts)) == ("large", 70, 2)
    assert [step.name for step in unsure.steps] == ["small", "large"]


async def test_a_cascade_gives_the_unsure_answer_where_the_next_step_has_no_host(channel: grpc.aio.Channel) -> None:
    answer = await stub(channel).Infer(typed("unsure"), timeout=10.0)

    assert list(answer.outputs[0].contents.fp32_contents) == [0.0, 1.0, 2.0, 3.0]
    assert (answer.model_name, answer.decision.model) == ("small", "small")
    assert answer.decision.degraded_reason.startswith("nowhere: no host is ready")
