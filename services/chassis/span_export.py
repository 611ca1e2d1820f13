"""How finished spans reach an OTLP collector: in batches, from a thread that nothing waits for.

The OpenTelemetry SDK's span and its encoder took some 50 µs a span, more than the rest of a traced call: spans are
put into OTLP's own messages here, on the exporter's thread. Spans that cannot be delivered are lost, counted, and
said once a minute. What a span is, is in `telemetry`.
"""

import asyncio
import contextlib
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from services.chassis import instruments
from services.chassis.encoding import Buffer, length_delimited, varint
from services.chassis.logs import logger
from services.chassis.trace_context import TraceContext
from services.domain.clock import Clock

Kind = Literal["internal", "server", "client", "producer", "consumer"]
"""A span's part in a call, as OpenTelemetry names it."""

AttributeValue: TypeAlias = str | bool | int | float
"""A fact about a span."""

EXPORT_TIMEOUT_S = 1.0
"""A batch that the collector does not take in this time is lost; more would only pile up behind it."""

EXPORT_DELAY_S = 0.5
"""How long a span waits for company; short, so that a trace is complete soon after its call."""

BATCH_SPANS = 512
"""Spans that are not kept waiting, and the most of one message."""

SPANS_IN_A_ROW = 32
"""Spans encoded before the loop's thread is let in again."""

BREATH_S = 1e-5
"""A wait, however short, gives the interpreter to others."""

QUEUE_SPANS = 8192
"""Spans kept for the exporter; beyond it the oldest are lost. About 10 MB."""

SHUTDOWN_S = 2.0
"""Most that closing waits for the last spans to be delivered."""

WARN_EVERY_S = 60.0
"""A collector that is away is worth one line a minute."""

_KINDS: dict[Kind, Span.SpanKind.ValueType] = {
    "internal": Span.SPAN_KIND_INTERNAL,
    "server": Span.SPAN_KIND_SERVER,
    "client": Span.SPAN_KIND_CLIENT,
    "producer": Span.SPAN_KIND_PRODUCER,
    "consumer": Span.SPAN_KIND_CONSUMER,
}
_SCOPE = "modelyard"
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_RESOURCE_SPANS_TAG = b"\x0a"  # ExportTraceServiceRequest.resource_spans = 1
_SCOPE_SPANS_TAG = b"\x12"  # ResourceSpans.scope_spans = 2
_SPAN_TAG = b"\x12"  # ScopeSpans.spans = 2
_Export: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
_SAMPLED = 0x1
_REMOTE_KNOWN, _REMOTE = 0x100, 0x200
"""Bits of `flags`: W3C trace flags, and whether the parent, or the linked span, is another process's."""


class FinishedSpan(NamedTuple):
    """Work that is over."""

    name: str
    """What was done."""
    context: TraceContext
    """Its own ids."""
    parent: TraceContext | None
    """What caused it; None at a trace's root."""
    kind: Kind
    """Its part in a call."""
    links: Sequence[TraceContext]
    """Other spans that it worked for."""
    attributes: Mapping[str, AttributeValue] | None
    """Facts."""
    failure: str | None
    """Why it failed; None if it did not."""
    start_wall_s: float
    """Seconds since the Unix epoch at its begin."""
    end_wall_s: float
    """Seconds since the Unix epoch at its end."""


