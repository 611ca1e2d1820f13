"""A host whose device runs out of memory, breaks, computes wrongly or loses memory: real processes, simulated cards."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2
from services.chassis.errors import from_rpc_error
from services.chassis.process import FAILED, RECYCLE
from tests.fakes.simulated_device import POISON, Fault
from tests.integration.model_host.test_reporting import ListeningRegistry, serving
from tests.support.host import HostProcess, echo_request, raw_outputs, running_host, version_object
from tests.support.ports import free_ports

MIB = 1 << 20
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@asynccontextmanager
async def simulated(
    directory: Path, state: str = "", *, mib: int = 256, registry: str = "", address: str | None = None
) -> AsyncIterator[HostProcess]:
    """A host on a simulated device of so much memory."""
    file = directory / "device"
    file.write_text(state)
    program = ("tests.support.simulated_host", str(file))
    flags = ("--memory-bytes", str(mib * MIB))
    async with running_host(directory, *flags, registry=registry, address=address, program=program) as host:
        yield host


def sized(name: str, *, batch: int = 1, base_ms: int = 0, **options: int) -> objects_pb2.Object:
    """A version that takes memory of the simulated device, in MiB."""
    given = {f"simulated.{key}": str(value * MIB) for key, value in options.items()}
    return version_object(name, max_batch_size=batch, options={"base_ms": str(base_ms), **given})


async def unload(host: HostProcess, name: str, decision_id: str = "u1") -> None:
    key = model_pb2.ModelKey(model=name, version="1.0.0")
    request = host_pb2.UnloadModelRequest(key=key, decision_id=decision_id, fencing_token=1)
    await host.stub.UnloadModel(request, timeout=10)


async def status_of(host: HostProcess, *row: float, model: str) -> grpc.StatusCode:
    try:
        answer = await host.stub.Execute(echo_request(row, model=model), timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    assert raw_outputs(answer.response)["y"].tolist() == [list(row)]
    return grpc.StatusCode.OK


async def test_a_batch_without_memory_fails_retryably_halves_the_cap_and_harms_nobody_else(tmp_path: Path) -> None:
    async with simulated(tmp_path) as host:
        await host.load(sized("wide", batch=16, base_ms=5, row_bytes=8))
        await host.load(sized("other"))
        await host.load(sized("slow", base_ms=500))
        await host.load(sized("hoarder", hoards=48))
        assert (await host.load_now("wide")).batch_cap > 8
        for _ in range(3):
            assert await status_of(host, 1, 2, 3, 4, model="hoarder") is grpc.StatusCode.OK

        # Behind a slow call all of them queue up, so that full batches form however slowly they arrive.
        slow = asyncio.create_task(status_of(host, 1, 2, 3, 4, model="slow"))
        await asyncio.sleep(0.05)
        wide = [status_of(host, n, 2, 3, 4, model="wide") for n in range(64)]
        other = [status_of(host, n, 2, 3, 4, model="other") for n in range(64)]
        results = await asyncio.gather(*wide, *other)

        assert await slow is grpc.StatusCode.OK
        assert set(results[64:]) == {grpc.StatusCode.OK}
        assert set(results[:64]) == {grpc.StatusCode.OK, EXHAUSTED}
        assert (await host.load_now("wide")).batch_cap <= 8
        assert await status_of(host, 1, 2, 3, 4, model="wide") is grpc.StatusCode.OK
        assert [await status_of(host, 1, 2, 3, 4, model="hoarder") for _ in range(3)][-1:] == [EXHAUSTED]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await host.stub.Execute(echo_request([1, 2, 3, 4], model="hoarder"), timeout=10)
        assert from_rpc_error(caught.value).retry_after_s is not None


async def test_a_fault_ends_the_process_and_the_next_one_tests_the_device_before_it_registers(tmp_path: Path) -> None:
    poison = POISON[Fault.DEVICE_ASSERT]
    registry = ListeningRegistry()
    (port, at) = free_ports(2)
    async with serving(registry, port):
        async with simulated(tmp_path, registry=f"127.0.0.1:{port}", address=f"127.0.0.1:{at}") as host:
            await host.load()
            assert await status_of(host, poison, 0, 0, 0, model="echo") is grpc.StatusCode.UNAVAILABLE
            assert await host.wait_exit() == FAILED

        async with simulated(tmp_path, registry=f"127.0.0.1:{port}", address=f"127.0.0.1:{at}") as again:
            await again.load(decision_id="d2")
            assert await status_of(again, 1, 2, 3, 4, model="echo") is grpc.StatusCode.OK
            log = again.log.read_text()
        assert log.count("the device computes right") == 2
        second = log[log.rindex("the device computes right") :]
        assert "listed at the registry" in second


async def test_a_fault_while_a_version_loads_ends_the_process(tmp_path: Path) -> None:
    poisoned = objects_pb2.WarmupSample()
    poisoned.inputs["x"].shape.extend([1, 4])
    poisoned.inputs["x"].raw = echo_request([POISON[Fault.ECC], 0, 0, 0]).request.raw_input_contents[0]
    async with simulated(tmp_path) as host:
        await host.order(version_object(warmup=[poisoned]))
        assert await host.wait_exit() == FAILED


@pytest.mark.parametrize(("state", "said"), [("wrong", "computes wrongly: 1 of"), ("broken", "does not compute")])
async def test_a_device_that_does_not_compute_right_never_comes_into_the_pool(
    tmp_path: Path, state: str, said: str
) -> None:
    registry = ListeningRegistry()
    (port,) = free_ports(1)
    async with serving(registry, port):
        with pytest.raises(AssertionError, match=f"ended with {FAILED}:(.|\n)*{said}"):
            async with simulated(tmp_path, state, registry=f"127.0.0.1:{port}"):
                pass
    assert registry.streams == 0


async def test_a_host_that_lost_memory_ends_once_no_version_is_left_on_it(tmp_path: Path) -> None:
    async with simulated(tmp_path, mib=1024) as host:
        await host.load(sized("leaky", weights_bytes=200, leaks=100))
        await host.load(sized("sound", weights_bytes=200))
        await unload(host, "leaky")
        await host.gone("leaky")
        assert await status_of(host, 1, 2, 3, 4, model="sound") is grpc.StatusCode.OK
        assert "an unload did not give its memory back" in host.log.read_text()
        await unload(host, "sound", "u2")
        assert await host.wait_exit() == RECYCLE


async def test_a_host_that_lost_much_memory_ends_although_it_serves_and_answers_what_it_has(tmp_path: Path) -> None:
    async with simulated(tmp_path, mib=1024) as host:
        await host.load(sized("leaky", weights_bytes=400, leaks=300))
        await host.load(sized("slow", base_ms=500))
        call = asyncio.ensure_future(status_of(host, 1, 2, 3, 4, model="slow"))
        await host.busy(queued=0, name="slow")
        await unload(host, "leaky")
        assert await call is grpc.StatusCode.OK
        assert await host.wait_exit() == RECYCLE


async def test_a_host_whose_memory_comes_back_serves_on(tmp_path: Path) -> None:
    async with simulated(tmp_path, mib=1024) as host:
        for turn in range(3):
            await host.load(sized("sound", weights_bytes=500), decision_id=f"d{turn}")
            await unload(host, "sound", f"u{turn}")
            await host.gone("sound")
        await host.load(decision_id="d9")
        assert await status_of(host, 1, 2, 3, 4, model="echo") is grpc.StatusCode.OK


async def test_a_host_keeps_to_its_processors_with_every_thread(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    async with running_host(tmp_path, "--cpus", str(first)) as host:
        await host.load()
        tasks = [int(task.name) for task in Path(f"/proc/{host.pid}/task").iterdir()]
        assert len(tasks) > 3
        assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset({first})}


async def test_a_processor_that_is_not_there_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"cannot start: cpus: 4095 is not among those this process may use"):
        async with running_host(tmp_path, "--cpus", "4095"):
            pass
