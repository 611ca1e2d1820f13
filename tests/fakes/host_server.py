"""A model host over real gRPC that computes nothing: it takes orders and tells a fake registry."""

from typing import Any

import grpc
import grpc.aio

from modelyard.host.v1 import host_pb2 as pb
from modelyard.type.v1 import model_pb2
from services.chassis.codec import key_from
from services.chassis.object_codec import object_from
from services.domain.host import HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion
from tests.fakes.objects import a_host
from tests.fakes.registry_server import FakeRegistry

Context = grpc.aio.ServicerContext[Any, Any]


class FakeHost:
    """Has every version READY as soon as it is ordered."""

    def __init__(self, host_id: str, registry: FakeRegistry) -> None:
        """Be listed by `registry` once started."""
        self.host_id = host_id
        self.models: dict[ModelKey, HostedModel] = {}
        self.loads: list[pb.LoadModelRequest] = []
        self.unloads: list[pb.UnloadModelRequest] = []
        self._registry = registry
        self._address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve on a free port, and be listed."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "LoadModel": grpc.unary_unary_rpc_method_handler(
                self.LoadModel, pb.LoadModelRequest.FromString, pb.LoadModelResponse.SerializeToString
            ),
            "UnloadModel": grpc.unary_unary_rpc_method_handler(
                self.UnloadModel, pb.UnloadModelRequest.FromString, pb.UnloadModelResponse.SerializeToString
            ),
        }
        name = pb.DESCRIPTOR.services_by_name["ModelHostService"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        await self._report()

    async def stop(self) -> None:
        """Serve no more; it stays listed."""
        if self._server is not None:
            await self._server.stop(0)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Have it at once."""
        assert context.time_remaining() is not None
        self.loads.append(request)
        version = object_from(request.version)
        assert isinstance(version, ModelVersion)
        self.models[version.model_key] = HostedModel(version.model_key, ModelState.READY, "", version.memory_bytes)
        await self._report()
        return pb.LoadModelResponse(state=model_pb2.MODEL_STATE_LOADING)

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Be rid of it at once."""
        assert context.time_remaining() is not None
        self.unloads.append(request)
        self.models.pop(key_from(request.key), None)
        await self._report()
        return pb.UnloadModelResponse()

    def record(self) -> HostRecord:
        """What it says of itself."""
        return a_host(self.host_id, *self.models.values(), address=self._address)

    async def _report(self) -> None:
        await self._registry.list_host(self.record())
