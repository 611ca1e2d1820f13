"""The host's stream to the registry: a real host process, and a registry that only listens."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import registry_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.codec import duration_to
from tests.support.host import echo_request, running_host, version_object
from tests.support.ports import free_ports


class ListeningRegistry:
    """Keeps what hosts report, and acknowledges it."""

    def __init__(self) -> None:
        self.requests: list[registry_pb2.RegisterHostRequest] = []
        self.records: list[resources_pb2.HostRecord] = []
        self.streams = 0
        self.farewells = 0

    async def register(
        self,
        request_iterator: AsyncIterator[registry_pb2.RegisterHostRequest],
        context: grpc.aio.ServicerContext[registry_pb2.RegisterHostRequest, registry_pb2.RegisterHostResponse],
    ) -> AsyncIterator[registry_pb2.RegisterHostResponse]:
        self.streams += 1
        first = True
        async for request in request_iterator:
            assert request.HasField("record") or not first, "the first message carries the record"
            first = False
            self.requests.append(request)
            if request.HasField("record"):
                self.records.append(request.record)
            yield registry_pb2.RegisterHostResponse(lease_ttl=duration_to(10.0), progress=request.progress)
        self.farewells += 1

    def states(self) -> list[model_pb2.ModelState.ValueType]:
        return [record.models[0].state for record in self.records if record.models]


@asynccontextmanager
async def serving(registry: ListeningRegistry, port: int) -> AsyncIterator[None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.stream_stream_rpc_method_handler(
        registry.register,
        request_deserializer=registry_pb2.RegisterHostRequest.FromString,
        response_serializer=registry_pb2.RegisterHostResponse.SerializeToString,
    )
    service = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"RegisterHost": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def until(done: Callable[[], bool], what: str) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 30
    while not done():
        assert loop.time() < end_s, what
        await asyncio.sleep(0.02)


async def test_the_record_comes_first_then_every_change_and_progress(tmp_path: Path) -> None:
    registry, (port,) = ListeningRegistry(), free_ports(1)
    async with serving(registry, port), running_host(tmp_path, registry=f"127.0.0.1:{port}") as host:
        await until(lambda: bool(registry.records), "no record came")
        first = registry.records[0]
        assert (first.host_id, first.address, first.pool, first.pid) == ("test-0", host.address, "test", host.pid)
        await host.load(version_object(options={"base_ms": "100"}))
        await until(lambda: model_pb2.MODEL_STATE_READY in registry.states(), "READY was not reported")
        assert registry.states()[0] == model_pb2.MODEL_STATE_LOADING
        assert registry.records[-1].models[0].memory_bytes == registry.records[-1].device.used_bytes

        count = len(registry.requests)
        await until(lambda: len(registry.requests) >= count + 2, "no progress came")
        progress = [request.progress for request in registry.requests]
        assert progress == sorted(set(progress))
        assert not registry.requests[-1].HasField("record")

        os.kill(host.pid, signal.SIGTERM)
        await until(lambda: registry.farewells == 1, "the stream was not closed in good order")
        assert await host.wait_exit() == 0
    assert registry.records[-1].draining
    assert registry.streams == 1


async def test_the_host_serves_on_while_the_registry_is_away_and_is_listed_again(tmp_path: Path) -> None:
    registry, (port,) = ListeningRegistry(), free_ports(1)
    async with running_host(tmp_path, registry=f"127.0.0.1:{port}") as host:
        await host.load()  # nobody listens yet
        async with serving(registry, port):
            await until(lambda: bool(registry.records), "not listed once the registry is there")
            assert registry.records[0].models[0].state == model_pb2.MODEL_STATE_READY
        await host.stub.Execute(echo_request([1, 2, 3, 4]), timeout=10)
        heard = len(registry.records)
        async with serving(registry, port):
            await until(lambda: len(registry.records) > heard, "not listed again")
        assert registry.streams == 2


async def test_a_frozen_host_reports_no_progress_and_goes_on_once_it_thaws(tmp_path: Path) -> None:
    registry, (port,) = ListeningRegistry(), free_ports(1)
    async with serving(registry, port), running_host(tmp_path, registry=f"127.0.0.1:{port}") as host:
        await host.load()
        await until(lambda: len(registry.requests) > 2, "no progress came")
        os.kill(host.pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)  # what was under way arrives
        count = len(registry.requests)
        await asyncio.sleep(2.5)
        assert len(registry.requests) == count
        os.kill(host.pid, signal.SIGCONT)
        await until(lambda: len(registry.requests) > count + 1, "no progress after the freeze")
        status = await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10)
        assert status.record.models[0].state == model_pb2.MODEL_STATE_READY
