"""Arithmetic on tensors beside the event loop, where it would hold up other calls."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from services.domain.tensor import RawTensor

LARGE_BYTES = 64 * 1024
"""From this size on a thread is worth its way: some 100 µs there and back, of arithmetic that takes as long."""

T = TypeVar("T")


async def computed(answers: Iterable[Mapping[str, RawTensor]], compute: Callable[[], T]) -> T:
    """What `compute` makes of `answers`."""
    size = sum(len(tensor.raw) for answer in answers for tensor in answer.values())
    return compute() if size < LARGE_BYTES else await asyncio.to_thread(compute)
