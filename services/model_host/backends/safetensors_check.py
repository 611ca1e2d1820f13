"""Whether a safetensors file is exactly what its header says, before anything maps it.

The library checks most of this; what is here holds whichever version of it is installed, and refuses what readers
disagree on: names that come twice, NaN in the JSON, holes and overlaps, sizes that only fit after an overflow.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, NoReturn

from services.domain.errors import ArtifactRejected

MAX_HEADER_BYTES = 16 << 20
"""About 100,000 tensors; real files have a few hundred. A header becomes Python objects ten times its size."""

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of an element by datatype."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"


def check_safetensors(path: Path) -> None:
    """Read the header of `path`.

    Raises:
        ArtifactRejected: It is broken.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LENGTH_BYTES)
            (length,) = struct.unpack("<Q", head)
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length} bytes, and {MAX_HEADER_BYTES} are the most")
            header = file.read(length)
        if len(header) < length:
            raise ValueError("it ends in its header")
        data_bytes = path.stat().st_size - _LENGTH_BYTES - length
        _check_header(json.loads(header, object_pairs_hook=_unique, parse_constant=_refuse), data_bytes)
    except (ValueError, TypeError, RecursionError, struct.error) as error:
        raise ArtifactRejected(f"{path.name} is a broken safetensors file: {str(error)[:200]}") from None


def _check_header(header: Any, data_bytes: int) -> None:
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("its metadata are not texts")
    at = 0
    for begin, end, name in sorted((*_place(name, tensor), name) for name, tensor in header.items()):
        if begin != at:
            raise ValueError(f"the bytes of '{name}' do not follow those before them")
        at = end
    if at != data_bytes:
        raise ValueError(f"its tensors take {at} bytes, and it has {data_bytes}")


def _place(name: str, tensor: Any) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise TypeError(f"'{name}' is described by something else than dtype, shape and data_offsets")
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    item_bytes = ITEM_BYTES.get(str(tensor["dtype"]))
    if item_bytes is None:
        raise ValueError(f"'{name}' is of the unknown type '{tensor['dtype']}'")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise TypeError(f"'{name}' has dimensions or offsets that are no sizes")
    begin, end = offsets
    if end - begin != item_bytes * math.prod(shape):
        raise ValueError(f"'{name}' has {end - begin} bytes, its shape takes {item_bytes * math.prod(shape)}")
    return begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
