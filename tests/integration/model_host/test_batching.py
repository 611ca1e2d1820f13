"""Batches in a real host: who shares one, whose answer is whose, and what is never computed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[HostProcess]:
    async with running_host(tmp_path) as running:
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

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.booleans()), min_size=5, max_size=60))
    def each_gets_its_own(shapes: list[tuple[int, int, bool]]) -> None:
        future = asyncio.run_coroutine_threadsafe(ask(shapes), loop)
        future.result(60)

    async def ask(shapes: list[tuple[int, int, bool]]) -> None:
        calls = []
        for number, (rows, width, with_text) in enumerate(shapes):
            values = np.arange(rows * width, dtype=np.int64).reshape(rows, width) + 1000 * number
            inputs = {"v": ("INT64", values)}
            if with_text:
                inputs["t"] = ("BYTES", np.array([b"x" * number] * rows, np.object_))
            calls.append((values, host.stub.Execute(execute_request(inputs, model="mixed"), timeout=20)))
        for values, call in calls:
            reply = await call
            assert np.array_equal(raw_outputs(reply.response)["v"], values)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(each_gets_its_own)
    assert max((await statistics(host, "mixed")).batch_counts) > 1


async def test_expired_and_cancelled_calls_are_never_computed(host: HostProcess) -> None:
    await host.load(version_object(options={"base_ms": "200"}, max_batch_size=1))
    first = asyncio.ensure_future(host.stub.Execute(echo_request([1, 0, 0, 0]), timeout=10))
    await asyncio.sleep(0.05)

    gone = [host.stub.Execute(echo_request([2, 0, 0, 0]), timeout=10) for _ in range(5)]
    await asyncio.sleep(0.05)
    for call in gone:
        call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await host.stub.Execute(echo_request([3, 0, 0, 0]), timeout=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as behind:
        await host.stub.Execute(echo_request([4, 0, 0, 0]), timeout=0.25)
    await first

    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "takes about 20" in (late.value.details() or "")
    assert behind.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "behind what waits" in (behind.value.details() or "")
    await host.stub.Execute(echo_request([5, 0, 0, 0]), timeout=10)
    counts = await statistics(host)
    assert counts.execution_count == counts.success_count == 2
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
