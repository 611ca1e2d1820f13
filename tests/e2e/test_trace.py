"""One trace id from the client through router, host, batch and compute, as a real collector receives it."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import registry_pb2
from services.chassis.telemetry import Telemetry, TraceContext, outgoing_metadata
from tests.support.otlp import BINARY, Sink, collector, otlp_sink
from tests.support.yard import MODEL, Yard, echo_objects, until
from yardctl.etcd_binary import find_etcd
from yardctl.mesh import Mesh, MeshConfig, free_base_port

CALLS = 24
Received = tuple[Mapping[str, str], Span]


async def start_traced_to(address: str, directory: Path) -> Mesh:
    """A mesh of one host that sends its spans to `address`."""
    config = MeshConfig(directory, free_base_port(), hosts=1, trace_ratio=0.0, device="cpu", memory_bytes=1 << 30)
    mesh = Mesh(config, find_etcd())
    own = mesh.addresses.collector
    mesh.parts = {
        name: part if name == "collector" else replace(part, argv=tuple(address if a == own else a for a in part.argv))
        for name, part in mesh.parts.items()
    }
    await mesh.bring_up()
    return mesh


async def call(stub: "inference_pb2_grpc.InferenceServiceAsyncStub", telemetry: Telemetry, number: int) -> str:
    """One sampled call under a span of the client; returns the trace id."""
    request = inference_pb2.InferRequest(model_name=MODEL)
    request.inputs.add(name="x", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(number)
    with telemetry.span("client", parent=TraceContext.new(True), kind="client") as span:
        answer = await stub.Infer(request, timeout=10, metadata=outgoing_metadata())
    assert answer.decision.trace_id == span.context.trace_id
    return span.context.trace_id


def of_trace(sink: Sink, trace_id: str) -> dict[str, Received]:
    """The spans of one trace by name; names are unique in it but for the two servers', told apart by service."""
    found = {}
    for facts, span in sink.spans:
        if span.trace_id.hex() == trace_id:
            service = facts["service.name"].removeprefix("modelyard-")
            found[f"{service}/{span.name.rpartition('/')[2]}"] = (facts, span)
    return found


CHAIN = {
    "router/Infer": "test/client",
    "router/choose": "router/Infer",
    "router/attempt": "router/Infer",
    "model_host/Dispatch": "router/attempt",
    "model_host/queue": "model_host/Dispatch",
    "model_host/compute": "model_host/Dispatch",
}
"""Every span of one call and its parent."""


@pytest.mark.skipif(not BINARY.exists(), reason="the rotel wheel of this platform holds no collector")
async def test_one_trace_spans_client_router_host_batch_and_compute(tmp_path: Path) -> None:
    with otlp_sink() as (sink, sink_address), collector(tmp_path, sink_address) as address:
        mesh = await start_traced_to(address, tmp_path / "mesh")
        try:
            running = Yard(mesh)
            async with running.registry() as registry:
                # Slow enough that calls gather while a batch runs, on any machine.
                objects = echo_objects(1, base_ms=30)
                await registry.Apply(registry_pb2.ApplyRequest(objects=objects, reason="test"), timeout=10)
            await running.wait_ready(1)
            telemetry = Telemetry(service="test", instance="test", otlp_endpoint=address, sample_ratio=0.0)
            async with grpc.aio.insecure_channel(mesh.addresses.router) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                trace_ids = await asyncio.gather(*(call(stub, telemetry, number) for number in range(CALLS)))
            await telemetry.shutdown()
            await until(
                lambda: all(CHAIN.keys() <= of_trace(sink, trace_id).keys() for trace_id in trace_ids),
                "every span of every call",
                30.0,
                seen=lambda: [sorted(of_trace(sink, trace_id)) for trace_id in trace_ids[:2]],
            )
        finally:
            await mesh.stop()

    for trace_id in trace_ids:
        spans = {name: span for name, (_, span) in of_trace(sink, trace_id).items()}
        for child, parent in CHAIN.items():
            assert spans[child].parent_span_id == spans[parent].span_id, f"{child} is not under {parent}"
    batches = [span for _, span in sink.spans if span.name == "batch"]
    linked: dict[bytes, int] = defaultdict(int)
    for batch in batches:
        for link in batch.links:
            linked[link.trace_id] += 1
    assert {trace_id.hex() for trace_id in linked} == set(trace_ids), "a call is linked by no batch"
    assert set(linked.values()) == {1}, "a call is linked by two batches"
    assert max(len(batch.links) for batch in batches) > 1, "nothing was batched: the links prove nothing"
