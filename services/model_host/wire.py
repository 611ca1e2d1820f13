"""protobuf ⇄ arrays for Execute: what a request must look like for one version, and its answer in the form asked."""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.chassis.encoding import Buffer, Encoded, varint
from services.chassis.layouts import Layout
from services.domain.errors import Fault, InvalidRequest
from services.domain.model import ModelKey, TensorMeta, TensorSpec, schema_faults
from services.domain.objects import Model
from services.model_host.padded import PaddedShapes
from services.model_host.sequences import NO_WISHES, Wish
from services.model_host.tensors import FLOATS, NUMPY, BadTensor, NDArray, all_finite, from_raw, raw_of

_Input: TypeAlias = pb.InferRequest.InferInputTensor

_WIDE = {"INT8": np.int32, "INT16": np.int32, "UINT8": np.uint32, "UINT16": np.uint32}
"""What elements travel as, where that holds more than the datatype does."""

SHAPES_KEPT = 256
"""Encoded descriptions of outputs that are kept for each version, by their shapes."""

_ID_TAG = b"\x1a"  # InferResponse.id = 3
_RAW_TAG = b"\x32"  # InferResponse.raw_output_contents = 6


class Tensors(NamedTuple):
    """The inputs of one call, decoded."""

    inputs: dict[str, NDArray]
    rows: int
    """Size of the batch dimension; 1 where the version does not batch."""
    elements: int
    """Elements of one row, over all inputs."""
    group: Hashable
    """Equal for calls that can share a batch."""
    payload_bytes: int
    parameters: Mapping[str, Wish] = NO_WISHES
    """Of the request; only where the version generates."""


class Schema:
    """What requests for one version must look like, and what its answers do."""

    def __init__(
        self,
        model: Model,
        key: ModelKey,
        *,
        max_batch_size: int,
        generates: bool = False,
        padded: PaddedShapes | None = None,
    ) -> None:
        """Requests carry a batch dimension if `max_batch_size` is over 1; parameters count if it `generates`.

        With `padded`, calls of different lengths are of one group.
        """
        self.generates = generates
        self.padded = padded
        self.inputs = model.inputs
        self.outputs = {spec.name: spec for spec in model.outputs}
        self.all_outputs: Sequence[TensorSpec] = tuple(self.outputs.values())
        self.answer_head = pb.InferResponse(model_name=key.model, model_version=key.version).SerializeToString()
        self.described: dict[tuple[tuple[int, ...], ...], bytes] = {}
        """Encoded descriptions of all outputs, by their shapes."""
        self.max_batch_size = max_batch_size
        self.batches = max_batch_size > 1
        self.by_name = {spec.name: spec for spec in model.inputs}
        self.required = frozenset(spec.name for spec in model.inputs if not spec.optional)
        self.finite = tuple(
            (spec.name, spec.datatype) for spec in model.inputs if spec.datatype in FLOATS and not spec.allow_non_finite
        )
        # Where nothing but the batch dimension is free, all requests are of one group.
        self.uniform = all(not spec.optional and -1 not in spec.shape[1:] for spec in model.inputs)


def tensors_from(request: pb.InferRequest, schema: Schema) -> Tensors:
    """The inputs of `request`.

    Raises:
        InvalidRequest: They do not fit the schema or themselves; every fault is named.
    """
    inputs = _plain(request, schema)
    if inputs is None:
        inputs = _with_care(request, schema)
    _check_finite(schema, inputs)
    return _measured(schema, inputs)


