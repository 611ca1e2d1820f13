"""Reads GGUF files: metadata, and tensors as 32-bit floats, exactly as their blocks say.

The format is ggml's ("GGUF", github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3). A file is data; it is
read with every length checked against what is there. Only the tensor types that the zoo meets are known.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_ITEMS = 1 << 24
"""Most entries of an array or a table; a larger number is a broken file."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
"""struct's format by type of a value."""


class GgufError(Exception):
    """The file is not a GGUF file of a kind that can be read; the text says why."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """Rows first, as numpy has it; the file has it the other way around."""
    kind: int
    offset: int


class Gguf:
    """One file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Read metadata and the table of tensors.

        Raises:
            GgufError: It is none.
        """
        self._raw: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        self._at = 0
        if self._take(4) != MAGIC or (version := self._scalar("<I")) not in VERSIONS:
            raise GgufError(f"{path.name} is no GGUF file of version 2 or 3")
        del version
        tensors, values = self._count(), self._count()
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            name = self._string()
            self.metadata[name] = self._value(self._scalar("<I"))
        self._entries: dict[str, _Entry] = {}
        for _ in range(tensors):
            name = self._string()
            rank = self._scalar("<I")
            if rank > 4:
                raise GgufError(f"tensor {name} has {rank} dimensions")
            shape = tuple(self._scalar("<Q") for _ in range(rank))
            self._entries[name] = _Entry(shape[::-1], self._scalar("<I"), self._scalar("<Q"))
        alignment = int(self.metadata.get("general.alignment", ALIGNMENT))
        self._data = -(-self._at // alignment) * alignment

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors."""
        return tuple(self._entries)

    def kind(self, name: str) -> str:
        """What a tensor's blocks are, such as `Q4_1`."""
        kind = self._entries[name].kind
        return _KINDS[kind].name if kind in _KINDS else f"type {kind}"

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor.

        Raises:
            GgufError: There is none of that name, it is of another type, or it is cut off.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise GgufError(f"there is no tensor {name}")
        kind = _KINDS.get(entry.kind)
        if kind is None:
            raise GgufError(f"tensor {name} is of type {entry.kind}, which is not read here")
        count = int(np.prod(entry.shape, dtype=np.int64))
        if count % kind.items:
            raise GgufError(f"tensor {name} does not fill its blocks")
        start, length = self._data + entry.offset, count // kind.items * kind.block_bytes
        if start + length > self._raw.size:
            raise GgufError(f"tensor {name} is cut off")
        blocks = self._raw[start : start + length].reshape(-1, kind.block_bytes)
        return kind.decode(blocks).reshape(entry.shape)

    # --- the header -----------------------------------------------------------------------------

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > self._raw.size:
            raise GgufError("the header is cut off")
        taken = self._raw[self._at : end].tobytes()
        self._at = end
        return taken

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self) -> int:
        count = int(self._scalar("<Q"))
        if count > MOST_ITEMS:
            raise GgufError(f"the header says of {count} entries")
        return count

    def _string(self) -> str:
        return self._take(self._count()).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item = self._scalar("<I")
            if item == _ARRAY:
                raise GgufError("an array holds arrays")
            return [self._value(item) for _ in range(self._count())]
        if kind not in _SCALARS:
            raise GgufError(f"a value is of type {kind}")
        return self._scalar(_SCALARS[kind])


# --- blocks -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    items: int
    block_bytes: int
    decode: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """One 16-bit float of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Two numbers of 4 bits in each byte: all the low halves, then all the high ones."""
    return np.concatenate((packed & 0x0F, packed >> 4), axis=1).astype(np.float32)


def _f32(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _f16(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


_KINDS = {
    0: _Kind("F32", 1, 4, _f32),
    1: _Kind("F16", 1, 2, _f16),
    3: _Kind("Q4_1", 32, 20, _q4_1),
    8: _Kind("Q8_0", 32, 34, _q8_0),
}
