"""The streams to one host process: calls out and results in, many to a message.

A message takes what is waiting when the loop turns; while one is being sent the next one fills. What waits
is bounded, so that a slow host cannot grow this process: beyond the bound calls are refused. A
stream that breaks off fails its calls at once. Streams are renewed often, since the host closes connections
of a certain age: an old stream is left to end its own calls.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from modelyard.host.v1 import opaque_pb2 as pb
from modelyard.type.v1 import model_pb2
from services.chassis.codec import load_from, service_class_to
from services.chassis.errors import failure_from, from_rpc_error
from services.chassis.outbox import Outbox
from services.chassis.telemetry import TraceContext
from services.chassis.thread_load import ThreadLoad
from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted, HostUnavailable, Overloaded, YardError
from services.domain.host import HostLoad
from services.domain.service_class import ORDINARY, ServiceClass
from services.router.attempting import AttemptFailed, HostAnswer
from services.router.frames import Payload

RENEW_S = 20.0
"""A stream older than this gets no new calls. A host's connection lives for a minute after it was told to go: calls of
up to 40 s are sure to end on it."""

STREAM_S = 3600.0
"""Deadline of a stream, which is never reached: inside the mesh there is none without."""

MOST_CLASSES = 4000
"""Classes declared on one stream; hosts take 4,096."""

WAITING_BYTES = 8 << 20
"""Most bytes of calls that wait to be sent."""

RETRY_AFTER_S = 0.010
"""When a call refused for `WAITING_BYTES` may come again."""

EXPIRY_S = 0.002
"""Least time between two looks for calls whose deadline has passed."""

Streams = grpc.aio.StreamStreamMultiCallable[pb.OpaqueDispatchRequest, pb.OpaqueDispatchResponse]


@dataclass(slots=True, eq=False)
class Sent:
    """A call that was sent, or waits to be."""

    number: int
    answer: "asyncio.Future[HostAnswer]"
    """Fails with `AttemptFailed`."""
    deadline_at_s: float
    stream: "_Stream"

    def cancel(self) -> None:
        """Nobody waits any more: the host is told."""
        self.stream.cancel(self.number)


class DispatchLine:
    """Calls to one host process."""

    def __init__(
        self,
        method: Streams,
        *,
        connected: Callable[[], bool],
        clock: Clock,
        heard: Callable[[HostLoad], None] = lambda _: None,
    ) -> None:
        """Open streams as they are needed.

        Args:
            method: Opens one.
            connected: Says whether its channel has a connection.
            clock: Time.
            heard: Told the load of a host that lives, and answers nothing yet.
        """
        self._heard = heard
        self._method = method
        self._connected = connected
        self._clock = clock
        self._current: _Stream | None = None
        self._streams: set[_Stream] = set()
        self._next = 0

    def send(
        self,
        key: model_pb2.ModelKey,
        payload: Payload,
        *,
        service_class: ServiceClass,
        timeout_s: float,
        trace: TraceContext | None,
    ) -> Sent:
        """Send a call, with the next message.

        Args:
            key: The version that is to answer.
            payload: The request.
            service_class: Whom it is for.
            timeout_s: Seconds it may take.
            trace: Carried on; None if there is none.

        Raises:
            AttemptFailed: Too much waits to be sent already.
        """
        now_s = self._clock.now_s()
        stream = self._current
        if stream is None or stream.closing or stream.full_of_classes or now_s - stream.opened_s > RENEW_S:
            stream = self._renew(now_s)
        if not stream.outbox.room.is_set():
            text = f"{stream.outbox.waiting_bytes} bytes of calls wait to be sent to the host, which does not keep up"
            raise AttemptFailed(Overloaded(text, retry_after_s=RETRY_AFTER_S), None, never_sent=True)
        self._next += 1
        class_number = 0 if service_class is ORDINARY else stream.class_number(service_class)
        sent, call = stream.add(self._next, key, payload, now_s=now_s, timeout_s=timeout_s)
        if class_number:
            call.class_number = class_number
        if trace is not None:
            call.traceparent = trace.traceparent
            if trace.tracestate:
                call.tracestate = trace.tracestate
            if trace.baggage:
                call.baggage = trace.baggage
        return sent

    def finish(self) -> None:
        """Take no more calls; streams end once theirs have."""
        if self._current is not None:
            self._current.finish()
            self._current = None

    async def close(self) -> None:
        """End every stream; calls on them fail."""
        self._current = None
        streams = list(self._streams)
        for stream in streams:
            stream.running.cancel()
        await asyncio.gather(*(stream.running for stream in streams), return_exceptions=True)

    async def ended(self) -> None:
        """Wait until no stream is open."""
        while self._streams:
            await asyncio.wait([stream.running for stream in self._streams])

    def _renew(self, now_s: float) -> "_Stream":
        if self._current is not None:
            self._current.finish()
        stream = self._current = _Stream(self._method, self._connected, now_s, self._clock, self._heard)
        self._streams.add(stream)
        stream.running.add_done_callback(lambda _: self._gone(stream))
        return stream

    def _gone(self, stream: "_Stream") -> None:
        self._streams.discard(stream)
        if stream is self._current:
            self._current = None


class _Stream:
    def __init__(
        self,
        method: Streams,
        connected: Callable[[], bool],
        now_s: float,
        clock: Clock,
        heard: Callable[[HostLoad], None],
    ) -> None:
        self.opened_s = now_s
        self._heard = heard
        self.outbox = Outbox(pb.OpaqueDispatchRequest, most_bytes=WAITING_BYTES, load=ThreadLoad(clock))
        self.closing = False
        """Whether no more calls may be added: the host takes none, or the stream has ended."""
        self._connected = connected
        self._clock = clock
        self._reached = connected()
        """Whether the host can have seen a call: there was a connection, or something went out."""
        self._sent: dict[int, Sent] = {}
        self._classes: dict[ServiceClass, int] = {}
        self._finishing = False
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at_s = math.inf
        self._call = method(timeout=STREAM_S)
        self.running = self._loop.create_task(self._run())

    # --- out ------------------------------------------------------------------------------------

    def add(
        self,
        number: int,
        key: model_pb2.ModelKey,
        payload: Payload,
        *,
        now_s: float,
        timeout_s: float,
    ) -> tuple[Sent, pb.OpaqueDispatchedCall]:
        deadline_at_s = now_s + timeout_s
        request = payload.raw
        call = self.outbox.message(len(request)).calls.add(number=number, key=key, timeout_s=timeout_s, request=request)
        if payload.made_up_id:
            call.request_id = payload.made_up_id
        sent = self._sent[number] = Sent(number, self._loop.create_future(), deadline_at_s, self)
        if deadline_at_s < self._expires_at_s:
            self._expire_at(deadline_at_s)
        return sent, call

    @property
    def full_of_classes(self) -> bool:
        """Whether a host might take no further class."""
        return len(self._classes) >= MOST_CLASSES

    def class_number(self, service_class: ServiceClass) -> int:
        """What the class is called on this stream; declared no later than with the next call."""
        number = self._classes.get(service_class)
        if number is None:
            number = self._classes[service_class] = len(self._classes) + 1
            declared = self.outbox.message(0).classes.add(number=number)
            declared.service_class.CopyFrom(service_class_to(service_class))
        return number

    def cancel(self, number: int) -> None:
        if self._sent.pop(number, None) is not None and not self._finishing:
            self.outbox.message(0).cancels.append(number)

    def finish(self) -> None:
        """No more calls come: once those that wait are sent, so is the end of this side."""
        self._finishing = True
        self.outbox.ready.set()

    async def _write(self) -> None:
        while True:
            await self.outbox.ready.wait()
            await self.outbox.send(self._write_one)
            if self._finishing:
                await self._call.done_writing()
                return

    async def _write_one(self, message: pb.OpaqueDispatchRequest) -> None:
        await self._call.write(message)
        self._reached = True

    # --- in -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        writing = self._loop.create_task(self._write())
        why: YardError = HostUnavailable("the host ended the stream")
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(message, pb.OpaqueDispatchResponse)
                self._take(message)
        except grpc.aio.AioRpcError as error:
            why = HostUnavailable(from_rpc_error(error).message)  # whatever it was, not the fault of these calls
        except asyncio.CancelledError:
            why = HostUnavailable("the connection to the host was closed")
            raise
        finally:
            self.closing = True  # before the first await: a call that is added now would never end
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            self._call.cancel()
            self._fail_all(why, never_sent=not self._reached and not self._connected())

    def _take(self, message: pb.OpaqueDispatchResponse) -> None:
        load = load_from(message.load) if message.HasField("load") else None
        if message.closing:
            self.closing = True
            self.finish()  # the host waits for it, so that what is under way is refused and not lost
        if load is not None and not message.results:
            self._heard(load)
        for result in message.results:
            sent = self._sent.pop(result.number, None)
            if sent is None or sent.answer.done():
                continue
            if result.HasField("response"):
                sent.answer.set_result(
                    HostAnswer(result.response, result.queue_s, result.compute_s, result.batch_size, load)
                )
            else:
                sent.answer.set_exception(AttemptFailed(failure_from(result.failure), load))

    def _fail_all(self, why: YardError, *, never_sent: bool) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        sent, self._sent = self._sent, {}
        for each in sent.values():
            _fail(each, type(why)(why.message, retry_after_s=why.retry_after_s), never_sent=never_sent)

    # --- deadlines ------------------------------------------------------------------------------

    def _expire_at(self, at_s: float) -> None:
        """Look for calls that are too late at `at_s`: one timer for all, since almost none ever is."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at_s = at_s
        delay_s = max(EXPIRY_S, at_s - self._clock.now_s())
        self._expiry = self._loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        now_s = self._clock.now_s()
        self._expiry = None
        late = [sent for sent in self._sent.values() if sent.deadline_at_s <= now_s]
        for sent in late:
            self.cancel(sent.number)
            _fail(sent, BudgetExhausted("the host has not answered in the time that the call may take"))
        self._expires_at_s = min((sent.deadline_at_s for sent in self._sent.values()), default=math.inf)
        if self._sent:
            self._expire_at(self._expires_at_s)


def _fail(sent: Sent, error: YardError, *, never_sent: bool = False) -> None:
    if not sent.answer.done():
        sent.answer.set_exception(AttemptFailed(error, None, never_sent=never_sent))
