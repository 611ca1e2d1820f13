"""A CUDA device that is simulated: memory that runs out, copies that take time, faults that condemn.

It computes on the CPU and raises what torch raises, with torch's own classes and texts, so that the product's judgement
of errors is what is tested. Nothing in the product can choose it: tests hand it in.
"""

import contextlib
import enum
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.domain.host import DeviceKind
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.base import Backend, LoadedModel
from services.model_host.devices.base import ComputeDevice, Golden, GoldenResults, Peak, Usage
from services.model_host.devices.cpu import CpuDevice
from services.model_host.devices.cuda_errors import Verdict, condemns, verdict
from services.model_host.tensors import NDArray

GIB = 1 << 30


class Fault(enum.Enum):
    """What poisons a context for good, as CUDA says it."""

    DEVICE_ASSERT = "CUDA error: device-side assert triggered"
    ECC = "CUDA error: uncorrectable ECC error encountered"
    LAUNCH_FAILURE = "CUDA error: unspecified launch failure"


class Block:
    """Memory of the device, free again once nothing refers to it."""


class SimulatedDevice:
    """An accelerator."""

    kind = DeviceKind.CUDA
    name = "simulated"

    def __init__(self, *, memory_bytes: int = GIB, copy_bytes_per_s: float = 0.0) -> None:
        """An idle device.

        Args:
            memory_bytes: What is there, all of it for models.
            copy_bytes_per_s: How fast copies go; 0: no time.
        """
        self.memory_bytes = memory_bytes
        self.copy_bytes_per_s = copy_bytes_per_s
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.copied_bytes = 0
        self.released = 0
        self.utilization: float | None = None
        self.computes_wrongly = False
        self.hangs = False
        self.adopted: set[str] = set()
        """Names of the threads that were."""
        self._poisoned: Fault | None = None
        self._never = threading.Event()
        self._guard = threading.Lock()

    # --- what the product asks ------------------------------------------------------------------

    def adopt_thread(self) -> None:
        self.adopted.add(threading.current_thread().name)

    def staging(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        return np.empty(shape, dtype)

    def golden(self, inputs: Golden, /) -> GoldenResults:
        if self.hangs:
            self._never.wait()
        size_bytes = sum(array.nbytes for array in (inputs.left, inputs.right, inputs.image, inputs.kernels))
        results: GoldenResults = self.run(size_bytes, lambda: CpuDevice(name="cpu", memory_bytes=0).golden(inputs))
        if self.computes_wrongly:
            results.product[3, 5] += 1.0
        return results

    @contextlib.contextmanager
    def measure(self) -> Iterator[Peak]:
        peak = Peak()
        before_bytes = self.peak_bytes = self.allocated_bytes
        try:
            yield peak
        finally:
            peak.peak_bytes = self.peak_bytes - before_bytes
            peak.kept_bytes = self.allocated_bytes - before_bytes

    def held_bytes(self) -> int:
        return self.allocated_bytes

    def usage(self) -> Usage:
        self._check()
        return Usage(self.memory_bytes - self.allocated_bytes, self.allocated_bytes, self.utilization)

    def trim(self) -> None:
        """Nothing is kept."""

    def release(self) -> None:
        self.released += 1

    def is_out_of_memory(self, error: BaseException) -> bool:
        return verdict(error) is Verdict.OUT_OF_MEMORY

    def is_broken(self, error: BaseException) -> bool:
        return condemns(error, computes=lambda: self._poisoned is None)

    # --- what tests and models do ---------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """From now on everything fails, as with a poisoned context."""
        self._poisoned = fault

    def allocate(self, size_bytes: int) -> Block:
        """Take memory for as long as the block lives.

        Raises:
            torch.OutOfMemoryError: There is not enough.
        """
        self._check()
        with self._guard:
            if self.allocated_bytes + size_bytes > self.memory_bytes:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size_bytes / (1 << 20):.2f} MiB. GPU 0 has a total "
                    f"capacity of {self.memory_bytes / (1 << 20):.2f} MiB"
                )
            self.allocated_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        block = Block()
        weakref.finalize(block, self._free, size_bytes).atexit = False
        return block

    def run(self, size_bytes: int, compute: Callable[[], Any]) -> Any:
        """Copy so many bytes there, compute, with as much memory as that while it lasts."""
        block = self.allocate(size_bytes)
        self.copied_bytes += size_bytes
        if self.copy_bytes_per_s:
            self._never.wait(size_bytes / self.copy_bytes_per_s)
        results = compute()
        self._check()
        del block
        return results

    def _free(self, size_bytes: int) -> None:
        with self._guard:
            self.allocated_bytes -= size_bytes

    def _check(self) -> None:
        if self._poisoned is not None:
            raise torch.AcceleratorError(self._poisoned.value)


POISON: dict[Fault, float] = {fault: 6660.0 + index for index, fault in enumerate(Fault)}
"""Inputs that bring the device down, as an index out of range does: it is the kernel that finds out."""


class OnSimulated:
    """A backend whose models take memory of a simulated device and compute by it.

    Options of a version: `simulated.weights_bytes` and `simulated.row_bytes` (default 0), what it takes while loaded
    and for each row; `simulated.leaks`, bytes of the weights that stay behind when it goes; `simulated.hoards`,
    what each batch after the warm-up takes for good, beyond what was measured.
    """

    def __init__(self, inner: Backend, device: SimulatedDevice) -> None:
        """Compute what `inner` does."""
        self._inner = inner
        self._device = device
        self._cpu = CpuDevice(name="cpu", memory_bytes=device.memory_bytes)
        self._leaked: list[Block] = []

    def prepare(self, device: ComputeDevice) -> None:
        self._inner.prepare(self._cpu)

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> LoadedModel:
        options = version.backend.options
        leaks_bytes = int(options.get("simulated.leaks", 0))
        weights = [self._device.allocate(int(options.get("simulated.weights_bytes", 0)) - leaks_bytes)]
        self._leaked.append(self._device.allocate(leaks_bytes))
        loaded: Any = self._inner.load(artifact, files, version, model, self._cpu)
        return _Simulated(
            loaded,
            self._device,
            weights,
            row_bytes=int(options.get("simulated.row_bytes", 0)),
            hoards_bytes=int(options.get("simulated.hoards", 0)),
        )


class _Simulated:
    def __init__(
        self, inner: LoadedModel, device: SimulatedDevice, weights: list[Block], *, row_bytes: int, hoards_bytes: int
    ) -> None:
        self._inner = inner
        self._device = device
        self._weights = weights
        self._row_bytes = row_bytes
        self._hoards_bytes = hoards_bytes

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        first = next(iter(inputs.values()))
        for fault, value in POISON.items():
            if first.dtype.kind == "f" and (first == value).any():
                self._device.inject(fault)
        if self._hoards_bytes and first.any():  # warm-up computes zeros
            self._weights.append(self._device.allocate(self._hoards_bytes))
        outputs: dict[str, NDArray] = self._device.run(
            self._row_bytes * (first.shape[0] if first.ndim else 1), lambda: self._inner.predict(inputs)
        )
        return outputs
