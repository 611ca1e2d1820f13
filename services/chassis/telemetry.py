"""Spans: what was done for whom, and how long it took, sent to an OTLP collector.

A trace is sampled or not at its root, from its id; every later part follows the flag it was sent.
Only sampled work pays for spans. The exporter runs in a thread of its own and is never waited for:
spans that it cannot deliver are lost and counted. The context that crosses processes is in
`trace_context`, log lines are in `logs`; both are offered here as well.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import Self

from services.chassis.logs import LEVELS, logger, setup_logging
from services.chassis.span_export import AttributeValue, FinishedSpan, Kind, SpanExport
from services.chassis.trace_context import (
    TraceContext,
    attach,
    current,
    detach,
    outgoing_metadata,
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

_CLOCK = SystemClock()


class Span:
    """A piece of work with a begin and an end; as a context manager also the current one.

    Of an unsampled trace it only carries the context: nothing is kept and nothing is sent.
    """

    __slots__ = (
        "_attributes",
        "_failure",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_telemetry",
        "_times",
        "_token",
        "context",
    )

    def __init__(
        self,
        telemetry: "Telemetry",
        name: str,
        context: TraceContext,
        *,
        parent: TraceContext | None = None,
        kind: Kind = "internal",
        links: Sequence[TraceContext] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
        times: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Begin a span; made by `Telemetry.span`.

        Args:
            telemetry: Where it is sent at its end.
            name: What is done.
            context: Its own ids.
            parent: The span that caused it.
            kind: One of internal, server, client, producer, consumer.
            links: Other spans that it works for, such as the requests of a batch.
            attributes: What is known at its begin.
            times: Wall and monotonic seconds of its begin.
        """
        self.context = context
        self._telemetry: Telemetry | None = telemetry
        self._name = name
        self._parent = parent
        self._kind = kind
        self._links = links
        self._attributes: dict[str, AttributeValue] | None = None if attributes is None else dict(attributes)
        self._failure: str | None = None
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
            self._failure = error.message
        elif isinstance(error, BaseException):
            self.set("error.type", type(error).__name__)
            self._failure = type(error).__name__
        else:
            self._failure = error

    def end(self) -> None:
        """End the work; only the first call counts."""
        telemetry, self._telemetry = self._telemetry, None
        if telemetry is None:
            return
        telemetry.entered.pop(self.context.span_id, None)
        start_wall_s, start_s = self._times
        telemetry.emit(
            FinishedSpan(
                self._name,
                self.context,
                self._parent,
                kind=self._kind,
                links=self._links,
                attributes=self._attributes,
                failure=self._failure,
                start_wall_s=start_wall_s,
                end_wall_s=start_wall_s + telemetry.now_s() - start_s,
            )
        )

    def __enter__(self) -> Self:
        self._token = attach(self.context)
        if self._telemetry is not None:
            self._telemetry.entered[self.context.span_id] = self
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


class _Unsampled(Span):
    """The span of an unsampled trace: carries the context, and nothing else."""

    __slots__ = ()

    def __init__(self, context: TraceContext) -> None:
        self.context = context
        self._telemetry = None
        self._token = None

    @property
    def recording(self) -> bool:
        return False

    def set(self, key: str, value: AttributeValue) -> None:
        pass

    def fail(self, error: BaseException | str) -> None:
        pass

    def end(self) -> None:
        pass


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
        self.entered: dict[str, Span] = {}
        """Sampled spans that work goes on in, by their id."""
        self._export: SpanExport | None = None
        self._opening = threading.Lock()
        self._closed = False

    def span(
        self,
        name: str,
        *,
        parent: TraceContext | None = None,
        kind: Kind = "internal",
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
            context = TraceContext.root(self._sample_ratio)
            if not context.sampled:
                return _Unsampled(context)
        elif not parent.sampled:
            return _Unsampled(parent)
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
        kind: Kind = "internal",
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
            FinishedSpan(
                name,
                context,
                parent,
                kind=kind,
                links=links,
                attributes=attributes,
                failure=None,
                start_wall_s=start_wall_s,
                end_wall_s=end_wall_s,
            )
        )
        return context

    def describe(self, context: TraceContext, attributes: Mapping[str, AttributeValue]) -> None:
        """Add facts to the span of `context`, if it is one of this process that has not ended."""
        span = self.entered.get(context.span_id)
        if span is not None:
            for key, value in attributes.items():
                span.set(key, value)

    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._clock.now_s()

    def emit(self, span: FinishedSpan) -> None:
        """Hand a finished span to the exporter, from any thread; `Span.end` and `record` do."""
        export = self._export
        if export is None:
            if not self._otlp_endpoint or self._closed:
                return
            with self._opening:
                if self._export is None:
                    self._export = SpanExport(
                        self._otlp_endpoint, service=self._service, instance=self._instance, clock=self._clock
                    )
                export = self._export
        export.add(span)

    async def shutdown(self) -> None:
        """Send what is left, for two seconds at most; later spans are dropped."""
        self._closed = True
        export, self._export = self._export, None
        if export is not None:
            await export.close()
