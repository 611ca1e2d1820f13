"""What surrounds every served method: decode, deadline rule, trace, error to status, metrics.

One plain wrapper per method, made at registration: gRPC's aio interceptors cost 25 to 100 µs a
call. gRPC is given no (de)serializers, because what those raise reaches the caller as UNKNOWN with
the exception's text.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from services.chassis import instruments
from services.chassis.errors import INTERNAL_TEXT, abort, status_of
from services.chassis.telemetry import Span, Telemetry, TraceContext, logger
from services.domain.clock import Clock
from services.domain.errors import DeadlineRequired, Draining, Internal, MalformedMessage, YardError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_STOPPING = "this server is stopping; ask another"

_SAME_TIME_S = 0.02
"""A caller whose deadline passes cancels, by its own clock, about when the deadline passes here."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """What holds for every method of one service."""

    telemetry: Telemetry
    clock: Clock
    deadline_required: bool
    starts_traces: bool
    """Whether a call without a trace may begin one; not so for health checks and reflection."""


@dataclass(slots=True)
class Streams:
    """The calls in progress of methods that never end by themselves."""

    running: set["asyncio.Task[Any]"] = field(default_factory=set)
    cut: set["asyncio.Task[Any]"] = field(default_factory=set)
    ended: bool = False
    """Whether those that still come are refused."""

    def enter(self) -> None:
        """Count the call of this task in, until the task is done.

        Raises:
            Draining: They have been ended.
        """
        if self.ended:
            raise Draining(_STOPPING, retry_after_s=0.0)
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def end(self) -> None:
        """End them all with `Draining`; their servicers see a cancellation."""
        self.ended = True
        for task in self.running:
            self.cut.add(task)
            task.cancel()


def handler_of(
    method: MethodDescriptor,
    function: Callable[..., Any],
    *,
    path: str,
    rules: CallRules,
    messages: Mapping[str, type[Message]],
    endless: Streams | None,
) -> "grpc.RpcMethodHandler[Any, Any]":
    """The handler to register for `method`.

    Args:
        method: Its descriptor; says which sides stream.
        function: The servicer's method. One that answers a stream is an async generator, or a coroutine
            that calls `context.write` with messages.
        path: `package.Service/Method` as served; names spans and metrics.
        rules: What holds for the service.
        messages: Full message name to the class to decode with, where it is not the descriptor's own.
        endless: Where to enter calls that drain must end, if the method is one of those.
    """
    name = method.input_type.full_name
    cls = messages.get(name) or message_factory.GetMessageClass(method.input_type)
    wrapped = _Method(path, name, cls.FromString, function=function, rules=rules, endless=endless)
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(wrapped.stream_stream, None, _encode)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(wrapped.stream_unary, None, None)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(wrapped.unary_stream, None, _encode)
    return grpc.unary_unary_rpc_method_handler(wrapped.unary_unary, None, None)


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


class _Method:
    def __init__(
        self,
        path: str,
        message_name: str,
        decode: Callable[[bytes], Message],
        *,
        function: Callable[..., Any],
        rules: CallRules,
        endless: Streams | None,
    ) -> None:
        self._path = path
        self._message_name = message_name
        self._decode_raw = decode
        self._function = function
        self._writes_itself = inspect.iscoroutinefunction(function)
        self._telemetry = rules.telemetry
        self._now_s = rules.clock.now_s
        self._deadline_required = rules.deadline_required
        self._starts_traces = rules.starts_traces
        self._endless = endless
        self._service, _, self._name = path.rpartition("/")
        self._active = 0
        instruments.RPC_SERVER_ACTIVE.labels(self._service, self._name).set_function(lambda: self._active)
        self._ok = instruments.RPC_SERVER_DURATION.labels(self._service, self._name, "OK")
        self._durations = {"OK": self._ok}

    async def unary_unary(self, raw: bytes, context: Context) -> bytes:
        start_s, span = self._begin(context)
        with span:
            try:
                self._check_deadline(context)
                answer: Message = await self._function(self._decode(raw), context)
                encoded = answer.SerializeToString()
            except BaseException as error:
                await self._fail(error, context, span, start_s)
        self._active -= 1
        self._ok.observe(self._now_s() - start_s)
        return encoded

    async def stream_unary(self, raws: AsyncIterator[bytes], context: Context) -> bytes:
        start_s, span = self._begin(context)
        with span:
            try:
                self._check_deadline(context)
                answer: Message = await self._function(self._decode_each(raws), context)
                encoded = answer.SerializeToString()
            except BaseException as error:
                await self._fail(error, context, span, start_s)
        self._count("OK", start_s)
        return encoded

    async def unary_stream(self, raw: bytes, context: Context) -> None:
        await self._stream(lambda: self._decode(raw), context)

    async def stream_stream(self, raws: AsyncIterator[bytes], context: Context) -> None:
        await self._stream(lambda: self._decode_each(raws), context)

    async def _stream(self, requests: Callable[[], Any], context: Context) -> None:
        start_s, span = self._begin(context)
        with span:
            try:
                self._check_deadline(context)
                if self._endless is not None:
                    # Headers first: gRPC loses the status of a call that is cut while they go out with a message.
                    await context.send_initial_metadata(())
                    self._endless.enter()
                if self._writes_itself:
                    await self._function(requests(), context)
                else:
                    async with aclosing(self._function(requests(), context)) as answers:
                        async for answer in answers:
                            await context.write(answer)
            except BaseException as error:
                await self._fail(error, context, span, start_s)
        self._count("OK", start_s)

    def _begin(self, context: Context) -> tuple[float, Span]:
        start_s = self._now_s()
        parent = TraceContext.from_metadata(context.invocation_metadata() or ())
        if parent is None and not self._starts_traces:
            parent = TraceContext.new(False)
        span = self._telemetry.span(self._path, parent=parent, kind="server")
        if span.recording:
            span.set("rpc.system", "grpc")
            span.set("rpc.service", self._service)
            span.set("rpc.method", self._name)
        self._active += 1
        return start_s, span

    def _check_deadline(self, context: Context) -> None:
        if self._deadline_required and context.time_remaining() is None:
            raise DeadlineRequired(f"{self._path} is called with a deadline only: set the call's timeout")

    def _decode(self, raw: bytes) -> Message:
        try:
            return self._decode_raw(raw)
        except DecodeError:
            raise MalformedMessage.of(raw, self._message_name) from None

    async def _decode_each(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for raw in raws:
            yield self._decode(raw)

    async def _fail(self, error: BaseException, context: Context, span: Span, start_s: float) -> NoReturn:
        """Turn `error` into the call's status, or pass it on where gRPC knows what to do."""
        if isinstance(error, asyncio.CancelledError):
            error = self._draining(error)
        if isinstance(error, asyncio.CancelledError):
            remaining_s = context.time_remaining()
            late = remaining_s is not None and remaining_s < _SAME_TIME_S
            self._close(span, "DEADLINE_EXCEEDED" if late else "CANCELLED", start_s)
            raise error
        if isinstance(error, grpc.aio.AbortError):  # the servicer has ended the call itself
            code = context.code()
            self._close(span, code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN", start_s)
            raise error
        if not isinstance(error, YardError) or isinstance(error, Internal):
            logger().error("call failed unexpectedly", rpc=self._path, exc_info=error)
        span.fail(error)
        if not isinstance(error, Exception):
            self._close(span, "INTERNAL", start_s)
            raise error
        answer = error if isinstance(error, YardError) else Internal(INTERNAL_TEXT)
        self._close(span, status_of(answer).name, start_s)
        await abort(context, answer)

    def _close(self, span: Span, status: str, start_s: float) -> None:
        """End the span here: what follows raises, which would overwrite the cause it was given."""
        span.set("rpc.grpc.status_code", status)
        if status in ("CANCELLED", "DEADLINE_EXCEEDED"):
            span.set("cancelled", True)
        span.end()
        self._count(status, start_s)

    def _draining(self, error: asyncio.CancelledError) -> BaseException:
        """`Draining` if the cancellation is drain's own, `error` if it is the caller's."""
        task = asyncio.current_task()
        if self._endless is None or task is None or task not in self._endless.cut:
            return error
        self._endless.cut.discard(task)
        task.uncancel()
        return Draining(_STOPPING, retry_after_s=0.0)

    def _count(self, status: str, start_s: float) -> None:
        self._active -= 1
        duration = self._durations.get(status)
        if duration is None:
            duration = instruments.RPC_SERVER_DURATION.labels(self._service, self._name, status)
            self._durations[status] = duration
        duration.observe(self._now_s() - start_s)
