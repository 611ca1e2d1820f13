"""Numpy arrays to the wire and back, as any client of the Open Inference Protocol V2 does it: raw and little-endian."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.inference.v1 import inference_pb2

Arrays = Mapping[str, NDArray[Any]]

DTYPES: dict[str, str] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Numpy's name of each datatype that the examples use; BYTES are object arrays of `bytes`."""
DATATYPES = {np.dtype(name): datatype for datatype, name in DTYPES.items()}


def infer_request(name: str, inputs: Arrays, *, version: str = "") -> inference_pb2.InferRequest:
    """A request to the route or model `name`, all inputs raw.

    Args:
        name: Route or model.
        inputs: Arrays by input name.
        version: Version of a model; empty lets the mesh choose.
    """
    request = inference_pb2.InferRequest(model_name=name, model_version=version)
    for input_name, array in inputs.items():
        datatype = "BYTES" if array.dtype == object else DATATYPES[array.dtype]
        request.inputs.add(name=input_name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    return request


def outputs(response: inference_pb2.InferResponse) -> dict[str, NDArray[Any]]:
    """The arrays of an answer in raw form, by output name."""
    return {
        output.name: _array(output.datatype, tuple(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def texts(*items: str) -> NDArray[Any]:
    """Texts as a BYTES array of one dimension."""
    array = np.empty(len(items), dtype=object)
    array[:] = [item.encode() for item in items]
    return array


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return np.ascontiguousarray(array).tobytes()


def _array(datatype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    items, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        items.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)
