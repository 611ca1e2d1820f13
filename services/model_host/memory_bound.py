"""A bound on the memory that a load may take, kept by the kernel.

A few bytes can ask for any amount: one node of a graph fills a tensor of its own choice. Such a load fails like any
other that finds no memory, before the machine is out of it.
"""

import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil

from services.domain.host import DeviceKind
from services.model_host.devices.base import ComputeDevice

SLACK_BYTES = 1 << 30
"""For what else goes on in the process meanwhile: calls are served beside a load."""


def bounded_on(device: ComputeDevice) -> AbstractContextManager[None]:
    """Let a load take what models on `device` may take in all; CUDA keeps to its own bound, and maps much besides."""
    return bounded(device.memory_bytes + SLACK_BYTES) if device.kind is DeviceKind.CPU else nullcontext()


@contextmanager
def bounded(most_bytes: int) -> Iterator[None]:
    """Let this process grow by `most_bytes` while the block runs; files that are mapped to be read do not count."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(psutil.Process().memory_info().data) + most_bytes
    for known in (soft, hard):
        limit = limit if known == resource.RLIM_INFINITY else min(limit, known)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
