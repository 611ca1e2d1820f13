"""How finished spans reach an OTLP collector: in batches, from a thread that nothing waits for.

Spans that cannot be delivered are lost, counted, and said once a minute. What a span is, is in `telemetry`.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from services.chassis import instruments
from services.chassis.logs import logger
from services.chassis.trace_context import TraceContext
from services.domain.clock import Clock

Kind = Literal["internal", "server", "client", "producer", "consumer"]
"""A span's part in a call, as OpenTelemetry names it."""

EXPORT_TIMEOUT_S = 1.0
"""A batch that the collector does not take in this time is lost; more would only pile up behind it."""

EXPORT_DELAY_MS = 500
"""How long a span waits for company; short, so that a trace is complete soon after its call."""

QUEUE_SPANS = 8192
"""Spans kept for the exporter; beyond it the oldest are lost. About 10 MB."""

SHUTDOWN_S = 2.0
"""Most that closing waits for the last spans to be delivered."""

WARN_EVERY_S = 60.0
"""A collector that is away is worth one line a minute."""

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_SCOPE = InstrumentationScope("modelyard")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


@dataclass(frozen=True, slots=True)
class FinishedSpan:
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
        # The SDK complains of each batch; `_QuietExporter` says it once a minute.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._resource = Resource({"service.name": f"modelyard-{service}", "service.instance.id": instance})
        self._exporter = _QuietExporter(endpoint, clock)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=EXPORT_DELAY_MS
        )

    def add(self, span: FinishedSpan) -> None:
        """Queue a span; never blocks. A full queue loses its oldest."""
        start_ns = _nanoseconds(span.start_wall_s)
        self._exporter.queued()
        # The SDK's tracer would choose the ids and costs several times as much; the pinned SDK's span record
        # is filled in directly, and a test with a real collector holds us to it.
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_span_context(span.context),
                parent=None if span.parent is None else _span_context(span.parent, remote=True),
                resource=self._resource,
                attributes=span.attributes,
                links=[Link(_span_context(link, remote=True)) for link in span.links],
                kind=_KINDS[span.kind],
                status=_UNSET if span.failure is None else Status(StatusCode.ERROR, span.failure),
                start_time=start_ns,
                end_time=max(start_ns, _nanoseconds(span.end_wall_s)),
                instrumentation_scope=_SCOPE,
            )
        )

    async def close(self) -> None:
        """Send what is queued, for `SHUTDOWN_S` at most."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def flush() -> None:
            try:
                self._processor.shutdown()  # type: ignore[no-untyped-call]
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended without waiting any longer
                    loop.call_soon_threadsafe(finish)

        # A thread of its own and a daemon: neither the loop's executor nor the interpreter waits for it.
        threading.Thread(target=flush, name="telemetry-shutdown", daemon=True).start()
        await asyncio.wait([done], timeout=SHUTDOWN_S)
        self._exporter.give_up()


class _QuietExporter(SpanExporter):
    """The OTLP exporter; its failures are counted, and said once a minute."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._inner = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=EXPORT_TIMEOUT_S)
        self._lock = threading.Lock()
        self._queued = 0
        self._warned_s: float | None = None
        self._given_up = False

    def queued(self) -> None:
        """Note one more in the queue, which drops its oldest when full."""
        with self._lock:
            full = self._queued >= QUEUE_SPANS
            self._queued += 0 if full else 1
        if full:
            self._lost(1, "the queue is full")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; called by the processor's thread."""
        with self._lock:
            self._queued -= len(spans)
        if self._given_up:
            instruments.SPANS_LOST.inc(len(spans))
            return SpanExportResult.FAILURE
        cause = "the collector did not take them"
        try:
            result = self._inner.export(spans)
        except Exception as error:
            result, cause = SpanExportResult.FAILURE, type(error).__name__
        if result is SpanExportResult.SUCCESS:
            instruments.SPANS_EXPORTED.inc(len(spans))
        else:
            self._lost(len(spans), cause)
        return result

    def shutdown(self) -> None:
        """Close the channel."""
        self._inner.shutdown()

    def give_up(self) -> None:
        """Send no more batches; one that is under way ends by its own timeout."""
        self._given_up = True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._inner.force_flush(timeout_millis)

    def _lost(self, spans: int, cause: str) -> None:
        instruments.SPANS_LOST.inc(spans)
        now_s = self._clock.now_s()
        with self._lock:
            silent = self._warned_s is not None and now_s - self._warned_s < WARN_EVERY_S
            if not silent:
                self._warned_s = now_s
        if not silent:
            logger().warning("spans are lost", endpoint=self._endpoint, cause=cause, spans=spans)


def _span_context(context: TraceContext, *, remote: bool = False) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=remote,
        trace_flags=_SAMPLED,
        trace_state=TraceState.from_header([context.tracestate]) if context.tracestate else None,
    )


def _nanoseconds(wall_s: float) -> int:
    """Whole seconds apart from the rest: their product with 10**9 has no float of its own."""
    return int(wall_s) * 1_000_000_000 + round(wall_s % 1.0 * 1e9)
