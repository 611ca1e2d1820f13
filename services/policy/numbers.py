"""Elements of tensors as numbers, and as texts."""

import struct
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from services.domain.tensor import RawTensor

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

DTYPES = {
    "BOOL": "u1",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""All but BF16, which numpy has not, and BYTES, which are none."""

_LENGTH = struct.Struct("<I")


def numbers_of(tensor: RawTensor) -> Numbers:
    """The elements in their shape.

    Raises:
        ValueError: They are no numbers, or not as many as the shape says.
    """
    if tensor.datatype == "BF16":
        # The upper half of an FP32.
        made = (np.frombuffer(tensor.raw, dtype="<u2").astype("<u4") << 16).view("<f4")
    elif tensor.datatype in DTYPES:
        made = np.frombuffer(tensor.raw, dtype=DTYPES[tensor.datatype])
    else:
        raise ValueError(f"{tensor.datatype} are no numbers")
    return made.reshape(tensor.shape)


def raw_of(numbers: Numbers, datatype: str) -> bytes:
    """Numbers of floating point as elements of `datatype`; BF16 rounded to the nearest, even at a tie."""
    if datatype == "BF16":
        bits = numbers.astype("<f4").view("<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding could make another value of what is not a number: it stays one.
        kept = np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded)
        return kept.astype("<u2").tobytes()
    return numbers.astype(DTYPES[datatype]).tobytes()


def texts(raw: bytes | memoryview) -> list[bytes]:
    """Elements of a BYTES tensor.

    Raises:
        ValueError: They are cut off.
    """
    found, at = [], 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise ValueError("a length is cut off")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise ValueError("a text is cut off")
        found.append(bytes(raw[at : at + length]))
        at += length
    return found


def raw_texts(values: Iterable[bytes]) -> bytes:
    """Texts as elements of a BYTES tensor."""
    return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
