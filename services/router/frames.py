"""Messages as bytes: tensors pass through the router without being parsed or encoded again.

Copying the tensors of a photo costs as much as all of the router's decisions. So a large request
is parsed without them, its bytes are framed for the host as they came, and the host's answer
is cut out of its frame and sent on as it is. What protobuf's wire format allows but no encoder
writes takes the plain way through the parser.
"""

from typing import NamedTuple, TypeVar

from modelyard.host.v1 import host_pb2
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.type.v1 import model_pb2, service_class_pb2
from services.chassis.encoding import Buffer, Encoded, length_delimited, read_varint, varint
from services.chassis.layouts import Layout, Layouts
from services.chassis.outbox import LARGEST_BYTES
from services.domain.errors import ModelFailed

_LAYOUTS = Layouts()
_REQUEST_TAG = b"\x12"  # ExecuteRequest.request = 2
_RESPONSE_TAG = 0x0A  # ExecuteResponse.response = 1, and ExecuteStreamResponse.response
_ID_TAG = b"\x1a"  # InferRequest.id = 3
_DECISION_TAG = b"\xa2\x06"  # InferResponse.decision = 100
_STREAMED_TAG = b"\x12"  # ModelStreamInferResponse.infer_response = 2

_Answers = TypeVar("_Answers", host_pb2.ExecuteResponse, host_pb2.ExecuteStreamResponse)


class Received(NamedTuple):
    """A request as it came."""

    raw: bytes
    message: pb.InferRequest
    """The request, possibly without id and `raw_input_contents`."""
    request_id: str
    raw_lengths: tuple[int, ...]
    """Bytes of each entry of `raw_input_contents`."""
    layout: Layout | None = None
    """The kind of request that it is, if that is known."""

    @classmethod
    def FromString(cls, raw: bytes) -> "Received":
        """Decode a request.

        Raises:
            DecodeError: The bytes are no request.
        """
        layout = _LAYOUTS.of(raw)
        if layout is not None:
            return cls(raw, layout.message, layout.id_of(raw), layout.lengths, layout)
        return cls.of(pb.InferRequest.FromString(raw), raw)

    @classmethod
    def of(cls, message: pb.InferRequest, raw: bytes = b"") -> "Received":
        """A request that was parsed already."""
        return cls(raw, message, message.id, tuple(map(len, message.raw_input_contents)))


class Payload(NamedTuple):
    """What goes to the host: the caller's bytes, and an id if the caller gave none."""

    raw: bytes
    made_up_id: str = ""
    layout: Layout | None = None
    """The kind of request that it is, if that is known."""

    @property
    def suffix(self) -> bytes:
        """The id made up, as a field; of a field that is there twice the last one counts."""
        made_up = self.made_up_id.encode()
        return b"".join((_ID_TAG, varint(len(made_up)), made_up)) if made_up else b""


def execute_request(
    key: model_pb2.ModelKey, payload: Payload, service_class: service_class_pb2.ServiceClass | None = None
) -> bytes:
    """An ExecuteRequest; its tensors are copied once."""
    prefix = host_pb2.ExecuteRequest(key=key, service_class=service_class).SerializeToString()
    suffix = payload.suffix
    return b"".join((prefix, _REQUEST_TAG, varint(len(payload.raw) + len(suffix)), payload.raw, suffix))


def open_response(raw: bytes, kind: type[_Answers]) -> tuple[Buffer, _Answers]:
    """An answer of a host taken apart.

    Args:
        raw: The answer.
        kind: What it is; each has its InferResponse in the same field.

    Returns:
        The InferResponse in it, still encoded and where it lies, and the rest.

    Raises:
        DecodeError: The bytes are no such message.
    """
    if raw and raw[0] == _RESPONSE_TAG:
        length, start = read_varint(raw, 1)
        end = start + length
        if end <= len(raw):
            rest = kind.FromString(raw[end:])
            if not rest.HasField("response"):
                return memoryview(raw)[start:end], rest
    whole = kind.FromString(raw)
    return whole.response.SerializeToString(), whole


def with_decision(response: Buffer, decision: bytes) -> Encoded:
    """An InferResponse with its Decision, both encoded."""
    return Encoded((response, _DECISION_TAG, varint(len(decision)), decision))


def sendable(response: Encoded) -> Encoded:
    """`response`, if a message of a stream has room for it.

    Raises:
        ModelFailed: It has not.
    """
    if len(response) > LARGEST_BYTES:
        raise ModelFailed(f"the answer has {len(response)} bytes, too many for a message of a stream")
    return response


def streamed(response: Encoded) -> Encoded:
    """A ModelStreamInferResponse that holds the answer.

    Raises:
        ModelFailed: A message has no room for it.
    """
    return Encoded(length_delimited(_STREAMED_TAG, sendable(response).parts, len(response)))
