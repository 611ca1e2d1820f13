"""The native engine: HTTP/2 and gRPC in Rust (`pygrpc-native`), unary handlers on the event loop.

Calls come in batches from a thread that waits for them. Streams, and whatever else is not unary, are handed
on by the front to a grpc.aio server on a Unix socket. What was found when the package was tested, and why it
is used at this level, is in docs/decisions/0007.
"""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from services.chassis.engines import ServerLimits, serving
from services.chassis.intake import Handlers, Intake
from services.chassis.logs import logger
from services.domain.clock import Clock, SystemClock

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Unary: TypeAlias = Callable[[bytes, Any], Awaitable[bytes]]

EVENTS = 128
"""Most calls taken from the front at once."""

IO_THREADS = 1
"""Threads of the front; one moves more than Python can handle."""

FLUSH_S = 0.2
"""Time that the front has to send what it was handed, before it is closed: closing cuts what is under way."""

UNBOUNDED = 2**31 - 1
"""Streams of the one connection to the server behind, which carries those of all callers; each caller's own
connection has the limit."""

_STOPPING = "this server is stopping; ask another"
_CLOCK = SystemClock()


class NativeContext:
    """What a handler sees of its call: the part of grpc.aio's ServicerContext that `handlers` uses."""

    __slots__ = (
        "_code",
        "_deadline_at_s",
        "_details",
        "_metadata",
        "_peer",
        "_trailing",
        "call_id",
        "gone",
        "task",
    )

    def __init__(
        self,
        call_id: int,
        metadata: Metadata,
        peer: str,
        deadline_at_s: float | None,
    ) -> None:
        """A call that just came."""
        self.call_id = call_id
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        """Whether the caller went away, or the deadline passed."""
        self._metadata = metadata
        self._peer = peer
        self._deadline_at_s = deadline_at_s
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._details = ""

    def invocation_metadata(self) -> Metadata:
        """The caller's metadata."""
        return self._metadata

    def peer(self) -> str:
        """The caller's address."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None if self._deadline_at_s is None else max(0.0, self._deadline_at_s - _CLOCK.now_s())

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sent with the status."""
        self._trailing = metadata

    def trailing_metadata(self) -> Metadata:
        """What was set."""
        return self._trailing

    def code(self) -> grpc.StatusCode | None:
        """The status that the call was ended with."""
        return self._code

    def details(self) -> str:
        """Its text."""
        return self._details

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call.

        Raises:
            AbortError: Always.
        """
        self._code, self._details = code, details
        self._trailing = trailing_metadata or self._trailing
        raise grpc.aio.AbortError


class NativeEngine:
    """A native front, and a grpc.aio server behind it."""

    name = "native"

    def __init__(self, address: str, limits: ServerLimits, *, reuse_port: bool, clock: Clock = _CLOCK) -> None:
        """Serve on `address`."""
        self._address = address
        self._limits = limits
        self._reuse_port = reuse_port
        self._now_s = clock.now_s
        self._front: NativeGrpcFront | None = None
        self._behind: grpc.aio.Server | None = None
        self._intake = Intake()
        self._folder: Path | None = None
        self._methods: list[Unary] = []
        self._calls: dict[int, NativeContext] = {}
        self._answers: list[tuple[NativeContext, bytes]] = []
        self._stopping = False

    async def start(self, handlers: Handlers) -> int:
        """Listen and serve."""
        self._loop = asyncio.get_running_loop()
        limits = self._limits
        try:
            front = NativeGrpcFront(
                self._address,
                [],
                io_threads=IO_THREADS,
                call_details=True,
                keepalive_time_ms=round(limits.keepalive_s * 1e3),
                keepalive_timeout_ms=round(limits.keepalive_s * 500),
                keepalive_permit_without_calls=True,
                max_concurrent_streams=limits.max_concurrent_streams,
                max_metadata_size=2 * limits.max_metadata_bytes,  # a hard limit: grpcio's is soft, and this its end
                reuse_port=self._reuse_port,
            )
        except OSError as error:
            raise RuntimeError(f"cannot bind {self._address}: {error}") from error
        unary = {
            f"/{service}/{name}": handler.unary_unary
            for service, methods in handlers.items()
            for name, handler in methods.items()
            if handler.unary_unary is not None
        }
        await self._start_behind(front, handlers)
        front.add_methods([(path, False) for path in unary])
        self._methods = list(unary.values())
        front.start()
        self._front = front
        threading.Thread(target=self._pump, args=(front,), name="native-front", daemon=True).start()
        return front.bound_port

    async def stop(self, grace_s: float) -> None:
        """Stop."""
        front = self._front
        if front is None:
            return
        self._stopping = True
        behind = None if self._behind is None else asyncio.ensure_future(self._intake.stop(self._behind, grace_s))
        tasks = {context.task for context in self._calls.values() if context.task is not None}
        if tasks and grace_s > 0.0:
            await asyncio.wait(tasks, timeout=grace_s)
        left = [context for context in self._calls.values() if context.task is not None]
        for context in left:
            front.fail(context.call_id, grpc.StatusCode.UNAVAILABLE.value[0], _STOPPING)
            context.gone = True
            assert context.task is not None
            context.task.cancel()
        await asyncio.gather(*(context.task for context in left if context.task is not None), return_exceptions=True)
        if behind is not None:
            await behind
        await asyncio.sleep(min(FLUSH_S, grace_s))
        await asyncio.to_thread(front.close)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _start_behind(self, front: NativeGrpcFront, handlers: Handlers) -> None:
        """All that is not unary, on a socket that only this user reaches."""
        rest = {
            service: {name: handler for name, handler in methods.items() if handler.unary_unary is None}
            for service, methods in handlers.items()
        }
        self._folder = Path(tempfile.mkdtemp(prefix="modelyard-native-"))
        path = self._folder / "behind.sock"
        options = [*self._limits.options(), ("grpc.max_concurrent_streams", UNBOUNDED)]
        behind = serving(self._intake.over({service: methods for service, methods in rest.items() if methods}), options)
        behind.add_insecure_port(f"unix:{path}")
        await behind.start()
        self._behind = behind
        front.set_fallback(str(path))

    def _pump(self, front: NativeGrpcFront) -> None:
        """Hand calls to the loop, from a thread of its own, until the front is closed."""
        post, take = self._loop.call_soon_threadsafe, self._take
        while (events := front.recv_batch_details(EVENTS)) is not None:
            try:
                post(take, events)
            except RuntimeError:  # the loop has ended without `stop`
                front.close()
                return

    def _take(self, events: Sequence[tuple[Any, ...]]) -> None:
        now_s = self._now_s()
        for kind, call_id, method, payload, _, details in events:
            if kind == EVENT_CANCEL:
                # Forgotten here: a task that is cancelled before its first step never runs, not even its `finally`.
                gone = self._calls.pop(call_id, None)
                if gone is not None and gone.task is not None:
                    gone.gone = True
                    gone.task.cancel()
                continue
            metadata, peer, remaining_s = details
            if remaining_s == 0.0:
                continue  # its caller was told already
            deadline_at_s = None if remaining_s is None else now_s + remaining_s
            context = NativeContext(call_id, metadata, peer, deadline_at_s)
            if self._stopping:
                self._fail(context, grpc.StatusCode.UNAVAILABLE, _STOPPING)
            elif len(payload) > self._limits.max_message_bytes:
                self._fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, self._too_large("Received", payload))
            else:
                self._calls[call_id] = context
                context.task = self._loop.create_task(self._run(self._methods[method], payload, context))

    async def _run(self, handler: Unary, payload: bytes, context: NativeContext) -> None:
        try:
            answer = await handler(payload, context)
            if len(answer) > self._limits.max_message_bytes:
                self._fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, self._too_large("Sent", answer))
            else:
                self._answer(context, answer)
        except grpc.aio.AbortError:
            self._fail(context, context.code() or grpc.StatusCode.UNKNOWN, context.details())
        except asyncio.CancelledError:
            if not context.gone:
                self._fail(context, grpc.StatusCode.CANCELLED, "cancelled")
            raise
        except Exception as error:  # handlers turn every error into a status; this one they could not
            logger().error("a call failed unexpectedly", exc_info=error)
            self._fail(context, grpc.StatusCode.INTERNAL, "internal")
        finally:
            self._calls.pop(context.call_id, None)

    def _answer(self, context: NativeContext, answer: bytes) -> None:
        """Hand an answer over at the end of the loop's turn: together they share a wake-up and packets."""
        if not self._answers:
            self._loop.call_soon(self._flush)
        self._answers.append((context, answer))

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        front = self._front
        assert front is not None
        for context, answer in answers:
            try:
                front.respond(context.call_id, answer, None, context.trailing_metadata() or None)
            except ValueError as error:  # metadata that cannot be sent; the call would stay open
                logger().error("trailing metadata cannot be sent", exc_info=error)
                front.fail(context.call_id, grpc.StatusCode.INTERNAL.value[0], "internal")

    def _fail(self, context: NativeContext, code: grpc.StatusCode, details: str) -> None:
        assert self._front is not None
        try:
            self._front.fail(context.call_id, code.value[0], details, context.trailing_metadata() or None)
        except ValueError as error:  # metadata that cannot be sent; the call would stay open
            logger().error("trailing metadata cannot be sent", exc_info=error)
            self._front.fail(context.call_id, code.value[0], details)

    def _too_large(self, way: str, message: bytes) -> str:
        """In gRPC's own words, by which callers of both engines know it."""
        return f"SERVER: {way} message larger than max ({len(message)} vs. {self._limits.max_message_bytes})"
