"""The device that computes: which one there is, what memory it has, and what its errors mean.

CPU and CUDA stand behind one interface. Which frameworks run on it is `backends`; that the sum of
the models stays within its memory is `lifecycle`.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from services.domain.errors import NotSupported
from services.domain.host import DeviceKind

CPU_SHARE = 0.5
"""Share of a machine's memory that models on its CPU may take, unless a budget is set."""

CUDA_SHARE = 0.9
"""Share of a CUDA device's memory that models may take, unless a budget is set: contexts and
fragmentation need the rest."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = b"5"
"""proc(5): writing it to clear_refs sets VmHWM back to the resident size."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 256 << 20


@dataclass(slots=True)
class Peak:
    """Memory that was taken at most while something was measured; 0 until it is over."""

    peak_bytes: int = 0


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

    def measure(self) -> contextlib.AbstractContextManager[Peak]:
        """Measure the memory taken while the context is open, over what was taken before."""
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


class CpuDevice:
    """The machine's processor, within a budget of its memory."""

    kind = DeviceKind.CPU

    def __init__(self, *, name: str, memory_bytes: int) -> None:
        """Take the budget as given."""
        self.name = name
        self.memory_bytes = memory_bytes

    @contextlib.contextmanager
    def measure(self) -> Iterator[Peak]:
        """Growth of the peak resident size; of the resident size where the peak cannot be reset.

        The whole process is seen: what others compute at the same time counts too, so that the
        result errs on the safe side.
        """
        peak = Peak()
        gc.collect()
        resettable = _reset_peak()
        before_bytes = _status_bytes("VmRSS:")
        try:
            yield peak
        finally:
            after_bytes = max(_status_bytes("VmRSS:"), _status_bytes("VmHWM:") if resettable else 0)
            peak.peak_bytes = max(0, after_bytes - before_bytes)

    def release(self) -> None:
        """Collect garbage and let malloc return free pages."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """MemoryError, and what torch and onnxruntime raise in its place."""
        if isinstance(error, MemoryError):
            return True
        text = str(error)
        return isinstance(error, RuntimeError) and (
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


class CudaDevice:
    """The first CUDA device that torch sees."""

    kind = DeviceKind.CUDA

    def __init__(self, *, name: str, memory_bytes: int) -> None:
        """Take the budget as given."""
        self.name = name
        self.memory_bytes = memory_bytes

    @contextlib.contextmanager
    def measure(self) -> Iterator[Peak]:
        """Growth of torch's peak, or of the memory in use where others than torch allocated it."""
        import torch  # noqa: PLC0415

        peak = Peak()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
        free_before_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        try:
            yield peak
        finally:
            torch.cuda.synchronize()
            by_torch = torch.cuda.max_memory_allocated() - before_bytes
            beside_torch = free_before_bytes - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
            peak.peak_bytes = max(0, by_torch) + max(0, beside_torch)

    def release(self) -> None:
        """Collect garbage and empty torch's cache."""
        import torch  # noqa: PLC0415

        gc.collect()
        torch.cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """The device's or the host's memory ran out."""
        import torch  # noqa: PLC0415

        return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
            isinstance(error, RuntimeError) and "out of memory" in str(error)
        )

    def is_broken(self, error: BaseException) -> bool:
        """Any other CUDA error: the context is poisoned for the rest of the process."""
        import torch  # noqa: PLC0415

        if self.is_out_of_memory(error):
            return False
        return isinstance(error, torch.AcceleratorError) or (
            isinstance(error, RuntimeError) and ("CUDA error" in str(error) or "cuDNN error" in str(error))
        )


def choose(kind: str, memory_bytes: int) -> ComputeDevice:
    """The device to compute with.

    Args:
        kind: `auto` (CUDA if there is one, else CPU), `cpu` or `cuda`.
        memory_bytes: What models may take; 0 chooses a share of what is there.

    Raises:
        NotSupported: `cuda` is asked for and not there, or the device computes wrongly.
    """
    if kind != "cpu" and _has_nvidia():
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            _check_cuda()
            properties = torch.cuda.get_device_properties(0)
            budget = memory_bytes or int(CUDA_SHARE * properties.total_memory)
            return CudaDevice(name=properties.name, memory_bytes=budget)
    if kind == "cuda":
        raise NotSupported("no CUDA device is here, or torch was built without CUDA: use --device auto or cpu")
    _keep_large_blocks()
    budget = memory_bytes or int(CPU_SHARE * psutil.virtual_memory().total)
    return CpuDevice(name=_cpu_name(), memory_bytes=budget)


def _has_nvidia() -> bool:
    """Whether a driver and a device are there; saves hosts without one the import of torch."""
    try:
        import pynvml  # noqa: PLC0415

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: its errors are of classes made at run time
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    finally:
        pynvml.nvmlShutdown()


def _check_cuda() -> None:
    """Compute something known: a device that is broken must not come into the pool."""
    import torch  # noqa: PLC0415

    ones = torch.ones(64, 64, device="cuda")
    try:
        total = float((ones @ ones).sum().cpu())
    except RuntimeError as error:
        raise NotSupported(f"the CUDA device does not compute: {type(error).__name__}") from error
    if total != 64.0**3:
        raise NotSupported(f"the CUDA device computes wrongly: {total} instead of {64.0**3}")


def _keep_large_blocks() -> None:
    """Let malloc keep freed blocks up to 32 MB instead of mapping them anew for each batch.

    Mapped blocks are zeroed page by page at first touch; keeping them doubled the rate of a CNN at batch
    32 on CPU. `CpuDevice.release` gives them back when a model goes.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def _cpu_name() -> str:
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
