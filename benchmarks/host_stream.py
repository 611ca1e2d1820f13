"""A router's end of one Dispatch stream: sends calls by a plan or as fast as they are answered, and notes results."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import grpc.aio

from benchmarks.host_load import Outcomes, Plan, Source
from modelyard.host.v1 import host_pb2
from modelyard.host.v1 import opaque_pb2 as pb
from modelyard.type.v1 import error_pb2
from services.domain.clock import SystemClock

METHOD = "/modelyard.host.v1.ModelHostService/Dispatch"
STREAM_S = 3600.0
TICK_S = 0.002
"""Calls of a plan that fall due within this go into one message, as a router's do that wait for its loop to turn."""

MOST_IN_A_MESSAGE = 256
MOST_BYTES = 4 << 20
"""Of one message, about."""

_CLOCK = SystemClock()

Take: TypeAlias = Callable[[pb.OpaqueDispatchResult, float], None]
"""Is handed a result, and when it came."""


class Line:
    """One stream. Calls are numbered from 1; numbers go on from one use to the next."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Open it."""
        method: grpc.aio.StreamStreamMultiCallable[pb.OpaqueDispatchRequest, pb.OpaqueDispatchResponse]
        method = channel.stream_stream(
            METHOD,
            request_serializer=pb.OpaqueDispatchRequest.SerializeToString,
            response_deserializer=pb.OpaqueDispatchResponse.FromString,
        )
        self._stream = method(timeout=STREAM_S)
        self._classes: dict[bytes, int] = {}
        self._next = 1
        self.take: Take = _nothing
        self.after: Callable[[], None] = _done
        """Called once the results of a message were taken."""

    async def read(self) -> None:
        """Hand every result to `take`, until the stream ends."""
        stream = self._stream
        while True:
            message = await stream.read()
            if not isinstance(message, pb.OpaqueDispatchResponse):
                return
            now_s = _CLOCK.now_s()
            take = self.take
            for result in message.results:
                take(result, now_s)
            self.after()

    def numbers(self, count: int) -> int:
        """The first of as many further numbers."""
        first = self._next
        self._next += count
        return first

    async def declare(self, sources: Sequence[Source]) -> list[int]:
        """The number of each source's class on this stream; 0 for none."""
        message = pb.OpaqueDispatchRequest()
        numbers: list[int] = []
        for source in sources:
            found = source.service_class
            if found is None:
                numbers.append(0)
                continue
            name: bytes = found.SerializeToString(deterministic=True)
            number = self._classes.get(name, 0)
            if not number:
                number = self._classes[name] = len(self._classes) + 1
                message.classes.append(host_pb2.DeclaredClass(number=number, service_class=found))
            numbers.append(number)
        await self.write(message)
        return numbers

    async def write(self, message: pb.OpaqueDispatchRequest) -> None:
        """Send a message."""
        await self._stream.write(message)

    def close(self) -> None:
        """End the stream, and with it what waits."""
        self._stream.cancel()


@asynccontextmanager
async def open_line(channel: grpc.aio.Channel) -> AsyncIterator[Line]:
    """A stream that is read from for as long as the context lasts."""
    line = Line(channel)
    reading = asyncio.create_task(line.read())
    try:
        yield line
    finally:
        line.close()
        await asyncio.gather(reading, return_exceptions=True)


