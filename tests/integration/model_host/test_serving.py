"""One host process over gRPC: orders, answers, refusals, endings."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from modelyard.host.v1 import host_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.errors import from_rpc_error
from tests.support.host import (
    FAILED,
    READY,
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


@pytest_asyncio.fixture(loop_scope="module")
async def host(tmp_path: Path) -> AsyncIterator[HostProcess]:
    """One of the test's own, to order about and to end."""
    async with running_host(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    """One for several tests: each loads a model of its own name."""
    async with running_host(tmp_path_factory.mktemp("host")) as running:
        yield running


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, str]:
    """Status, reason and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return caught.value.code(), error.reason, error.message


async def test_a_loaded_version_answers_with_load_and_statistics(shared: HostProcess) -> None:
    hosted = await shared.load(version_object("first"))
    assert hosted.load_time.ToNanoseconds() > 0

    answer = await shared.stub.Execute(echo_request([1, 2, 3, 4], request_id="r-7", model="first"), timeout=5)

    assert raw_outputs(answer.response)["y"].tolist() == [[1, 2, 3, 4]]
    assert (answer.response.id, answer.response.model_name, answer.response.model_version) == ("r-7", "first", "1.0.0")
    assert answer.batch_size == 1
    assert answer.load.host_id == "test-0"
    assert [load.key.model for load in answer.load.models] == ["first"]
    assert answer.load.models[0].batch_cap >= 1
    status = await shared.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)
    assert status.record.device.kind == resources_pb2.DEVICE_KIND_CPU
    assert status.record.pid == shared.pid
    assert status.load.sequence > answer.load.sequence
    (statistics,) = [item for item in status.statistics if item.key.model == "first"]
    assert (statistics.success_count, statistics.execution_count, dict(statistics.batch_counts)) == (1, 1, {1: 1})


async def test_loading_is_answered_at_once_and_seen_in_the_record(shared: HostProcess) -> None:
    slow = version_object("slow", options={"base_ms": "300"}, max_batch_size=1)
    assert await shared.order(slow, model_object("slow")) == model_pb2.MODEL_STATE_LOADING
    loading = await shared.hosted("slow")
    assert loading is not None
    assert loading.state == model_pb2.MODEL_STATE_LOADING
    code, reason, _ = await refusal(shared.stub.Execute(echo_request([1, 2, 3, 4], model="slow"), timeout=5))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    assert (await shared.settled("slow")).state == READY


async def test_a_call_is_served_while_another_version_loads(shared: HostProcess) -> None:
    await shared.load(version_object("served"))
    await shared.order(
        version_object("slower", options={"base_ms": "500"}, max_batch_size=4), model_object("slower"), decision_id="d2"
    )

    await shared.stub.Execute(echo_request([1, 2, 3, 4], model="served"), timeout=5)

    slow = await shared.hosted("slower")
    assert slow is not None
    assert slow.state == model_pb2.MODEL_STATE_LOADING


async def test_orders_repeat_without_effect_and_a_stale_leader_is_refused(host: HostProcess) -> None:
    await host.load(decision_id="d1", token=7)
    assert await host.order(version_object(), decision_id="d1", token=7) == READY
    assert await host.order(version_object(), decision_id="d2", token=8) == READY

    code, reason, text = await refusal(
        host.stub.LoadModel(
            host_pb2.LoadModelRequest(
                model=model_object("b"), version=version_object("b"), decision_id="d3", fencing_token=7
            ),
            timeout=5,
        )
    )
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCING_TOKEN")
    assert "7" in text
    assert "8" in text
    key = model_pb2.ModelKey(model="echo", version="1.0.0")
    stale = host_pb2.UnloadModelRequest(key=key, decision_id="d4", fencing_token=7)
    assert (await refusal(host.stub.UnloadModel(stale, timeout=5)))[1] == "STALE_FENCING_TOKEN"
    assert (await refusal(host.stub.Drain(host_pb2.DrainRequest(fencing_token=7), timeout=5)))[1] == (
        "STALE_FENCING_TOKEN"
    )
    assert (await host.settled()).state == READY
    assert await host.hosted("b") is None


async def test_unloading_finishes_its_calls_and_forgets_the_version(shared: HostProcess) -> None:
    await shared.load(version_object("leaving", options={"base_ms": "500"}, max_batch_size=1))
    calls = [
        asyncio.ensure_future(shared.stub.Execute(echo_request([n, 0, 0, 0], model="leaving"), timeout=10))
        for n in range(4)
    ]
    await shared.busy(queued=3, name="leaving")

    order = host_pb2.UnloadModelRequest(
        key=model_pb2.ModelKey(model="leaving", version="1.0.0"), decision_id="u1", fencing_token=1
    )
    answer = await shared.stub.UnloadModel(order, timeout=5)

    assert answer.state == model_pb2.MODEL_STATE_UNLOADING
    assert (await refusal(shared.stub.Execute(echo_request([9, 0, 0, 0], model="leaving"), timeout=5)))[
        1
    ] == "MODEL_NOT_READY"
    for number, reply in enumerate(await asyncio.gather(*calls)):
        assert raw_outputs(reply.response)["y"].tolist() == [[number, 0, 0, 0]]
    await shared.gone("leaving")
    assert (await shared.stub.UnloadModel(order, timeout=5)).state == model_pb2.MODEL_STATE_UNSPECIFIED
    await shared.load(version_object("leaving"), decision_id="d2")
    await shared.stub.UnloadModel(order, timeout=5)  # the same unload again, late
    assert (await shared.settled("leaving")).state == READY


async def test_health_follows_the_model(shared: HostProcess) -> None:
    health = health_pb2_grpc.HealthStub(shared.channel)

    async def serving(name: str) -> int:
        return int((await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status)

    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await serving("healthy")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    await shared.load(version_object("healthy"))
    assert await serving("healthy") == health_pb2.HealthCheckResponse.SERVING
    key = model_pb2.ModelKey(model="healthy", version="1.0.0")
    await shared.stub.UnloadModel(host_pb2.UnloadModelRequest(key=key, decision_id="u", fencing_token=1), timeout=5)
    await shared.gone("healthy")
    assert await serving("healthy") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await serving("modelyard.host.v1.ModelHostService") == health_pb2.HealthCheckResponse.SERVING


async def test_a_drain_answers_what_was_taken_refuses_the_rest_and_ends_the_process(host: HostProcess) -> None:
    await host.load(version_object(options={"base_ms": "1000"}, max_batch_size=1))
    calls = [asyncio.ensure_future(host.stub.Execute(echo_request([n, 0, 0, 0]), timeout=30)) for n in range(3)]
    await host.busy(queued=2)

    await host.stub.Drain(host_pb2.DrainRequest(), timeout=5)

    code, reason, _ = await refusal(host.stub.Execute(echo_request([9, 0, 0, 0]), timeout=5))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert (await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)).record.draining
    assert (await refusal(_load(host)))[1] == "DRAINING"
    for number, reply in enumerate(await asyncio.gather(*calls)):
        assert raw_outputs(reply.response)["y"].tolist() == [[number, 0, 0, 0]]
    assert await host.wait_exit() == 0


def _load(host: HostProcess) -> Awaitable[host_pb2.LoadModelResponse]:
    order = host_pb2.LoadModelRequest(model=model_object("b"), version=version_object("b"), fencing_token=1)
    return host.stub.LoadModel(order, timeout=5)


async def test_sigterm_loses_no_call(host: HostProcess) -> None:
    await host.load(version_object(options={"base_ms": "20"}))
    answered = 0
    stopped: list[grpc.StatusCode] = []

    async def call() -> None:
        nonlocal answered
        while True:
            try:
                await host.stub.Execute(echo_request([1, 2, 3, 4]), timeout=5)
            except grpc.aio.AioRpcError as error:
                stopped.append(error.code())
                return
            answered += 1

    callers = [asyncio.ensure_future(call()) for _ in range(4)]
    await asyncio.sleep(0.3)
    os.kill(host.pid, signal.SIGTERM)
    await asyncio.gather(*callers)

    assert answered > 4
    assert stopped == [grpc.StatusCode.UNAVAILABLE] * 4
    assert await host.wait_exit() == 0


async def test_a_killed_host_is_seen_as_unavailable_at_once(host: HostProcess) -> None:
    await host.load(version_object(options={"base_ms": "3000"}, max_batch_size=1))
    call = asyncio.ensure_future(host.stub.Execute(echo_request([1, 2, 3, 4]), timeout=60))
    await host.busy(queued=0)

    os.kill(host.pid, signal.SIGKILL)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await host.wait_exit() == -signal.SIGKILL


async def test_a_call_without_a_deadline_is_refused(shared: HostProcess) -> None:
    code, reason, _ = await refusal(shared.stub.Execute(echo_request([1, 2, 3, 4], model="served")))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED")


async def test_bad_tensors_are_refused_by_name_and_the_refusal_carries_the_load(shared: HostProcess) -> None:
    await shared.load(version_object("picky"))

    def asked(
        shape: tuple[int, ...],
        datatype: str = "FP32",
        dtype: type = np.float32,
        *,
        name: str = "x",
        outputs: Sequence[str] = (),
    ) -> host_pb2.ExecuteRequest:
        return execute_request({name: (datatype, np.zeros(shape, dtype))}, model="picky", outputs=outputs)

    request = echo_request([1, 2, float("nan"), 4], model="picky")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shared.stub.Execute(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'x'" in (caught.value.details() or "")
    (load,) = [value for key, value in caught.value.trailing_metadata() if key == "x-modelyard-load-bin"]
    assert isinstance(load, bytes)
    assert resources_pb2.HostLoad.FromString(load).models[0].key.model == "picky"

    for bad, said in (
        (asked((1, 5)), "'x' must have shape [-1, 4]"),
        (asked((1, 4), "FP64", np.float64), "'x' must be FP32"),
        (asked((1, 4), name="z"), "'z' is not one of the model's"),
        (asked((0, 4)), "must be at least 1"),
        (asked((33, 4)), "largest batch, 32"),
        (asked((1, 4), outputs=["w"]), "output 'w'"),
    ):
        code, reason, text = await refusal(shared.stub.Execute(bad, timeout=5))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert said in text


async def test_the_answer_has_the_form_of_the_request(shared: HostProcess) -> None:
    await shared.load(version_object("formal"), model_object("formal", outputs=[spec("y"), spec("x")]))
    typed = echo_request([1, 2, 3, 4], model="formal")
    typed.request.ClearField("raw_input_contents")
    typed.request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])

    answer = (await shared.stub.Execute(typed, timeout=5)).response
    assert not answer.raw_output_contents
    assert [list(output.contents.fp32_contents) for output in answer.outputs] == [[1, 2, 3, 4]] * 2

    typed.request.outputs.add(name="x")
    assert [output.name for output in (await shared.stub.Execute(typed, timeout=5)).response.outputs] == ["x"]


async def test_what_the_schema_declares_must_come_out_of_warm_up(shared: HostProcess) -> None:
    wrong = model_object("wrong", inputs=[spec("x", "INT32")], outputs=[spec("y", "FP32")])
    await shared.order(version_object("wrong"), wrong)
    hosted = await shared.settled("wrong")
    assert hosted.state == FAILED
    assert "output 'y' is declared FP32, int32 came" in hosted.message

    wide = model_object("wide", inputs=[spec("x", shape=[-1, 4])], outputs=[spec("y", shape=[-1, 5])])
    await shared.order(version_object("wide"), wide, decision_id="d2")
    hosted = await shared.settled("wide")
    assert hosted.state == FAILED
    assert "output 'y' is declared [-1, 5]" in hosted.message


async def test_memory_is_bounded_by_the_budget(tmp_path: Path) -> None:
    async with running_host(tmp_path, "--memory-bytes", "1000000") as host:
        order = host_pb2.LoadModelRequest(
            model=model_object(), version=version_object(memory_bytes=2_000_000), fencing_token=1
        )
        code, reason, text = await refusal(host.stub.LoadModel(order, timeout=5))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY")
        assert "declares 2000000 bytes, and 1000000 of 1000000 are free" in text

        # It declares too little: warm-up with four rows of 8 MB shows the truth.
        wide = [-1, 2_000_000]
        big = model_object("big", inputs=[spec("x", shape=wide)], outputs=[spec("y", shape=wide)])
        await host.order(version_object("big", memory_bytes=10, max_batch_size=4), big)
        hosted = await host.settled("big")
        assert hosted.state == FAILED
        assert "as measured (declared: 10)" in hosted.message


async def test_metrics_are_served(tmp_path: Path, free_port: int) -> None:
    async with running_host(tmp_path, metrics_port=free_port) as host:
        await host.load()
        await host.stub.Execute(echo_request([1, 2, 3, 4]), timeout=5)
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    assert 'modelyard_host_batch_size_count{model="echo",version="1.0.0"} 1.0' in text
    assert "modelyard_host_memory_bytes" in text
    of_echo = '{model="echo",version="1.0.0"}'
    for name in ("request_success", "count", "exec_count"):
        assert f"nv_inference_{name}{of_echo} 1.0" in text
    assert f"nv_inference_pending_request_count{of_echo} 0.0" in text
    spent = {
        name: float(text.partition(f"nv_inference_{name}_duration_us{of_echo} ")[2].split()[0])
        for name in ("request", "queue", "compute_infer")
    }
    assert spent["request"] == pytest.approx(spent["queue"] + spent["compute_infer"])
    assert spent["compute_infer"] > 0.0
