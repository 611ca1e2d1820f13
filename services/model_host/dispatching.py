"""The Dispatch streams of a host: many calls in, many results out, no task for any of them.

What is there when the loop turns goes into one message. A stream whose reader is slow is not read from,
so that neither side's memory grows; a stream that ends takes its calls out of the queue.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import TypeAlias

import grpc.aio

from modelyard.host.v1 import host_pb2
from modelyard.host.v1 import opaque_pb2 as pb
from services.chassis.codec import service_class_from
from services.chassis.encoding import Encoded
from services.chassis.errors import failure_to
from services.chassis.layouts import Layouts
from services.chassis.outbox import LARGEST_BYTES, Outbox
from services.chassis.telemetry import Span, Telemetry, TraceContext, logger
from services.domain.clock import Clock
from services.domain.errors import (
    BudgetExhausted,
    Draining,
    Fault,
    Internal,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    YardError,
)
from services.domain.model import ModelKey
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Answer
from services.model_host.execution import Asked, answer_of, answer_takes_long, asked_of, budget_s
from services.model_host.lane import Lane
from services.model_host.lifecycle import Lifecycle
from services.model_host.standing import Standing
from services.policy.fairness import TenantShare

UNSENT_BYTES = 4 << 20
"""A stream with more results waiting to be sent is not read from."""

MOST_CALLS = 4096
"""Calls taken from one message, all in one turn of the loop: as many as a router holds unless told otherwise. The
rest is refused, since 64 MiB could be millions."""

RETRY_AFTER_S = 0.010
"""When a call refused for `MOST_CALLS` may come again."""

MOST_CLASSES = 4096
"""Classes that a stream may declare."""

BEAT_S = 0.1
"""A stream whose calls are not answered says at least so often that the host lives, and what it has to do: a router
cannot tell a slow model from a frozen host otherwise."""

BEAT_LANES = 16
"""Calls of whose versions a beat tells the load."""

CLOSING_S = 1.0
"""How long a closing stream waits for the router to end its side: calls under way are refused meanwhile, which costs
them nothing; a stream that ended would lose them."""

SPAN = "modelyard.host.v1.ModelHostService/Dispatch"
"""Name of the span of each sampled call."""

_SAMPLED = frozenset("13579bdf")
"""Last digits of a `traceparent` whose trace is recorded."""

Context: TypeAlias = "grpc.aio.ServicerContext[pb.OpaqueDispatchRequest, pb.OpaqueDispatchResponse]"


class Dispatching:
    """Every stream of one host."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        queue: BatchQueue,
        standing: Standing,
        telemetry: Telemetry,
        clock: Clock,
        reserve_s: float,
    ) -> None:
        """Run calls through `queue`; keep `reserve_s` of each deadline to carry the answer home."""
        self.lifecycle = lifecycle
        self.queue = queue
        self.standing = standing
        self.telemetry = telemetry
        self.clock = clock
        self.reserve_s = reserve_s
        self.layouts = Layouts()
        self._streams: set[_Stream] = set()
        self._closing = False

    async def serve(self, messages: AsyncIterator[pb.OpaqueDispatchRequest], context: Context) -> None:
        """Serve one stream to its end.

        Raises:
            InvalidRequest: A call's number was in use already.
        """
        stream = _Stream(self, context)
        self._streams.add(stream)
        if self._closing:
            stream.close()
        try:
            await stream.run(messages)
        finally:
            self._streams.discard(stream)
            stream.abandon_all()

    def wind_down(self) -> None:
        """Take no more calls; each stream ends once its calls are answered."""
        self._closing = True
        for stream in self._streams:
            stream.close()


class _Dispatched:
    """One call of a stream; takes what becomes of it, as the batch queue's Reply."""

    __slots__ = ("asked", "ended", "number", "span", "stream")

    def __init__(self, stream: "_Stream", number: int, asked: Asked, span: Span | None) -> None:
        self.stream = stream
        self.number = number
        self.asked = asked
        self.span = span
        self.ended = False

    def done(self) -> bool:
        return self.ended

    def set_result(self, answer: Answer) -> None:
        self.ended = True
        self.stream.answered(self, answer)

    def set_exception(self, error: BaseException) -> None:
        self.ended = True
        self.stream.failed(self, error)


