"""Tensors out of requests and answers, and into others: for routes that ask several and answer with what those gave.

Raw elements are cut where they lie and framed anew, never decoded. Typed ones, which come from people and small tools,
are turned into raw ones when they come in, and back when they go out.
"""

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.chassis.encoding import Buffer, length_delimited, read_varint
from services.chassis.layouts import layout_of
from services.domain.errors import Fault, InvalidRequest, ModelFailed
from services.domain.model import ITEM_BYTES, TensorSpec
from services.domain.request import InferCall
from services.domain.strategies import StaticTensor
from services.domain.tensor import RawTensor
from services.router.elements import contents_from, raw_from
from services.router.frames import Payload
from services.router.streaming import Finished, Streamed

_RAW_INPUT_TAG = b"\x3a"  # InferRequest.raw_input_contents = 7
_RAW_OUTPUT_TAG = b"\x32"  # InferResponse.raw_output_contents = 6
_RAW_OUTPUT, _LENGTH_DELIMITED = 6, 2

STATIC_KEPT = 1024
"""Static answers kept encoded."""


class Composer:
    """Takes messages apart and makes them."""

    def __init__(self) -> None:
        """Nothing is encoded yet."""
        self._static: dict[tuple[str, bool], tuple[Mapping[str, StaticTensor], bytes]] = {}

    def inputs(self, call: InferCall) -> dict[str, RawTensor]:
        """The tensors that a caller sent, by name."""
        raw = _plain(call.payload).raw
        layout = layout_of(raw)
        if layout is not None and layout.tensors:
            view = memoryview(raw)
            pieces: list[Buffer] = [view[at : at + length] for at, length in layout.tensors]
            tensors = layout.message.inputs
        else:
            message = pb.InferRequest.FromString(raw)
            tensors = message.inputs
            pieces = list(message.raw_input_contents)
        if not pieces:
            pieces = [_typed(f"inputs[{at}].contents", tensor) for at, tensor in enumerate(tensors)]
        return {
            tensor.name: RawTensor(tensor.datatype, tuple(tensor.shape), piece)
            for tensor, piece in zip(tensors, pieces, strict=True)
        }

    def outputs(self, payload: object) -> dict[str, RawTensor]:
        """The tensors that a host answered with, by name.

        Raises:
            ModelFailed: They are not as many as it says, or no message at all.
        """
        response = payload.response if isinstance(payload, Finished) else payload
        assert isinstance(response, bytes | memoryview)
        try:
            message, pieces = _cut(bytes(response))
        except DecodeError:
            raise ModelFailed("a host answered with something else") from None
        if not pieces:
            try:
                pieces = [raw_from(tensor.datatype, tensor.contents) for tensor in message.outputs]
            except OverflowError as error:
                raise ModelFailed(f"a host answered with elements that are not of their type: {error}") from None
        if len(pieces) != len(message.outputs):
            raise ModelFailed(f"a host answered with {len(pieces)} contents for {len(message.outputs)} outputs")
        return {
            tensor.name: RawTensor(tensor.datatype, tuple(tensor.shape), piece)
            for tensor, piece in zip(message.outputs, pieces, strict=True)
        }

    def asking(
        self, call: InferCall, tensors: Mapping[str, RawTensor] | None = None, *, wanted: Sequence[str] = ()
    ) -> InferCall:
        """`call` to be answered in one message.

        Args:
            call: The caller's.
            tensors: Other inputs in place of its own, all of whose outputs are wanted if none is named.
            wanted: Outputs that are needed; of its own inputs, beside those that the caller wants.
        """
        payload = _plain(call.payload)
        if tensors is None:
            # Of a repeated field that is there twice, all entries count.
            if missing := _missing(payload.raw, wanted):
                raw = payload.raw + _asked_for(missing).SerializeToString()
                payload = payload._replace(raw=raw, layout=None)
            return call._replace(payload=payload)
        head = _asked_for(wanted)
        head.id = call.request_id
        for name, parameter in _head(payload.raw).parameters.items():
            head.parameters[name].CopyFrom(parameter)
        parts: list[Buffer] = []
        for name, tensor in tensors.items():
            head.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            parts += length_delimited(_RAW_INPUT_TAG, (tensor.raw,), len(tensor.raw))
        inputs = tuple(tensor.meta(name) for name, tensor in tensors.items())
        return call._replace(inputs=inputs, payload=Payload(b"".join((head.SerializeToString(), *parts))))

    def answered(self, call: InferCall, name: str, payload: object, *, wanted: Sequence[str] = ()) -> object:
        """What a caller gets that is answered with the message of one that was asked for outputs `wanted` too."""
        if _missing(_plain(call.payload).raw, wanted):
            return self.answer(call, name, self.outputs(payload))
        if isinstance(call.payload, Streamed):
            assert isinstance(payload, bytes | memoryview)
            return Finished(payload, pb.StreamTotals())
        return payload

    def in_pieces(self, call: InferCall) -> bool:
        """Whether it is to be answered in pieces."""
        return isinstance(call.payload, Streamed)

    def size(self, call: InferCall) -> int:
        """Bytes of its message."""
        return len(_plain(call.payload).raw)

    def answer(self, call: InferCall, name: str, outputs: Mapping[str, RawTensor]) -> object:
        """What the caller gets: the outputs that it wants, in the form it asked in; `name` stands for the model."""
        wanted = [output.name for output in _head(_plain(call.payload).raw).outputs]
        chosen = {each: outputs[each] for each in wanted if each in outputs} if wanted else outputs
        return self._sent(call, _encoded(name, chosen, raw=_is_raw(call, chosen)))

    def static_answer(
        self, call: InferCall, name: str, specs: tuple[TensorSpec, ...], known: Mapping[str, StaticTensor]
    ) -> object:
        """An answer known beforehand, with the types of `specs`; encoded once for all who want the whole of it."""
        if _head(_plain(call.payload).raw).outputs:
            return self.answer(call, name, _static(specs, known))
        key = (name, bool(call.inputs) and call.inputs[0].raw_bytes is not None)
        kept = self._static.get(key)
        if kept is None or kept[0] is not known:
            if len(self._static) >= STATIC_KEPT:
                self._static.clear()
            outputs = _static(specs, known)
            kept = self._static[key] = (known, _encoded(name, outputs, raw=_is_raw(call, outputs)))
        return self._sent(call, kept[1])

    def _sent(self, call: InferCall, response: bytes) -> object:
        whole = response + pb.InferResponse(id=call.request_id).SerializeToString()
        return Finished(whole, pb.StreamTotals()) if isinstance(call.payload, Streamed) else whole


