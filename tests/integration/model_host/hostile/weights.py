"""Files of weights that are not what they say: safetensors, GGUF, and things that are no weights at all."""

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.integration.model_host.hostile.workshop import Hostile, Wanted, Workshop

_WEIGHT, _BIAS = "layers.0.weight", "layers.0.bias"
_DATA = bytes(4 * 12 + 4 * 3)


def corpus() -> Iterator[Hostile]:
    """Everything of this kind."""
    for name, header in _HEADERS.items():
        yield Hostile(f"safetensors: {name}", "torch", _safetensors(header), says="broken safetensors")
    for name, text in _TEXTS.items():
        yield Hostile(f"safetensors: {name}", "torch", _text(text), says="broken safetensors")
    honest = _tensors()
    yield Hostile("safetensors: truncated", "torch", _safetensors(honest, _DATA[:-1]), says="broken safetensors")
    yield Hostile("safetensors: longer than it says", "torch", _safetensors(honest, _DATA + b"x"), says="broken")
    yield Hostile("safetensors: a payload behind the tensors", "torch", _appended, says="broken safetensors")
    yield Hostile("safetensors: a header beyond the file", "torch", _length(1 << 20), says="broken safetensors")
    yield Hostile("safetensors: a header of 2^63 bytes", "torch", _length(1 << 63), says="unknown format")
    yield Hostile("safetensors: a header of 17 MiB", "torch", _long_header, says="broken safetensors")
    yield Hostile("safetensors: other tensors", "torch", _safetensors(_tensors(bias="other")), says="do not fit")
    yield Hostile("safetensors: other shapes", "torch", _safetensors(_tensors(shape=[4, 3])), says="do not fit")
    for backend in ("torch", "onnxruntime", "sklearn"):
        yield Hostile(f"nothing, for {backend}", backend, lambda workshop: workshop.file("m.bin", b""))
        yield Hostile(f"a web page, for {backend}", backend, lambda workshop: workshop.file("m.bin", _PAGE))
        yield Hostile(f"a script, for {backend}", backend, _script)
    yield Hostile("GGUF with a count of 2^64", "torch", lambda workshop: workshop.file("m.gguf", _GGUF))
    yield Hostile(
        "a shared library", "onnxruntime", lambda workshop: workshop.file("m.so", b"\x7fELF\x02\x01\x01" * 99)
    )
    yield Hostile("safetensors for onnxruntime", "onnxruntime", _safetensors(honest), says="takes ONNX files")
    yield Hostile("a pointer of Git LFS", "torch", lambda workshop: workshop.file("m.safetensors", _POINTER))


_PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>\n"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"
_GGUF = b"GGUF" + struct.pack("<IQQ", 3, (1 << 64) - 1, (1 << 64) - 1) + b"\xff" * 64


def _tensor(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _tensors(*, bias: str = _BIAS, shape: list[int] | None = None) -> dict[str, Any]:
    return {_WEIGHT: _tensor(shape or [3, 4], 0, 48), bias: _tensor([3], 48, 60)}


_HEADERS: dict[str, dict[str, Any]] = {
    "overlap": {_WEIGHT: _tensor([3, 4], 0, 48), _BIAS: _tensor([3], 36, 48)},
    "one inside the other": {_WEIGHT: _tensor([3, 5], 0, 60), _BIAS: _tensor([3], 48, 60)},
    "hole": {_WEIGHT: _tensor([3, 3], 0, 36), _BIAS: _tensor([3], 48, 60)},
    "beyond the file": {_WEIGHT: _tensor([3, 4], 0, 48), _BIAS: _tensor([300], 48, 1248)},
    "negative offset": {_WEIGHT: _tensor([3, 4], -48, 0), _BIAS: _tensor([3], 48, 60)},
    "end before begin": {_WEIGHT: _tensor([3, 4], 48, 0), _BIAS: _tensor([3], 48, 60)},
    "shape that overflows": {_WEIGHT: _tensor([1 << 32, 1 << 32], 0, 0), _BIAS: _tensor([15], 0, 60)},
    "shape that overflows to fit": {_WEIGHT: _tensor([(1 << 62) + 3, 4], 0, 48), _BIAS: _tensor([3], 48, 60)},
    "dimension beyond 64 bits": {_WEIGHT: _tensor([1 << 70, 0], 0, 0), _BIAS: _tensor([15], 0, 60)},
    "negative dimensions": {_WEIGHT: _tensor([-3, -4], 0, 48), _BIAS: _tensor([3], 48, 60)},
    "fractions": {_WEIGHT: _tensor([3.0, 4.0], 0, 48), _BIAS: _tensor([3], 48, 60)},
    "truth values": {_WEIGHT: _tensor([3, 4, True], 0, 48), _BIAS: _tensor([3], 48, 60)},
    "texts for offsets": {_WEIGHT: _tensor([3, 4], "0", "48"), _BIAS: _tensor([3], 48, 60)},
    "type of twice the size": {_WEIGHT: _tensor([3, 4], 0, 48, "F64"), _BIAS: _tensor([3], 48, 60)},
    "unknown type": {_WEIGHT: _tensor([3, 4], 0, 48, "OBJECT"), _BIAS: _tensor([3], 48, 60)},
    "metadata that are no texts": {**_tensors(), "__metadata__": {"format": {"pickle": 1}}},
    "further fields": {_WEIGHT: {**_tensor([3, 4], 0, 48), "pickle": "x"}, _BIAS: _tensor([3], 48, 60)},
    "no offsets": {_WEIGHT: {"dtype": "F32", "shape": [3, 4]}, _BIAS: _tensor([3], 0, 60)},
    "nothing at all": {},
}

_HONEST = json.dumps(_tensors())
_TEXTS: dict[str, bytes] = {
    "a name twice": (_HONEST[:-1] + f', "{_BIAS}": {json.dumps(_tensor([3], 48, 60))}}}').encode(),
    "a field twice": _HONEST.replace('"dtype": "F32"', '"dtype": "F64", "dtype": "F32"', 1).encode(),
    "NaN": _HONEST.replace("[3]", "[NaN]").encode(),
    "Infinity": _HONEST.replace("60]", "Infinity]").encode(),
    "a number of 5,000 digits": _HONEST.replace("60]", f"{'9' * 5000}]").encode(),
    "no UTF-8": _HONEST.encode().replace(b"bias", b"\xff\xfe\xfd\xfc"),
    "no end": _HONEST[:-1].encode(),
    "nested 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "something behind the header": _HONEST.encode() + b"{}",
}


def _encoded(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _safetensors(header: dict[str, Any], data: bytes = _DATA) -> Callable[[Workshop], Wanted]:
    return lambda workshop: workshop.file("m.safetensors", _encoded(json.dumps(header).encode(), data))


def _text(header: bytes) -> Callable[[Workshop], Wanted]:
    return lambda workshop: workshop.file("m.safetensors", _encoded(header, _DATA))


def _length(length: int) -> Callable[[Workshop], Wanted]:
    honest = _HONEST.encode()
    return lambda workshop: workshop.file("m.safetensors", struct.pack("<Q", length) + honest + _DATA)


def _long_header(workshop: Workshop) -> Wanted:
    return workshop.file("m.safetensors", _encoded(_HONEST.encode().ljust(17 << 20), _DATA))


def _appended(workshop: Workshop) -> Wanted:
    return workshop.file("m.safetensors", _encoded(_HONEST.encode(), _DATA) + workshop.pickled())


def _script(workshop: Workshop) -> Wanted:
    return workshop.file("m.bin", f"#!/bin/sh\ntouch {workshop.canary}\n".encode())
