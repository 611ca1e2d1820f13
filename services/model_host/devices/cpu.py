"""The machine's processor as a device: its memory is the process's own, within a budget."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from services.domain.host import DeviceKind
from services.model_host.devices.base import Golden, GoldenResults, Peak, Usage
from services.model_host.tensors import NDArray

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = b"5"
"""proc(5): writing it to clear_refs sets VmHWM back to the resident size."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 256 << 20


class CpuDevice:
    """The machine's processor, within a budget of its memory."""

    kind = DeviceKind.CPU

    def __init__(self, *, name: str, memory_bytes: int) -> None:
        """Take the budget as given."""
        self.name = name
        self.memory_bytes = memory_bytes

    def adopt_thread(self) -> None:
        """Nothing: every thread computes."""

    def staging(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        """Plain memory: the processor computes where it lies."""
        return np.empty(shape, dtype)

    def golden(self, inputs: Golden, /) -> GoldenResults:
        """In numpy, whose matrix products are BLAS."""
        height, width = inputs.kernels.shape[2:]
        windows = np.lib.stride_tricks.sliding_window_view(inputs.image, (height, width), axis=(1, 2))
        rows = windows.transpose(1, 2, 0, 3, 4).reshape(-1, inputs.kernels[0].size)
        features = inputs.kernels.reshape(len(inputs.kernels), -1) @ rows.T
        return GoldenResults(
            product=inputs.left @ inputs.right,
            sums=inputs.left.sum(axis=1),
            features=features.reshape(len(inputs.kernels), *windows.shape[1:3]),
        )

    @contextlib.contextmanager
    def measure(self) -> Iterator[Peak]:
        """Growth of the peak resident size; of the resident size where the peak cannot be reset.

        The whole process is seen: what others compute at the same time counts too, so that the
        result errs on the safe side. Free memory is given back first, or what is taken from it would not show.
        """
        peak = Peak()
        gc.collect()
        before_bytes = self.held_bytes()
        resettable = _reset_peak()
        try:
            yield peak
        finally:
            after_bytes = max(_status_bytes("VmRSS:"), _status_bytes("VmHWM:") if resettable else 0)
            peak.peak_bytes = max(0, after_bytes - before_bytes)
            gc.collect()
            peak.kept_bytes = max(0, self.held_bytes() - before_bytes)

    def held_bytes(self) -> int:
        """The resident size, once free pages are given back; what is garbage still counts."""
        _trim()
        return _status_bytes("VmRSS:")

    def usage(self) -> Usage:
        """The machine's memory and the process's. How long it computed, the host's thread knows itself."""
        return Usage(free_bytes=int(psutil.virtual_memory().available), own_bytes=_status_bytes("VmRSS:"))

    def trim(self) -> None:
        """Let malloc return free pages."""
        _trim()

    def release(self) -> None:
        """Collect garbage and let malloc return free pages."""
        gc.collect()
        _trim()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """MemoryError, and what torch and onnxruntime raise in its place."""
        if isinstance(error, MemoryError):
            return True
        if not (isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")):
            return False
        text = str(error)
        return (
            "DefaultCPUAllocator: can't allocate memory" in text
            or "DefaultCPUAllocator: not enough memory" in text
            or "Failed to allocate memory" in text
            or "bad allocation" in text
            or "std::bad_alloc" in text
        )

    def is_broken(self, error: BaseException) -> bool:
        """Never: a processor that fails takes the process with it."""
        del error
        return False


def keep_large_blocks() -> None:
    """Let malloc keep freed blocks up to 32 MB instead of mapping them anew for each batch.

    Mapped blocks are zeroed page by page at first touch; keeping them doubled the rate of a CNN at batch
    32 on CPU. `CpuDevice.release` gives them back when a model goes.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def cpu_name() -> str:
    """What the operating system calls the processor."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_bytes(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    with contextlib.suppress(OSError, ValueError), _STATUS.open() as lines:
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
