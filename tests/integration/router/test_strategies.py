"""Routes that lead over others: a real router, a real registry, real hosts."""

from collections import Counter
from collections.abc import Callable

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from tests.integration.router.test_inference import V2_INFER, stub
from tests.integration.router.zoo import FLOAT, raw, typed


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
