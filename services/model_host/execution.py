"""One inference on this host, whichever rpc brought it: from its request to a call of the batch queue, and back."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelyard.host.v1 import host_pb2
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import model_pb2, service_class_pb2
from services.chassis.codec import service_class_from
from services.chassis.encoding import Encoded, read_varint
from services.chassis.layouts import Layout
from services.domain.deadline import LONGEST_S
from services.domain.errors import MalformedMessage
from services.domain.model import ModelKey, TensorSpec
from services.domain.service_class import ServiceClass
from services.model_host.calls import Answer, Call
from services.model_host.hosted import Hosted
from services.model_host.lane import Lane
from services.model_host.tensors import NDArray
from services.model_host.wire import (
    Plan,
    Schema,
    Tensors,
    encode_answer,
    is_raw,
    plan_of,
    tensors_by,
    tensors_from,
    wanted_outputs,
    wishes_of,
)

LARGE_ELEMENTS = 64 * 1024
"""Tensors with more elements are converted on a thread where that takes a Python object for each, so that
the loop stays free."""

RESERVED_SHARE = 0.1
"""Most of a deadline that is kept back to answer in; a short one is still worth trying."""


_NAME = inference_pb2.InferRequest.DESCRIPTOR.full_name
_KEY_TAG = b"\x0a"  # ExecuteRequest.key = 1
_REQUEST_TAG = b"\x12"  # ExecuteRequest.request = 2
_CLASS_TAG = b"\x1a"  # ExecuteRequest.service_class = 3


@dataclass(slots=True, eq=False)
class Asked:
    """What one request asks of one version."""

    lane: Lane
    schema: Schema
    wanted: Sequence[TensorSpec]
    """Outputs to answer, in this order."""
    raw: bool
    """Whether they are to be in raw form."""
    request_id: str
    call: Call


class Command(NamedTuple):
    """An ExecuteRequest whose InferRequest is left encoded; stands in for the message class."""

    key: ModelKey
    request: bytes
    service_class: ServiceClass | None = None
    """None: it is for nobody in particular."""

    @classmethod
    def FromString(cls, raw: bytes) -> "Command":
        """Take an ExecuteRequest apart; its tensors are copied once.

        Raises:
            DecodeError: The bytes are none.
        """
        if raw[:1] == _KEY_TAG:
            length, at = read_varint(raw, 1)
            key, at = raw[at : at + length], at + length
            service_class = None
            if raw[at : at + 1] == _CLASS_TAG:
                length, at = read_varint(raw, at + 1)
                service_class, at = _class_of(raw[at : at + length]), at + length
            if raw[at : at + 1] == _REQUEST_TAG:
                length, at = read_varint(raw, at + 1)
                if at + length == len(raw):
                    named = model_pb2.ModelKey.FromString(key)
                    return cls(ModelKey(named.model, named.version), raw[at:], service_class)
        message = host_pb2.ExecuteRequest.FromString(raw)  # in another order, which no encoder writes
        named = message.key
        service_class = service_class_from(message.service_class) if message.HasField("service_class") else None
        return cls(ModelKey(named.model, named.version), message.request.SerializeToString(), service_class)


def _class_of(raw: bytes) -> ServiceClass:
    return service_class_from(service_class_pb2.ServiceClass.FromString(raw))


def asked_of(
    hosted: Hosted, raw: bytes, layout: Layout | None, *, request_id: str, deadline_at_s: float, trace: object
) -> Asked:
    """An encoded request, decoded and checked.

    Args:
        hosted: The version.
        raw: An InferRequest.
        layout: Its layout, if that is known.
        request_id: Its id, if it has none itself.
        deadline_at_s: When its answer is worth nothing any more.
        trace: Whose trace it belongs to.

    Raises:
        MalformedMessage: The bytes are no InferRequest.
        InvalidRequest: It does not fit the version; every fault is named.
    """
    known = _by_layout(hosted, raw, layout, request_id=request_id, deadline_at_s=deadline_at_s, trace=trace)
    if known is not None:
        return known
    request = _parsed(raw)
    tensors = tensors_from(request, _schema_of(hosted))
    request_id = request.id or request_id
    return _asked(hosted, request, tensors, request_id=request_id, deadline_at_s=deadline_at_s, trace=trace)


async def asked_beside(
    hosted: Hosted, raw: bytes, layout: Layout | None, *, deadline_at_s: float, trace: object
) -> Asked:
    """As `asked_of`; what takes long is done beside the loop."""
    known = _by_layout(hosted, raw, layout, request_id="", deadline_at_s=deadline_at_s, trace=trace)
    if known is not None:
        return known
    request, schema = _parsed(raw), _schema_of(hosted)
    per_element = not is_raw(request) or any(tensor.datatype == "BYTES" for tensor in request.inputs)
    if per_element and sum(math.prod(tensor.shape) for tensor in request.inputs) > LARGE_ELEMENTS:
        tensors = await asyncio.to_thread(tensors_from, request, schema)
    else:
        tensors = tensors_from(request, schema)
    return _asked(hosted, request, tensors, request_id=request.id, deadline_at_s=deadline_at_s, trace=trace)


def _by_layout(
    hosted: Hosted, raw: bytes, layout: Layout | None, *, request_id: str, deadline_at_s: float, trace: object
) -> Asked | None:
    """The request without parsing; None where its layout is not known or not plain."""
    if layout is None:
        return None
    schema, lane = _schema_of(hosted), hosted.lane
    plan = layout.notes
    if not isinstance(plan, Plan) or plan.schema is not schema:
        plan = layout.notes = plan_of(layout, schema)
    if not isinstance(plan, Plan):
        return None
    assert lane is not None
    try:
        own_id = layout.id_of(raw) or request_id
    except DecodeError:
        raise MalformedMessage.of(raw, _NAME) from None
    return Asked(lane, schema, plan.wanted, True, own_id, _call(tensors_by(plan, raw), deadline_at_s, trace))


def _parsed(raw: bytes) -> inference_pb2.InferRequest:
    try:
        return inference_pb2.InferRequest.FromString(raw)
    except DecodeError:
        raise MalformedMessage.of(raw, _NAME) from None


def answer_of(asked: Asked, answer: Answer) -> Encoded:
    """The answer, encoded in the form that was asked."""
    return encode_answer(asked.schema, asked.wanted, _outputs_of(answer), request_id=asked.request_id, raw=asked.raw)


def answer_takes_long(asked: Asked, answer: Answer) -> bool:
    """Whether encoding the answer would hold up the loop."""
    per_element = not asked.raw or any(spec.datatype == "BYTES" for spec in asked.wanted)
    if not per_element:
        return False
    outputs = _outputs_of(answer)
    return sum(outputs[spec.name].size for spec in asked.wanted) > LARGE_ELEMENTS


def budget_s(remaining_s: float | None, reserve_s: float) -> float:
    """What a call may take here, of what its deadline leaves."""
    left_s = LONGEST_S if remaining_s is None else min(remaining_s, LONGEST_S)
    return left_s - min(reserve_s, RESERVED_SHARE * left_s)


def _schema_of(hosted: Hosted) -> Schema:
    schema = hosted.schema
    assert isinstance(schema, Schema)
    return schema


def _outputs_of(answer: Answer) -> dict[str, NDArray]:
    outputs = answer.value
    assert isinstance(outputs, dict)
    return outputs


def _asked(
    hosted: Hosted,
    request: inference_pb2.InferRequest,
    tensors: Tensors,
    *,
    request_id: str,
    deadline_at_s: float,
    trace: object,
) -> Asked:
    schema, lane = _schema_of(hosted), hosted.lane
    assert lane is not None
    if schema.generates:
        tensors = tensors._replace(parameters=wishes_of(request, request_id))
    call = _call(tensors, deadline_at_s, trace)
    return Asked(lane, schema, wanted_outputs(request, schema), is_raw(request), request_id, call)


def _call(tensors: Tensors, deadline_at_s: float, trace: object) -> Call:
    return Call(tensors, deadline_at_s, tensors.rows, tensors.elements, tensors.group, tensors.payload_bytes, trace)
