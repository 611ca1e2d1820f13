"""The Open Inference Protocol V2 in Triton's superset: convert, delegate, convert."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc.aio

from modelyard.host.v1 import host_pb2
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.encoding import Encoded
from services.chassis.telemetry import logger
from services.domain.errors import InvalidRequest, ModelNotFound, NoReadyHost, NotSupported, VersionNotFound, YardError
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.router import v2_wire
from services.router.destination import Destination
from services.router.frames import Received
from services.router.pipeline import Answer
from services.router.servicer import Calls, encoded
from services.router.snapshot import Snapshot
from services.router.v2_streaming import StreamInfer

SERVER_NAME = "modelyard"

EXTENSIONS = ("model_repository", "model_configuration", "parameters", "statistics", "binary_tensor_data")
"""What is true. Clients look at it: perf_analyzer reads statistics only if they are listed."""

STATUS_TIMEOUT_S = 1.0
"""Longest wait for a host's statistics; one that does not answer is left out."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class HostStatus(Protocol):
    """Where statistics come from."""

    async def status(self, host: HostRecord, *, timeout_s: float) -> host_pb2.GetStatusResponse:
        """A host's statistics; raises YardError if it does not answer."""
        ...


class GRPCInferenceServicer:
    """inference.GRPCInferenceService."""

    def __init__(
        self, *, calls: Calls, snapshot: Callable[[], Snapshot | None], hosts: HostStatus, version: str
    ) -> None:
        """Serve calls; `version` is the server's."""
        self._calls = calls
        self._current = snapshot
        self._hosts = hosts
        self._version = version

    async def ServerLive(self, request: v2.ServerLiveRequest, context: Context) -> v2.ServerLiveResponse:
        """The process runs, since it answers."""
        return v2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: v2.ServerReadyRequest, context: Context) -> v2.ServerReadyResponse:
        """Whether calls can be routed."""
        return v2.ServerReadyResponse(ready=self._current() is not None)

    async def ModelReady(self, request: v2.ModelReadyRequest, context: Context) -> v2.ModelReadyResponse:
        """Whether a host is ready for the name."""
        if self._current() is None:
            return v2.ModelReadyResponse(ready=False)
        try:
            destination = self._destination(request.name, request.version)
        except (InvalidRequest, ModelNotFound, VersionNotFound):
            return v2.ModelReadyResponse(ready=False)
        return v2.ModelReadyResponse(ready=destination.ready)

    async def ServerMetadata(self, request: v2.ServerMetadataRequest, context: Context) -> v2.ServerMetadataResponse:
        """Name, version, extensions."""
        return v2.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: v2.ModelMetadataRequest, context: Context) -> v2.ModelMetadataResponse:
        """Schema and versions."""
        return v2_wire.metadata_to(self._destination(request.name, request.version))

    async def ModelConfig(self, request: v2.ModelConfigRequest, context: Context) -> v2.ModelConfigResponse:
        """Configuration."""
        return v2.ModelConfigResponse(config=v2_wire.config_to(self._destination(request.name, request.version)))

    async def ModelInfer(self, request: Received, context: Context) -> Encoded:
        """Route one call."""
        return _encoded(request, await self._calls.infer(request, context))

    async def ModelStreamInfer(self, requests: AsyncIterator[Received], context: Context) -> None:
        """Route every request of a stream."""
        stream = StreamInfer(calls=self._calls, snapshot=self._current, encode=_encoded, context=context)
        await stream.run(requests)

    async def ModelStatistics(self, request: v2.ModelStatisticsRequest, context: Context) -> v2.ModelStatisticsResponse:
        """Statistics of one name, or of every model, from the hosts that answer."""
        snapshot = self._snapshot()
        if request.name:
            destination = self._destination(request.name, request.version)
            names = {option.key: destination.name for option in destination.options}
        else:
            of_models = snapshot.objects.versions.items()
            names = {ModelKey(model, version): model for model, versions in of_models for version in versions}
        hosts = [host for host in snapshot.hosts.values() if any(hosted.key in names for hosted in host.models)]
        remaining_s = context.time_remaining()
        timeout_s = STATUS_TIMEOUT_S if remaining_s is None else min(STATUS_TIMEOUT_S, 0.9 * remaining_s)
        answers = await asyncio.gather(*(self._status(host, timeout_s) for host in hosts))
        statuses = [answer for answer in answers if answer is not None]
        return v2_wire.statistics_to(names, statuses, with_majors=bool(request.name))

    async def RepositoryIndex(self, request: v2.RepositoryIndexRequest, context: Context) -> v2.RepositoryIndexResponse:
        """Every version of every model."""
        return v2_wire.index_to(self._snapshot(), ready_only=request.ready)

    async def RepositoryModelLoad(
        self, request: v2.RepositoryModelLoadRequest, context: Context
    ) -> v2.RepositoryModelLoadResponse:
        """OK for what is ready; placement is the registry's."""
        name = request.model_name or request.repository_name
        if not self._destination(name, "").ready:
            raise NotSupported(
                f"'{name}' is not ready, and is not loaded by this call: raise min_replicas of its ModelVersion in "
                "the registry, and it will be placed"
            )
        return v2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: v2.RepositoryModelUnloadRequest, context: Context) -> NoReturn:
        """Refused; placement is the registry's."""
        name = request.model_name or request.repository_name
        self._destination(name, "")
        raise NotSupported(
            f"'{name}' is not unloaded by this call: set min_replicas of its ModelVersion to 0 in the registry"
        )

    async def SystemSharedMemoryStatus(self, request: v2.SystemSharedMemoryStatusRequest, context: Context) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def SystemSharedMemoryRegister(
        self, request: v2.SystemSharedMemoryRegisterRequest, context: Context
    ) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def SystemSharedMemoryUnregister(
        self, request: v2.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def CudaSharedMemoryStatus(self, request: v2.CudaSharedMemoryStatusRequest, context: Context) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def CudaSharedMemoryRegister(self, request: v2.CudaSharedMemoryRegisterRequest, context: Context) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def CudaSharedMemoryUnregister(
        self, request: v2.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> NoReturn:
        """Refused."""
        _no_shared_memory()

    async def TraceSetting(self, request: v2.TraceSettingRequest, context: Context) -> NoReturn:
        """Refused."""
        raise NotSupported("traces are not set by call: give the router --otlp-endpoint and --trace-ratio")

    async def LogSettings(self, request: v2.LogSettingsRequest, context: Context) -> NoReturn:
        """Refused."""
        raise NotSupported("logs are not set by call: give the router --log-level")

    def _snapshot(self) -> Snapshot:
        snapshot = self._current()
        if snapshot is None:
            raise NoReadyHost("this router has not heard from the registry yet", retry_after_s=1.0)
        return snapshot

    def _destination(self, name: str, version: str) -> Destination:
        return self._snapshot().destination(name, version)

    async def _status(self, host: HostRecord, timeout_s: float) -> host_pb2.GetStatusResponse | None:
        try:
            return await self._hosts.status(host, timeout_s=timeout_s)
        except YardError as error:
            logger().debug("a host is left out of the statistics", host=host.host_id, why=error.message)
            return None


def _encoded(request: Received, answer: Answer) -> Encoded:
    """The answer; with its Decision for a caller that knows of field 100, as the host gave it for all others."""
    if request.message.HasField("route"):
        return encoded(answer)
    assert isinstance(answer.payload, bytes | memoryview)
    return Encoded((answer.payload,))


def _no_shared_memory() -> NoReturn:
    raise NotSupported(
        "memory is not shared with callers here: send tensors in the request, and read them from the answer"
    )
