"""How arrays become torch tensors on a device, and how answers come back.

On CUDA nothing here waits but the last step: copies to the device are begun and not waited for, answers are copied
side by side into page-locked memory, and one event tells that all of them are there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray


def to_device(array: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`array` on `device`, as `dtype` if one is given: converted there, so that what is small travels.

    Args:
        array: A writable array. On the CPU the tensor may share its memory.
        device: Where to.
        dtype: What the tensor shall be; None keeps the array's.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cpu":
        tensor = tensor.to(device, non_blocking=True)
    return tensor if dtype is None or tensor.dtype is dtype else tensor.to(dtype)


def to_arrays(answers: Mapping[str, torch.Tensor | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays of tensors, in the same order; what is an array already stays as it is. bfloat16 becomes float32.

    Raises:
        RuntimeError: What was begun on the device before has failed.
    """
    arrays: dict[str, NDArray[Any]] = {}
    coming = False
    for name, answer in answers.items():
        if not isinstance(answer, torch.Tensor):
            arrays[name] = answer
            continue
        tensor = answer.detach() if answer.requires_grad else answer
        if tensor.dtype is torch.bfloat16:
            tensor = tensor.float()
        if tensor.is_cuda:
            # To memory that torch keeps for the next time once nothing refers to it.
            home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            tensor = home.copy_(tensor, non_blocking=True)
            coming = True
        arrays[name] = tensor.numpy()
    if coming:
        # It sleeps instead of spinning on a core that others need.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        done.synchronize()
    return arrays
