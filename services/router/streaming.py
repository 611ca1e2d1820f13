"""Answers in pieces: what goes to a host and comes from it, and what the caller gets of it.

The pipeline routes such a call like any other: its payload says where pieces go as they come, and what the pipeline
gets back is the last message. Once a piece has gone out there is no other attempt: it would come twice.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.encoding import Buffer, Encoded, length_delimited
from services.router import decision_wire
from services.router.frames import Payload, with_decision
from services.router.pipeline import Answer

_PIECE_TAG = b"\x0a"  # InferStreamResponse.response = 1


class Streamed(NamedTuple):
    """The payload of a call that is answered in pieces."""

    payload: Payload
    piece: Callable[[Buffer], Awaitable[None]]
    """Takes each encoded InferResponse but the last one; returns once there is room for the next."""


class Finished(NamedTuple):
    """The last message of an answer in pieces."""

    response: Buffer
    """An InferResponse, still encoded; perhaps without outputs."""
    totals: pb.StreamTotals

    @classmethod
    def of(cls, answer: Answer) -> "Finished":
        """What the pipeline brought back."""
        assert isinstance(answer.payload, Finished)
        return answer.payload


def piece_message(response: Buffer) -> Encoded:
    """An InferStreamResponse with a piece that is not the last one."""
    return Encoded(length_delimited(_PIECE_TAG, (response,), len(response)))


def last_message(answer: Answer) -> Encoded:
    """The InferStreamResponse that ends an answer: with its Decision and the totals."""
    finished = Finished.of(answer)
    response = with_decision(finished.response, decision_wire.encode_decision(answer.decision))
    field = length_delimited(_PIECE_TAG, response.parts, len(response))
    return Encoded((*field, pb.InferStreamResponse(totals=finished.totals).SerializeToString()))
