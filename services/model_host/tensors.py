"""Tensors of the Open Inference Protocol V2 as numpy arrays: types, raw bytes, what is not finite.

BF16, which numpy lacks, stays as its bits in uint16; BYTES are object arrays of `bytes`.
Raw form is little-endian and row-major; BYTES elements are a 4-byte length and the bytes.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

NDArray: TypeAlias = npt.NDArray[Any]

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
"""Array type by datatype."""

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""Datatypes that can hold NaN and infinities."""

_LENGTH = struct.Struct("<I")
_BF16_EXPONENT = np.uint16(0x7F80)


class BadTensor(ValueError):
    """The bytes are not a tensor of that type and shape; the text says why."""


def from_raw(datatype: str, shape: Sequence[int], raw: bytes) -> NDArray:
    """The tensor in `raw`; read-only, without a copy, unless it is of BYTES.

    Raises:
        BadTensor: Length or content do not fit.
    """
    if datatype == "BYTES":
        return _bytes_from_raw(shape, raw)
    dtype = NUMPY[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise BadTensor(f"{datatype} of shape {list(shape)} takes {expected} bytes, {len(raw)} came")
    if datatype == "BOOL" and raw.translate(None, b"\0\1"):
        raise BadTensor("a BOOL is one byte, 0 or 1")
    try:
        return np.frombuffer(raw, dtype).reshape(shape)
    except ValueError as error:  # no elements, and dimensions beyond what numpy counts
        raise BadTensor(f"shape {list(shape)} is out of range") from error


def _bytes_from_raw(shape: Sequence[int], raw: bytes) -> NDArray:
    count = math.prod(shape)
    if 4 * count > len(raw):
        raise BadTensor(f"BYTES of shape {list(shape)} take at least {4 * count} bytes, {len(raw)} came")
    array: NDArray = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        end = at + 4
        if end > len(raw):
            raise BadTensor(f"the bytes end in element {index} of {count}")
        (length,) = _LENGTH.unpack_from(raw, at)
        at = end + length
        if at > len(raw):
            raise BadTensor(f"element {index} of {count} is {length} bytes long, {len(raw) - end} are left")
        array[index] = raw[end:at]
    if at != len(raw):
        raise BadTensor(f"{len(raw) - at} bytes are left over after {count} elements")
    return array.reshape(shape)


def to_raw(array: NDArray) -> bytes:
    """The raw form of `array`; str elements become UTF-8."""
    if array.dtype.kind != "O":
        return array.tobytes()
    parts = []
    for element in array.ravel():
        data = element.encode() if isinstance(element, str) else bytes(element)
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


LARGE_BYTES = 16 * 1024
"""Arrays from this size on are worth not being copied."""


def raw_of(array: NDArray) -> bytes | memoryview:
    """The raw form of `array`, which must not change while it is used; without a copy where the array is large."""
    if array.nbytes >= LARGE_BYTES and array.dtype.kind != "O" and array.flags.c_contiguous:
        return array.data.cast("B")
    return to_raw(array)


def zeros(datatype: str, shape: Sequence[int]) -> NDArray:
    """Zeros; for BYTES empty strings."""
    if datatype == "BYTES":
        return np.full(tuple(shape), b"", np.object_)
    return np.zeros(tuple(shape), NUMPY[datatype])


def all_finite(datatype: str, array: NDArray) -> bool:
    """Whether `array` holds no NaN and no infinity."""
    if datatype == "BF16":
        return not bool(((array & _BF16_EXPONENT) == _BF16_EXPONENT).any())
    return datatype not in FLOATS or bool(np.isfinite(array).all())


def float_from_bf16(bits: NDArray) -> npt.NDArray[np.float32]:
    """float32 of the same values."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf16_from_float(values: NDArray) -> npt.NDArray[np.uint16]:
    """Bits of the nearest BF16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