class _Stream:
    def __init__(self, home: Dispatching, context: Context) -> None:
        self._home = home
        self._context = context
        self._open: dict[int, _Dispatched] = {}
        self._classes: dict[int, TenantShare] = {}
        self._encoding: set[asyncio.Task[None]] = set()
        self._outbox = Outbox(pb.OpaqueDispatchResponse, most_bytes=UNSENT_BYTES)
        self._lanes: dict[int, dict[Lane, None]] = {}
        """Those that the results in the outbox are of, by the id of their message."""
        self._closing = False
        self._told_closing = False
        self._waited = False
        self._beat: asyncio.TimerHandle | None = None
        self._wrote = False
        """Whether anything was sent since the last beat."""

    async def run(self, messages: AsyncIterator[pb.OpaqueDispatchRequest]) -> None:
        reading = asyncio.get_running_loop().create_task(self._read(messages))
        reading.add_done_callback(lambda _: self._outbox.ready.set())
        try:
            while True:
                await self._outbox.ready.wait()
                if self._closing and not self._told_closing:
                    self._told_closing = True
                    self._outbox.message(0).closing = True
                await self._outbox.send(self._write)
                if reading.done():
                    reading.result()
                if not self._open and self._outbox.empty and (reading.done() or self._waited):
                    return
        finally:
            reading.cancel()
            if self._beat is not None:
                self._beat.cancel()

    def close(self) -> None:
        """Say that no more calls are taken; the router then ends its side."""
        self._closing = True
        self._outbox.ready.set()
        asyncio.get_running_loop().call_later(CLOSING_S, self._wait_no_more)

    def _wait_no_more(self) -> None:
        self._waited = True
        self._outbox.ready.set()

    def abandon_all(self) -> None:
        for task in self._encoding:
            task.cancel()
        for dispatched in list(self._open.values()):
            self._abandon(dispatched)

    # --- in -------------------------------------------------------------------------------------

    async def _read(self, messages: AsyncIterator[pb.OpaqueDispatchRequest]) -> None:
        async for message in messages:
            now_s = self._home.clock.now_s()
            if message.classes:
                self._declare(message.classes)
            calls = message.calls
            too_many = len(calls) > MOST_CALLS
            for call in calls[:MOST_CALLS] if too_many else calls:
                self._take(call, now_s)
            if too_many:
                await self._refuse(islice(calls, MOST_CALLS, None))
            for number in message.cancels:  # perhaps of a call that came with them
                dispatched = self._open.get(number)
                if dispatched is not None:
                    self._abandon(dispatched)
            await self._outbox.room.wait()

    def _declare(self, classes: Sequence[host_pb2.DeclaredClass]) -> None:
        if len(self._classes) + len(classes) > MOST_CLASSES:
            raise InvalidRequest.of([Fault("classes", f"a stream may declare {MOST_CLASSES}, and declared more")])
        for declared in classes:
            if not declared.number or declared.number in self._classes:
                text = f"{declared.number} must be above 0 and declared once"
                raise InvalidRequest.of([Fault("classes.number", text)])
            self._classes[declared.number] = self._home.queue.share_of(service_class_from(declared.service_class))

    async def _refuse(self, calls: Iterable[pb.OpaqueDispatchedCall]) -> None:
        """Refuse calls with one and the same failure, no faster than the router reads that."""
        text = f"a message may have {MOST_CALLS} calls, and had more"
        failure = failure_to(Overloaded(text, retry_after_s=RETRY_AFTER_S))
        size = failure.ByteSize()
        for call in calls:
            if call.number in self._open:
                raise _in_use(call.number)
            self._outbox.message(size).results.add(number=call.number, failure=failure)
            await self._outbox.room.wait()

    def _take(self, call: pb.OpaqueDispatchedCall, now_s: float) -> None:
        number = call.number
        if number in self._open:
            raise _in_use(number)
        span: Span | None = None
        lane: Lane | None = None
        try:
            if self._closing:
                raise Draining("this host takes no more calls; ask another")
            left_s = call.timeout_s
            if not left_s > 0.0:  # also not a number
                raise BudgetExhausted("nothing is left of the call's deadline")
            key = call.key
            hosted = self._home.lifecycle.ready(ModelKey(key.model, key.version))
            lane = hosted.lane
            trace = None
            traceparent = call.traceparent
            if traceparent and traceparent[-1] in _SAMPLED:
                trace = TraceContext.from_headers(traceparent, call.tracestate, call.baggage)
            if trace is not None:
                span = self._home.telemetry.span(SPAN, parent=trace, kind="server")
                trace = span.context
            raw = call.request
            asked = asked_of(
                hosted,
                raw,
                self._home.layouts.of(raw),
                request_id=call.request_id,
                deadline_at_s=now_s + budget_s(left_s, self._home.reserve_s),
                trace=trace,
            )
            if call.class_number:
                asked.call.share = self._share(call.class_number)
            dispatched = self._open[number] = _Dispatched(self, number, asked, span)
            if self._beat is None:
                self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._say_alive)
            self._home.queue.enter(asked.lane, asked.call, dispatched)
        except YardError as error:
            self._fail(number, error, span, lane)
        except Exception as error:
            logger().error("a dispatched call failed unexpectedly", exc_info=error)
            self._fail(number, Internal("internal"), span, lane)

    def _share(self, class_number: int) -> TenantShare:
        share = self._classes.get(class_number)
        if share is None:
            raise InvalidRequest.of([Fault("calls.class_number", f"{class_number} was not declared on this stream")])
        return share

    def _abandon(self, dispatched: _Dispatched) -> None:
        dispatched.ended = True
        self._open.pop(dispatched.number, None)
        self._home.queue.abandon(dispatched.asked.lane, dispatched.asked.call)
        _end(dispatched.span, cancelled=True)
        self._outbox.ready.set()  # it may have been the last one

    # --- out ------------------------------------------------------------------------------------

    def answered(self, dispatched: _Dispatched, answer: Answer) -> None:
        try:
            if answer_takes_long(dispatched.asked, answer):
                task = asyncio.get_running_loop().create_task(self._encode_beside(dispatched, answer))
                self._encoding.add(task)
                task.add_done_callback(self._encoding.discard)
            else:
                self._add(dispatched, answer, answer_of(dispatched.asked, answer))
        except Exception as error:
            self.failed(dispatched, error)

    async def _encode_beside(self, dispatched: _Dispatched, answer: Answer) -> None:
        try:
            encoded = await asyncio.to_thread(answer_of, dispatched.asked, answer)
        except Exception as error:
            self.failed(dispatched, error)
        else:
            if dispatched.number in self._open:
                self._add(dispatched, answer, encoded)

    def failed(self, dispatched: _Dispatched, error: BaseException) -> None:
        if not isinstance(error, YardError):
            logger().error("a dispatched call failed unexpectedly", exc_info=error)
            error = Internal("internal")
        self._fail(dispatched.number, error, dispatched.span, dispatched.asked.lane)

    def _add(self, dispatched: _Dispatched, answer: Answer, encoded: Encoded) -> None:
        if len(encoded) > LARGEST_BYTES:
            text = f"the answer of {dispatched.asked.lane.key} has {len(encoded)} bytes, too many for a message"
            self.failed(dispatched, ModelFailed(text))
            return
        del self._open[dispatched.number]
        response = encoded.SerializeToString()
        message = self._outbox.message(len(response))
        self._lanes.setdefault(id(message), {})[dispatched.asked.lane] = None
        message.results.add(
            number=dispatched.number,
            response=response,
            queue_s=answer.queue_s,
            compute_s=answer.compute_s,
            batch_size=answer.batch_size,
        )
        if dispatched.span is not None:
            _end(dispatched.span)

    def _fail(self, number: int, error: YardError, span: Span | None, lane: Lane | None = None) -> None:
        self._open.pop(number, None)
        failure = failure_to(error)
        message = self._outbox.message(failure.ByteSize())
        if lane is not None:
            self._lanes.setdefault(id(message), {})[lane] = None
        message.results.add(number=number, failure=failure)
        if span is not None:
            span.fail(error)
            _end(span)

    def _say_alive(self) -> None:
        self._beat = None
        if not self._open:
            return
        if not self._wrote and self._outbox.empty:
            lanes = self._lanes.setdefault(id(self._outbox.message(0)), {})
            for dispatched in islice(self._open.values(), BEAT_LANES):
                lanes[dispatched.asked.lane] = None
        self._wrote = False
        self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._say_alive)

    async def _write(self, message: pb.OpaqueDispatchResponse) -> None:
        self._wrote = True
        self._home.standing.fill_load(message.load, self._lanes.pop(id(message), ()))
        await self._context.write(message)


def _in_use(number: int) -> InvalidRequest:
    return InvalidRequest.of([Fault("calls.number", f"{number} names a call that has no result yet")])


def _end(span: Span | None, *, cancelled: bool = False) -> None:
    if span is not None:
        if cancelled:
            span.set("cancelled", True)
        span.end()
