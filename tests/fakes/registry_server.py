"""A registry over real gRPC whose state a test sets by hand, to say what a real one never would."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_to
from services.chassis.object_codec import object_to
from services.domain.host import HostRecord
from services.domain.objects import Object

HEARTBEAT_S = 0.2

Context = grpc.aio.ServicerContext[Any, Any]


class FakeRegistry:
    """Answers every watch with the whole state whenever it changes, and keeps published plans."""

    def __init__(self, port: int) -> None:
        """Serve on `port` once started."""
        self.port = port
        self.revision = 0
        self.objects: list[Object] = []
        self.hosts: dict[str, HostRecord] = {}
        self.plans: list[pb.PublishPlanRequest] = []
        self.watches = 0
        self._changed = asyncio.Condition()
        self._version = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve, again if need be."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
            ),
            "PublishPlan": grpc.unary_unary_rpc_method_handler(
                self.PublishPlan, pb.PublishPlanRequest.FromString, pb.PublishPlanResponse.SerializeToString
            ),
        }
        name = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        assert self._server.add_insecure_port(self.address) == self.port
        await self._server.start()

    async def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def say(self, revision: int, *objects: Object) -> None:
        """This is the state from now on."""
        self.revision, self.objects = revision, list(objects)
        await self._tell()

    async def list_host(self, record: HostRecord) -> None:
        """A host came or changed."""
        self.hosts[record.host_id] = record
        await self._tell()

    async def unlist_host(self, host_id: str) -> None:
        """A host went."""
        del self.hosts[host_id]
        await self._tell()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """The state, and again whenever it changes."""
        self.watches += 1
        seen = -1
        while True:
            if seen != self._version:
                seen = self._version
                objects = [object_to(one) for one in self.objects]
                part = pb.WatchSnapshot(revision=self.revision, objects=objects, first=True, last=True)
                yield pb.WatchResponse(snapshot=part)
                listed = [record_to(host) for host in self.hosts.values()]
                yield pb.WatchResponse(hosts=pb.WatchHosts(reset=True, listed=listed))
            try:
                async with asyncio.timeout(HEARTBEAT_S), self._changed:
                    await self._changed.wait_for(lambda seen=seen: seen != self._version)  # type: ignore[misc]
            except TimeoutError:
                yield pb.WatchResponse(heartbeat=pb.WatchHeartbeat(revision=self.revision))

    async def PublishPlan(self, request: pb.PublishPlanRequest, context: Context) -> pb.PublishPlanResponse:
        """Keep it."""
        self.plans.append(request)
        return pb.PublishPlanResponse()

    async def _tell(self) -> None:
        async with self._changed:
            self._version += 1
            self._changed.notify_all()
