"""How far two answers to the same call are apart."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from services.domain.tensor import RawTensor
from services.policy.numbers import numbers_of

COMPARED_BYTES = 1 << 20
"""Outputs up to this size are compared number by number: a megabyte takes a millisecond. Of larger ones only whether
they are the same."""


class Verdict(enum.Enum):
    """What came out."""

    EQUAL = "equal"
    """To the last bit."""
    DIFFERENT = "different"
    OTHER_SHAPE = "other_shape"
    """Types or shapes differ, or they have no output in common."""


class Comparison(NamedTuple):
    """Two answers beside each other."""

    verdict: Verdict
    largest: float | None = None
    """Largest absolute difference of two numbers; infinite where only one of them is a number. None where nothing could
    be subtracted."""
    output: str = ""
    """Where that, or the first difference of another kind, is."""


def compare(one: Mapping[str, RawTensor], other: Mapping[str, RawTensor]) -> Comparison:
    """Compare the outputs that both have."""
    common = [name for name in one if name in other]
    if not common:
        return Comparison(Verdict.OTHER_SHAPE)
    for name in common:
        if one[name][:2] != other[name][:2]:
            return Comparison(Verdict.OTHER_SHAPE, None, name)
    found = Comparison(Verdict.EQUAL, 0.0)
    for name in common:
        if one[name].raw == other[name].raw:
            continue
        largest = _largest(one[name], other[name])
        if found.verdict is Verdict.EQUAL or (largest or 0.0) > (found.largest or 0.0):
            found = Comparison(Verdict.DIFFERENT, largest, name)
    return found


def _largest(one: RawTensor, other: RawTensor) -> float | None:
    if len(one.raw) > COMPARED_BYTES or one.datatype == "BYTES":
        return None
    try:
        left, right = (numbers_of(tensor).astype("f8") for tensor in (one, other))
    except ValueError:
        return None
    with np.errstate(invalid="ignore"):
        apart = np.abs(left - right)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))
