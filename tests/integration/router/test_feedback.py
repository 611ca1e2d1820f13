"""Labels over real sockets: what is said of an answer changes what is expected of the version, on either engine."""

import asyncio
import sys

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from tests.integration.router.test_inference import details, stub
from tests.integration.router.test_strategies import counter, metrics
from tests.integration.router.zoo import typed
from tests.support.services import Bench


async def test_a_label_finds_its_answer_and_is_gone_by(yard: Bench, channel: grpc.aio.Channel) -> None:
    call = typed("embed")
    call.id = "labelled"
    call.route.domain = "law"
    decision = (await stub(channel).Infer(call, timeout=10.0)).decision
    assert (decision.model, decision.domain, decision.complexity) == ("large", "law", "4x1")

    found = await stub(channel).Feedback(pb.FeedbackRequest(request_id="labelled", quality=0.0), timeout=10.0)
    again = await stub(channel).Feedback(pb.FeedbackRequest(request_id="labelled", quality=0.0), timeout=10.0)

    assert (found.model, found.version, found.learned) == ("large", "1.0.0", True)
    assert found.quality < 0.92
    assert (again.learned, again.quality) == (False, found.quality)
    explained = (await stub(channel).Explain(pb.ExplainRequest(request=call), timeout=10.0)).decision
    large = next(each for each in explained.candidates if each.model == "large")
    assert large.quality == found.quality
    assert large.labels == 1.0
    assert counter(await metrics(yard), "labels_total", outcome="learned") == 1.0


async def test_a_label_of_nobody_is_refused(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub(channel).Feedback(pb.FeedbackRequest(request_id="never", quality=0.5), timeout=10.0)

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(refused.value)[0].reason == "CALL_NOT_FOUND"


async def test_the_command_gives_a_label(yard: Bench, channel: grpc.aio.Channel) -> None:
    call = typed("embed")
    call.id = "by-hand"
    call.route.domain = "medicine"
    await stub(channel).Infer(call, timeout=10.0)

    code, out = await _yardctl("feedback", "by-hand", "0.5", "--address", yard.router.address)

    assert code == 0
    assert out.startswith("large:1.0.0: learned; ")


async def _yardctl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "yardctl", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()