class SpanExport:
    """A queue of finished spans and the thread that sends them; both begin with it."""

    def __init__(self, endpoint: str, *, service: str, instance: str, clock: Clock) -> None:
        """Begin to export.

        Args:
            endpoint: `host:port` of an OTLP gRPC collector without TLS.
            service: Name of the service.
            instance: Name of this process among its replicas.
            clock: Time.
        """
        self._endpoint = endpoint
        self._clock = clock
        resource = ResourceSpans()
        for key, value in (("service.name", f"modelyard-{service}"), ("service.instance.id", instance)):
            resource.resource.attributes.add(key=key).value.string_value = value
        self._resource = resource.SerializeToString()
        self._scope = ScopeSpans(scope=InstrumentationScope(name=_SCOPE)).SerializeToString()
        self._encoder = _Encoder()
        self._queue: deque[FinishedSpan] = deque()
        self._wake = threading.Event()
        self._never = threading.Event()
        self._closing = False
        self._given_up = False
        self._warned_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
        self._thread.start()

    def add(self, span: FinishedSpan) -> None:
        """Queue a span; never blocks. A full queue loses its oldest."""
        queue = self._queue
        queue.append(span)
        waiting = len(queue)
        if waiting == BATCH_SPANS:
            self._wake.set()
        elif waiting > QUEUE_SPANS:
            with contextlib.suppress(IndexError):  # the thread took them all meanwhile
                queue.popleft()
                self._lost(1, "the queue is full")

    async def close(self) -> None:
        """Send what is queued, for `SHUTDOWN_S` at most."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def wait() -> None:
            self._thread.join()
            with contextlib.suppress(RuntimeError):  # the loop has ended without waiting any longer
                loop.call_soon_threadsafe(finish)

        self._closing = True
        self._wake.set()
        # A thread of its own and a daemon: neither the loop's executor nor the interpreter waits for it.
        threading.Thread(target=wait, name="span-export-end", daemon=True).start()
        await asyncio.wait([done], timeout=SHUTDOWN_S)
        self._given_up = True

    # --- on the exporter's thread -----------------------------------------------------------------

    def _run(self) -> None:
        with grpc.insecure_channel(self._endpoint) as channel:
            export: _Export = channel.unary_unary(_METHOD)
            while True:
                ends = self._closing
                while batch := self._batch():
                    self._send(export, batch)
                if ends:
                    return
                self._wake.wait(EXPORT_DELAY_S)
                self._wake.clear()

    def _batch(self) -> list[FinishedSpan]:
        queue = self._queue
        batch: list[FinishedSpan] = []
        with contextlib.suppress(IndexError):
            while len(batch) < BATCH_SPANS:
                batch.append(queue.popleft())
        return batch

    def _send(self, export: _Export, batch: Sequence[FinishedSpan]) -> None:
        if self._given_up:
            instruments.SPANS_LOST.inc(len(batch))
            return
        parts: list[Buffer] = [self._scope]
        for number, span in enumerate(batch, start=1):
            encoded = self._encoder.encode(span)
            parts += length_delimited(_SPAN_TAG, (encoded,), len(encoded))
            if number % SPANS_IN_A_ROW == 0:
                self._never.wait(BREATH_S)
        scope_spans = length_delimited(_SCOPE_SPANS_TAG, parts, sum(map(len, parts)))
        length = len(self._resource) + sum(map(len, scope_spans))
        request = b"".join(length_delimited(_RESOURCE_SPANS_TAG, (self._resource, *scope_spans), length))
        try:
            export(request, timeout=EXPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else "UNKNOWN"
            self._lost(len(batch), f"the collector did not take them: {getattr(code, 'name', code)}")
        else:
            instruments.SPANS_EXPORTED.inc(len(batch))

    def _lost(self, spans: int, cause: str) -> None:
        instruments.SPANS_LOST.inc(spans)
        now_s = self._clock.now_s()
        if self._warned_s is None or now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            logger().warning("spans are lost", endpoint=self._endpoint, cause=cause, spans=spans)


_ATTRIBUTE_TAG = b"\x4a"  # Span.attributes = 9
_ENCODED_KEPT = 4096
_DOUBLE = b"\x12\x09\x21"  # KeyValue.value = 2, an AnyValue of 9 bytes: double_value = 4
_DOUBLE_BYTES = 8
_pack_double = struct.Struct("<d").pack

_TIMES = struct.Struct("<cQcQ")
_START_TAG, _END_TAG = b"\x39", b"\x41"  # Span.start_time_unix_nano = 7, end_time_unix_nano = 8
_FLAGS_TAG = b"\x85\x01"  # Span.flags = 16
_LOCAL = _FLAGS_TAG + struct.pack("<I", _SAMPLED)
_CAUSED = _FLAGS_TAG + struct.pack("<I", _SAMPLED | _REMOTE_KNOWN | _REMOTE)
_IDS = b"\x0a\x10%b\x12\x08%b"  # Span.trace_id = 1, span_id = 2
_PARENT = b"\x22\x08%b"  # Span.parent_span_id = 4
_LINK = b"\x6a\x21\x0a\x10%b\x12\x08%b\x35" + struct.pack("<I", _SAMPLED | _REMOTE_KNOWN | _REMOTE)
"""Span.links = 13: a Link of 33 bytes with trace_id = 1, span_id = 2 and flags = 6."""


class _Encoder:
    """Spans as OTLP's bytes, put together by hand: there are half a dozen for each traced call.

    What recurs, such as names and attributes, is encoded once; what is rare goes through protobuf.
    """

    def __init__(self) -> None:
        self._attributes: dict[tuple[str, AttributeValue, type], bytes] = {}
        self._named: dict[tuple[str, Kind], bytes] = {}
        self._floats: dict[str, bytes] = {}
        """By name: what comes before the number."""

    def encode(self, span: FinishedSpan) -> bytes:
        context, parent = span.context, span.parent
        trace_id = bytes.fromhex(context.trace_id)
        start_ns = _nanoseconds(span.start_wall_s)
        end_ns = max(start_ns, _nanoseconds(span.end_wall_s))
        parts = [
            _IDS % (trace_id, bytes.fromhex(context.span_id)),
            self._named.get((span.name, span.kind)) or self._name(span.name, span.kind),
            _TIMES.pack(_START_TAG, start_ns, _END_TAG, end_ns),
        ]
        if parent is None:
            parts.append(_LOCAL)
        else:
            parts += (_PARENT % bytes.fromhex(parent.span_id), _CAUSED)
        for link in span.links:
            if link.tracestate:
                parts.append(_link_with_state(link))
            else:
                linked = trace_id if link.trace_id == context.trace_id else bytes.fromhex(link.trace_id)
                parts.append(_LINK % (linked, bytes.fromhex(link.span_id)))
        if context.tracestate or span.failure is not None:
            parts.append(_seldom(context.tracestate, span.failure))
        if span.attributes:
            parts += [self._attribute(key, value) for key, value in span.attributes.items()]
        return b"".join(parts)

    def _name(self, name: str, kind: Kind) -> bytes:
        encoded = Span(name=name, kind=_KINDS[kind]).SerializeToString()
        if len(self._named) >= _ENCODED_KEPT:
            self._named.clear()
        self._named[name, kind] = encoded
        return encoded

    def _attribute(self, key: str, value: AttributeValue) -> bytes:
        if isinstance(value, float):  # a time, hardly ever seen again
            head = self._floats.get(key)
            if head is None:
                name = key.encode()
                named = b"\x0a" + varint(len(name)) + name + _DOUBLE
                head = self._floats[key] = _ATTRIBUTE_TAG + varint(len(named) + _DOUBLE_BYTES) + named
            return head + _pack_double(value)
        kept = self._attributes.get((key, value, type(value)))  # 1 and True are one key without the type
        if kept is None:
            encoded = KeyValue(key=key, value=_any_value(value)).SerializeToString()
            kept = b"".join(length_delimited(_ATTRIBUTE_TAG, (encoded,), len(encoded)))
            if len(self._attributes) >= _ENCODED_KEPT:
                self._attributes.clear()
            self._attributes[key, value, type(value)] = kept
        return kept


def _seldom(tracestate: str, failure: str | None) -> bytes:
    message = Span(trace_state=tracestate)
    if failure is not None:
        message.status.code = Status.STATUS_CODE_ERROR
        message.status.message = failure
    return message.SerializeToString()


def _link_with_state(link: TraceContext) -> bytes:
    message = Span()
    message.links.add(
        trace_id=bytes.fromhex(link.trace_id),
        span_id=bytes.fromhex(link.span_id),
        trace_state=link.tracestate,
        flags=_SAMPLED | _REMOTE_KNOWN | _REMOTE,
    )
    return message.SerializeToString()


def _any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(double_value=value)


def _nanoseconds(wall_s: float) -> int:
    """Whole seconds apart from the rest: their product with 10**9 has no float of its own."""
    return int(wall_s) * 1_000_000_000 + round(wall_s % 1.0 * 1e9)
