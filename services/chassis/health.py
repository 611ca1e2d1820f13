"""`grpc.health.v1`: which services and models of this process take calls."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

OVERALL = ""
"""The name under which the whole process is asked for."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Servicer of `grpc.health.v1.Health`. Once `stop` was called, nothing is serving again."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._stopped = False

    def set(self, name: str, serving: bool) -> None:
        """Say whether `name` takes calls; those who watch are told."""
        self._serving[name] = serving and not self._stopped
        self._wake()

    def stop(self) -> None:
        """Say of everything, and for good, that it takes no calls."""
        self._stopped = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        serving = self._serving.get(name)
        if serving is None:
            return _UNKNOWN
        return _SERVING if serving else _NOT_SERVING

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        """The status of one name; NOT_FOUND when it is not known."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or model {request.service[:200]!r} here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(
        self,
        _request: health_pb2.HealthListRequest,
        _context: grpc.aio.ServicerContext[health_pb2.HealthListRequest, health_pb2.HealthListResponse],
    ) -> health_pb2.HealthListResponse:
        """The status of every name."""
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._serving}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        _context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one name now, and again whenever it changes."""
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                sent = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue
            await changed.wait()
