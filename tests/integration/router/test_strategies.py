"""Routes that lead over others: a real router, a real registry, real hosts."""

from collections import Counter

import grpc
import grpc.aio

from modelyard.inference.v1 import inference_pb2 as pb
from tests.integration.router.test_inference import V2_INFER, stub
from tests.integration.router.zoo import raw, typed


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
