"""Tensors between what people type or keep in files, and the wire's raw form."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.inference.v1 import inference_pb2
from yardctl.errors import USAGE, CommandError

DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""NumPy's name, little-endian, of every datatype it has."""

_SHOWN_ELEMENTS = 8


@dataclass(frozen=True, slots=True)
class Spec:
    """What a model says of one of its inputs; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """`name (FP32 [-1, 4])`."""
        return f"{self.name} ({self.datatype} {list(self.shape)})"


def add_input(request: inference_pb2.InferRequest, spec: Spec, text: str) -> None:
    """Add one input to a request, in raw form.

    Args:
        request: Grows by the input.
        spec: The model's own words for it.
        text: `@file.npy`, `@file` (for BYTES: its bytes are one element), JSON, or for BYTES any text.

    Raises:
        CommandError: The text is no such tensor.
    """
    array = _read(spec, text)
    if spec.datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    elif spec.datatype == "BF16":
        raw = _bf16(array)
    else:
        raw = np.ascontiguousarray(array).tobytes()
    request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
    request.raw_input_contents.append(raw)


def _read(spec: Spec, text: str) -> NDArray[Any]:
    if text.startswith("@"):
        return _from_file(spec, Path(text[1:]).expanduser())
    if spec.datatype == "BYTES":
        return _texts(spec, text)
    try:
        value = json.loads(text)
    except ValueError:
        raise CommandError(
            f"input {spec} needs numbers as JSON, or @FILE.npy; '{_cut(text)}' is neither", exit_code=USAGE
        ) from None
    return _numbers(spec, value, "what was given")


def _from_file(spec: Spec, path: Path) -> NDArray[Any]:
    try:
        if path.suffix == ".npy":
            loaded = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            loaded = json.loads(path.read_text())
        elif spec.datatype == "BYTES":
            return _shaped(spec, _objects([path.read_bytes()]))
        else:
            raise CommandError(f"input {spec} needs a .npy or .json file, not '{path}'", exit_code=USAGE)
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"'{path}' cannot be read: {error}") from error
    if spec.datatype != "BYTES":
        return _numbers(spec, loaded, f"'{path}'")
    if isinstance(loaded, np.ndarray):
        loaded = loaded.tolist()
    return _texts(spec, json.dumps(loaded))


def _numbers(spec: Spec, value: Any, what: str) -> NDArray[Any]:
    """`value` as the model's datatype; a value that would change in it is refused."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise CommandError(f"input {spec}: the lists in {what} differ in length", exit_code=USAGE) from error
    dtype = DTYPES.get(spec.datatype, "<f4")
    if given.dtype.kind not in "biuf":
        raise CommandError(f"input {spec}: {what} holds something that is no number", exit_code=USAGE)
    made = given.astype(dtype)
    if np.dtype(dtype).kind in "biu" and not np.array_equal(made, given):
        raise CommandError(f"input {spec}: {what} holds numbers that are no {spec.datatype}", exit_code=USAGE)
    return _shaped(spec, made)


def _texts(spec: Spec, text: str) -> NDArray[Any]:
    value: Any = text
    if text[:1] in ("[", '"'):
        try:
            value = json.loads(text)
        except ValueError:
            value = text
    try:
        nested = np.array(value, dtype=object)
    except ValueError:
        nested = np.array([None])
    flat = nested.ravel().tolist()
    if not all(isinstance(item, str) for item in flat):
        raise CommandError(f"input {spec} needs text, or a JSON list of texts", exit_code=USAGE)
    return _shaped(spec, _objects([item.encode() for item in flat]).reshape(nested.shape or (1,)))


def _objects(items: Sequence[bytes]) -> NDArray[Any]:
    made = np.empty(len(items), dtype=object)
    made[:] = items
    return made


def _shaped(spec: Spec, array: NDArray[Any]) -> NDArray[Any]:
    """The array with dimensions of 1 in front, where the model has more: one row is a batch of one."""
    if spec.shape.count(-1) <= 1 and array.ndim == 1 and len(spec.shape) > 1:
        fixed = [size if size != -1 else -1 for size in spec.shape]
        known = int(np.prod([size for size in fixed if size != -1]))
        if known and array.size % known == 0 and array.size > known:
            return array.reshape(fixed)
    while array.ndim < len(spec.shape):
        array = array[np.newaxis]
    return array


def _bf16(array: NDArray[Any]) -> bytes:
    # The upper half of a float32, rounded to nearest even; NaN stays NaN by its quiet bit.
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


@dataclass(frozen=True, slots=True)
class Output:
    """One output of an answer."""

    name: str
    datatype: str
    array: NDArray[Any]

    def short(self) -> str:
        """Its first elements, for people."""
        flat = self.array.ravel()
        shown = ", ".join(_one(item) for item in flat[:_SHOWN_ELEMENTS].tolist())
        return f"{shown}, … ({flat.size} in all)" if flat.size > _SHOWN_ELEMENTS else shown

    def plain(self) -> Any:
        """All of it, for programs; BYTES that are no text as `base64:...`."""
        return _plain(self.array.tolist())


def outputs_of(response: inference_pb2.InferResponse) -> list[Output]:
    """The outputs of an answer in raw form."""
    found = []
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = _split(raw)
        elif tensor.datatype == "BF16":
            array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(raw, DTYPES[tensor.datatype])
        found.append(Output(tensor.name, tensor.datatype, array.reshape(tuple(tensor.shape))))
    return found


def _split(raw: bytes) -> NDArray[Any]:
    items = []
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        items.append(raw[position + 4 : position + 4 + length])
        position += 4 + length
    return _objects(items)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _text(value) if isinstance(value, bytes) else value


def _one(item: Any) -> str:
    if isinstance(item, bytes):
        return repr(_cut(_text(item)))
    return f"{item:.5g}" if isinstance(item, float) else str(item)


def _text(item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(item).decode()}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
