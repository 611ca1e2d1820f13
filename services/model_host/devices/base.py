"""What every device offers. Which frameworks run on it is `backends`; that the models together fit it, `lifecycle`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from services.domain.host import DeviceKind
from services.model_host.tensors import NDArray


class Staging(Protocol):
    """Gives memory to gather a batch in."""

    def __call__(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        """An array whose contents are undefined."""
        ...


@dataclass(slots=True)
class Peak:
    """Memory that something took while it was measured; zeros until that is over."""

    peak_bytes: int = 0
    """At most."""
    kept_bytes: int = 0
    """Still at the end."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a device stands."""

    free_bytes: int
    """What this process could still take: other processes may hold some."""
    own_bytes: int
    """What this process holds."""
    utilization: float | None = None
    """Share of about the last second in which the device computed, for whomever, in [0, 1]; None where it does not
    say."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs whose results are known; every element is a small integer."""

    left: NDArray
    """FP32 [m, k]."""
    right: NDArray
    """FP32 [k, n]."""
    image: NDArray
    """FP32 [channels, height, width]."""
    kernels: NDArray
    """FP32 [filters, channels, kernel height, kernel width]."""


@dataclass(frozen=True, slots=True)
class GoldenResults:
    """What a device makes of `Golden`."""

    product: NDArray
    """left @ right, [m, n]."""
    sums: NDArray
    """Sums of the rows of left, [m]."""
    features: NDArray
    """Correlation of image with each kernel, without padding, [filters, ..., ...]."""


class ComputeDevice(Protocol):
    """What a host computes with."""

    @property
    def kind(self) -> DeviceKind:
        """CPU or CUDA."""
        ...

    @property
    def name(self) -> str:
        """What the driver or the operating system calls it."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes that models may take in all."""
        ...

    def adopt_thread(self) -> None:
        """Make the calling thread one that computes here; call once, before its first job."""
        ...

    def staging(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        """Memory that is copied to the device fast, its contents undefined.

        It is the caller's for as long as anything refers to it or to a view of it. Call on a thread that was
        adopted.
        """
        ...

    def golden(self, inputs: Golden, /) -> GoldenResults:
        """Compute what is known, by the ways that models' tensors go.

        Raises:
            Exception: Whatever the device raises.
        """
        ...

    def measure(self) -> contextlib.AbstractContextManager[Peak]:
        """Measure the memory taken while the context is open, over what was taken before."""
        ...

    def held_bytes(self) -> int:
        """Memory that this process holds on the device now; what is free and kept for later does not count."""
        ...

    def usage(self) -> Usage:
        """How the device stands. May take milliseconds; not for the event loop."""
        ...

    def trim(self) -> None:
        """Give back memory that is free already, without looking for what could be: in a millisecond."""
        ...

    def release(self) -> None:
        """Give freed memory back to the operating system or the driver."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that memory ran out; smaller work may still succeed."""
        ...

    def is_broken(self, error: BaseException) -> bool:
        """Whether after `error` nothing will compute in this process any more."""
        ...
