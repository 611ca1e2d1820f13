"""Spans: what was done for whom, and how long it took, sent to an OTLP collector.

A trace is sampled or not at its root, from its id; every later part follows the flag it was sent.
Only sampled work pays for spans. The exporter runs in a thread of its own and is never waited for:
spans that it cannot deliver are lost and counted. The context that crosses processes is in
`trace_context`, log lines are in `logs`; both are offered here as well.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import Self

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from services.chassis import instruments
from services.chassis.logs import LEVELS, logger, setup_logging
from services.chassis.trace_context import (
    TraceContext,
    attach,
    current,
    detach,
    outgoing_metadata,
    sampled_at_root,
)
from services.domain.clock import Clock, SystemClock
from services.domain.errors import YardError

__all__ = [
    "LEVELS",
    "Span",
    "Telemetry",
    "TraceContext",
    "attach",
    "current",
    "detach",
    "logger",
    "outgoing_metadata",
    "setup_logging",
]

EXPORT_TIMEOUT_S = 1.0
"""A batch that the collector does not take in this time is lost; more would only pile up behind it."""

EXPORT_DELAY_MS = 500
"""How long a span waits for company; short, so that a trace is complete soon after its call."""

QUEUE_SPANS = 8192
"""Spans kept for the exporter; beyond it the oldest are lost. About 10 MB."""

SHUTDOWN_S = 2.0
"""Most that `shutdown` waits for the last spans to be delivered."""

WARN_EVERY_S = 60.0
"""A collector that is away is worth one line a minute."""

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_SCOPE = InstrumentationScope("modelyard")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_CLOCK = SystemClock()


class Span:
    """A piece of work with a begin and an end; as a context manager also the current one.

    Of an unsampled trace it only carries the context: nothing is kept and nothing is sent.
    """

    __slots__ = (
        "_attributes",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_status",
        "_telemetry",
        "_times",
        "_token",
        "context",
    )

    def __init__(
        self,
        telemetry: "Telemetry | None",
        name: str,
        context: TraceContext,
        *,
        parent: TraceContext | None = None,
        kind: str = "internal",
        links: Sequence[TraceContext] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
        times: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Begin a span; made by `Telemetry.span`.

        Args:
            telemetry: Where it is sent at its end; None keeps and sends nothing.
            name: What is done.
            context: Its own ids.
            parent: The span that caused it.
            kind: One of internal, server, client, producer, consumer.
            links: Other spans that it works for, such as the requests of a batch.
            attributes: What is known at its begin.
            times: Wall and monotonic seconds of its begin.
        """
        self.context = context
        self._telemetry = telemetry
        self._name = name
        self._parent = parent
        self._kind = kind
        self._links = links
        self._attributes: dict[str, AttributeValue] | None = None if attributes is None else dict(attributes)
        self._status = _UNSET
        self._times = times
        self._token: Token[TraceContext | None] | None = None

    @property
    def recording(self) -> bool:
        """Whether what is set here is kept; ask before computing costly attributes."""
        return self._telemetry is not None

    def set(self, key: str, value: AttributeValue) -> None:
        """Add an attribute."""
        if self._telemetry is None:
            return
        if self._attributes is None:
            self._attributes = {}
        self._attributes[key] = value

    def fail(self, error: BaseException | str) -> None:
        """Mark the work as failed.

        Args:
            error: The cause. Of an exception that is not a `YardError` only the type is kept: its text may
                hold a payload.
        """
        if self._telemetry is None:
            return
        if isinstance(error, YardError):
            self.set("error.type", error.reason)
            self._status = Status(StatusCode.ERROR, error.message)
        elif isinstance(error, BaseException):
            self.set("error.type", type(error).__name__)
            self._status = Status(StatusCode.ERROR, type(error).__name__)
        else:
            self._status = Status(StatusCode.ERROR, error)

    def end(self) -> None:
        """End the work; only the first call counts."""
        telemetry, self._telemetry = self._telemetry, None
        if telemetry is None:
            return
        start_wall_s, start_s = self._times
        telemetry.emit(
            self._name,
            self.context,
            parent=self._parent,
            kind=self._kind,
            links=self._links,
            attributes=self._attributes,
            status=self._status,
            start_wall_s=start_wall_s,
            end_wall_s=start_wall_s + telemetry.now_s() - start_s,
        )

    def __enter__(self) -> Self:
        self._token = attach(self.context)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            detach(self._token)
            self._token = None
        if isinstance(exc, asyncio.CancelledError):
            self.set("cancelled", True)
        elif exc is not None:
            self.fail(exc)
        self.end()


