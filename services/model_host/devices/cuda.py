"""A CUDA device. Made only once torch has found one.

Each thread that computes has a stream of its own, so that what one waits for is its own work and never the
whole device's. Batches are gathered in page-locked memory and copied from there without waiting; what comes
back is waited for with an event (`backends.torch_tensors`).
"""

import contextlib
import gc
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from services.domain.host import DeviceKind
from services.model_host.devices.base import Golden, GoldenResults, Peak, Usage
from services.model_host.devices.cuda_errors import Verdict, condemns, verdict
from services.model_host.devices.nvml import open_nvml
from services.model_host.devices.pinned import PinnedPool
from services.model_host.tensors import NDArray

STAGING_BYTES = 256 << 20
"""Most page-locked memory that one thread's batches are gathered in. The operating system cannot page it out, so
that all hosts of a machine together must leave enough."""


class CudaDevice:
    """The first CUDA device that torch sees, within a budget of its memory."""

    kind = DeviceKind.CUDA

    def __init__(self, *, name: str, memory_bytes: int, uuid: str) -> None:
        """Take the budget as given.

        Args:
            name: What the driver calls it.
            memory_bytes: What models may take in all.
            uuid: What the driver knows it by.
        """
        self.name = name
        self.memory_bytes = memory_bytes
        self._nvml = open_nvml(uuid)
        self._of_thread = threading.local()

    def adopt_thread(self) -> None:
        """A stream for the calling thread, which all that torch does on it from now on goes to, and a pool."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(stream)
        self._of_thread.pool = PinnedPool(allocate=_page_locked, idle=stream.query, most_bytes=STAGING_BYTES)

    def staging(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        """Page-locked memory, which the device reads by itself; plain memory on a thread that was not adopted."""
        pool: PinnedPool | None = getattr(self._of_thread, "pool", None)
        return np.empty(shape, dtype) if pool is None else pool.take(shape, dtype)

    def golden(self, inputs: Golden, /) -> GoldenResults:
        """In torch, which uses cuBLAS and cuDNN, over the calling thread's staging memory and stream."""

        def there(array: NDArray) -> torch.Tensor:
            staged = self.staging(array.shape, array.dtype)
            staged[...] = array
            return torch.from_numpy(staged).to("cuda", non_blocking=True)

        with torch.inference_mode():
            left = there(inputs.left)
            product = left @ there(inputs.right)
            features = torch.nn.functional.conv2d(there(inputs.image)[None], there(inputs.kernels))[0]
            return GoldenResults(product.cpu().numpy(), left.sum(dim=1).cpu().numpy(), features.cpu().numpy())

    @contextlib.contextmanager
    def measure(self) -> Iterator[Peak]:
        """Growth of torch's peak, and of the memory in use that others than torch allocated."""
        peak = Peak()
        torch.cuda.current_stream().synchronize()
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before_bytes, beside_before_bytes = torch.cuda.memory_allocated(), self._beside_torch()
        try:
            yield peak
        finally:
            torch.cuda.current_stream().synchronize()
            beside_bytes = max(0, self._beside_torch() - beside_before_bytes)
            peak.peak_bytes = max(0, torch.cuda.max_memory_allocated() - before_bytes) + beside_bytes
            gc.collect()
            peak.kept_bytes = max(0, torch.cuda.memory_allocated() - before_bytes) + beside_bytes

    def held_bytes(self) -> int:
        """What torch has handed out, and where the driver knows this process, what others than torch took in it.

        Never what other processes took: theirs would look like memory that did not come back.
        """
        own_bytes = None if self._nvml is None else self._nvml.own_bytes()
        beside_bytes = 0 if own_bytes is None else max(0, own_bytes - torch.cuda.memory_reserved())
        return torch.cuda.memory_allocated() + beside_bytes

    def usage(self) -> Usage:
        """As CUDA and the driver say; where the driver does not know this process, what torch has reserved."""
        free_bytes, _ = torch.cuda.mem_get_info()
        own_bytes = None if self._nvml is None else self._nvml.own_bytes()
        return Usage(
            free_bytes=free_bytes,
            own_bytes=torch.cuda.memory_reserved() if own_bytes is None else own_bytes,
            utilization=None if self._nvml is None else self._nvml.utilization(),
        )

    def trim(self) -> None:
        """Nothing: torch's cache takes what was freed for what comes next."""

    def release(self) -> None:
        """Collect garbage, empty torch's cache, and give up staging memory that the calling thread does not use."""
        gc.collect()
        pool: PinnedPool | None = getattr(self._of_thread, "pool", None)
        if pool is not None:
            pool.trim()
        torch.cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """The device's or the host's memory ran out."""
        return verdict(error) is Verdict.OUT_OF_MEMORY

    def is_broken(self, error: BaseException) -> bool:
        """A CUDA error other than memory; where a library refused its work, a device that computes no more."""
        return condemns(error, computes=self._computes)

    def _computes(self) -> bool:
        try:
            return bool((torch.ones(2, device="cuda") + 1.0).sum().item() == 4.0)
        except RuntimeError as error:
            return verdict(error) is Verdict.OUT_OF_MEMORY  # it was asked, and answered

    def _beside_torch(self) -> int:
        """Memory in use on the device that torch did not take: of this process where the driver says, else of all."""
        own_bytes = None if self._nvml is None else self._nvml.own_bytes()
        if own_bytes is None:
            free_bytes, total_bytes = torch.cuda.mem_get_info()
            own_bytes = total_bytes - free_bytes
        return max(0, own_bytes - torch.cuda.memory_reserved())


def limit_allocator(memory_bytes: int) -> None:
    """Have torch refuse what goes beyond the budget, so that one host takes nothing from another on the device."""
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total_bytes), 0)


def _page_locked(size_bytes: int) -> NDArray:
    array: NDArray = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    return array
