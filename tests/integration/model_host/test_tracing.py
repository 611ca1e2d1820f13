"""Spans of a real host, as a collector receives them."""

import asyncio
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.chassis.telemetry import TraceContext
from tests.support.host import echo_request, running_host, version_object
from tests.support.otlp import otlp_sink


def attributes(span: Span) -> dict[str, object]:
    return {
        item.key: item.value.int_value if item.value.HasField("int_value") else item.value.string_value
        for item in span.attributes
    }


async def test_each_sampled_call_has_its_stages_and_the_batch_links_them_all(tmp_path: Path) -> None:
    callers = [TraceContext.new(True) for _ in range(3)]
    with otlp_sink() as (sink, endpoint):
        async with running_host(tmp_path, "--otlp-endpoint", endpoint, "--trace-ratio", "0") as host:
            await host.load(version_object(options={"base_ms": "300"}))
            # The first call computes alone; the others queue meanwhile and share the next batch.
            alone = asyncio.ensure_future(
                host.stub.Execute(echo_request([0, 0, 0, 0]), timeout=20, metadata=TraceContext.new(False).metadata())
            )
            await host.busy(queued=0)
            calls = [
                host.stub.Execute(echo_request([1, 0, 0, 0]), timeout=20, metadata=caller.metadata())
                for caller in callers
            ]
            assert [(await call).batch_size for call in calls] == [3, 3, 3]
            await alone
            spans = [span for _, span in await asyncio.to_thread(sink.wait_for, 3 * 3 + 1)]

    assert {span.trace_id.hex() for span in spans} == {caller.trace_id for caller in callers}
    servers = {span.span_id: span for span in spans if span.kind == Span.SPAN_KIND_SERVER}
    assert {span.parent_span_id.hex() for span in servers.values()} == {caller.span_id for caller in callers}
    (batch,) = [span for span in spans if span.name == "batch"]
    assert {link.span_id for link in batch.links} == set(servers)
    assert batch.parent_span_id in servers
    assert attributes(batch) == {
        "modelyard.model": "echo",
        "modelyard.version": "1.0.0",
        "modelyard.batch_size": 3,
        "modelyard.rows": 3,
    }
    for stage in ("queue", "compute"):
        stages = [span for span in spans if span.name == stage]
        assert {span.parent_span_id for span in stages} == set(servers)
        for span in stages:
            server = servers[span.parent_span_id]
            assert span.trace_id == server.trace_id
            assert span.end_time_unix_nano <= server.end_time_unix_nano + 5_000_000
            assert [link.span_id for link in span.links] == [batch.span_id]
    computes = [span for span in spans if span.name == "compute"]
    assert min(span.end_time_unix_nano - span.start_time_unix_nano for span in computes) > 250_000_000
