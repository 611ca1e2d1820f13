"""Calls as keys of answers, and answers as they are kept: what two requests must have in common to be the same one.

A key is a BLAKE2b hash of 128 bits over what it depends on, each piece with its length before it, so that nothing can
move from one into the next. It is keyed by a secret of the process: who does not know it cannot look for two requests
that collide. Typed elements are hashed as the raw ones that they stand for. Inputs go by name, whatever their order;
ids, deadlines and whom a call is urgent for are left out.
"""

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.encoding import Buffer, read_varint, varint
from services.chassis.layouts import SMALL_BYTES, Layout, layout_of
from services.domain.request import InferCall
from services.router.composing import reformed
from services.router.elements import raw_from
from services.router.frames import Payload

KEY_BYTES = 16
"""Keys of 2^64 answers would be needed before two are likely to be the same by chance."""

HEADS_KEPT = 1024
"""Kinds of requests whose heads are remembered; as many as layouts are."""

NOT_THE_MODELS = frozenset(
    {"timeout", "priority", "tier", "session", "sequence_id", "max_cost_microusd", "min_quality", "cache"}
)
"""Request parameters that are the router's: those that answers depend on are among a call's wishes."""

SEQUENCES = ("sequence_start", "sequence_end")
"""Request parameters of calls whose answers depend on earlier ones; `sequence_id` is another."""

_PERSON = b"modelyard answer"
_ID, _DECISION, _LENGTH_DELIMITED = 3, 100, 2
_ID_TAG = b"\x1a"


class _Head(NamedTuple):
    """What a kind of request has in its key, but for the elements."""

    framed: bytes
    order: tuple[int, ...]
    """Places of the inputs by name."""
    typed: tuple[bytes, ...] | None
    """Elements of each input that came in typed form, by name; None of a raw request."""


class Canonical:
    """Keys and kept answers of one process."""

    def __init__(self, secret: bytes) -> None:
        """Key hashes by `secret`, of 16 to 64 bytes."""
        self._secret = secret
        self._heads: dict[Layout, _Head | None] = {}

    def size_bytes(self, call: InferCall) -> int:
        """Bytes that have to be hashed for its key, about."""
        return len(call.payload.raw) if isinstance(call.payload, Payload) else 0

    def key(self, call: InferCall, scope: bytes) -> bytes | None:
        """The key of the answer; None if it depends on more than what is in the request, or comes in pieces.

        Args:
            call: The call, whose inputs are well formed.
            scope: What the answer depends on beside the request.
        """
        payload = call.payload
        if not isinstance(payload, Payload):
            return None
        layout, raw = payload.layout, payload.raw
        if layout is not None:
            head = self._heads.get(layout, _UNKNOWN)
            if head is _UNKNOWN:
                if len(self._heads) >= HEADS_KEPT:
                    self._heads.clear()
                head = self._heads[layout] = _head_of(layout.message, layout.lengths)
            pieces = _cut(raw, layout)
        else:
            found = layout_of(raw) if len(raw) > SMALL_BYTES else None
            message = pb.InferRequest.FromString(raw) if found is None else found.message
            pieces = list(message.raw_input_contents) if found is None else _cut(raw, found)
            head = _head_of(message, tuple(map(len, pieces)))
        if head is None:
            return None
        digest = hashlib.blake2b(
            b"".join((_length(scope), scope, head.framed)), digest_size=KEY_BYTES, key=self._secret, person=_PERSON
        )
        for piece in (pieces[at] for at in head.order) if head.typed is None else head.typed:
            digest.update(piece)  # of the length that the head says
        return digest.digest()

    def kept(self, payload: object) -> bytes:
        """An answer without what is its caller's own."""
        assert isinstance(payload, bytes | memoryview)
        return _anonymous(bytes(payload))

    def given(self, call: InferCall, kept: bytes, *, raw: bool) -> bytes:
        """A kept answer as `call` gets it, with its id, in the form that it asked in; `raw` is the one kept."""
        if raw != (bool(call.inputs) and call.inputs[0].raw_bytes is not None):
            kept = reformed(call, kept)
        own = call.request_id.encode()
        return b"".join((kept, _ID_TAG, varint(len(own)), own))


_UNKNOWN = _Head(b"", (), None)
_NONE = bytes(8)


def _head_of(message: pb.InferRequest, lengths: Sequence[int]) -> _Head | None:
    """None of a call that belongs to a sequence, or whose elements do not fit their type."""
    parameters = message.parameters
    if parameters and _in_sequence(parameters):
        return None
    inputs = message.inputs
    order = tuple(sorted(range(len(inputs)), key=lambda at: inputs[at].name))
    typed: tuple[bytes, ...] | None = None
    if not lengths:
        try:
            typed = tuple(raw_from(inputs[at].datatype, inputs[at].contents) for at in order)
        except (KeyError, OverflowError, ValueError):
            return None
        sizes = [len(piece) for piece in typed]
    else:
        sizes = [lengths[at] for at in order]
    parts = [_count(len(order))]
    for at, size in zip(order, sizes, strict=True):
        tensor = inputs[at]
        shape = struct.pack(f">{len(tensor.shape)}q", *tensor.shape)
        parts += (_text(tensor.name), _text(tensor.datatype), _length(shape), shape, _parameters(tensor.parameters))
        parts.append(_count(size))
    parts.append(_count(len(message.outputs)))
    for output in message.outputs:
        parts += (_text(output.name), _parameters(output.parameters))
    parts.append(_parameters(parameters, left_out=NOT_THE_MODELS))
    return _Head(b"".join(parts), order, typed)


def _in_sequence(parameters: Mapping[str, pb.InferParameter]) -> bool:
    if any(name in parameters for name in SEQUENCES):
        return True
    if "sequence_id" not in parameters:
        return False
    which = parameters["sequence_id"].WhichOneof("parameter_choice")
    return which is not None and bool(getattr(parameters["sequence_id"], which))  # 0 and "" are none


def _parameters(parameters: Mapping[str, pb.InferParameter], *, left_out: Collection[str] = ()) -> bytes:
    if not parameters:
        return _NONE
    names = sorted([name for name in parameters if name not in left_out])
    parts = [_count(len(names))]
    for name in names:
        parameter = parameters[name]
        which = parameter.WhichOneof("parameter_choice") or ""
        value = getattr(parameter, which) if which else ""
        # Two numbers may be equal and not the same: -0.0 and 0.0.
        text = struct.pack(">d", value).hex() if isinstance(value, float) else str(value)
        parts += (_text(name), _text(which), _text(text))
    return b"".join(parts)


def _cut(raw: bytes, layout: Layout) -> Sequence[Buffer]:
    view = memoryview(raw)
    return [view[at : at + length] for at, length in layout.tensors]


def _count(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _length(piece: bytes) -> bytes:
    return len(piece).to_bytes(8, "big")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _anonymous(raw: bytes) -> bytes:
    """An InferResponse without id and Decision."""
    kept: list[bytes] = []
    kept_at = at = 0
    end = len(raw)
    try:
        while at < end:
            field_at = at
            tag, at = read_varint(raw, at)
            if tag & 7 != _LENGTH_DELIMITED:
                raise DecodeError("not a field of an answer")
            length, at = read_varint(raw, at)
            at += length
            if at > end:
                raise DecodeError("a field is cut off")
            if tag >> 3 in (_ID, _DECISION):
                kept.append(raw[kept_at:field_at])
                kept_at = at
    except DecodeError:
        message = pb.InferResponse.FromString(raw)
        message.ClearField("id")
        message.ClearField("decision")
        return message.SerializeToString()
    return b"".join((*kept, raw[kept_at:]))
