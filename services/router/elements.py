"""Elements of tensors between their two forms, typed lists and raw bytes."""

import struct

import numpy as np

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.domain.errors import ModelFailed

_DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP32": "<f4",
    "FP64": "<f8",
}
_LENGTH = struct.Struct("<I")


def raw_from(datatype: str, contents: pb.InferTensorContents) -> bytes:
    """Typed elements as bytes."""
    values = getattr(contents, CONTENTS[datatype])
    if datatype == "BYTES":
        return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    return np.array(values, dtype=_DTYPES[datatype]).tobytes()


def contents_from(datatype: str, raw: bytes | memoryview) -> pb.InferTensorContents:
    """Elements as bytes in their typed form.

    Raises:
        ModelFailed: The bytes are no such elements.
    """
    contents = pb.InferTensorContents()
    values = getattr(contents, CONTENTS[datatype])
    try:
        if datatype == "BYTES":
            values.extend(texts(raw))
        else:
            values.extend(np.frombuffer(raw, dtype=_DTYPES[datatype]).tolist())
    except (ValueError, struct.error):
        raise ModelFailed(f"an output has {len(raw)} bytes, which are no {datatype}") from None
    return contents


def texts(raw: bytes | memoryview) -> list[bytes]:
    """Elements of a BYTES tensor.

    Raises:
        ValueError: They are cut off.
        struct.error: They are cut off.
    """
    found, at = [], 0
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise ValueError("cut off")
        found.append(bytes(raw[at : at + length]))
        at += length
    return found
