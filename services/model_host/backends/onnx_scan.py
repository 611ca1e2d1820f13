"""Whether an ONNX file keeps to itself, found out by walking its fields without building anything from them.

A tensor may say that its elements lie in another file. An artifact is one file; what onnxruntime would read besides,
nobody has checked. Field numbers are those of onnx.proto3.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from services.domain.errors import ArtifactRejected

MAX_DEPTH = 64
"""Most messages within each other; a loop in a loop in a loop takes a dozen."""

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Fields of each message that can lead to a tensor, and what they hold."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def check_onnx(path: Path) -> None:
    """Read the fields of `path`.

    Raises:
        ArtifactRejected: A tensor lies elsewhere, or it is no protobuf message.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _walk(content, path.name)
    except (ValueError, IndexError) as error:
        raise ArtifactRejected(f"{path.name} is no ONNX model that can be run: {error}") from None


def _walk(content: mmap.mmap, name: str) -> None:
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"messages lie within each other {MAX_DEPTH} deep")
        inner = _MESSAGES[kind]
        for number, wire, begin, stop in _fields(content, start, end):
            if kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION):
                if number == _EXTERNAL_DATA or content[begin:stop] != b"\0":
                    raise ArtifactRejected(f"{name} keeps tensors in another file; save it as one file")
            elif wire == _LENGTH and number in inner:
                waiting.append((inner[number], begin, stop, depth + 1))


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the value begins and stops, of each field; raises ValueError or IndexError."""
    while at < end:
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == _VARINT:
            _, stop = _varint(content, at)
        elif wire == _FIXED64:
            stop = at + 8
        elif wire == _FIXED32:
            stop = at + 4
        elif wire == _LENGTH:
            length, at = _varint(content, at)
            stop = at + length
        else:
            raise ValueError("its fields are not those of a message")
        if stop > end:
            raise ValueError("a field ends behind the message that it is in")
        yield tag >> 3, wire, at, stop
        at = stop


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has too many bytes")
