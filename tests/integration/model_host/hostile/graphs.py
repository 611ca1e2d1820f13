"""ONNX files that reach for other files, other code, or all memory; and broken files beside models."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tests.integration.model_host.hostile.workshop import Hostile, Wanted, Workshop
from tests.support import onnx_file as onnx
from tests.support.onnx_file import FLOAT, INT64, linear_onnx

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)

_Make = Callable[[Workshop], Wanted]


def corpus() -> Iterator[Hostile]:
    """Everything of this kind."""
    for external in _EXTERNAL:
        make = _content(linear_onnx(WEIGHTS, external=external))
        yield Hostile(f"weights in {external}", "onnxruntime", make, says="in another file")
    yield Hostile("weights in another artifact", "onnxruntime", _in_another_artifact, says="in another file")
    yield Hostile("weights elsewhere, in a branch", "onnxruntime", _branch, says="in another file")
    for name, content in _GRAPHS.items():
        yield Hostile(f"graph: {name}", "onnxruntime", _content(content))
    yield Hostile("graph: in the format of .ort", "onnxruntime", _ort)
    yield Hostile("graph: truncated", "onnxruntime", _content(linear_onnx(WEIGHTS)[:-40]))
    for name, content in _TOKENIZERS.items():
        yield Hostile(f"tokenizer: {name}", "onnxruntime", _beside(content), options=_TEXT)
    yield Hostile("graph: of another model", "onnxruntime", _content(linear_onnx(np.ones((2, 3), np.float32))))


_EXTERNAL = (
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "x/../../../secret.bin",
    "..\\secret.bin",
    "file:///etc/passwd",
    "m.onnx",
    "*/_ORT_MEM_ADDR_/*",
)
"""Where the weights are said to lie."""


def _node(kind: str, takes: list[str], gives: list[str], *, domain: str = "", attributes: bytes = b"") -> bytes:
    named = b"".join(onnx._bytes(1, name) for name in takes) + b"".join(onnx._bytes(2, name) for name in gives)
    return named + onnx._bytes(4, kind) + attributes + (onnx._bytes(7, domain) if domain else b"")


def _tensor(name: str, kind: int, dims: list[int], raw: bytes) -> bytes:
    sizes = b"".join(onnx._int(1, size & (1 << 64) - 1) for size in dims)
    return sizes + onnx._int(2, kind) + onnx._bytes(8, name) + onnx._bytes(9, raw)


def _graph(*nodes: bytes, tensors: tuple[bytes, ...] = ()) -> bytes:
    graph = b"".join(onnx._bytes(1, node) for node in nodes) + onnx._bytes(2, "g")
    graph += b"".join(onnx._bytes(5, tensor) for tensor in tensors)
    graph += onnx._bytes(11, onnx._value_info("x", FLOAT, ("n", 4)))
    return graph + onnx._bytes(12, onnx._value_info("y", FLOAT, ("n", 3)))


def _model(graph: bytes, *domains: str) -> bytes:
    sets = [onnx._bytes(8, onnx._bytes(1, domain) + onnx._int(2, 17 if not domain else 1)) for domain in ("", *domains)]
    return onnx._int(1, 8) + onnx._bytes(7, graph) + b"".join(sets)


def _multiplied(*more: bytes, tensors: tuple[bytes, ...] = ()) -> bytes:
    """`y = x @ w + r`, where further nodes make r."""
    weights = _tensor("w", FLOAT, [4, 3], WEIGHTS.tobytes())
    nodes = (*more, _node("MatMul", ["x", "w"], ["m"]), _node("Add", ["m", "r"], ["y"]))
    return _model(_graph(*nodes, tensors=(weights, *tensors)))


def _filled(elements: int) -> bytes:
    shape = _tensor("s", INT64, [1], np.array([elements], np.int64).tobytes())
    return _multiplied(_node("ConstantOfShape", ["s"], ["c"]), _node("ReduceSum", ["c"], ["r"]), tensors=(shape,))


def _nested(depth: int) -> bytes:
    content = _node("Identity", ["x"], ["y"])
    for _ in range(depth):
        branch = onnx._bytes(1, "then_branch") + onnx._bytes(6, onnx._bytes(1, content))
        content = _node("If", ["x"], ["y"], attributes=onnx._bytes(5, branch))
    return _model(_graph(content))


def _weights(dims: list[int], raw: bytes) -> bytes:
    return _model(_graph(_node("MatMul", ["x", "w"], ["y"]), tensors=(_tensor("w", FLOAT, dims, raw),)))


_GRAPHS: dict[str, bytes] = {
    "code of its own": _model(_graph(_node("Evil", ["x"], ["y"], domain="evil.example")), "evil.example"),
    "a library to load": _model(_graph(_node("EPContext", ["x"], ["y"], domain="com.microsoft")), "com.microsoft"),
    "an operator in Python": _model(_graph(_node("PythonOp", ["x"], ["y"], domain="com.microsoft")), "com.microsoft"),
    "a circle": _model(
        _graph(_node("Add", ["x", "b"], ["a"]), _node("Add", ["a", "x"], ["b"]), _node("Identity", ["b"], ["y"]))
    ),
    "8 GiB from 200 bytes": _filled(1 << 31),
    "8 EiB from 200 bytes": _filled(1 << 61),
    "huge dimensions": _weights([1 << 40, 1 << 40], bytes(48)),
    "dimensions that overflow": _weights([1 << 62, 4], b""),
    "dimensions that overflow to fit": _weights([4, (1 << 62) + 3], bytes(48)),
    "negative dimensions": _weights([-4, -3], bytes(48)),
    "elements that are not there": _weights([4, 3], bytes(8)),
    "branches 100 deep": _nested(100),
    "branches 2,000 deep": _nested(2_000),
    "no graph": onnx._int(1, 8),
    "a later format": onnx._int(1, 1 << 40) + onnx._bytes(7, _graph(_node("Identity", ["x"], ["y"]))),
    "a group, which protobuf has given up": b"\x3b" * 100 + b"\x3c" * 100,
    "a length beyond the file": onnx._int(1, 8) + b"\x3a\xff\xff\xff\xff\x0f" + b"x" * 64,
    "a number without an end": b"\x08" + b"\xff" * 64,
    "noise": bytes(np.random.default_rng(7).integers(0, 256, 4096, np.uint8)),
}


def _content(content: bytes) -> _Make:
    return lambda workshop: workshop.file("m.onnx", content)


def _in_another_artifact(workshop: Workshop) -> Wanted:
    """As if somebody knew the digest of what another version keeps in the cache."""
    return workshop.file("m.onnx", linear_onnx(WEIGHTS, external=f"../{'0' * 64}/w.bin"))


def _branch(workshop: Workshop) -> Wanted:
    """A tensor in an attribute of a node in a branch."""
    where = onnx._bytes(13, onnx._bytes(1, "location") + onnx._bytes(2, "/etc/passwd"))
    tensor = onnx._int(1, 1) + onnx._int(2, FLOAT) + where + onnx._int(14, 1)
    constant = _node("Constant", [], ["y"], attributes=onnx._bytes(5, onnx._bytes(1, "value") + onnx._bytes(5, tensor)))
    branch = onnx._bytes(1, "then_branch") + onnx._bytes(6, onnx._bytes(1, constant))
    return workshop.file("m.onnx", _model(_graph(_node("If", ["x"], ["y"], attributes=onnx._bytes(5, branch)))))


def _ort(workshop: Workshop) -> Wanted:
    """Its name alone makes onnxruntime read it as a flat buffer."""
    return workshop.file("m.ort", b"\x18\0\0\0ORTM" + b"\xff" * 256)


_TEXT = {"tokenizer": "tokenizer.json", "text_input": "x", "max_length": "8"}

_TOKENIZERS = {
    "a pickle": b"\x80\x04N.",
    "a page": b"<html>",
    "nothing": b"",
    "nested 100,000 deep": b"[" * 100_000,
    "no model": b'{"version": "1.0", "model": {"type": "Nothing"}}',
}


def _beside(content: bytes) -> _Make:
    return lambda workshop: replace(
        workshop.file("m.onnx", linear_onnx(WEIGHTS)),
        files={"tokenizer.json": workshop.file("tokenizer.json", content)},
    )
