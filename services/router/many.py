"""InferMany: the calls of one caller over one stream, each routed by itself.

Results go out as many as are there when the loop turns. A caller that does not read its results is not read
from; one that goes away takes its calls with it. Calls beyond the most of a stream wait their turn, within a bound.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import DecodeError

from modelyard.inference.v1 import opaque_pb2 as pb
from modelyard.inference.v1.inference_pb2 import InferRequest
from services.chassis.codec import seconds_from
from services.chassis.encoding import Encoded
from services.chassis.errors import failure_to
from services.chassis.outbox import Outbox
from services.chassis.telemetry import Telemetry, TraceContext, attach, logger
from services.domain.errors import Draining, Fault, Internal, InvalidRequest, MalformedMessage, YardError
from services.router.frames import Received, sendable
from services.router.pipeline import Answer
from services.router.servicer import Calls

MOST_OPEN = 1024
"""Calls of one stream at once; others wait until some have ended."""

WAITING_BYTES = 4 << 20
"""A stream with more of calls that wait is not read from. Up to then a cancel behind them is taken, and makes room."""

CALL_BYTES = 256
"""What a waiting call takes besides its bytes, about; bounds how many wait where these are few."""

UNSENT_BYTES = 4 << 20
"""A stream with more results waiting to be sent is not read from."""

SPAN = "modelyard.inference.v1.InferenceService/InferMany"
"""Name of the span of each sampled call."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Many:
    """Every InferMany stream of one router."""

    def __init__(self, *, calls: Calls, telemetry: Telemetry, encode: Callable[[Answer], Encoded]) -> None:
        """Run calls through `calls`; `encode` their answers."""
        self.calls = calls
        self.telemetry = telemetry
        self.encode = encode
        self._streams: set[_Stream] = set()
        self._draining = False

    async def serve(self, messages: AsyncIterator[pb.OpaqueInferManyRequest], context: Context) -> None:
        """Serve one stream to its end.

        Raises:
            InvalidRequest: A tag was in use already.
            Draining: The router stops; what has no result was not run.
        """
        stream = _Stream(self, context)
        self._streams.add(stream)
        if self._draining:
            stream.close()
        try:
            await stream.run(messages)
        finally:
            self._streams.discard(stream)

    def wind_down(self) -> None:
        """Take no more calls; each stream ends once its calls have."""
        self._draining = True
        for stream in self._streams:
            stream.close()


