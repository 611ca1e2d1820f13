"""Routes that keep answers: a real router, a real registry, real hosts."""

import asyncio

import grpc.aio

from modelyard.inference.v1 import inference_pb2 as pb
from tests.integration.router.test_inference import V2_INFER, stub
from tests.integration.router.test_strategies import counter, metrics
from tests.integration.router.zoo import raw, typed
from tests.support.services import Bench


def asked(number: float, *, tenant: str = "") -> pb.InferRequest:
    request = typed("kept")
    request.inputs[0].contents.fp32_contents[0] = number
    request.route.tenant = tenant
    return request


async def computed(yard: Bench) -> float:
    """Attempts on hosts, so far."""
    text = await metrics(yard)
    return sum(counter(text, "attempts_total", host=host, status="OK") for host in yard.hosts)


async def test_a_kept_answer_is_given_in_the_form_asked_and_says_what_it_is(channel: grpc.aio.Channel) -> None:
    first = await stub(channel).Infer(typed("kept"), timeout=10.0)
    request = raw("kept")
    request.id = "another"

    second = await stub(channel).Infer(request, timeout=10.0)

    assert first.decision.cache in (pb.CACHE_STATUS_MISS, pb.CACHE_STATUS_HIT)
    decision = second.decision
    assert (decision.cache, decision.cost_microusd, len(decision.attempts)) == (pb.CACHE_STATUS_HIT, 0, 0)
    assert (decision.model, decision.version, decision.host != "") == ("sure", "1.0.0", True)
    assert decision.HasField("cache_age")
    assert (second.id, second.model_name) == ("another", "sure")
    assert second.raw_output_contents[0] == request.raw_input_contents[0]
    assert not second.outputs[0].HasField("contents")


async def test_a_caller_of_the_v2_protocol_learns_it_from_the_trailing_metadata(channel: grpc.aio.Channel) -> None:
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(V2_INFER)
    said = []
    for policy in ("default", "default", "bypass"):
        request = raw("kept", rows=2)
        request.parameters["cache"].string_param = policy
        call = infer(request.SerializeToString(), timeout=10.0)
        assert pb.InferResponse.FromString(await call).id == "mine"
        said.append(str(dict(await call.trailing_metadata() or ())["x-modelyard-decision"]))

    assert "cache=HIT; " in said[1]
    assert "cache=BYPASS; " in said[2]


async def test_many_identical_calls_under_way_are_computed_once_and_a_leaver_takes_none_along(
    yard: Bench, channel: grpc.aio.Channel
) -> None:
    before = await computed(yard)
    request = asked(len(str(channel)) + asyncio.get_running_loop().time())
    calls = [stub(channel).Infer(request, timeout=10.0) for _ in range(100)]
    await asyncio.sleep(0)
    for call in calls[:3]:
        call.cancel()

    answers = await asyncio.gather(*calls, return_exceptions=True)

    answered = [answer for answer in answers if isinstance(answer, pb.InferResponse)]
    assert len(answered) == 97
    assert {answer.decision.cache for answer in answered} <= {
        pb.CACHE_STATUS_HIT,
        pb.CACHE_STATUS_MISS,
        pb.CACHE_STATUS_COALESCED,
    }
    assert await computed(yard) - before <= 2.0  # a call that was cancelled at once may have begun one that ended
    assert sum(answer.decision.cost_microusd for answer in answered) <= 5


async def test_what_became_of_calls_is_counted(yard: Bench, channel: grpc.aio.Channel) -> None:
    await stub(channel).Infer(asked(77.0), timeout=10.0)
    await stub(channel).Infer(asked(77.0), timeout=10.0)

    text = await metrics(yard)
    assert counter(text, "cache_total", route="kept", outcome="hit") >= 1.0
    assert counter(text, "cache_total", route="kept", outcome="miss") >= 1.0
    assert counter(text, "cache_entries") >= 1.0
    assert counter(text, "cache_bytes") >= 600.0
