"""Answers in pieces: one call of ExecuteStream, from its request to its last message."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from modelyard.host.v1 import host_pb2 as pb
from modelyard.inference.v1 import inference_pb2
from services.chassis.encoding import Encoded, length_delimited
from services.chassis.telemetry import current
from services.domain.errors import YardError
from services.domain.service_class import ORDINARY
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Answer
from services.model_host.execution import Asked, Command, answer_of, asked_beside
from services.model_host.generating import Engine
from services.model_host.hosted import Hosted
from services.model_host.sequences import Totals
from services.model_host.standing import Standing
from services.model_host.tensors import NDArray
from services.model_host.wire import encode_answer

_RESPONSE_TAG = b"\x0a"  # ExecuteStreamResponse.response = 1

Write: TypeAlias = Callable[[Any], Awaitable[None]]
"""Takes messages; returns once there is room for the next one."""


class Streaming:
    """Streams answers."""

    def __init__(self, *, queue: BatchQueue, standing: Standing) -> None:
        """Of engines, and for versions that have none of `queue`; `standing` says the host's load."""
        self._queue = queue
        self._standing = standing

    async def serve(self, hosted: Hosted, command: Command, deadline_at_s: float, write: Write) -> None:
        """Answer one call; cancelling it frees its slot.

        Raises:
            YardError: It cannot be answered, or not to its end.
        """
        asked = await asked_beside(hosted, command.request, None, deadline_at_s=deadline_at_s, trace=current())
        asked.call.share = self._queue.share_of(command.service_class or ORDINARY)
        engine = asked.lane.detour
        if not isinstance(engine, Engine):
            await write(self._whole(asked, await self._queue.submit(asked.lane, asked.call)))
            return
        pieces = _Pieces()
        request = engine.stream(asked.call, pieces)
        try:
            while True:
                outputs, totals = await pieces.next()
                await write(self._message(asked, outputs, totals))
                if totals is not None:
                    return
        finally:
            engine.leave(request)

    def _message(self, asked: Asked, outputs: Mapping[str, object] | None, totals: Totals | None) -> Encoded:
        if outputs is None:
            nothing: dict[str, NDArray] = {}
            response = encode_answer(asked.schema, (), nothing, request_id=asked.request_id, raw=True)
        else:
            arrays: dict[str, NDArray] = outputs  # type: ignore[assignment]  # the engine checked them
            response = encode_answer(asked.schema, asked.wanted, arrays, request_id=asked.request_id, raw=asked.raw)
        return self._framed(asked, response, None if totals is None else _totals_to(totals))

    def _whole(self, asked: Asked, answer: Answer) -> Encoded:
        """The one message of a version that does not generate."""
        totals = inference_pb2.StreamTotals(finish_reason="end", beside=answer.batch_size)
        totals.queue.FromNanoseconds(int(answer.queue_s * 1e9))
        totals.compute.FromNanoseconds(int(answer.compute_s * 1e9))
        return self._framed(asked, answer_of(asked, answer), totals)

    def _framed(self, asked: Asked, response: Encoded, totals: inference_pb2.StreamTotals | None) -> Encoded:
        field = length_delimited(_RESPONSE_TAG, response.parts, len(response))
        if totals is None:
            return Encoded(field)
        rest = pb.ExecuteStreamResponse(totals=totals)
        self._standing.fill_load(rest.load, (asked.lane,))
        return Encoded((*field, rest.SerializeToString()))


class _Pieces:
    """Pieces on their way to a caller: no more than the answer has tokens, should it read slowly."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[Mapping[str, object] | None, Totals | None] | YardError] = asyncio.Queue()

    async def next(self) -> tuple[Mapping[str, object] | None, Totals | None]:
        """The next piece, and with the last one the totals.

        Raises:
            YardError: There is none.
        """
        item = await self._waiting.get()
        if isinstance(item, YardError):
            raise item
        return item

    def piece(self, outputs: Mapping[str, object]) -> None:
        self._waiting.put_nowait((outputs, None))

    def ended(self, totals: Totals, outputs: Mapping[str, object] | None) -> None:
        self._waiting.put_nowait((outputs, totals))

    def failed(self, error: YardError) -> None:
        self._waiting.put_nowait(error)


def _totals_to(totals: Totals) -> inference_pb2.StreamTotals:
    message = inference_pb2.StreamTotals(
        prompt_tokens=totals.prompt_tokens,
        tokens=totals.tokens,
        finish_reason=totals.finished,
        beside=totals.beside,
    )
    message.queue.FromNanoseconds(int(totals.queue_s * 1e9))
    message.first_token.FromNanoseconds(int(totals.first_token_s * 1e9))
    message.compute.FromNanoseconds(int(totals.compute_s * 1e9))
    return message