async def offer(line: Line, plan: Plan, *, grace_s: float) -> Outcomes:
    """Send the calls of a plan when they are due, whatever comes back; then wait `grace_s` for what is missing."""
    outcomes = Outcomes(plan)
    sources, at_s, who = plan.sources, plan.at_s.tolist(), plan.who.tolist()
    count = len(at_s)
    classes = await line.declare(sources)
    first = line.numbers(count)
    missing, all_there = count, asyncio.Event()
    sent_s, ended_s, answered = outcomes.sent_s, outcomes.ended_s, outcomes.answered
    compute_s, batch_size = outcomes.compute_s, outcomes.batch_size
    reasons: dict[error_pb2.ErrorReason.ValueType, int] = {}
    start_s = _CLOCK.now_s() + 0.05

    def take(result: pb.OpaqueDispatchResult, now_s: float) -> None:
        nonlocal missing
        index = result.number - first
        if index < 0:
            return
        ended_s[index] = now_s - start_s
        if result.batch_size:
            answered[index] = True
            compute_s[index] = result.compute_s
            batch_size[index] = result.batch_size
        else:
            reason = result.failure.reason
            reasons[reason] = reasons.get(reason, 0) + 1
        missing -= 1
        if not missing:
            all_there.set()

    line.take = take
    with _undisturbed():
        index = 0
        turn = [0] * len(sources)
        while index < count:
            now_s = _CLOCK.now_s() - start_s
            if at_s[index] > now_s:
                await _CLOCK.sleep(max(TICK_S, at_s[index] - now_s))
                continue
            message = pb.OpaqueDispatchRequest()
            calls, size = message.calls, 0
            while index < count and at_s[index] <= now_s and len(calls) < MOST_IN_A_MESSAGE and size < MOST_BYTES:
                owner = who[index]
                source = sources[owner]
                request = source.requests[turn[owner] % len(source.requests)]
                turn[owner] += 1
                size += len(request)
                calls.add(
                    number=first + index,
                    key=source.key,
                    timeout_s=max(1e-4, source.timeout_s - (now_s - at_s[index])),
                    request=request,
                    class_number=classes[owner],
                )
                sent_s[index] = now_s
                index += 1
            await line.write(message)
        try:
            if missing:
                await asyncio.wait_for(all_there.wait(), grace_s)
        except TimeoutError:
            pass
    line.take = _nothing
    outcomes.failures = {error_pb2.ErrorReason.Name(reason): count for reason, count in reasons.items()}
    return outcomes


class Saturation:
    """A fixed number of calls in flight: each result sends the next call."""

    def __init__(self, line: Line, source: Source, *, in_flight: int, cancel_every: int = 0) -> None:
        """Nothing is sent yet.

        Args:
            line: The stream; nobody else's meanwhile.
            source: What is sent.
            in_flight: Calls at once.
            cancel_every: Every so-many-th call is cancelled when the next ones are sent; 0 never does.
        """
        self._line = line
        self._source = source
        self._in_flight = in_flight
        self._cancel_every = cancel_every
        self._came = asyncio.Event()
        self._open: set[int] = set()
        self._to_cancel: list[int] = []
        self._turn = 0
        self.answered = 0
        self.failed = 0
        self.cancelled = 0
        self.batches = 0.0
        """Batches, each answer counted with its part."""

    async def run(self, *, seconds: float = float("inf"), calls: float = float("inf")) -> float:
        """Send for so long or so many, then wait for what is in flight; returns the answers a second until then."""
        (number,) = await self._line.declare([self._source])
        self._line.take, self._line.after = self._take, self._came.set
        began_s = _CLOCK.now_s()
        sent = 0
        with _undisturbed():
            while sent < calls and _CLOCK.now_s() - began_s < seconds:
                room = int(min(self._in_flight - len(self._open), calls - sent))
                if room > 0:
                    sent += await self._send(room, number)
                else:
                    self._came.clear()
                    await self._came.wait()
            per_s = self.answered / (_CLOCK.now_s() - began_s)
            await self._last()
        self._line.take, self._line.after = _nothing, _done
        return per_s

    async def _send(self, count: int, class_number: int) -> int:
        message = pb.OpaqueDispatchRequest(cancels=self._to_cancel)
        for each in self._to_cancel:
            if each in self._open:
                self._open.discard(each)
                self.cancelled += 1
        self._to_cancel = []
        source, size, sent = self._source, 0, 0
        first = self._line.numbers(count)
        while sent < count and size < MOST_BYTES:
            request = source.requests[self._turn % len(source.requests)]
            self._turn += 1
            size += len(request)
            number = first + sent
            message.calls.add(
                number=number, key=source.key, timeout_s=source.timeout_s, request=request, class_number=class_number
            )
            self._open.add(number)
            if self._cancel_every and self._turn % self._cancel_every == 0:
                self._to_cancel.append(number)
            sent += 1
        await self._line.write(message)
        return sent

    async def _last(self) -> None:
        end_s = _CLOCK.now_s() + self._source.timeout_s
        while self._open and _CLOCK.now_s() < end_s:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), 1.0)
            except TimeoutError:
                break
        self._open.clear()

    def _take(self, result: pb.OpaqueDispatchResult, _: float) -> None:
        if result.number not in self._open:
            return
        self._open.discard(result.number)
        if result.batch_size:
            self.answered += 1
            self.batches += 1.0 / result.batch_size
        else:
            self.failed += 1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the collector's pauses in between."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _nothing(result: pb.OpaqueDispatchResult, now_s: float) -> None:
    del result, now_s


def _done() -> None:
    """Nothing."""