def _plain(request: pb.InferRequest, schema: Schema) -> dict[str, NDArray] | None:
    """The inputs, if they are raw and all is well; None leaves saying what is not to `_with_care`."""
    raws = request.raw_input_contents
    tensors = request.inputs
    if not raws or len(raws) != len(tensors):
        return None
    inputs: dict[str, NDArray] = {}
    for tensor, raw in zip(tensors, raws, strict=True):
        shape = tuple(tensor.shape)
        spec = _spec_met(tensor, shape, schema)
        if spec is None or spec.name in inputs:
            return None
        try:
            inputs[spec.name] = from_raw(spec.datatype, shape, raw)
        except BadTensor:
            return None
    return inputs if schema.required <= inputs.keys() else None


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests of one layout become arrays, where nothing but length and type has to be looked at."""

    schema: Schema
    wanted: Sequence[TensorSpec]
    arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, int], ...]
    """Name, type, shape, number of elements and offset of each input."""
    rows: int
    elements: int
    group: Hashable
    payload_bytes: int


def plan_of(layout: Layout, schema: Schema) -> Plan | None:
    """The plan for requests of `layout`; None for such as need a closer look, or are wrong."""
    message = layout.message
    if (
        schema.generates
        or not layout.tensors
        or len(layout.tensors) != len(message.inputs)
        or message.HasField("route")
    ):
        return None
    arrays = []
    inputs: dict[str, NDArray] = {}
    for tensor, (offset, length) in zip(message.inputs, layout.tensors, strict=True):
        shape = tuple(tensor.shape)
        spec = _spec_met(tensor, shape, schema)
        if spec is None or spec.name in inputs:
            return None
        dtype = NUMPY[spec.datatype]
        count = math.prod(shape)
        if spec.datatype in ("BOOL", "BYTES") or count < 1 or count * dtype.itemsize != length:
            return None
        arrays.append((spec.name, dtype, shape, count, offset))
        inputs[spec.name] = np.empty(shape, dtype)
    if not schema.required <= inputs.keys():
        return None
    try:
        wanted, measured = wanted_outputs(message, schema), _measured(schema, inputs)
    except InvalidRequest:
        return None
    return Plan(schema, wanted, tuple(arrays), measured.rows, measured.elements, measured.group, measured.payload_bytes)


def tensors_by(plan: Plan, raw: bytes) -> Tensors:
    """The inputs of `raw`, a request of the layout that the plan is for.

    Raises:
        InvalidRequest: A value is not finite, and must be.
    """
    inputs: dict[str, NDArray] = {}
    for name, dtype, shape, count, offset in plan.arrays:
        inputs[name] = np.frombuffer(raw, dtype, count, offset).reshape(shape)
    if plan.schema.finite:
        _check_finite(plan.schema, inputs)
    return Tensors(inputs, plan.rows, plan.elements, plan.group, plan.payload_bytes)


def wishes_of(request: pb.InferRequest, request_id: str) -> dict[str, Wish]:
    """The request's parameters; one that brings no `seed` gets one by its id, so that it can be answered again."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    wishes: dict[str, Wish] = {"seed": int.from_bytes(digest, "little")}
    for name, parameter in request.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            wishes[name] = getattr(parameter, choice)
    return wishes


def wanted_outputs(request: pb.InferRequest, schema: Schema) -> Sequence[TensorSpec]:
    """The outputs to answer, in the order asked.

    Raises:
        InvalidRequest: The model has no such output, or one is asked for twice.
    """
    if not request.outputs:
        return schema.all_outputs
    faults = []
    wanted: dict[str, TensorSpec] = {}
    for index, output in enumerate(request.outputs):
        spec = schema.outputs.get(output.name)
        if spec is None:
            known = ", ".join(sorted(schema.outputs))
            faults.append(Fault(f"outputs[{index}].name", f"output '{output.name}' is not one of the model's: {known}"))
        elif output.name in wanted:
            faults.append(Fault(f"outputs[{index}].name", f"output '{output.name}' is asked for twice"))
        else:
            wanted[output.name] = spec
    if faults:
        raise InvalidRequest.of(faults)
    return tuple(wanted.values())


def encode_answer(
    schema: Schema, wanted: Sequence[TensorSpec], outputs: Mapping[str, NDArray], *, request_id: str, raw: bool
) -> Encoded:
    """An InferResponse with the `wanted` outputs, raw or typed; FP16 and BF16 have no typed form and make it raw.

    Large tensors stay where they are until the whole is put together.
    """
    head: list[Buffer] = [schema.answer_head]
    if request_id:
        encoded_id = request_id.encode()
        head += (_ID_TAG, varint(len(encoded_id)), encoded_id)
    if not raw and all(spec.datatype in CONTENTS for spec in wanted):
        return Encoded((*head, _typed_answer(wanted, outputs)))
    shapes = tuple([outputs[spec.name].shape for spec in wanted])
    described = schema.described.get(shapes) if wanted is schema.all_outputs else None
    if described is None:
        described = _described(schema, wanted, shapes)
    head.append(described)
    for spec in wanted:
        contents = raw_of(outputs[spec.name])
        head += (_RAW_TAG, varint(len(contents)), contents)
    return Encoded(tuple(head))


def _described(schema: Schema, wanted: Sequence[TensorSpec], shapes: tuple[tuple[int, ...], ...]) -> bytes:
    message = pb.InferResponse()
    for spec, shape in zip(wanted, shapes, strict=True):
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    described = message.SerializeToString()
    if wanted is schema.all_outputs:
        if len(schema.described) >= SHAPES_KEPT:
            schema.described.clear()
        schema.described[shapes] = described
    return described


def _typed_answer(wanted: Sequence[TensorSpec], outputs: Mapping[str, NDArray]) -> bytes:
    message = pb.InferResponse()
    for spec in wanted:
        array = outputs[spec.name]
        tensor = message.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        field: Any = getattr(tensor.contents, CONTENTS[spec.datatype])
        field.extend(_typed_elements(spec, array))
    return message.SerializeToString()


def is_raw(request: pb.InferRequest) -> bool:
    """Whether the caller wants raw answers: those who send raw do."""
    return len(request.raw_input_contents) > 0


def _typed_elements(spec: TensorSpec, array: NDArray) -> Sequence[object]:
    elements = array.ravel().tolist()
    if spec.datatype == "BYTES":
        return [element.encode() if isinstance(element, str) else bytes(element) for element in elements]
    return list(elements)


