"""Whether a device computes right, before anything is computed on it for anyone.

A process that was condemned is started again on the same device, which may be the one at fault. Inputs are small
integers, so that a right device answers exactly what integer arithmetic does, whatever its order of additions, and with
the shortened factors of tensor cores (TF32 keeps 11 bits) too.
"""

import threading
from collections.abc import Callable

import numpy as np

from services.domain.errors import NotSupported
from services.model_host.devices.base import ComputeDevice, Golden, GoldenResults
from services.model_host.tensors import NDArray

WITHIN_S = 60.0
"""How long a device may take: the first use of cuBLAS and cuDNN loads hundreds of megabytes of code."""

TOLERANCE = 0.05
"""Most that a result may be off: sums of products are exact, a convolution by Fourier transforms off by a hundredth."""

_SIZE = 96
_CHANNELS, _SIDE, _FILTERS = 3, 18, 8
_KERNEL = 4  # for 3 and 5 cuDNN may choose Winograd's transforms, whose fractions TF32 cuts short


def self_test(device: ComputeDevice, *, within_s: float = WITHIN_S) -> None:
    """Have the device compute a matrix product, sums and a convolution whose results are known.

    Args:
        device: What is tested, on a thread that ends with the test.
        within_s: How long it may take.

    Raises:
        NotSupported: It raises, hangs, or answers wrongly; such a device must not come into the pool.
    """
    inputs = golden_inputs()
    found = _within(lambda: _computed(device, inputs), within_s, device.name)
    expected = golden_results(inputs)
    for name in ("product", "sums", "features"):
        want: NDArray = getattr(expected, name)
        have: NDArray = getattr(found, name)
        if have.shape != want.shape:
            raise NotSupported(f"{device.name} computes wrongly: {name} of shape {have.shape} instead of {want.shape}")
        off = ~(np.abs(have.astype(np.float64) - want) <= TOLERANCE)
        if off.any():
            raise NotSupported(f"{device.name} computes wrongly: {int(off.sum())} of {want.size} elements of {name}")


def golden_inputs() -> Golden:
    """The same each time; no two rows or columns are alike, so that none can stand in for another."""

    def integers(*shape: int, step: int) -> NDArray:
        count = int(np.prod(shape))
        return ((np.arange(count, dtype=np.int64) * step) % 13 - 6).reshape(shape).astype(np.float32)

    return Golden(
        left=integers(_SIZE, _SIZE + 1, step=7),
        right=integers(_SIZE + 1, _SIZE - 1, step=5),
        image=integers(_CHANNELS, _SIDE, _SIDE + 1, step=11),
        kernels=integers(_FILTERS, _CHANNELS, _KERNEL, _KERNEL, step=3),
    )


def golden_results(inputs: Golden) -> GoldenResults:
    """By integer arithmetic, term by term: no BLAS, and no framework."""
    left, right, image, kernels = (
        array.astype(np.int64) for array in (inputs.left, inputs.right, inputs.image, inputs.kernels)
    )
    height, width = image.shape[1] - _KERNEL + 1, image.shape[2] - _KERNEL + 1
    features = np.zeros((len(kernels), height, width), np.int64)
    for row in range(_KERNEL):
        for column in range(_KERNEL):
            seen = image[None, :, row : row + height, column : column + width]
            features += (kernels[:, :, row, column, None, None] * seen).sum(axis=1)
    return GoldenResults(product=left @ right, sums=left.sum(axis=1), features=features)


def _computed(device: ComputeDevice, inputs: Golden) -> GoldenResults:
    device.adopt_thread()
    return device.golden(inputs)


def _within(compute: Callable[[], GoldenResults], within_s: float, name: str) -> GoldenResults:
    """What `compute` returns, on a thread that does not keep the process if it hangs."""
    found: list[GoldenResults] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(compute())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="self-test", daemon=True)
    thread.start()
    thread.join(within_s)
    if raised:
        raise NotSupported(f"{name} does not compute: {type(raised[0]).__name__}") from raised[0]
    if not found:
        raise NotSupported(f"{name} does not compute: it hangs, for {within_s:g} s now")
    return found[0]
