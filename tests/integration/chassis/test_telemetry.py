"""Spans that leave the process: to a real collector, and to one that is not there."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.chassis.instruments import REGISTRY
from services.chassis.span_export import SHUTDOWN_S
from services.chassis.telemetry import Telemetry
from services.chassis.trace_context import TraceContext
from services.domain.errors import Overloaded
from tests.support.otlp import BINARY, collector, otlp_sink


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(f"modelyard_spans_{name}_total") or 0.0


def with_ids(span: Span) -> tuple[str, str, str]:
    return span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()


@pytest.mark.skipif(not BINARY.exists(), reason="the rotel wheel of this platform holds no collector")
async def test_trace_reaches_a_real_collector_as_it_was_made(tmp_path: Path) -> None:
    caller = TraceContext(TraceContext.new(True).trace_id, "00f067aa0ba902b7", True, tracestate="vendor=1")
    other = TraceContext.new(True)
    exported = counted("exported")
    with otlp_sink() as (sink, sink_address), collector(tmp_path, sink_address) as address:
        telemetry = Telemetry(service="router", instance="router-0", otlp_endpoint=address, sample_ratio=0.0)
        with telemetry.span("router.Infer", parent=caller, kind="server", attributes={"model": "m"}) as root:
            with telemetry.span("host.Execute", kind="client") as hop:
                hop.set("attempt", 2)
                hop.fail(Overloaded("full"))
            batch = telemetry.record(
                "host.batch",
                parent=hop.context,
                start_wall_s=1_700_000_000.25,
                end_wall_s=1_700_000_000.75,
                links=[other, root.context],
            )
        telemetry.span("unsampled").end()
        await telemetry.shutdown()
        received = sink.wait_for(3)

    assert counted("exported") - exported == 3
    assert {(facts["service.name"], facts["service.instance.id"]) for facts, _ in received} == {
        ("modelyard-router", "router-0")
    }
    spans = {span.name: span for _, span in received}
    assert {name: with_ids(span) for name, span in spans.items()} == {
        "router.Infer": (caller.trace_id, root.context.span_id, caller.span_id),
        "host.Execute": (caller.trace_id, hop.context.span_id, root.context.span_id),
        "host.batch": (caller.trace_id, batch.span_id, hop.context.span_id),
    }
    assert spans["router.Infer"].kind == Span.SPAN_KIND_SERVER
    assert spans["router.Infer"].trace_state == "vendor=1"
    assert spans["router.Infer"].status.code == Status.STATUS_CODE_UNSET
    assert spans["host.Execute"].kind == Span.SPAN_KIND_CLIENT
    assert (spans["host.Execute"].status.code, spans["host.Execute"].status.message) == (
        Status.STATUS_CODE_ERROR,
        "full",
    )
    facts = {a.key: a.value for a in spans["host.Execute"].attributes}
    assert facts["attempt"].int_value == 2
    assert facts["error.type"].string_value == "OVERLOADED"
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in spans["host.batch"].links] == [
        (other.trace_id, other.span_id),
        (caller.trace_id, root.context.span_id),
    ]
    assert spans["host.batch"].start_time_unix_nano == 1_700_000_000_250_000_000
    assert spans["host.batch"].end_time_unix_nano == 1_700_000_000_750_000_000
    assert spans["router.Infer"].start_time_unix_nano <= spans["host.Execute"].start_time_unix_nano
    assert spans["host.Execute"].end_time_unix_nano <= spans["router.Infer"].end_time_unix_nano


async def test_collector_that_comes_back_is_sent_to_again(free_port: int) -> None:
    telemetry = Telemetry(
        service="router", instance="router-0", otlp_endpoint=f"127.0.0.1:{free_port}", sample_ratio=1.0
    )
    lost = counted("lost")
    telemetry.span("nobody there").end()
    async with asyncio.timeout(30):
        while counted("lost") == lost:  # noqa: ASYNC110 - a thread counts
            await asyncio.sleep(0.05)

    with otlp_sink(free_port) as (sink, _):
        async with asyncio.timeout(30):
            while not sink.spans:
                telemetry.span("somebody there").end()
                await asyncio.sleep(0.2)
        await telemetry.shutdown()

    assert {span.name for _, span in sink.spans} == {"somebody there"}


@pytest.fixture
def hung_address() -> Iterator[str]:
    """A listener that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_shutdown_does_not_wait_for_a_hung_collector(hung_address: str) -> None:
    telemetry = Telemetry(service="router", instance="router-0", otlp_endpoint=hung_address, sample_ratio=1.0)
    for _ in range(2000):
        telemetry.span("a").end()

    async with asyncio.timeout(5 * SHUTDOWN_S):
        await telemetry.shutdown()

    telemetry.span("after").end()


AWAY = """
import asyncio, sys
from services.chassis.telemetry import Telemetry, setup_logging

async def main() -> None:
    setup_logging("router", "router-0", level="debug")
    telemetry = Telemetry(service="router", instance="router-0", otlp_endpoint=sys.argv[1], sample_ratio=1.0)
    for _ in range(5):
        for _ in range(3000):
            with telemetry.span("a") as span:
                span.set("n", 1)
        await asyncio.sleep(0.3)
    await telemetry.shutdown()

asyncio.run(main())
"""


def test_process_without_its_collector_says_so_once_and_ends_well(free_port: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AWAY, f"127.0.0.1:{free_port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ".:gen", "PATH": "/usr/bin:/bin"},
    )

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["message"] for line in lines if line.get("logger", "").split(".")[0] != "asyncio"]
    assert done.returncode == 0
    assert said == ["spans are lost"]
    assert done.stdout == ""
