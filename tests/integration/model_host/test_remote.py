"""A host before other servers: a V2 server of a stranger, and a whole second mesh."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from services.chassis.errors import from_rpc_error
from services.domain.model import TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion
from tests.fakes.v2_server import FakeV2Server
from tests.support.host import (
    FAILED,
    HostProcess,
    execute_request,
    model_object,
    raw_outputs,
    running_host,
    version_object,
)
from tests.support.services import bench, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranger() -> AsyncIterator[FakeV2Server]:
    with FakeV2Server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(stranger: FakeV2Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostProcess]:
    """One that may ask the stranger."""
    folder = tmp_path_factory.mktemp("host")
    async with running_host(folder, "--remote-addresses", stranger.address) as running:
        yield running


def remote(name: str, address: str, **options: str) -> objects_pb2.Object:
    return version_object(name, backend="remote", options={"address": address, "model": "doubler", **options})


async def ask(host: HostProcess, name: str, rows: "np.ndarray[tuple[int, int], np.dtype[np.float32]]" = ROWS) -> object:
    reply = await host.stub.Execute(execute_request({"x": ("FP32", rows)}, model=name), timeout=10)
    return raw_outputs(reply.response)["y"].tolist()


async def test_a_model_of_another_server_is_served_here(host: HostProcess, stranger: FakeV2Server) -> None:
    await host.load(remote("served", stranger.address), model_object("served"))
    assert await ask(host, "served") == (ROWS * 2).tolist()
    load = await host.load_now("served")
    assert load.batch_cap == 64
    status = await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=5)
    (statistics,) = [item for item in status.statistics if item.key.model == "served"]
    assert statistics.success_count == 1


async def test_calls_are_under_way_together_while_the_device_serves_others(
    host: HostProcess, stranger: FakeV2Server
) -> None:
    await host.load(remote("together", stranger.address), model_object("together"))
    await host.load(version_object("beside"), model_object("beside"))
    stranger.hold = threading.Event()
    before = len(stranger.seen)
    calls = [asyncio.ensure_future(ask(host, "together", ROWS + number)) for number in range(4)]

    async def all_seen() -> bool:
        return len(stranger.seen) == before + 4

    await eventually(all_seen, "four calls are under way")
    assert (await host.load_now("together")).running == 4
    echo = await host.stub.Execute(execute_request({"x": ("FP32", ROWS)}, model="beside"), timeout=10)
    assert raw_outputs(echo.response)["y"].tolist() == ROWS.tolist()
    stranger.hold.set()
    assert await asyncio.gather(*calls) == [((ROWS + number) * 2).tolist() for number in range(4)]
    stranger.hold = None


async def test_what_the_server_refuses_has_the_status_that_routers_go_by(
    host: HostProcess, stranger: FakeV2Server
) -> None:
    await host.load(remote("refused", stranger.address), model_object("refused"))
    for code, reason in (
        (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        (grpc.StatusCode.INTERNAL, "MODEL_FAILED"),
    ):
        stranger.failure = (code, "for a reason")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(host, "refused")
        error = from_rpc_error(caught.value)
        assert (caught.value.code(), error.reason) == (code, reason)
        assert "for a reason" in error.message
    stranger.failure = None
    assert await ask(host, "refused") == (ROWS * 2).tolist()


async def test_an_address_that_is_not_allowed_is_refused_at_the_load(host: HostProcess) -> None:
    with FakeV2Server() as other:
        await host.order(remote("elsewhere", other.address), model_object("elsewhere"))
        hosted = await host.settled("elsewhere")
    assert hosted.state == FAILED
    assert "(remote_addresses)" in hosted.message
    assert other.seen == []


async def test_a_mesh_stands_in_front_of_another_mesh(tmp_path: Path) -> None:
    """The other one's router is the V2 server."""
    tensors = (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),)
    model = Model(Metadata("echo"), *tensors)
    version = ModelVersion(Metadata("echo"), "1.0.0", Backend("identity"), max_batch_size=8, min_replicas=1)
    async with bench(tmp_path / "other", hosts=1) as other:
        await other.apply(model, version)
        await other.load("host-0", model, version)
        async with running_host(tmp_path, "--remote-addresses", other.router.address) as host:
            options = {"address": other.router.address, "model": "echo", "version": "1.0.0"}
            before = version_object("front", backend="remote", options=options, max_batch_size=8)

            async def loads() -> bool:
                """The other router hears of its host a moment later."""
                await host.order(before, model_object("front"), decision_id=str(asyncio.get_running_loop().time()))
                return (await host.settled("front")).state != FAILED

            await eventually(loads, "the other mesh is ready")
            assert await ask(host, "front") == ROWS.tolist()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(host, "front", np.full((1, 4), np.nan, np.float32))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
