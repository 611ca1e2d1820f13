"""What a model takes and gives: keys, schemas, and the tensor rules of the Open Inference Protocol V2."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.errors import Fault

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
"""Bytes of one element by datatype; 0 for BYTES, whose elements vary."""

RAW_ONLY = frozenset({"FP16", "BF16"})
"""Datatypes that have no typed form."""

MAX_RANK = 8
"""Most dimensions of a tensor."""

MAX_ELEMENTS = 1 << 31
"""Most elements of a tensor; beyond it no message could hold them."""


class ModelKey(NamedTuple):
    """One version of one model."""

    model: str
    version: str

    def __str__(self) -> str:
        """`model:version`."""
        return f"{self.model}:{self.version}"


class ModelState(enum.Enum):
    """Where a version stands on one host."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    allow_non_finite: bool = False


class TensorMeta(NamedTuple):
    """What a request says of one tensor, without its elements.

    Exactly one of `raw_bytes` and `typed_count` is set, or neither where only a
    decision is asked for.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw_bytes: int | None = None
    typed_count: int | None = None

    @property
    def elements(self) -> int:
        """Product of the dimensions."""
        return math.prod(self.shape)


def tensor_faults(tensor: TensorMeta, path: str) -> list[Fault]:
    """Everything wrong with a tensor by itself, whatever the model.

    Args:
        tensor: What the request says.
        path: Field path of the tensor, such as `inputs[0]`.

    Returns:
        Faults; empty if datatype, rank, dimensions and lengths agree.
    """
    named = f"input '{tensor.name}'"
    item_bytes = ITEM_BYTES.get(tensor.datatype)
    if item_bytes is None:
        known = ", ".join(ITEM_BYTES)
        return [Fault(f"{path}.datatype", f"{named}: '{tensor.datatype}' is no datatype; known: {known}")]
    if len(tensor.shape) > MAX_RANK:
        return [Fault(f"{path}.shape", f"{named}: rank {len(tensor.shape)} is over {MAX_RANK}")]
    if any(size < 0 for size in tensor.shape):
        return [Fault(f"{path}.shape", f"{named}: shape {list(tensor.shape)} has a negative dimension")]
    elements = tensor.elements
    if elements > MAX_ELEMENTS:
        return [Fault(f"{path}.shape", f"{named}: shape {list(tensor.shape)} has more than {MAX_ELEMENTS} elements")]
    if tensor.raw_bytes is not None:
        # Each BYTES element carries a length of 4 bytes, so their number bounds the size from below.
        expected = elements * (item_bytes or 4)
        wrong = tensor.raw_bytes < expected if item_bytes == 0 else tensor.raw_bytes != expected
        if wrong:
            least = "at least " if item_bytes == 0 else ""
            return [
                Fault(
                    f"{path}",
                    f"{named}: {tensor.datatype} of shape {list(tensor.shape)} takes "
                    f"{least}{expected} bytes, {tensor.raw_bytes} came",
                )
            ]
    if tensor.typed_count is not None:
        if tensor.datatype in RAW_ONLY:
            return [Fault(f"{path}.contents", f"{named}: {tensor.datatype} travels in raw_input_contents only")]
        if tensor.typed_count != elements:
            return [
                Fault(
                    f"{path}.contents",
                    f"{named}: shape {list(tensor.shape)} has {elements} elements, {tensor.typed_count} came "
                    f"in the field for {tensor.datatype}",
                )
            ]
    return []


def schema_faults(tensors: Sequence[TensorMeta], schema: Sequence[TensorSpec], *, path: str = "inputs") -> list[Fault]:
    """Everything wrong with a request's inputs for a model's schema.

    Args:
        tensors: The inputs as sent.
        schema: The model's inputs.
        path: Field path of the list of inputs.

    Returns:
        Faults; empty if every input fits.
    """
    faults: list[Fault] = []
    specs = {spec.name: spec for spec in schema}
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        at = f"{path}[{index}]"
        spec = specs.get(tensor.name)
        if spec is None:
            faults.append(
                Fault(f"{at}.name", f"input '{tensor.name}' is not one of the model's: {', '.join(sorted(specs))}")
            )
            continue
        if tensor.name in seen:
            faults.append(Fault(f"{at}.name", f"input '{tensor.name}' came twice"))
        seen.add(tensor.name)
        wrong = tensor_faults(tensor, at)
        if wrong:
            faults.extend(wrong)
            continue
        if tensor.datatype != spec.datatype:
            faults.append(
                Fault(f"{at}.datatype", f"input '{tensor.name}' must be {spec.datatype}, {tensor.datatype} came")
            )
        if len(tensor.shape) != len(spec.shape) or any(
            want not in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=False)
        ):
            faults.append(
                Fault(
                    f"{at}.shape",
                    f"input '{tensor.name}' must have shape {list(spec.shape)} (-1 is any size), "
                    f"{list(tensor.shape)} came",
                )
            )
    faults.extend(
        Fault(path, f"input '{spec.name}' ({spec.datatype} {list(spec.shape)}) is missing")
        for spec in schema
        if not spec.optional and spec.name not in seen
    )
    return faults