class Telemetry:
    """The spans of one process."""

    def __init__(
        self,
        *,
        service: str,
        instance: str,
        otlp_endpoint: str | None,
        sample_ratio: float,
        clock: Clock = _CLOCK,
    ) -> None:
        """Store the arguments; the exporter starts with the first sampled span.

        Args:
            service: Name of the service.
            instance: Name of this process among its replicas.
            otlp_endpoint: `host:port` of an OTLP gRPC collector without TLS; None or empty sends nothing.
            sample_ratio: Share of the traces begun here that are recorded, in [0, 1].
            clock: Time.
        """
        self._service = service
        self._instance = instance
        self._otlp_endpoint = otlp_endpoint
        self._sample_ratio = sample_ratio
        self._clock = clock
        self._processor: BatchSpanProcessor | None = None
        self._exporter: _Exporter | None = None
        self._resource: Resource | None = None
        self._closed = False

    def span(
        self,
        name: str,
        *,
        parent: TraceContext | None = None,
        kind: str = "internal",
        links: Sequence[TraceContext] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Span:
        """Begin a piece of work.

        Args:
            name: What is done, such as `router.Infer`; few different ones.
            parent: What caused it; None is the current context, and a new trace if there is none.
            kind: One of internal, server, client, producer, consumer.
            links: Other spans it works for.
            attributes: What is known of it already.

        Returns:
            The span. That of an unsampled trace has its parent's context and costs next to nothing.
        """
        if parent is None:
            parent = current()
        if parent is None:
            context = TraceContext.new(False)
            if not sampled_at_root(context.trace_id, self._sample_ratio):
                return Span(None, name, context)
            context = TraceContext(context.trace_id, context.span_id, True)
        elif not parent.sampled:
            return Span(None, name, parent)
        else:
            context = parent.child()
        times = (self._clock.wall_s(), self._clock.now_s())
        return Span(self, name, context, parent=parent, kind=kind, links=links, attributes=attributes, times=times)

    def record(
        self,
        name: str,
        *,
        parent: TraceContext,
        start_wall_s: float,
        end_wall_s: float,
        kind: str = "internal",
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[TraceContext] = (),
    ) -> TraceContext:
        """Report work that is over, such as a wait in a queue.

        Args:
            name: What was done.
            parent: What caused it.
            start_wall_s: Seconds since the Unix epoch at its begin.
            end_wall_s: Seconds since the Unix epoch at its end.
            kind: One of internal, server, client, producer, consumer.
            attributes: What is known of it.
            links: Other spans it worked for.

        Returns:
            The span's context, to be the parent of what it caused; `parent` itself if that is not sampled.
        """
        if not parent.sampled:
            return parent
        context = parent.child()
        self.emit(
            name,
            context,
            parent=parent,
            kind=kind,
            links=links,
            attributes=attributes,
            status=_UNSET,
            start_wall_s=start_wall_s,
            end_wall_s=end_wall_s,
        )
        return context

    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._clock.now_s()

    def emit(
        self,
        name: str,
        context: TraceContext,
        *,
        parent: TraceContext | None,
        kind: str,
        links: Sequence[TraceContext],
        attributes: Mapping[str, AttributeValue] | None,
        status: Status,
        start_wall_s: float,
        end_wall_s: float,
    ) -> None:
        """Hand a finished span to the exporter; `Span.end` and `record` do."""
        processor = self._open()
        if processor is None:
            return
        start_ns = int(start_wall_s * 1e9)
        # The tracer of the SDK would choose the ids and costs several times as much; the pinned SDK's span
        # record is filled in directly, and a test with a real collector holds us to it.
        processor.on_end(
            ReadableSpan(
                name,
                context=_span_context(context),
                parent=None if parent is None else _span_context(parent, remote=True),
                resource=self._resource,
                attributes=attributes,
                links=[Link(_span_context(link, remote=True)) for link in links],
                kind=_KINDS[kind],
                status=status,
                start_time=start_ns,
                end_time=max(start_ns, int(end_wall_s * 1e9)),
                instrumentation_scope=_SCOPE,
            )
        )

    async def shutdown(self) -> None:
        """Send what is left, for `SHUTDOWN_S` at most; later spans are dropped."""
        self._closed = True
        processor, self._processor = self._processor, None
        exporter, self._exporter = self._exporter, None
        if processor is None or exporter is None:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def flush() -> None:
            try:
                processor.shutdown()  # type: ignore[no-untyped-call]
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended without waiting any longer
                    loop.call_soon_threadsafe(finish)

        # A thread of its own and a daemon: neither the loop's executor nor the interpreter waits for it.
        threading.Thread(target=flush, name="telemetry-shutdown", daemon=True).start()
        await asyncio.wait([done], timeout=SHUTDOWN_S)
        exporter.give_up()

    def _open(self) -> BatchSpanProcessor | None:
        if self._processor is None and self._otlp_endpoint and not self._closed:
            # Its own complaints come for each lost batch; `_Exporter` says it once a minute.
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
            self._resource = Resource(
                {"service.name": f"modelyard-{self._service}", "service.instance.id": self._instance}
            )
            self._exporter = _Exporter(self._otlp_endpoint, self._clock)
            self._processor = BatchSpanProcessor(
                self._exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=EXPORT_DELAY_MS
            )
        return self._processor


class _Exporter(SpanExporter):
    """The OTLP exporter, made quiet: a failure is counted, and said once a minute."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._inner = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=EXPORT_TIMEOUT_S)
        self._warned_s: float | None = None
        self._given_up = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; called by the processor's thread."""
        if self._given_up:
            return SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        except Exception as error:
            result, cause = SpanExportResult.FAILURE, type(error).__name__
        else:
            cause = "the collector did not take them"
        if result is SpanExportResult.SUCCESS:
            instruments.SPANS_EXPORTED.inc(len(spans))
            return result
        instruments.SPANS_LOST.inc(len(spans))
        now_s = self._clock.now_s()
        if self._warned_s is None or now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            logger().warning("spans are lost", endpoint=self._endpoint, cause=cause, spans=len(spans))
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


def _span_context(context: TraceContext, *, remote: bool = False) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=remote,
        trace_flags=_SAMPLED,
        trace_state=TraceState.from_header([context.tracestate]) if context.tracestate else None,
    )
