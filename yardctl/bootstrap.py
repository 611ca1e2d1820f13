"""The pool that a new mesh begins with: which device, and how much memory each host may use."""

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import psutil

from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import resources_pb2
from yardctl.client import RegistryClient

POOL = "local"
CPU_SHARE = 0.5
"""Share of the machine's memory that models of all hosts may take together; the rest is for the
processes themselves, their batches, and everything else on the machine."""
CUDA_SHARE = 0.8
_STEP_BYTES = 64 << 20
_LEAST_BYTES = 256 << 20
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_TORCH_HAS_CUDA = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"

DeviceChoice = Literal["auto", "cpu", "cuda"]


async def ensure_pool(
    registry: RegistryClient, *, hosts: int, device: Literal["cpu", "cuda"], memory_bytes: int
) -> dict[str, int]:
    """Give a registry that has no pool one of `hosts` hosts on this machine.

    Args:
        registry: The registry.
        hosts: How many hosts.
        device: Their device.
        memory_bytes: What models may take on each.

    Returns:
        Hosts kept running, by pool, as the registry has it now.
    """
    pools, _ = await registry.objects("Pool")
    if not pools:
        kind = resources_pb2.DEVICE_KIND_CUDA if device == "cuda" else resources_pb2.DEVICE_KIND_CPU
        pool = objects_pb2.Object(
            metadata=objects_pb2.Metadata(name=POOL),
            pool=objects_pb2.PoolSpec(
                description="Hosts on this machine, made by yardctl up",
                device_kind=kind,
                memory_bytes=memory_bytes,
                min_hosts=hosts,
                max_hosts=hosts,
            ),
        )
        await registry.apply(
            registry_pb2.ApplyRequest(objects=[pool], reason="first pool of a new mesh", author="yardctl up")
        )
        pools = [pool]
    return {pool.metadata.name: pool.pool.min_hosts for pool in pools}


def resolve_device(choice: DeviceChoice) -> Literal["cpu", "cuda"]:
    """The device to use: as chosen, or CUDA where both a device and a torch that can use it are there."""
    if choice != "auto":
        return choice
    if not _cuda_memory_bytes():
        return "cpu"
    # In a process of its own: importing torch takes seconds and hundreds of megabytes.
    found = subprocess.run([sys.executable, "-c", _TORCH_HAS_CUDA], capture_output=True, check=False)
    return "cuda" if found.returncode == 0 else "cpu"


def default_memory_bytes(device: Literal["cpu", "cuda"], hosts: int) -> int:
    """What models may take on each of `hosts` hosts that share this machine, or its first CUDA device."""
    total = _cuda_memory_bytes() * CUDA_SHARE if device == "cuda" else _machine_memory_bytes() * CPU_SHARE
    return max(_LEAST_BYTES, int(total / max(1, hosts)) // _STEP_BYTES * _STEP_BYTES)


def _machine_memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total


def _cuda_memory_bytes() -> int:
    """Memory of the first CUDA device; 0 if there is none, or nothing to ask it with."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        # Without the library, the driver, or a device there is nothing to use.
        return 0
    try:
        if nvml.nvmlDeviceGetCount() == 0:
            return 0
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0)).total)
    except nvml.NVMLError:
        return 0
    finally:
        nvml.nvmlShutdown()
