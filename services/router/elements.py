"""Elements of tensors between their two forms, typed lists and raw bytes."""

import numpy as np

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.domain.errors import ModelFailed
from services.policy.numbers import DTYPES, raw_texts, texts

NARROW = frozenset({"INT8", "INT16", "UINT8", "UINT16"})
"""Datatypes whose elements are sent typed in fields that hold more."""


def raw_from(datatype: str, contents: pb.InferTensorContents) -> bytes:
    """Typed elements as bytes.

    Raises:
        OverflowError: One is not of the type; cut down to it, it would be another one.
    """
    values = getattr(contents, CONTENTS[datatype])
    if datatype == "BYTES":
        return raw_texts(values)
    if datatype in NARROW:
        values = list(values)  # numpy cuts down what it takes from protobuf's containers, and refuses Python's numbers
    return np.array(values, dtype=DTYPES[datatype]).tobytes()


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
            found = np.frombuffer(raw, dtype=DTYPES[datatype])
            values.extend((found.view("?") if datatype == "BOOL" else found).tolist())
    except ValueError:
        raise ModelFailed(f"an output has {len(raw)} bytes, which are no {datatype}") from None
    return contents
