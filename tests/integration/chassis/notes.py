"""A service of the tests: one method of each of gRPC's four kinds, described in a pool of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc.aio
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from services.chassis.telemetry import Telemetry, current

_FIELD = descriptor_pb2.FieldDescriptorProto


def pool_of(package: str) -> DescriptorPool:
    """A private pool with `Note` and `Notes` in `package`; equal on the wire whatever the package."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}/notes.proto", package=package, syntax="proto3")
    note = file.message_type.add(name="Note")
    note.field.add(name="text", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    note.field.add(name="number", number=2, type=_FIELD.TYPE_INT64, label=_FIELD.LABEL_OPTIONAL)
    service = file.service.add(name="Notes")
    for name, many_in, many_out in (
        ("One", False, False), ("Collect", True, False), ("Repeat", False, True), ("Chat", True, True),
        ("Follow", False, True),
    ):  # fmt: skip
        service.method.add(
            name=name,
            input_type=f".{package}.Note",
            output_type=f".{package}.Note",
            client_streaming=many_in,
            server_streaming=many_out,
        )
    pool = DescriptorPool()
    pool.Add(file)
    return pool


POOL = pool_of("chassistest")
SERVICE: ServiceDescriptor = POOL.FindServiceByName("chassistest.Notes")


def note_class(pool: DescriptorPool, package: str) -> Any:
    """The message class of `Note` in `pool`."""
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Note"))


Note = note_class(POOL, "chassistest")


class Notes:
    """Does as its requests say; keeps what it saw."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.trace_ids: list[str | None] = []
        self.remaining_s: list[float | None] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.raises: BaseException | None = None
        self.was_cancelled = asyncio.Event()
        self.on_call: Callable[[Any], object] | None = None

    def _see(self, request: Any, context: Any) -> None:
        trace = current()
        self.requests.append(request)
        self.trace_ids.append(None if trace is None else trace.trace_id)
        self.remaining_s.append(context.time_remaining())
        if self.on_call is not None:
            self.on_call(context)
        if self.raises is not None:
            raise self.raises

    async def One(self, request: Any, context: Any) -> Message:
        self._see(request, context)
        if request.text == "big":
            return cast(Message, Note(text="x" * request.number))
        if request.text == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.was_cancelled.set()
                raise
        return cast(Message, Note(text=request.text, number=request.number + 1))

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Message:
        numbers = [request.number async for request in requests]
        self._see(None, context)
        return cast(Message, Note(number=sum(numbers)))

    async def Repeat(self, request: Any, context: Any) -> AsyncIterator[Message]:
        for number in range(request.number):
            yield Note(text=request.text, number=number)
        self._see(request, context)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> None:
        """Writes itself, the other way to answer a stream."""
        async for request in requests:
            self._see(request, context)
            await context.write(Note(text=request.text, number=request.number + 1))

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[Message]:
        """Never ends by itself."""
        self._see(request, context)
        try:
            yield Note(text="following" + "x" * request.number)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


def telemetry() -> Telemetry:
    """Telemetry that sends nothing."""
    return Telemetry(service="test", instance="test", otlp_endpoint=None, sample_ratio=0.0)


class Stub:
    """Callables for every method."""

    def __init__(self, channel: grpc.aio.Channel, service: str = "chassistest.Notes") -> None:
        encode, decode = Note.SerializeToString, Note.FromString
        self.One = channel.unary_unary(f"/{service}/One", encode, decode)
        self.Collect = channel.stream_unary(f"/{service}/Collect", encode, decode)
        self.Repeat = channel.unary_stream(f"/{service}/Repeat", encode, decode)
        self.Chat = channel.stream_stream(f"/{service}/Chat", encode, decode)
        self.Follow = channel.unary_stream(f"/{service}/Follow", encode, decode)
        self.raw_one: Any = channel.unary_unary(f"/{service}/One")
        self.raw_repeat: Any = channel.unary_stream(f"/{service}/Repeat")
        self.raw_collect: Any = channel.stream_unary(f"/{service}/Collect")
        self.raw_chat: Any = channel.stream_stream(f"/{service}/Chat")
