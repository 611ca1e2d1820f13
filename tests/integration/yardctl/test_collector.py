"""The collector as a process, sent to by the telemetry that every service has."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.chassis.telemetry import Telemetry, TraceContext
from services.domain.clock import SystemClock
from yardctl.health import grpc_fault
from yardctl.spans import StoredSpan, read_spans
from yardctl.trace import find_trace

CLOCK = SystemClock()


@pytest.fixture
def collector(tmp_path: Path, free_port: int) -> Iterator[tuple[str, Path]]:
    """Address and folder of a running collector."""
    address, folder = f"127.0.0.1:{free_port}", tmp_path / "traces"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "yardctl.collector", "--address", address, "--dir", str(folder)], stderr=log
        )
    yield address, folder
    process.terminate()
    assert process.wait(20) == 0


async def serving(address: str) -> None:
    until_s = CLOCK.now_s() + 30
    while await grpc_fault(address):
        assert CLOCK.now_s() < until_s, "the collector does not come up"
        await CLOCK.sleep(0.05)


async def test_spans_of_several_services_become_one_tree(collector: tuple[str, Path]) -> None:
    address, folder = collector
    await serving(address)
    router = Telemetry(service="router", instance="r-0", otlp_endpoint=address, sample_ratio=1.0)
    host = Telemetry(service="model_host", instance="local-0", otlp_endpoint=address, sample_ratio=1.0)

    other = TraceContext.new(True)
    with router.span("Infer", kind="server", attributes={"rows": 2, "name": "a"}) as root:
        with host.span("Execute", kind="server", parent=root.context) as execute:
            execute.fail("no room")
        now_s = CLOCK.wall_s()
        host.record(
            "batch", parent=execute.context, start_wall_s=now_s - 0.5, end_wall_s=now_s, links=[execute.context, other]
        )
    await router.shutdown()
    await host.shutdown()

    found = find_trace(read_spans(folder))
    assert found is not None
    assert found.trace_id == root.context.trace_id
    (top,) = found.roots
    infer, (hop,) = top.span, top.children
    (batch,) = hop.children
    assert (infer.name, infer.service, infer.instance, infer.kind) == ("Infer", "router", "r-0", "server")
    assert infer.attributes == {"rows": 2, "name": "a"}
    assert (hop.span.name, hop.span.service, hop.span.error) == ("Execute", "model_host", "no room")
    assert abs(batch.span.duration_s - 0.5) < 1e-3
    assert [(link.trace_id, link.span_id) for link in batch.span.links] == [
        (execute.context.trace_id, execute.context.span_id),
        (other.trace_id, other.span_id),
    ]


async def test_every_kind_of_attribute_and_raw_ids_are_kept(collector: tuple[str, Path]) -> None:
    address, folder = collector
    await serving(address)
    request = trace_service_pb2.ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=bytes(range(16)), span_id=bytes(range(8)), name="x", start_time_unix_nano=7, end_time_unix_nano=9
        )
    )
    for key, value in (("i", {"int_value": 1 << 40}), ("b", {"bytes_value": b"\xff"}), ("none", {})):
        pair = span.attributes.add(key=key)
        for name, each in value.items():
            setattr(pair.value, name, each)
    span.attributes.add(key="map").value.kvlist_value.values.add(key="k").value.double_value = 0.5

    async with grpc.aio.insecure_channel(address) as channel:
        await trace_service_pb2_grpc.TraceServiceStub(channel).Export(request, timeout=5)  # type: ignore[no-untyped-call]

    assert list(read_spans(folder)) == [
        StoredSpan(
            trace_id=bytes(range(16)).hex(),
            span_id=bytes(range(8)).hex(),
            name="x",
            kind="unspecified",
            start_ns=7,
            end_ns=9,
            attributes={"i": 1 << 40, "b": "ff", "none": None, "map": {"k": 0.5}},
        )
    ]


async def test_what_cannot_be_written_is_refused_and_the_collector_lives_on(collector: tuple[str, Path]) -> None:
    address, folder = collector
    await serving(address)
    request = trace_service_pb2.ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=bytes(16), span_id=bytes(8), name="x")
    folder.rmdir()

    async with grpc.aio.insecure_channel(address) as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Export(request, timeout=5)
        folder.mkdir()
        await stub.Export(request, timeout=5)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(list(read_spans(folder))) == 1
