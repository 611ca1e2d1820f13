"""ModelStreamInfer of the Open Inference Protocol V2: an answer for each request, or many from models that generate.

Answers of one message keep the order of their requests. Those in pieces come beside them as they are made, as Triton's
decoupled models answer: the id says whose they are, and the response parameter `triton_final_response` which one is
the last. If the last message has no outputs, it is only sent to callers who ask for it by the request parameter
`triton_enable_empty_final_response`; for them it is always a message of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc.aio

from modelyard.inference.v1 import inference_pb2
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.encoding import Buffer, Encoded
from services.chassis.telemetry import logger
from services.domain.errors import InvalidRequest, ModelNotFound, VersionNotFound, YardError
from services.router import decision_wire
from services.router.frames import Received, streamed, with_decision
from services.router.pipeline import Answer
from services.router.servicer import Calls
from services.router.snapshot import Snapshot
from services.router.streaming import Finished

STREAM_AHEAD = 32
"""Requests of one stream that are worked on at once."""

WANTS_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Encode: TypeAlias = Callable[[Received, Answer], Encoded]


def _flag(final: bool) -> bytes:
    """The response parameter, as part of an encoded answer."""
    response = inference_pb2.InferResponse()
    response.parameters[FINAL].bool_param = final
    return response.SerializeToString()


_MORE, _LAST = _flag(False), _flag(True)


class StreamInfer:
    """One stream of requests."""

    def __init__(
        self, *, calls: Calls, snapshot: Callable[[], Snapshot | None], encode: Encode, context: Context
    ) -> None:
        """Run requests through `calls`; write answers, those of one message by `encode`, to `context`."""
        self._calls = calls
        self._current = snapshot
        self._encode = encode
        self._context = context
        self._writing = asyncio.Lock()
        self._in_pieces = asyncio.Semaphore(STREAM_AHEAD)

    async def run(self, requests: AsyncIterator[Received]) -> None:
        """Answer every request."""
        ahead: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(STREAM_AHEAD)
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                async for request in requests:
                    if self._generates(request):
                        await self._in_pieces.acquire()
                        group.create_task(self._pieces(request))
                    else:
                        await ahead.put(group.create_task(self._one(request)))
                await ahead.put(None)

            group.create_task(read())
            while (running := await ahead.get()) is not None:
                await self._write(await running)

    def _generates(self, request: Received) -> bool:
        """Whether what the request names may answer in pieces; what names nothing is told so in its one answer."""
        snapshot, message = self._current(), request.message
        if snapshot is None:
            return False
        try:
            destination = snapshot.destination(message.model_name, message.model_version)
        except (InvalidRequest, ModelNotFound, VersionNotFound):
            return False
        return destination.generates

    async def _one(self, request: Received) -> Encoded | v2.ModelStreamInferResponse:
        """One answer in one message; an error is an answer too."""
        try:
            remaining_s = self._context.time_remaining()
            answer = await self._calls.run(request, self._context, remaining_s=remaining_s)
            return streamed(self._encode(request, answer))
        except Exception as error:
            return self._failure(request, error)

    async def _pieces(self, request: Received) -> None:
        """One answer in pieces."""

        async def piece(response: Buffer) -> None:
            await self._write(streamed(Encoded((response, _MORE))))

        try:
            remaining_s = self._context.time_remaining()
            answer = await self._calls.stream(request, self._context, piece, remaining_s=remaining_s)
            await self._finish(request, answer)
        except Exception as error:
            await self._write(self._failure(request, error))
        finally:
            self._in_pieces.release()

    async def _finish(self, request: Received, answer: Answer) -> None:
        finished = Finished.of(answer)
        head = inference_pb2.InferResponse.FromString(bytes(finished.response))
        parameter = request.message.parameters.get(WANTS_FINAL)
        by_itself = parameter is not None and parameter.bool_param
        if head.outputs:
            await self._write(streamed(Encoded((finished.response, _MORE if by_itself else _LAST))))
        if by_itself:
            for field in ("outputs", "raw_output_contents"):
                head.ClearField(field)
            last = Encoded((head.SerializeToString(), _LAST))
            if request.message.HasField("route"):
                last = with_decision(last.SerializeToString(), decision_wire.encode_decision(answer.decision))
            await self._write(streamed(last))

    def _failure(self, request: Received, error: Exception) -> v2.ModelStreamInferResponse:
        if isinstance(error, YardError):
            text = error.message
        else:
            logger().error("a request of a stream failed unexpectedly", exc_info=error)
            text = "internal"
        return v2.ModelStreamInferResponse(
            error_message=text,
            infer_response=v2.ModelInferResponse(model_name=request.message.model_name, id=request.request_id),
        )

    async def _write(self, message: Encoded | v2.ModelStreamInferResponse) -> None:
        async with self._writing:
            await self._context.write(message)