def reformed(call: InferCall, response: bytes) -> bytes:
    """An answer whose elements are raw with typed ones, or the other way round, as `call` asked.

    Raises:
        ModelFailed: It is no answer.
    """
    head, _ = _cut(response)
    outputs = Composer().outputs(response)
    head.ClearField("outputs")
    return head.SerializeToString() + _encoded("", outputs, raw=_is_raw(call, outputs))


def _typed(path: str, tensor: pb.InferRequest.InferInputTensor) -> bytes:
    try:
        return raw_from(tensor.datatype, tensor.contents)
    except OverflowError as error:
        raise InvalidRequest.of([Fault(path, f"an element is no {tensor.datatype}: {error}")]) from None


def _plain(payload: object) -> Payload:
    if isinstance(payload, Streamed):
        return payload.payload
    assert isinstance(payload, Payload)
    return payload


def _head(raw: bytes) -> pb.InferRequest:
    """A request, possibly without its tensors."""
    layout = layout_of(raw)
    return pb.InferRequest.FromString(raw) if layout is None else layout.message


def _asked_for(outputs: Sequence[str]) -> pb.InferRequest:
    return pb.InferRequest(outputs=[pb.InferRequest.InferRequestedOutputTensor(name=name) for name in outputs])


def _missing(raw: bytes, wanted: Sequence[str]) -> list[str]:
    """Outputs that are wanted beside those that a request asks for; none if it asks for all."""
    if not wanted:
        return []
    asked = [output.name for output in _head(raw).outputs]
    return [name for name in wanted if name not in asked] if asked else []


def _is_raw(call: InferCall, outputs: Mapping[str, RawTensor]) -> bool:
    """Raw for raw, typed for typed; raw too for types that have no other form."""
    asked = bool(call.inputs) and call.inputs[0].raw_bytes is not None
    return asked or any(tensor.datatype not in CONTENTS for tensor in outputs.values())


def _encoded(name: str, outputs: Mapping[str, RawTensor], *, raw: bool) -> bytes:
    head = pb.InferResponse(model_name=name)
    parts: list[Buffer] = []
    for each, tensor in outputs.items():
        output = head.outputs.add(name=each, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            parts += length_delimited(_RAW_OUTPUT_TAG, (tensor.raw,), len(tensor.raw))
        else:
            output.contents.CopyFrom(contents_from(tensor.datatype, tensor.raw))
    return b"".join((head.SerializeToString(), *parts))


def _static(specs: tuple[TensorSpec, ...], known: Mapping[str, StaticTensor]) -> dict[str, RawTensor]:
    made = {}
    for spec in specs:
        tensor = known[spec.name]
        meta = RawTensor(spec.datatype, tensor.shape, tensor.raw)
        # Zeros where nothing is said; of BYTES, empty texts, each of which is its length alone.
        size = meta.meta(spec.name).elements * (ITEM_BYTES[spec.datatype] or 4)
        made[spec.name] = meta if tensor.raw else meta._replace(raw=bytes(size))
    return made


def _cut(raw: bytes) -> tuple[pb.InferResponse, list[Buffer]]:
    """An answer without its raw contents, and where those lie.

    Raises:
        DecodeError: It is none.
    """
    view, rest, pieces = memoryview(raw), bytearray(), []
    at, end = 0, len(raw)
    while at < end:
        field_at = at
        tag, at = read_varint(raw, at)
        if tag & 7 != _LENGTH_DELIMITED:
            message = pb.InferResponse.FromString(raw)
            return message, list(message.raw_output_contents)
        length, at = read_varint(raw, at)
        at += length
        if at > end:
            raise DecodeError("a field is cut off")
        if tag >> 3 == _RAW_OUTPUT:
            pieces.append(view[at - length : at])
        else:
            rest += view[field_at:at]
    return pb.InferResponse.FromString(bytes(rest)), list(pieces)
