"""What the driver says of a device through NVML: how busy it is, and how much of its memory this process holds.

Every answer may be missing: in a container the driver may not know this process's id, a part of a device
(MIG) has no utilisation, and a driver may be of another version than the library.
"""

import os
from typing import Any


def has_nvidia() -> bool:
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


class NvmlDevice:
    """One device, as the driver sees it."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Ask `library`, which is pynvml and initialised, about `handle`."""
        self._library = library
        self._handle = handle

    def utilization(self) -> float | None:
        """Share of the driver's last sample period, up to a second, in which a kernel of any process ran."""
        try:
            return min(1.0, max(0.0, float(self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100.0))
        except self._library.NVMLError:
            return None

    def own_bytes(self) -> int | None:
        """Memory of the device that this process holds, its context and libraries included."""
        try:
            processes = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._library.NVMLError:
            return None
        for process in processes:
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        return None


def open_nvml(uuid: str) -> NvmlDevice | None:
    """The device of that id; None if NVML does not know it.

    By id and not by number: CUDA_VISIBLE_DEVICES changes CUDA's numbers and not NVML's.
    """
    try:
        import pynvml  # noqa: PLC0415

        pynvml.nvmlInit()
    except Exception:  # as in has_nvidia
        return None
    for name in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
        try:
            return NvmlDevice(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name))
        except pynvml.NVMLError:
            continue
    return None
