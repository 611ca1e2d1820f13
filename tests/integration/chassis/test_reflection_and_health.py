"""Health and reflection, through the real grpcurl as far as it goes."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]

from modelyard.host.v1 import host_pb2
from services.chassis.server import DeadlineRule, Server
from tests.integration.chassis.conftest import Served
from tests.integration.chassis.notes import POOL, SERVICE, Notes, telemetry

GRPCURL = Path(sys.executable).with_name("grpcurl")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def grpcurl(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        GRPCURL, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Unused:
    """Stands for a service of the default pool; nothing is called."""

    async def _method(self, request: object, context: object) -> None: ...

    Dispatch = Execute = ExecuteStream = LoadModel = UnloadModel = Drain = GetStatus = _method


async def test_grpcurl_lists_describes_and_calls_services_of_both_pools() -> None:
    server = Server(address="127.0.0.1:0", telemetry=telemetry())
    server.add(SERVICE, Notes(), deadline=DeadlineRule.OPTIONAL, reflection_pool=POOL)
    host_service = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"]
    server.add(host_service, Unused(), deadline=DeadlineRule.REQUIRED)
    address = f"127.0.0.1:{await server.start()}"

    listed = await grpcurl(address, "list")
    private = await grpcurl(address, "describe", "chassistest.Notes.Chat")
    public = await grpcurl(address, "describe", "modelyard.host.v1.ModelHostService.Execute")
    answer = await grpcurl("-d", '{"text": "a", "number": 41}', address, "chassistest.Notes/One")
    unknown = [await grpcurl(address, "describe", name) for name in ("nowhere.Service", "chassistest.Notes.Absent")]
    await server.drain(lame_duck_s=0.0, grace_s=0.0)

    assert listed[1].split() == [
        "chassistest.Notes",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "modelyard.host.v1.ModelHostService",
    ]
    assert "rpc Chat ( stream .chassistest.Note ) returns ( stream .chassistest.Note );" in private[1]
    assert "returns ( .modelyard.host.v1.ExecuteResponse )" in public[1]
    assert json.loads(answer[1]) == {"text": "a", "number": "42"}
    for code, out, err in unknown:
        assert code != 0
        assert "not found" in (out + err).lower()


async def test_grpcurl_asks_for_health_without_a_deadline_and_sees_lame_duck(served: Served) -> None:
    served.server.set_serving("digits:1.0.0", True)
    served.server.set_serving("digits:2.0.0", False)

    async def status(name: str) -> str:
        code, out, err = await grpcurl(
            "-d", json.dumps({"service": name}), served.address, "grpc.health.v1.Health/Check"
        )
        return json.loads(out)["status"] if code == 0 else err.splitlines()[1].strip()

    names = ("", "chassistest.Notes", "digits:1.0.0", "digits:2.0.0", "nobody")
    before = [await status(name) for name in names]
    draining = asyncio.create_task(served.server.drain(lame_duck_s=30.0))
    await asyncio.sleep(0)
    served.server.set_serving("digits:1.0.0", True)  # too late
    during = [await status(name) for name in names]
    draining.cancel()

    assert before == ["SERVING", "SERVING", "SERVING", "NOT_SERVING", "Code: NotFound"]
    assert during == ["NOT_SERVING", "NOT_SERVING", "NOT_SERVING", "NOT_SERVING", "Code: NotFound"]


async def test_health_watch_tells_every_change(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="m"))
    seen = [(await watch.read()).status]
    for serving in (True, False):
        served.server.set_serving("m", serving)
        seen.append((await watch.read()).status)
    watch.cancel()

    assert seen == [SERVICE_UNKNOWN, SERVING, NOT_SERVING]


async def test_health_lists_every_name(served: Served) -> None:
    served.server.set_serving("m", False)

    listed = await health_pb2_grpc.HealthStub(served.channel).List(health_pb2.HealthListRequest())

    assert {name: each.status for name, each in listed.statuses.items()} == {
        "": SERVING,
        "chassistest.Notes": SERVING,
        "m": NOT_SERVING,
    }


async def test_malformed_health_request_says_no_more(served: Served) -> None:
    check: Any = served.channel.unary_unary("/grpc.health.v1.Health/Check")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(b"\xff\xff")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_answers_every_kind_of_question(served: Served) -> None:
    ask = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="chassistest.Note", extension_number=100)

    async def questions() -> object:
        yield ask(file_by_filename="chassistest/notes.proto")
        yield ask(file_by_filename="google/protobuf/descriptor.proto")
        yield ask(all_extension_numbers_of_type="chassistest.Note")
        yield ask(all_extension_numbers_of_type="nowhere.Note")
        yield ask(file_containing_extension=extension)
        yield ask(file_by_filename="absent.proto")

    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    answers = [answer async for answer in stub.ServerReflectionInfo(questions(), timeout=10)]

    assert [answer.WhichOneof("message_response") for answer in answers] == [
        *("file_descriptor_response", "file_descriptor_response", "all_extension_numbers_response"),
        *("error_response", "error_response", "error_response"),
    ]
