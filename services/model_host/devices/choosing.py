"""Which device a host computes with."""

import psutil

from services.chassis.telemetry import logger
from services.domain.errors import NotSupported
from services.model_host.devices.base import ComputeDevice
from services.model_host.devices.cpu import CpuDevice, cpu_name, keep_large_blocks
from services.model_host.devices.nvml import has_nvidia

CPU_SHARE = 0.5
"""Share of a machine's memory that models on its CPU may take, unless a budget is set."""

CUDA_SHARE = 0.9
"""Share of a CUDA device's free memory that models may take, unless a budget is set: contexts and
fragmentation need the rest."""


def choose(kind: str, memory_bytes: int) -> ComputeDevice:
    """The device to compute with. Whether it computes right is for `self_test` to find out.

    Args:
        kind: `auto` (CUDA if there is one, else CPU), `cpu` or `cuda`.
        memory_bytes: What models may take; 0 chooses a share of what is there.

    Raises:
        NotSupported: `cuda` is asked for and not there, or the device cannot be used.
    """
    if kind != "cpu" and has_nvidia():
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            return _cuda(memory_bytes)
    if kind == "cuda":
        raise NotSupported("no CUDA device is here, or torch was built without CUDA: use --device auto or cpu")
    keep_large_blocks()
    budget = memory_bytes or int(CPU_SHARE * psutil.virtual_memory().total)
    return CpuDevice(name=cpu_name(), memory_bytes=budget)


def _cuda(memory_bytes: int) -> ComputeDevice:
    import torch  # noqa: PLC0415

    from services.model_host.devices.cuda import CudaDevice, limit_allocator  # noqa: PLC0415

    try:
        properties = torch.cuda.get_device_properties(0)
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        budget = memory_bytes or int(CUDA_SHARE * free_bytes)
        limit_allocator(budget)
    except RuntimeError as error:
        raise NotSupported(f"the CUDA device cannot be used: {type(error).__name__}") from error
    if budget > free_bytes:
        logger().warning(
            "models may take more than is free on the device: others hold the rest",
            budget_bytes=budget,
            free_bytes=free_bytes,
            total_bytes=total_bytes,
        )
    return CudaDevice(name=properties.name, memory_bytes=budget, uuid=str(properties.uuid))
