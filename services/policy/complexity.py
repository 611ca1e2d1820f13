"""What kind of call this is, as far as quality and time depend on it: its domain, how large it is, and its labels.

Read off shapes, sizes and what the caller declares; never off the elements.
"""

from collections.abc import Sequence
from typing import NamedTuple

from services.domain.model import TensorMeta, TensorSpec
from services.domain.request import RouteOptions

TOKEN_BYTES = 4
"""Bytes of text that count as one element: about a token of English."""


class Kind(NamedTuple):
    """Calls that are alike."""

    domain: str = ""
    """What the call is about, as the caller says; empty says nothing."""
    complexity: str = ""
    """How hard it is: what the caller declares, else a bucket of its size."""
    labels: tuple[tuple[str, str], ...] = ()
    """Whom or what it is for, sorted by key."""


def kind_of(options: RouteOptions, inputs: Sequence[TensorMeta], schema: Sequence[TensorSpec]) -> Kind:
    """The kind that a call is of for a model of this schema."""
    return Kind(options.domain, options.complexity or size_bucket(inputs, schema), options.labels)


def size_bucket(inputs: Sequence[TensorMeta], schema: Sequence[TensorSpec]) -> str:
    """`ELEMENTSxROWS`, as `size_of` counts them, each up to the next power of four.

    Returns:
        The bucket, such as `1024x1`; empty for a call without inputs.
    """
    if not inputs:
        return ""
    elements, rows = size_of(inputs, schema)
    return f"{_power_of_four(elements)}x{_power_of_four(rows)}"


def size_of(inputs: Sequence[TensorMeta], schema: Sequence[TensorSpec]) -> tuple[int, int]:
    """Elements of one row over all inputs, and rows.

    A first dimension that the model's schema leaves open is that of the batch: it counts rows. Elements are whatever
    the model takes: pixels, samples, token ids, features; a text is as many as its bytes make tokens.
    """
    open_first = {spec.name for spec in schema if spec.shape[:1] == (-1,)}
    elements, rows = 0, 1
    for tensor in inputs:
        count = tensor.elements
        if tensor.datatype == "BYTES" and tensor.raw_bytes is not None:
            count = max(count, tensor.raw_bytes // TOKEN_BYTES)
        if tensor.name in open_first and tensor.shape and tensor.shape[0] > 0:
            rows = max(rows, tensor.shape[0])
            count //= tensor.shape[0]
        elements += count
    return elements, rows


def _power_of_four(number: int) -> int:
    """The least that is not below `number`; of 0 it is 1."""
    bits = max(0, number - 1).bit_length()
    return 1 << bits + bits % 2
