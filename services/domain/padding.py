"""How inputs of different lengths may share a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Padding:
    """One dimension of an input that may be filled up to the longest of a batch: the model ignores what fills it."""

    input: str
    dimension: int
    """1 or more: 0 is the batch's own."""
    value: float = 0.0
    """What fills it."""
    outputs: Mapping[str, int] = field(default_factory=dict)
    """Outputs that are as long in a dimension, and that dimension: they are cut back to the call's own length."""
