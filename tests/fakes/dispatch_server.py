"""A model host over real gRPC that serves Dispatch alone, and does with each stream as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from modelyard.host.v1 import host_pb2 as pb
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import error_pb2, resources_pb2
from services.chassis.engines import ServerLimits

Context = grpc.aio.ServicerContext[Any, Any]


class HostStream:
    """One stream, from the host's side."""

    def __init__(self, number: int, messages: AsyncIterator[pb.DispatchRequest], context: Context) -> None:
        """Made by `FakeDispatchHost`."""
        self.number = number
        """From 0, in the order in which they were opened."""
        self.context = context
        self.read_messages: list[pb.DispatchRequest] = []
        """What was read so far."""
        self._messages = messages
        self._was_read = asyncio.Event()

    async def read(self) -> pb.DispatchRequest | None:
        """The next message; None once the router has ended its side."""
        async for message in self._messages:
            self.read_messages.append(message)
            self._was_read.set()
            return message
        return None

    async def has_read(self, done: Callable[[list[pb.DispatchRequest]], bool]) -> None:
        """Wait, outside of the script, until what was read so far is as `done` says."""
        while not done(self.read_messages):
            self._was_read.clear()
            await self._was_read.wait()

    async def calls(self, count: int) -> list[pb.DispatchedCall]:
        """Read until so many calls have come."""
        found: list[pb.DispatchedCall] = []
        while len(found) < count and (message := await self.read()) is not None:
            found.extend(message.calls)
        return found

    async def answer(self, *calls: pb.DispatchedCall, load: resources_pb2.HostLoad | None = None) -> None:
        """Answer calls in one message, each with its own request's id."""
        await self.send(*(answer_to(call) for call in calls), load=load)

    async def send(
        self, *results: pb.DispatchResult, load: resources_pb2.HostLoad | None = None, closing: bool = False
    ) -> None:
        """Send a message."""
        await self.context.write(pb.DispatchResponse(results=results, load=load, closing=closing))


Script: TypeAlias = Callable[[HostStream], Awaitable[None]]
"""What the host does with a stream; once it returns, the stream ends with OK."""


class FakeDispatchHost:
    """Hands each stream to a script."""

    def __init__(self, script: Script) -> None:
        """Do as `script` says."""
        self.streams: list[HostStream] = []
        """Those that were opened, in order."""
        self.address = ""
        self._opened = asyncio.Event()
        self._script = script
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve on a free port."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *ServerLimits().options()])
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self.Dispatch, pb.DispatchRequest.FromString, pb.DispatchResponse.SerializeToString
        )
        name = pb.DESCRIPTOR.services_by_name["ModelHostService"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Dispatch": handler}),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        """Break every stream off, and serve no more."""
        if self._server is not None:
            await self._server.stop(None)

    async def stream(self, number: int) -> HostStream:
        """One of the streams, once it is open."""
        while len(self.streams) <= number:
            self._opened.clear()
            await self._opened.wait()
        return self.streams[number]

    async def Dispatch(self, messages: AsyncIterator[pb.DispatchRequest], context: Context) -> None:
        """Serve one stream."""
        stream = HostStream(len(self.streams), messages, context)
        self.streams.append(stream)
        self._opened.set()
        await self._script(stream)


def answer_to(call: pb.DispatchedCall) -> pb.DispatchResult:
    """An answer by which its caller knows that it is its own."""
    response = inference_pb2.InferResponse(id=call.request.id, model_name=call.key.model)
    return pb.DispatchResult(number=call.number, response=response, queue_s=0.25, compute_s=0.5, batch_size=3)


def failure_of(call: pb.DispatchedCall, failure: error_pb2.Failure) -> pb.DispatchResult:
    """The call has failed."""
    return pb.DispatchResult(number=call.number, failure=failure)