class _Stream:
    def __init__(self, home: Many, context: Context) -> None:
        self._home = home
        self._context = context
        self._trace = TraceContext.from_metadata(context.invocation_metadata() or ())
        self._variables = copy_context()
        if self._trace is None:
            self._variables.run(attach, None)  # each call begins a trace of its own, not one as long as the stream
        self._open: dict[int, asyncio.Task[None]] = {}
        self._waiting: OrderedDict[int, bytes] = OrderedDict()
        """Calls that may not begin yet, in their order. Encoded: parsed, each would keep the message it came in."""
        self._waiting_bytes = 0
        self._fewer = asyncio.Event()
        self._outbox = Outbox(pb.OpaqueInferManyResponse, most_bytes=UNSENT_BYTES)
        self._closing = False

    async def run(self, messages: AsyncIterator[pb.OpaqueInferManyRequest]) -> None:
        reading = asyncio.get_running_loop().create_task(self._read(messages))
        reading.add_done_callback(lambda _: self._outbox.ready.set())
        try:
            while True:
                await self._outbox.ready.wait()
                await self._outbox.send(self._context.write)
                self._begin_waiting()
                if reading.done():
                    reading.result()
                if not self._open and self._outbox.empty:
                    if reading.done() and not self._waiting:
                        return
                    if self._closing:
                        raise Draining("this router is stopping; ask another", retry_after_s=0.0)
        finally:
            reading.cancel()
            self._waiting.clear()
            for task in self._open.values():
                task.cancel()

    def close(self) -> None:
        """Begin no more calls."""
        self._closing = True
        self._outbox.ready.set()

    # --- in -------------------------------------------------------------------------------------

    async def _read(self, messages: AsyncIterator[pb.OpaqueInferManyRequest]) -> None:
        async for message in messages:
            for tag in message.cancels:
                self._cancel(tag)
            self._begin_waiting()
            for call in message.calls:
                tag = call.tag
                if tag in self._open or tag in self._waiting:
                    raise InvalidRequest.of([Fault("calls.tag", f"{tag} names a call that has no result yet")])
                if self._waiting or self._full:
                    await self._put_off(call)
                else:
                    self._begin(call)
            await self._outbox.room.wait()

    @property
    def _full(self) -> bool:
        """Whether no call may begin now."""
        return self._closing or len(self._open) >= MOST_OPEN or not self._outbox.room.is_set()

    def _begin(self, call: pb.OpaqueManyCall) -> None:
        # In the stream's context: a call that ended and so made room has a trace of its own.
        task = asyncio.get_running_loop().create_task(self._one(call), context=self._variables.copy())
        self._open[call.tag] = task

    async def _put_off(self, call: pb.OpaqueManyCall) -> None:
        """Let the call wait, and its reader too where too much does: one message can hold millions."""
        raw = self._waiting[call.tag] = call.SerializeToString()
        self._waiting_bytes += len(raw) + CALL_BYTES
        while self._waiting_bytes > WAITING_BYTES:
            self._fewer.clear()
            await self._fewer.wait()

    def _begin_waiting(self) -> None:
        """Begin the calls that waited, as far as there is room."""
        while self._waiting and not self._full:
            _, raw = self._waiting.popitem(last=False)
            self._waits_no_more(raw)
            self._begin(pb.OpaqueManyCall.FromString(raw))

    def _cancel(self, tag: int) -> None:
        task, raw = self._open.pop(tag, None), self._waiting.pop(tag, None)
        if task is not None:
            task.cancel()
            self._outbox.ready.set()  # it may have been the last one
        elif raw is not None:
            self._waits_no_more(raw)

    def _waits_no_more(self, raw: bytes) -> None:
        self._waiting_bytes -= len(raw) + CALL_BYTES
        self._fewer.set()

    # --- out ------------------------------------------------------------------------------------

    async def _one(self, call: pb.OpaqueManyCall) -> None:
        parent = TraceContext.from_headers(call.traceparent) if call.traceparent else None
        with self._home.telemetry.span(SPAN, parent=parent, kind="server") as span:
            try:
                answer = await self._home.calls.run(_received(call), self._context, remaining_s=self._remaining_s(call))
                response = sendable(self._home.encode(answer)).SerializeToString()
            except YardError as error:
                span.fail(error)
                self._fail(call.tag, error)
            except Exception as error:
                logger().error("a call of a stream failed unexpectedly", exc_info=error)
                span.fail(error)
                self._fail(call.tag, Internal("internal"))
            else:
                self._end(call.tag)
                self._outbox.message(len(response)).results.add(tag=call.tag, response=response)

    def _remaining_s(self, call: pb.OpaqueManyCall) -> float | None:
        if call.HasField("timeout"):
            return seconds_from(call.timeout)
        return self._context.time_remaining()

    def _fail(self, tag: int, error: YardError) -> None:
        self._end(tag)
        failure = failure_to(error)
        self._outbox.message(failure.ByteSize()).results.add(tag=tag, failure=failure)

    def _end(self, tag: int) -> None:
        del self._open[tag]
        if self._waiting:
            self._begin_waiting()


def _received(call: pb.OpaqueManyCall) -> Received:
    raw = call.request
    try:
        return Received.FromString(raw)
    except DecodeError:
        raise MalformedMessage.of(raw, InferRequest.DESCRIPTOR.full_name) from None
