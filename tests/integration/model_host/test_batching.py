"""Batches in a real host: who shares one, whose answer is whose, and what is never computed."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from modelyard.host.v1 import host_pb2
from services.chassis.errors import from_rpc_error
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    """One for all tests here: each loads a model of its own name."""
    async with running_host(tmp_path_factory.mktemp("host")) as running:
        yield running


async def statistics(host: HostProcess, name: str = "echo") -> host_pb2.ModelStatistics:
    status = await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)
    (found,) = [item for item in status.statistics if item.key.model == name]
    return found


async def test_calls_that_come_while_a_batch_runs_share_the_next_and_each_gets_its_own(host: HostProcess) -> None:
    await host.load(version_object(options={"base_ms": "30"}))

    replies = await asyncio.gather(
        *(host.stub.Execute(echo_request([n, n + 1, n + 2, n + 3]), timeout=20) for n in range(100))
    )

    for number, reply in enumerate(replies):
        assert raw_outputs(reply.response)["y"].tolist() == [[number, number + 1, number + 2, number + 3]]
    assert max(reply.batch_size for reply in replies) > 8
    counts = await statistics(host)
    assert counts.success_count == 100
    assert counts.execution_count < 40
    assert sum(size * count for size, count in counts.batch_counts.items()) == 100


async def test_no_answer_is_anothers_whatever_shares_a_batch(host: HostProcess) -> None:
    text = model_object(
        "mixed",
        inputs=[spec("v", "INT64", [-1, -1]), spec("t", "BYTES", [-1], optional=True)],
        outputs=[spec("v", "INT64", [-1, -1])],
    )
    await host.load(version_object("mixed", options={"base_ms": "5"}, max_batch_size=16), text)

    chance = random.Random(20)
    for number_of_calls in (5, 20, 60, 60):
        calls = []
        for number in range(number_of_calls):
            rows, width = chance.randint(1, 5), chance.randint(1, 3)
            values = np.arange(rows * width, dtype=np.int64).reshape(rows, width) + 1000 * number
            inputs = {"v": ("INT64", values)}
            if chance.random() < 0.5:
                inputs["t"] = ("BYTES", np.array([b"x" * number] * rows, np.object_))
            calls.append((values, host.stub.Execute(execute_request(inputs, model="mixed"), timeout=30)))
        for values, call in calls:
            assert np.array_equal(raw_outputs((await call).response)["v"], values)
    assert max((await statistics(host, "mixed")).batch_counts) > 1


async def test_expired_and_cancelled_calls_are_never_computed(host: HostProcess) -> None:
    await host.load(version_object("slow", options={"base_ms": "2000"}, max_batch_size=1))
    first = asyncio.ensure_future(host.stub.Execute(echo_request([1, 0, 0, 0], model="slow"), timeout=30))
    await host.busy(queued=0, name="slow")

    gone = [host.stub.Execute(echo_request([2, 0, 0, 0], model="slow"), timeout=30) for _ in range(5)]
    await host.busy(queued=5, name="slow")
    for call in gone:
        call.cancel()
    await host.busy(queued=0, name="slow")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await host.stub.Execute(echo_request([3, 0, 0, 0], model="slow"), timeout=1.0)
    with pytest.raises(grpc.aio.AioRpcError) as behind:
        await host.stub.Execute(echo_request([4, 0, 0, 0], model="slow"), timeout=2.2)
    await first

    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "takes about 20" in (late.value.details() or "")
    assert behind.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "behind what waits" in (behind.value.details() or "")
    counts = await statistics(host, "slow")
    assert counts.execution_count == counts.success_count == 1
    assert counts.dropped_count == 7


async def test_a_full_queue_refuses_with_a_time_to_come_again(tmp_path: Path) -> None:
    async with running_host(tmp_path, "--max-queued", "3") as host:
        await host.load(version_object(options={"base_ms": "100"}, max_batch_size=1))
        calls = [host.stub.Execute(echo_request([n, 0, 0, 0]), timeout=20) for n in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert 10 < len(refused) < 20
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all((from_rpc_error(error).retry_after_s or 0) > 0 for error in refused)


async def test_large_requests_come_back_whole(host: HostProcess) -> None:
    big = model_object("big", inputs=[spec("x", "FP32", [-1, 500_000])], outputs=[spec("x", "FP32", [-1, 500_000])])
    await host.load(version_object("big", max_batch_size=4), big)
    values = np.random.default_rng(1).standard_normal((2, 500_000)).astype(np.float32)
    request = execute_request({"x": ("FP32", values)}, model="big")
    reply, other = await asyncio.gather(*(host.stub.Execute(request, timeout=30) for _ in range(2)))
    assert np.array_equal(raw_outputs(reply.response)["x"], values)
    assert np.array_equal(raw_outputs(other.response)["x"], values)