def _spec_met(tensor: _Input, shape: tuple[int, ...], schema: Schema) -> TensorSpec | None:
    """The spec that an input of this `shape` meets; None if there is none, or the input is typed."""
    spec = schema.by_name.get(tensor.name)
    if spec is None or spec.datatype != tensor.datatype or tensor.HasField("contents"):
        return None
    wanted = spec.shape
    if len(shape) != len(wanted):
        return None
    for want, have in zip(wanted, shape, strict=True):
        if want != have and (want != -1 or have < 0):
            return None
    return spec


def _with_care(request: pb.InferRequest, schema: Schema) -> dict[str, NDArray]:
    """The inputs, typed or raw, or every fault of them."""
    raws = request.raw_input_contents
    faults = []
    metas = []
    if raws and len(raws) != len(request.inputs):
        text = f"{len(raws)} entries for {len(request.inputs)} inputs: raw and typed contents do not mix"
        faults.append(Fault("raw_input_contents", text))
    for index, tensor in enumerate(request.inputs):
        if raws and tensor.HasField("contents"):
            text = f"input '{tensor.name}' has typed contents beside raw_input_contents"
            faults.append(Fault(f"inputs[{index}].contents", text))
        raw_bytes = len(raws[index]) if index < len(raws) else None
        field = CONTENTS.get(tensor.datatype)
        typed = None if raws else (len(getattr(tensor.contents, field)) if field else 0)
        metas.append(TensorMeta(tensor.name, tensor.datatype, tuple(tensor.shape), raw_bytes, typed))
    faults += schema_faults(metas, schema.inputs)
    if faults:
        raise InvalidRequest.of(faults)
    inputs: dict[str, NDArray] = {}
    for index, (tensor, meta) in enumerate(zip(request.inputs, metas, strict=True)):
        try:
            if raws:
                inputs[tensor.name] = from_raw(meta.datatype, meta.shape, raws[index])
            else:
                inputs[tensor.name] = _from_typed(tensor.contents, meta)
        except BadTensor as error:
            faults.append(Fault(f"inputs[{index}]", f"input '{tensor.name}': {error}"))
    if faults:
        raise InvalidRequest.of(faults)
    return inputs


def _from_typed(contents: pb.InferTensorContents, meta: TensorMeta) -> NDArray:
    elements = getattr(contents, CONTENTS[meta.datatype])
    dtype = NUMPY[meta.datatype]
    if meta.datatype == "BYTES":
        array: NDArray = np.empty(len(elements), dtype)
        array[:] = list(elements)
        return array.reshape(meta.shape)
    wide: NDArray = np.array(elements, _WIDE.get(meta.datatype, dtype))
    narrow = wide.astype(dtype, copy=False)
    if wide.dtype != dtype and not np.array_equal(wide, narrow):
        raise BadTensor(f"an element does not fit {meta.datatype}")
    return narrow.reshape(meta.shape)


def _check_finite(schema: Schema, inputs: Mapping[str, NDArray]) -> None:
    bad = [
        name
        for name, datatype in schema.finite
        if (array := inputs.get(name)) is not None and not all_finite(datatype, array)
    ]
    if bad:
        order = list(inputs)
        text = "holds NaN or an infinity, and the model does not take them"
        raise InvalidRequest.of([Fault(f"inputs[{order.index(name)}]", f"input '{name}' {text}") for name in bad])


def _measured(schema: Schema, inputs: dict[str, NDArray]) -> Tensors:
    elements = 0
    payload_bytes = 0
    for array in inputs.values():
        elements += array.size
        payload_bytes += array.nbytes if array.dtype.kind != "O" else 64 * array.size + sum(map(len, array.ravel()))
    if not schema.batches:
        return Tensors(inputs, 1, elements, (), payload_bytes)
    rows = _rows(schema, inputs)
    group: Hashable = ()
    if not schema.uniform:
        row_of = schema.padded.bucket if schema.padded is not None else _row_of
        group = tuple((name, row_of(name, array.shape)) for name, array in sorted(inputs.items()))
    return Tensors(inputs, rows, elements // rows, group, payload_bytes)


def _row_of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    del name
    return shape[1:]


def _rows(schema: Schema, inputs: Mapping[str, NDArray]) -> int:
    rows = -1
    for array in inputs.values():
        size = array.shape[0] if array.ndim else 0
        if rows not in (-1, size):
            said = ", ".join(f"'{name}' {array.shape[0] if array.ndim else 0}" for name, array in inputs.items())
            raise InvalidRequest.of([Fault("inputs", f"the batch dimensions differ: {said}")])
        rows = size
    if rows < 1:
        raise InvalidRequest.of([Fault("inputs", "the batch dimension, the first one, must be at least 1")])
    if rows > schema.max_batch_size:
        text = f"{rows} rows are more than the version's largest batch, {schema.max_batch_size}"
        raise InvalidRequest.of([Fault("inputs", text)])
    return rows
