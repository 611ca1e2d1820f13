"""What an error of a CUDA device means: go on with less, go on, or never again in this process.

A CUDA context that was poisoned stays so for the rest of the process (CUDA Runtime API, "Error Handling": sticky
errors). Any CUDA error is taken for such a one, but for two: memory that ran out, and what a library or
the driver refused before anything ran, which is the model's fault if the device still computes.
"""

import enum
from collections.abc import Callable

import torch


class Verdict(enum.Enum):
    """What follows from an error."""

    NOT_CUDA = "not the device's"
    """Nothing: the model or its input is at fault."""
    OUT_OF_MEMORY = "out of memory"
    """Smaller work may still succeed."""
    REFUSED = "refused"
    """It may have been the model's own fault: whether the device still computes has to be tried."""
    BROKEN = "broken"
    """The process is condemned."""


_OUT_OF_MEMORY = (
    "out of memory",  # torch's allocator, the driver, NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUFFT_ALLOC_FAILED",
    "Failed to allocate memory",  # onnxruntime's arena
    "std::bad_alloc",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)

_REFUSED = (
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_BAD_PARAM",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUFFT_INVALID_SIZE",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available",
    "too many resources requested for launch",
)

_OF_CUDA = (
    "CUDA error",  # torch, of the runtime and of cuBLAS, cuSPARSE, cuSOLVER
    "CUDA driver error",
    "CUDA failure",  # onnxruntime
    "cuDNN error",
    "cuFFT error",
    "cuBLAS error",
    "CUBLAS failure",
    "CUDNN failure",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "NCCL error",
)


def verdict(error: BaseException) -> Verdict:
    """Judge by class first, then by text; texts count only in errors that frameworks raise.

    Args:
        error: What a computation raised.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Verdict.OUT_OF_MEMORY
    accelerator = isinstance(error, torch.AcceleratorError)
    if not (accelerator or isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")):
        return Verdict.NOT_CUDA
    text = str(error)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return Verdict.OUT_OF_MEMORY
    if not accelerator and not any(sign in text for sign in _OF_CUDA):
        return Verdict.NOT_CUDA
    return Verdict.REFUSED if any(sign in text for sign in _REFUSED) else Verdict.BROKEN


def condemns(error: BaseException, *, computes: Callable[[], bool]) -> bool:
    """Whether nothing will compute in this process any more.

    Args:
        error: What a computation raised.
        computes: Tries whether the device does; asked only where the error alone does not tell.
    """
    found = verdict(error)
    return found is Verdict.BROKEN or (found is Verdict.REFUSED and not computes())
