"""InferenceService: convert, delegate, convert."""

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeAlias

import grpc.aio

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.encoding import Buffer, Encoded
from services.chassis.telemetry import current
from services.domain.request import InferCall
from services.router import decision_wire, label_wire, wire
from services.router.frames import Payload, Received, with_decision
from services.router.pipeline import Answer, Pipeline
from services.router.streaming import Streamed, last_message, piece_message

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def request_ids() -> Iterator[str]:
    """Ids for requests that come without one: unique over processes, cheap to make."""
    prefix = os.urandom(6).hex()
    return (f"{prefix}-{number:x}" for number in itertools.count(1))


class Calls:
    """What both protocols do with a call."""

    def __init__(self, *, pipeline: Pipeline, ids: Iterator[str]) -> None:
        """Run calls through `pipeline`; take ids from `ids`."""
        self._pipeline = pipeline
        self._ids = ids

    async def infer(self, request: Received, context: Context) -> Answer:
        """Run one call; the essentials of its decision go into the trailing metadata.

        Raises:
            YardError: It cannot be answered.
        """
        answer = await self.run(request, context, remaining_s=context.time_remaining())
        context.set_trailing_metadata(decision_wire.trailing_metadata(answer.decision))
        return answer

    async def run(self, request: Received, context: Context, *, remaining_s: float | None) -> Answer:
        """Run one call, perhaps of several in a stream, that has `remaining_s` left; None if it has no deadline."""
        return await self._pipeline.route(self.read(request, context), remaining_s=remaining_s)

    async def stream(
        self,
        request: Received,
        context: Context,
        piece: Callable[[Buffer], Awaitable[None]],
        *,
        remaining_s: float | None,
    ) -> Answer:
        """Run one call that is answered in pieces: each goes to `piece`, what it is `Finished` with comes back."""
        call = self.read(request, context)
        assert isinstance(call.payload, Payload)
        call = call._replace(payload=Streamed(call.payload, piece))
        return await self._pipeline.route(call, remaining_s=remaining_s)

    def read(self, request: Received, context: Context, *, dry: bool = False) -> InferCall:
        """A request as the decisions see it."""
        trace = current()
        return wire.call_from(
            request,
            context.invocation_metadata() or (),
            trace_id="" if trace is None else trace.trace_id,
            made_up_id=next(self._ids),
            dry=dry,
        )


def encoded(answer: Answer) -> Encoded:
    """An answer with its Decision."""
    assert isinstance(answer.payload, bytes | memoryview)
    return with_decision(answer.payload, decision_wire.encode_decision(answer.decision))


class ServesMany(Protocol):
    """Who serves the streams."""

    async def serve(self, messages: AsyncIterator[Any], context: Context) -> None:
        """Serve one to its end."""
        ...


class InferenceServicer:
    """modelyard.inference.v1.InferenceService."""

    def __init__(self, *, calls: Calls, many: "ServesMany", pipeline: Pipeline) -> None:
        """Serve calls."""
        self._calls = calls
        self._many = many
        self._pipeline = pipeline

    async def Infer(self, request: Received, context: Context) -> Encoded:
        """Route one call."""
        return encoded(await self._calls.infer(request, context))

    async def InferStream(self, request: pb.InferStreamRequest, context: Context) -> None:
        """Route one call, answer in pieces."""
        inner = request.request
        received = Received.of(inner, inner.SerializeToString())

        async def piece(response: Buffer) -> None:
            await context.write(piece_message(response))

        answer = await self._calls.stream(received, context, piece, remaining_s=context.time_remaining())
        await context.write(last_message(answer))
        context.set_trailing_metadata(decision_wire.trailing_metadata(answer.decision))

    async def InferMany(self, messages: AsyncIterator[Any], context: Context) -> None:
        """Route many calls."""
        await self._many.serve(messages, context)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """Decide one call and run nothing."""
        inner = request.request
        received = Received.of(inner)
        call = self._calls.read(received, context, dry=True)
        decision = self._pipeline.explain(call, remaining_s=context.time_remaining())
        return pb.ExplainResponse(decision=decision_wire.decision_to(decision))

    async def Feedback(self, request: pb.FeedbackRequest, context: Context) -> pb.FeedbackResponse:
        """Take a label."""
        return label_wire.response_from(self._pipeline.labelling.take(label_wire.label_from(request)))
