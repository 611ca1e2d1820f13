"""A real OTLP collector, and what it passes on."""

import importlib.util
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.ports import free_ports

_PACKAGE = importlib.util.find_spec("rotel")
BINARY = Path((_PACKAGE and _PACKAGE.origin) or "rotel").parent / "rotel-agent"
WAIT_S = 20.0


class Sink:
    """The end of the line: keeps every span it is sent, with its resource."""

    def __init__(self) -> None:
        self.spans: list[tuple[Mapping[str, str], Span]] = []
        self._came = threading.Condition()

    def export(self, request: ExportTraceServiceRequest, _context: Any) -> ExportTraceServiceResponse:
        with self._came:
            for resource in request.resource_spans:
                facts = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans.extend((facts, span) for span in scope.spans)
            self._came.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, count: int) -> list[tuple[Mapping[str, str], Span]]:
        """At least `count` spans, or what has come in `WAIT_S`."""
        with self._came:
            self._came.wait_for(lambda: len(self.spans) >= count, WAIT_S)
            return list(self.spans)


@contextmanager
def otlp_sink(port: int = 0) -> Iterator[tuple[Sink, str]]:
    """A sink and its `HOST:PORT`; port 0 takes a free one."""
    sink = Sink()
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(
        sink.export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield sink, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def collector(directory: Path, sink: str) -> Iterator[str]:
    """A rotel that passes spans on to `sink`; yields its own `HOST:PORT`."""
    grpc_port, http_port = free_ports(2)
    command = [
        *(str(BINARY), "start", "--exporter", "otlp", "--otlp-exporter-protocol", "grpc"),
        *("--otlp-exporter-endpoint", f"http://{sink}", "--batch-timeout", "100ms"),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
        *("--pid-file", str(directory / "rotel.pid"), "--log-file", str(directory / "rotel.log")),
    ]
    log = directory / "rotel.out"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        _wait_until_open(process, grpc_port, log)
        yield f"127.0.0.1:{grpc_port}"
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)


def _wait_until_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + WAIT_S
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ready = grpc.channel_ready_future(channel)
        while True:
            try:
                ready.result(timeout=0.2)
            except grpc.FutureTimeoutError:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(f"rotel does not come up:\n{log.read_text(errors='replace')}") from None
            else:
                return
