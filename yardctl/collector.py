"""The trace collector of a mesh on one machine: takes spans by OTLP, keeps them as JSON lines.

A stand-in for a real collector where there is none, so that `yardctl trace` has something to
read. Speaks the trace part of OTLP over gRPC; what it cannot write it refuses, so that the
sender counts it as lost.
"""

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from services.chassis import config as settings
from services.chassis.process import Process, run
from services.chassis.server import DeadlineRule, Server
from services.chassis.telemetry import Telemetry, logger, setup_logging
from services.domain.errors import StoreUnavailable
from yardctl.spans import SpanLink, SpanWriter, StoredSpan

_NAME = "collector"


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """Settings of the trace collector."""

    dir: Path
    """Folder of the span files; made if it is not there."""
    address: str = "127.0.0.1:7604"
    """Where OTLP over gRPC is served; loopback only."""
    instance: str = _NAME
    """Name of this process in its log."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""


class TraceServicer:
    """`opentelemetry.proto.collector.trace.v1.TraceService`."""

    def __init__(self, writer: SpanWriter) -> None:
        """Store where spans go."""
        self._writer = writer
        self._writing = asyncio.Lock()

    async def Export(
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        _context: grpc.aio.ServicerContext[
            trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse
        ],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Keep the spans; UNAVAILABLE if they cannot be written, so that the sender may try again."""
        spans = stored_spans(request.resource_spans)
        try:
            async with self._writing:
                await asyncio.to_thread(self._writer.write, spans)
        except OSError as error:
            logger().error("cannot write spans", cause=error.strerror, spans=len(spans))
            raise StoreUnavailable(f"spans cannot be written: {error.strerror}") from error
        return trace_service_pb2.ExportTraceServiceResponse()


def stored_spans(resources: Iterable[ResourceSpans]) -> list[StoredSpan]:
    """The spans of one export, each with the service that made it."""
    found = []
    for resource in resources:
        about = attributes(resource.resource.attributes)
        service = str(about.get("service.name", ""))
        instance = str(about.get("service.instance.id", ""))
        for scope in resource.scope_spans:
            found += [_stored_span(span, service, instance) for span in scope.spans]
    return found


def _stored_span(span: Span, service: str, instance: str) -> StoredSpan:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        service=service.removeprefix("modelyard-"),
        instance=instance,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        error=(span.status.message or "failed") if failed else "",
        attributes=attributes(span.attributes),
        links=[SpanLink(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
    )


def attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    """OTLP's attributes as plain values."""
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case None:
            return None
        case name:
            return getattr(value, name)


async def _start(config: CollectorConfig, process: Process) -> None:
    await asyncio.to_thread(config.dir.mkdir, parents=True, exist_ok=True)
    # The collector makes no spans of its own: they would be sent to itself.
    telemetry = Telemetry(service=_NAME, instance=config.instance, otlp_endpoint=None, sample_ratio=0.0)
    server = Server(address=config.address, telemetry=telemetry)
    server.add(
        trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"],
        TraceServicer(SpanWriter(config.dir)),
        deadline=DeadlineRule.OPTIONAL,
    )
    await server.start()
    process.on_stop("server", server.drain, timeout_s=15.0)


def main() -> int:
    """Run the collector until it is asked to stop."""
    try:
        config = settings.load(
            CollectorConfig, prog="python -m yardctl.collector", argv=sys.argv[1:], environ=os.environ
        )
    except settings.ConfigError as error:
        return settings.exit_with_faults(error)
    setup_logging(_NAME, config.instance, level=config.log_level)
    return run(_NAME, lambda process: _start(config, process))


if __name__ == "__main__":
    sys.exit(main())
