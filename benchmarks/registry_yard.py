"""etcd, a registry and a router, each a process of its own, started one by one with what a mesh starts them with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import grpc.aio
import psutil

from benchmarks.measuring import cpu_s
from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2, registry_pb2_grpc
from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.channels import open_channel
from services.domain.clock import SystemClock
from yardctl.errors import CommandError
from yardctl.etcd_binary import find_etcd
from yardctl.health import grpc_fault
from yardctl.mesh import Mesh, MeshConfig
from yardctl.parts import ETCD, REGISTRY, ROUTER

START_WITHIN_S = 300.0
CALL_S = 120.0
POLL_S = 0.005
TRIES = 5
AGAIN_S = 0.5
SERVICES = {
    REGISTRY: "modelyard.registry.v1.RegistryService",
    ROUTER: "modelyard.inference.v1.InferenceService",
}
_CLOCK = SystemClock()


class Yard:
    """The processes. An async context manager that begins with etcd and an empty registry."""

    def __init__(self, folder: Path, base_port: int) -> None:
        """Keep everything in `folder`, serve from `base_port` on."""
        self._mesh = Mesh(MeshConfig(folder, base_port, hosts=0, trace_ratio=0.0), find_etcd())
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._requests = 0

    async def __aenter__(self) -> Self:
        """Start etcd and the registry."""
        try:
            self._mesh.check()
            self._mesh.layout.create()
            self._mesh.start_part(ETCD)
            await self._mesh.wait_healthy(ETCD)
            await self.start(REGISTRY)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        for channel in self._channels.values():
            await channel.close()
        await self._mesh.stop()

    async def start(self, name: str) -> float:
        """Start the registry or the router; returns the seconds until it served.

        Raises:
            CommandError: It does not.
        """
        address = self._mesh.parts[name].address
        began_s = _CLOCK.now_s()
        self._mesh.start_part(name)
        # A channel anew for each try: one that was refused would wait before it connects again.
        while await grpc_fault(address, service=SERVICES[name]):
            if self._mesh.ended(name) is not None or _CLOCK.now_s() - began_s > START_WITHIN_S:
                raise CommandError(f"{name} does not come up: see {self._mesh.layout.log_file(name)}")
            await _CLOCK.sleep(POLL_S)
        return _CLOCK.now_s() - began_s

    async def end(self, name: str) -> None:
        """End the registry or the router as a crash would, so that the next start is a cold one."""
        channel = self._channels.pop(name, None)
        if channel is not None:
            await channel.close()
        await self._mesh.kill_part(name)
        if name == ROUTER:
            self._mesh.layout.router_snapshot.unlink(missing_ok=True)

    def process(self, name: str) -> psutil.Process:
        """A process that runs."""
        return psutil.Process(self._mesh.pid(name))

    def processes(self) -> Mapping[str, psutil.Process]:
        """All that run."""
        return {name: self.process(name) for name in (ETCD, REGISTRY, ROUTER) if self._running(name)}

    def cpu_s(self) -> float:
        """CPU seconds that those that run have used."""
        return sum(map(cpu_s, self.processes().values()))

    def open(self, name: str) -> grpc.aio.Channel:
        """A further channel to a part; the caller closes it."""
        return open_channel(self._mesh.parts[name].address)

    def address(self, name: str) -> str:
        """HOST:PORT that a part serves on."""
        return self._mesh.parts[name].address

    async def etcd_bytes(self) -> int:
        """Size of etcd's database."""
        async with grpc.aio.insecure_channel(self._mesh.addresses.etcd) as channel:
            status = channel.unary_unary(
                "/etcdserverpb.Maintenance/Status",
                request_serializer=etcd.StatusRequest.SerializeToString,
                response_deserializer=etcd.StatusResponse.FromString,
            )
            return int((await status(etcd.StatusRequest(), timeout=CALL_S)).db_size)

    async def apply(self, objects: list[objects_pb2.Object]) -> int:
        """Apply objects; returns the revision. A store that is late is asked again, and the time counts."""
        self._requests += 1
        request = pb.ApplyRequest(
            objects=objects, reason="benchmark", author="bench", request_id=f"bench-{self._requests}"
        )
        for attempt in range(TRIES):
            try:
                return (await self._registry().Apply(request, timeout=CALL_S)).revision
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or attempt == TRIES - 1:
                    raise
                await _CLOCK.sleep(AGAIN_S)
        raise AssertionError("the last try returns or raises")

    async def get(self, key: objects_pb2.ObjectKey) -> pb.GetResponse:
        """Read one object."""
        return await self._registry().Get(pb.GetRequest(key=key), timeout=CALL_S)

    async def page(self, size: int, token: str = "") -> pb.ListResponse:
        """Read a page of all objects."""
        return await self._registry().List(pb.ListRequest(page_size=size, page_token=token), timeout=CALL_S)

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        """The hosts that the registry lists."""
        return list((await self._registry().ListHosts(pb.ListHostsRequest(), timeout=CALL_S)).hosts)

    async def routes(self, name: str) -> bool:
        """Whether the router knows a name."""
        stub = inference_pb2_grpc.InferenceServiceStub(self._channel(ROUTER))
        request = inference_pb2.ExplainRequest(request=inference_pb2.InferRequest(model_name=name))
        try:
            await stub.Explain(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _registry(self) -> "registry_pb2_grpc.RegistryServiceAsyncStub":
        return registry_pb2_grpc.RegistryServiceStub(self._channel(REGISTRY))

    def _channel(self, name: str) -> grpc.aio.Channel:
        if name not in self._channels:
            self._channels[name] = self.open(name)
        return self._channels[name]

    def _running(self, name: str) -> bool:
        try:
            return self._mesh.ended(name) is None and self.process(name).is_running()
        except (KeyError, psutil.NoSuchProcess):
            return False
