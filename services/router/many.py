"""InferMany: the calls of one caller over one stream, each routed by itself.

Results go out as many as are there when the loop turns. A caller that does not read its results is not read
from; one that goes away takes its calls with it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import DecodeError

from modelyard.inference.v1 import opaque_pb2 as pb
from services.chassis.codec import seconds_from
from services.chassis.encoding import Encoded
from services.chassis.errors import failure_to
from services.chassis.outbox import Outbox
from services.chassis.telemetry import Telemetry, TraceContext, attach, logger
from services.domain.errors import Draining, Fault, Internal, InvalidRequest, MalformedMessage, YardError
from services.router.frames import Received
from services.router.pipeline import Answer
from services.router.servicer import Calls

MOST_OPEN = 1024
"""Calls of one stream at once; a stream with more is not read from until some have ended."""

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
        self._open: dict[int, asyncio.Task[None]] = {}
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
                if reading.done():
                    reading.result()
                if not self._open and self._outbox.empty:
                    if reading.done():
                        return
                    if self._closing:
                        raise Draining("this router is stopping; ask another", retry_after_s=0.0)
        finally:
            reading.cancel()
            for task in self._open.values():
                task.cancel()

    def close(self) -> None:
        """Take no more calls."""
        self._closing = True
        self._outbox.ready.set()

    async def _read(self, messages: AsyncIterator[pb.OpaqueInferManyRequest]) -> None:
        loop = asyncio.get_running_loop()
        if self._trace is None:
            attach(None)  # each call begins a trace of its own, not one that lasts as long as the stream
        async for message in messages:
            if self._closing:
                await loop.create_future()  # `run` ends the stream; what came now was not begun
            for tag in message.cancels:
                task = self._open.pop(tag, None)
                if task is not None:
                    task.cancel()
                    self._outbox.ready.set()  # it may have been the last one
            for call in message.calls:
                if len(self._open) >= MOST_OPEN or not self._outbox.room.is_set():
                    await self._room()
                    if self._closing:
                        await loop.create_future()
                if call.tag in self._open:
                    raise InvalidRequest.of([Fault("calls.tag", f"{call.tag} names a call that has no result yet")])
                self._open[call.tag] = loop.create_task(self._one(call))
            await self._room()

    async def _room(self) -> None:
        """Wait until one more call may begin; one message can hold millions."""
        while len(self._open) >= MOST_OPEN:
            self._fewer.clear()
            await self._fewer.wait()
        await self._outbox.room.wait()

    async def _one(self, call: pb.OpaqueManyCall) -> None:
        parent = TraceContext.from_headers(call.traceparent) if call.traceparent else None
        with self._home.telemetry.span(SPAN, parent=parent, kind="server") as span:
            try:
                answer = await self._home.calls.run(_received(call), self._context, remaining_s=self._remaining_s(call))
                response = self._home.encode(answer).SerializeToString()
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
        self._fewer.set()


def _received(call: pb.OpaqueManyCall) -> Received:
    try:
        return Received.FromString(call.request)
    except DecodeError:
        raise MalformedMessage(f"the {len(call.request)} bytes received are not an InferRequest") from None
