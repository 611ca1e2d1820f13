"""What makes a schema well formed, and whether schemas fit: a route's, its models', a pipeline's steps'."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from services.domain.errors import Fault
from services.domain.model import ITEM_BYTES, MAX_RANK, TensorSpec
from services.domain.texts import MAX_NAME_LENGTH, line_faults, shown, too_many

MAX_TENSORS = 256
"""Most inputs, and most outputs."""

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""Datatypes that can be averaged, and compared with a threshold."""


class Schema(NamedTuple):
    """What something takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def tensor_spec_faults(specs: Sequence[TensorSpec], path: str) -> list[Fault]:
    """Everything wrong with a list of tensors, which must not be empty."""
    if not specs:
        return [Fault(path, "at least one is needed")]
    if len(specs) > MAX_TENSORS:
        return [too_many(len(specs), MAX_TENSORS, path)]
    faults = []
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        at = f"{path}[{index}]"
        faults += line_faults(spec.name, f"{at}.name", most=MAX_NAME_LENGTH, needed=True)
        if spec.name in seen:
            faults.append(Fault(f"{at}.name", f"{shown(spec.name)} stands twice"))
        seen.add(spec.name)
        if spec.datatype not in ITEM_BYTES:
            faults.append(Fault(f"{at}.datatype", f"{shown(spec.datatype)} is none of {', '.join(ITEM_BYTES)}"))
        if len(spec.shape) > MAX_RANK:
            faults.append(Fault(f"{at}.shape", f"rank {len(spec.shape)} is over {MAX_RANK}"))
        elif any(size < -1 or size == 0 for size in spec.shape):
            faults.append(Fault(f"{at}.shape", f"{list(spec.shape)}: a dimension is positive, or -1 for any size"))
    return faults


def unlike(one: Sequence[TensorSpec], other: Sequence[TensorSpec]) -> bool:
    """Whether two lists of tensors differ in a name, a type or a shape."""
    return _essence(one) != _essence(other)


def input_misfits(taken: Sequence[TensorSpec], promised: Sequence[TensorSpec]) -> Iterator[str]:
    """Why requests that are right by `promised` can be wrong for who takes `taken`."""
    specs = {spec.name: spec for spec in taken}
    for want in promised:
        spec = specs.pop(want.name, None)
        if spec is None:
            yield f"takes no input {shown(want.name)}"
            continue
        if want.optional and not spec.optional:
            yield f"needs input {shown(want.name)}, which is optional here"
        if want.allow_non_finite and not spec.allow_non_finite:
            yield f"refuses NaN and infinities in input {shown(want.name)}, which are allowed here"
        if spec.datatype != want.datatype or not _covers(spec.shape, want.shape):
            yield f"takes {_told(spec)} as input {shown(want.name)}, here it is {_told(want)}"
    yield from (f"needs input {shown(spec.name)}, which is not here" for spec in specs.values() if not spec.optional)


def output_misfits(given: Sequence[TensorSpec], promised: Sequence[TensorSpec]) -> Iterator[str]:
    """Why answers of who gives `given` can be wrong by `promised`; it may give more."""
    specs = {spec.name: spec for spec in given}
    for want in promised:
        spec = specs.get(want.name)
        if spec is None:
            yield f"gives no output {shown(want.name)}"
        elif spec.datatype != want.datatype or not _covers(want.shape, spec.shape):
            yield f"gives {_told(spec)} as output {shown(want.name)}, here it is {_told(want)}"


def wiring_misfit(source: TensorSpec, sink: TensorSpec, *, strict: bool) -> str:
    """Why a tensor cannot be another one's input; empty if it can.

    Args:
        source: Where it comes from.
        sink: Where it goes.
        strict: Whether any size of the source must do; else one that does is enough, and the rest shows in a call.
    """
    fits = _covers(sink.shape, source.shape) if strict else _may_meet(sink.shape, source.shape)
    if source.datatype == sink.datatype and fits:
        return ""
    return f"it is {_told(source)}, {_told(sink)} is needed"


def _essence(specs: Sequence[TensorSpec]) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    return frozenset((spec.name, spec.datatype, spec.shape) for spec in specs)


def _covers(wide: Sequence[int], narrow: Sequence[int]) -> bool:
    return len(wide) == len(narrow) and all(most in (-1, size) for most, size in zip(wide, narrow, strict=True))


def _may_meet(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _told(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
