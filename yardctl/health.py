"""Whether a part serves, asked of the part itself."""

import asyncio
import http.client
import json

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from services.chassis.channels import open_channel
from yardctl.parts import Part, Probe

PROBE_TIMEOUT_S = 1.0
_CHECK = "/grpc.health.v1.Health/Check"


async def fault_of(part: Part, *, timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """What keeps a part from serving, in a few words; empty if it serves."""
    if part.probe is Probe.ETCD_HEALTH:
        return await asyncio.to_thread(_etcd_fault, part.address, timeout_s)
    return await grpc_fault(part.address, timeout_s=timeout_s)


async def grpc_fault(address: str, *, service: str = "", timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """What `grpc.health.v1` at an address says against it; empty if it serves."""
    async with open_channel(address) as channel:
        check = channel.unary_unary(
            _CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return "does not answer" if error.code() is not grpc.StatusCode.NOT_FOUND else "not known there"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else "not serving"


def _etcd_fault(address: str, timeout_s: float) -> str:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        body = json.loads(connection.getresponse().read())
        return "" if str(body.get("health")).lower() == "true" else "not healthy"
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return "does not answer"
    finally:
        connection.close()
