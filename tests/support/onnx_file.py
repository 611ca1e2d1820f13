"""ONNX files for tests, written field by field: the `onnx` package is not among the dependencies.

Numbers are those of onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
"""

from collections.abc import Sequence

import numpy as np

from services.model_host.tensors import NDArray

FLOAT, INT64 = 1, 7
"""TensorProto.DataType."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _value_info(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_bytes(1, _bytes(2, size) if isinstance(size, str) else _int(1, size)) for size in shape)
    tensor = _int(1, kind) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _initializer(name: str, array: NDArray) -> bytes:
    dims = b"".join(_int(1, size) for size in array.shape)
    return dims + _int(2, FLOAT) + _bytes(8, name) + _bytes(9, array.astype(np.float32).tobytes())


def linear_onnx(weights: NDArray, *, external: str = "") -> bytes:
    """`y = x @ weights`, FP32, `x` and `y` with a free first dimension.

    Args:
        weights: [in, out].
        external: A file that the weights are said to lie in, instead of the graph itself.
    """
    node = _bytes(1, "x") + _bytes(1, "w") + _bytes(2, "y") + _bytes(4, "MatMul")
    weight = _initializer("w", weights)
    if external:
        dims = b"".join(_int(1, size) for size in weights.shape)
        where = _bytes(13, _bytes(1, "location") + _bytes(2, external))
        weight = dims + _int(2, FLOAT) + _bytes(8, "w") + where + _int(14, 1)
    graph = _bytes(1, node) + _bytes(2, "g") + _bytes(5, weight)
    graph += _bytes(11, _value_info("x", FLOAT, ("n", weights.shape[0])))
    graph += _bytes(12, _value_info("y", FLOAT, ("n", weights.shape[1])))
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _int(2, 17))


def endless_onnx() -> bytes:
    """`y = x`, in a loop that goes round 2^62 times."""
    boolean = 9
    condition = [_bytes(1, name) + _bytes(2, _bytes(1, _int(1, boolean) + _bytes(2, b""))) for name in ("c", "d")]
    count = _bytes(1, "i") + _bytes(2, _bytes(1, _int(1, INT64) + _bytes(2, b"")))
    body = b"".join(
        _bytes(1, _bytes(1, source) + _bytes(2, target) + _bytes(4, "Identity")) for source, target in ("cd", "vw")
    )
    body += (
        _bytes(2, "body") + _bytes(11, count) + _bytes(11, condition[0]) + _bytes(11, _value_info("v", FLOAT, ("n", 4)))
    )
    body += _bytes(12, condition[1]) + _bytes(12, _value_info("w", FLOAT, ("n", 4)))
    loop = b"".join(_bytes(1, name) for name in ("most", "go", "x")) + _bytes(2, "y") + _bytes(4, "Loop")
    loop += _bytes(5, _bytes(1, "body") + _bytes(6, body) + _int(20, 5))
    most = _int(2, INT64) + _bytes(8, "most") + _bytes(9, (1 << 62).to_bytes(8, "little"))
    go = _int(2, boolean) + _bytes(8, "go") + _bytes(9, b"\1")
    graph = _bytes(1, loop) + _bytes(2, "g") + _bytes(5, most) + _bytes(5, go)
    graph += _bytes(11, _value_info("x", FLOAT, ("n", 4))) + _bytes(12, _value_info("y", FLOAT, ("n", 4)))
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _int(2, 17))
