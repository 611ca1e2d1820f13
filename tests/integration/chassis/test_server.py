import asyncio
import errno
import importlib.util
import io
import json
import logging
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from services.chassis.channels import call, open_channel
from services.chassis.engines import EngineName, EngineUnavailable, ServerLimits
from services.chassis.errors import DETAILS_KEY, from_rpc_error
from services.chassis.instruments import REGISTRY
from services.chassis.server import DeadlineRule, PortInUse, Server, UnsafeAddress
from services.chassis.telemetry import TraceContext, attach, detach, setup_logging
from services.domain import errors as domain
from services.domain.clock import SystemClock
from services.domain.deadline import LONGEST_S, Deadline
from services.domain.errors import Fault
from tests.integration.chassis.conftest import Served, close, serve
from tests.integration.chassis.notes import POOL, SERVICE, Note, Notes, Stub, note_class, pool_of, telemetry

MALFORMED = b"\x0a\xff\xff"
BAD_UTF8 = b"\x0a\x02\xff\xfe"


async def several(*items: object) -> AsyncIterator[object]:
    for item in items:
        yield item


async def error_of(awaitable: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def read_all(stream: object) -> list[object]:
    return [item async for item in stream]  # type: ignore[attr-defined]


# --- the four kinds ----------------------------------------------------------------------------


async def test_all_four_kinds_of_method_are_served(served: Served) -> None:
    stub = served.stub

    assert await stub.One(Note(text="a", number=1), timeout=5) == Note(text="a", number=2)
    assert await stub.Collect(several(Note(number=1), Note(number=2)), timeout=5) == Note(number=3)
    assert await read_all(stub.Repeat(Note(text="r", number=2), timeout=5)) == [
        Note(text="r"),
        Note(text="r", number=1),
    ]
    assert await read_all(stub.Chat(several(Note(number=1), Note(number=5)), timeout=5)) == [
        Note(number=2),
        Note(number=6),
    ]


async def test_service_is_served_under_another_name_with_other_classes(engine: EngineName) -> None:
    other = note_class(pool_of("othertest"), "othertest")
    server, notes = Server(address="127.0.0.1:0", telemetry=telemetry(), engine=engine), Notes()
    server.add(
        SERVICE, notes, deadline=DeadlineRule.OPTIONAL, name="renamed.Notes", messages={"chassistest.Note": other}
    )
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        answer = await Stub(channel, "renamed.Notes").One(Note(text="a", number=1))

    await server.drain(lame_duck_s=0.0, grace_s=0.0)
    assert answer == Note(text="a", number=2)
    assert type(notes.requests[0]) is other


def test_servicer_that_lacks_a_method_is_refused_when_added() -> None:
    server = Server(address="127.0.0.1:0", telemetry=telemetry())

    with pytest.raises(TypeError, match=r"chassistest\.Notes: not implemented: \['One', 'Collect'"):
        server.add(SERVICE, object(), deadline=DeadlineRule.REQUIRED)
    with pytest.raises(TypeError, match=r"endless but not streaming: \['One'\]"):
        server.add(SERVICE, Notes(), deadline=DeadlineRule.REQUIRED, endless=("One",))


# --- what callers get wrong --------------------------------------------------------------------


@pytest.mark.parametrize("raw", [MALFORMED, BAD_UTF8])
async def test_malformed_bytes_are_an_invalid_argument_that_says_no_more(served: Served, raw: bytes) -> None:
    stub = served.stub
    errors = [
        await error_of(stub.raw_one(raw, timeout=5)),
        await error_of(stub.raw_collect(several(raw), timeout=5)),
        await error_of(read_all(stub.raw_repeat(raw, timeout=5))),
        await error_of(read_all(stub.raw_chat(several(raw), timeout=5))),
    ]

    for error in errors:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == f"the {len(raw)} bytes received are not a chassistest.Note"
        assert type(from_rpc_error(error)) is domain.MalformedMessage
    assert served.notes.requests == []


async def test_call_without_deadline_is_refused_inside_the_mesh(served: Served) -> None:
    stub = served.stub
    errors = [
        await error_of(stub.One(Note())),
        await error_of(stub.Collect(several())),
        await error_of(read_all(stub.Repeat(Note()))),
        await error_of(read_all(stub.Chat(several(Note())))),
    ]

    for error in errors:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert type(from_rpc_error(error)) is domain.DeadlineRequired
    assert served.notes.requests == []


async def test_call_without_deadline_is_served_to_the_public(engine: EngineName) -> None:
    served = await serve(deadline=DeadlineRule.OPTIONAL, engine=engine)

    await served.stub.One(Note())

    await close(served)
    assert served.notes.remaining_s == [None]


async def test_deadline_of_1e15_seconds_does_not_overflow(served: Served) -> None:
    answer = await call(served.stub.One, Note(number=1), timeout_s=1e15)

    assert answer.number == 2
    remaining_s = served.notes.remaining_s[0]
    assert remaining_s is not None
    assert LONGEST_S - 60 < remaining_s <= LONGEST_S * 1.01


async def test_longest_deadline_of_the_wire_does_not_overflow(served: Served) -> None:
    """gRPC's clients cut a timeout before they send it, so the HTTP/2 frames are made by hand."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    headers = {
        ":method": "POST", ":scheme": "http", ":path": "/chassistest.Notes/One", ":authority": "t",
        "content-type": "application/grpc", "te": "trailers", "grpc-timeout": "99999999H",
    }  # fmt: skip
    block = b"".join(
        b"\x00" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
        for key, value in headers.items()
    )
    message = Note(number=1).SerializeToString()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block))
    writer.write(frame(0, 1, 1, b"\x00" + struct.pack(">I", len(message)) + message))

    answer = b""
    async with asyncio.timeout(20):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == 0:
                answer += payload
            if head[3] == 1 and head[4] & 1:  # the trailers
                break
    writer.close()
    await writer.wait_closed()

    assert Note.FromString(answer[5:]) == Note(number=2)
    remaining_s = served.notes.remaining_s[0]
    assert remaining_s is not None
    assert remaining_s > 1e9
    assert Deadline.from_remaining(remaining_s, SystemClock()).remaining_s() <= LONGEST_S


async def test_spent_deadline_is_refused_before_the_call(served: Served) -> None:
    for timeout_s in (0.0, -1.0):
        with pytest.raises(domain.BudgetExhausted):
            await call(served.stub.One, Note(), timeout_s=timeout_s)
    assert served.notes.requests == []


async def test_message_over_the_limit_is_resource_exhausted_and_no_overload(engine: EngineName) -> None:
    served = await serve(ServerLimits(max_message_bytes=10_000), engine=engine)

    request = await error_of(served.stub.One(Note(text="x" * 20_000), timeout=5))
    answer = await error_of(served.stub.One(Note(text="big", number=20_000), timeout=5))
    async with open_channel(served.address, max_message_bytes=100) as narrow:
        unsent = await error_of(Stub(narrow).One(Note(text="x" * 200), timeout=5))
        unread = await error_of(Stub(narrow).One(Note(text="big", number=200), timeout=5))
    fits = await served.stub.One(Note(text="big", number=9_000), timeout=5)

    await close(served)
    assert len(fits.text) == 9_000
    assert {e.code() for e in (request, answer, unsent, unread)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert type(from_rpc_error(request)) is type(from_rpc_error(unsent)) is domain.InvalidRequest
    assert type(from_rpc_error(answer)) is type(from_rpc_error(unread)) is domain.Internal


# --- what servicers raise ----------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    setup_logging("test", "test", stream=stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.__class__.__module__ == "services.chassis.logs"]:
        root.removeHandler(handler)


async def test_unexpected_error_leaks_nothing_and_is_logged_with_trace_and_traceback(
    served: Served, log: io.StringIO
) -> None:
    served.notes.raises = ValueError("hunter2")
    trace = TraceContext.new(False)
    stub = served.stub
    metadata = trace.metadata()

    errors = [
        await error_of(stub.One(Note(), timeout=5, metadata=metadata)),
        await error_of(stub.Collect(several(), timeout=5, metadata=metadata)),
        await error_of(read_all(stub.Repeat(Note(), timeout=5, metadata=metadata))),
        await error_of(read_all(stub.Chat(several(Note()), timeout=5, metadata=metadata))),
    ]

    for error in errors:
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal")
        assert type(from_rpc_error(error)) is domain.Internal
        assert "hunter2" not in repr(error)
        assert "hunter2" not in repr(error.trailing_metadata())
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    unexpected = [line for line in lines if line["message"] == "call failed unexpectedly"]
    assert [line["rpc"] for line in unexpected] == [
        f"chassistest.Notes/{name}" for name in ("One", "Collect", "Repeat", "Chat")
    ]
    for line in unexpected:
        assert line["trace_id"] == trace.trace_id
        assert "ValueError: hunter2" in line["exception"]
        assert "notes.py" in line["exception"]


async def test_answer_that_cannot_be_encoded_leaks_nothing(served: Served, log: io.StringIO) -> None:
    async def wrong(_request: object, _context: object) -> object:
        return "hunter2"

    server, notes = Server(address="127.0.0.1:0", telemetry=telemetry()), Notes()
    notes.One = wrong  # type: ignore[method-assign, assignment]
    server.add(SERVICE, notes, deadline=DeadlineRule.OPTIONAL)
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        error = await error_of(Stub(channel).One(Note(), timeout=5))
    await server.drain(lame_duck_s=0.0, grace_s=0.0)

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal")
    assert "call failed unexpectedly" in log.getvalue()


async def test_domain_error_arrives_with_details_that_stock_grpc_reads(served: Served) -> None:
    served.notes.raises = domain.Overloaded(
        "queue full", retry_after_s=0.5, faults=[Fault("inputs[0]", "too big")], metadata={"host": "h-1"}
    )

    rpc = served.stub.One(Note(), timeout=5)
    error = await error_of(rpc)
    status = await rpc_status.aio.from_call(rpc)  # checks that code and message agree

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    assert [detail.Unpack(into) for detail, into in zip(status.details, (info, retry, bad), strict=True)] == [True] * 3
    assert (info.reason, info.domain, dict(info.metadata)) == ("OVERLOADED", "modelyard", {"host": "h-1"})
    assert retry.retry_delay.ToTimedelta().total_seconds() == 0.5
    assert [(v.field, v.description) for v in bad.field_violations] == [("inputs[0]", "too big")]


async def test_domain_error_comes_back_as_itself_through_call_and_through_a_sync_channel(served: Served) -> None:
    served.notes.raises = domain.ModelNotFound(
        "no model 'x'", retry_after_s=2.0, faults=[Fault("model", "unknown")], metadata={"near": "y"}
    )

    def blocking() -> domain.YardError:
        with grpc.insecure_channel(served.address) as channel:
            method = channel.unary_unary("/chassistest.Notes/One", Note.SerializeToString, Note.FromString)
            with pytest.raises(grpc.RpcError) as caught:
                method(Note(), timeout=5)
            return from_rpc_error(caught.value)

    with pytest.raises(domain.ModelNotFound) as caught:
        await call(served.stub.One, Note(), timeout_s=5)

    for error in (caught.value, await asyncio.to_thread(blocking)):
        assert type(error) is domain.ModelNotFound
        assert (error.message, error.retry_after_s, error.metadata) == ("no model 'x'", 2.0, {"near": "y"})
        assert error.faults == (Fault("model", "unknown"),)


async def test_hundreds_of_faults_still_arrive(served: Served) -> None:
    served.notes.raises = domain.InvalidRequest.of([Fault(f"objects[{n}].spec", "ä is wrong") for n in range(500)])

    with pytest.raises(domain.InvalidRequest) as caught:
        await call(served.stub.One, Note(), timeout_s=5)

    assert caught.value.faults[0] == Fault("objects[0].spec", "ä is wrong")
    assert "more faults" in caught.value.faults[-1].message


async def test_trailing_metadata_of_the_servicer_survives_its_error(engine: EngineName) -> None:
    class Loaded(Notes):
        async def One(self, request: object, context: grpc.aio.ServicerContext) -> None:  # type: ignore[override, type-arg]
            context.set_trailing_metadata((("x-modelyard-load-bin", b"\x01\x02"),))
            raise domain.Overloaded("full")

    server = Server(address="127.0.0.1:0", telemetry=telemetry(), engine=engine)
    server.add(SERVICE, Loaded(), deadline=DeadlineRule.OPTIONAL)
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(domain.Overloaded) as caught:
            await call(Stub(channel).One, Note(), timeout_s=5)
    await server.drain(lame_duck_s=0.0, grace_s=0.0)

    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    trailing = {key: value for key, value in cause.trailing_metadata()}  # noqa: C416
    assert trailing["x-modelyard-load-bin"] == b"\x01\x02"
    assert DETAILS_KEY in trailing


async def test_caller_that_gives_up_cancels_the_servicer(served: Served) -> None:
    with pytest.raises(domain.BudgetExhausted):
        await call(served.stub.One, Note(text="wait"), timeout_s=0.2)

    async with asyncio.timeout(20):
        await served.notes.was_cancelled.wait()


# --- trace and metrics -------------------------------------------------------------------------


async def test_trace_of_the_caller_is_current_in_every_servicer(served: Served) -> None:
    trace = TraceContext.new(False)
    stub, metadata = served.stub, trace.metadata()

    token = attach(trace)
    await call(stub.One, Note(), timeout_s=5)
    detach(token)
    await stub.Collect(several(), timeout=5, metadata=metadata)
    await read_all(stub.Repeat(Note(), timeout=5, metadata=metadata))
    await read_all(stub.Chat(several(Note()), timeout=5, metadata=metadata))

    assert served.notes.trace_ids == [trace.trace_id] * 4


async def test_call_without_trace_begins_one_of_its_own(served: Served) -> None:
    await served.stub.One(Note(), timeout=5)
    await served.stub.One(Note(), timeout=5)

    first, second = served.notes.trace_ids
    assert first
    assert second
    assert first != second


def calls_counted(method: str, status: str) -> float:
    labels = {"service": "chassistest.Notes", "method": method, "status": status}
    return REGISTRY.get_sample_value("modelyard_rpc_server_duration_seconds_count", labels) or 0.0


async def test_calls_are_counted_by_method_and_status(served: Served) -> None:
    before = {s: calls_counted("One", s) for s in ("OK", "NOT_FOUND", "INTERNAL", "INVALID_ARGUMENT")}

    await served.stub.One(Note(), timeout=5)
    await served.stub.One(Note(), timeout=5)
    await error_of(served.stub.raw_one(MALFORMED, timeout=5))
    served.notes.raises = domain.ModelNotFound("no")
    await error_of(served.stub.One(Note(), timeout=5))
    served.notes.raises = KeyError("x")
    await error_of(served.stub.One(Note(), timeout=5))

    assert {s: calls_counted("One", s) - n for s, n in before.items()} == {
        "OK": 2,
        "NOT_FOUND": 1,
        "INTERNAL": 1,
        "INVALID_ARGUMENT": 1,
    }


async def test_call_that_its_caller_cancels_is_counted_as_such(served: Served) -> None:
    before = calls_counted("One", "CANCELLED")

    waiting = asyncio.ensure_future(served.stub.One(Note(text="wait"), timeout=60))
    await served.notes.entered.wait()
    waiting.cancel()
    await served.notes.was_cancelled.wait()
    await served.stub.One(Note(), timeout=5)

    assert calls_counted("One", "CANCELLED") - before == 1


async def test_abort_of_the_servicer_itself_is_counted_by_its_status(served: Served) -> None:
    labels = {"service": "grpc.health.v1.Health", "method": "Check", "status": "NOT_FOUND"}
    name = "modelyard_rpc_server_duration_seconds_count"
    before = REGISTRY.get_sample_value(name, labels) or 0.0

    error = await error_of(
        health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=5)
    )

    assert error.code() is grpc.StatusCode.NOT_FOUND
    for _ in range(500):  # the caller is told first, and it is counted then
        if REGISTRY.get_sample_value(name, labels) == before + 1:
            break
        await asyncio.sleep(0.01)
    assert REGISTRY.get_sample_value(name, labels) == before + 1


async def test_calls_in_progress_are_shown(served: Served) -> None:
    labels = {"service": "chassistest.Notes", "method": "One"}

    def active() -> float | None:
        return REGISTRY.get_sample_value("modelyard_rpc_server_active_calls", labels)

    waiting = asyncio.ensure_future(served.stub.One(Note(text="wait"), timeout=20))
    await served.notes.entered.wait()
    during = active()
    served.notes.release.set()
    await waiting

    assert (during, active()) == (1, 0)


# --- the address -------------------------------------------------------------------------------


async def test_port_in_use_names_the_address_and_the_flag(served: Served, engine: EngineName) -> None:
    second = Server(address=served.address, telemetry=telemetry(), engine=engine)

    with pytest.raises(PortInUse) as caught:
        await second.start()

    assert caught.value.errno == errno.EADDRINUSE
    assert f"{served.address} is in use" in str(caught.value)
    assert "--address" in str(caught.value)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7600", "example.org:7600"])
async def test_address_that_other_machines_reach_is_refused(address: str) -> None:
    with pytest.raises(UnsafeAddress, match="--insecure"):
        await Server(address=address, telemetry=telemetry()).start()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", ":7600"])
async def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(OSError, match="is not HOST:PORT"):
        await Server(address=address, telemetry=telemetry()).start()


# --- the engine --------------------------------------------------------------------------------


async def engine_of(engine: EngineName, address: str = "127.0.0.1:0", limits: ServerLimits | None = None) -> str:
    server = Server(
        address=address, telemetry=telemetry(), limits=limits or ServerLimits(), insecure=True, engine=engine
    )
    server.add(SERVICE, Notes(), deadline=DeadlineRule.OPTIONAL)
    await server.start()
    name = server.engine
    await server.drain(lame_duck_s=0.0, grace_s=0.0)
    return name


async def test_auto_is_native_where_only_this_machine_reaches_it(tmp_path: Path) -> None:
    assert await engine_of("auto") == "native"
    assert await engine_of("auto", f"unix:{tmp_path}/a.sock") == "native"
    assert await engine_of("auto", "0.0.0.0:0") == "aio"


async def test_what_the_native_engine_cannot_do_is_refused_at_start_and_says_what_to_do() -> None:
    brief = ServerLimits(max_connection_age_s=1.0)

    with pytest.raises(EngineUnavailable, match=r"by age or idleness.*--engine aio"):
        await engine_of("native", limits=brief)
    assert await engine_of("auto", limits=brief) == "aio"


async def test_without_the_package_native_is_refused_and_auto_is_aio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(EngineUnavailable, match="is not installed: pip install"):
        await engine_of("native")
    assert await engine_of("auto") == "aio"


async def test_private_pool_does_not_enter_the_default_one(served: Served) -> None:
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("chassistest/notes.proto")
    assert POOL.FindServiceByName("chassistest.Notes") is not None
