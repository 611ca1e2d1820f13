"""Whether a version answers here what it was seen to answer when it landed: its smoke test, run again at every load."""

from collections.abc import Mapping

import numpy as np

from services.chassis.closeness import difference
from services.domain.model import TensorSpec
from services.domain.objects import SmokeTest, WarmupTensor
from services.model_host.tensors import BadTensor, NDArray, float_from_bf16, from_raw, zeros


def misfit_of(outputs: tuple[TensorSpec, ...], test: SmokeTest, answer: Mapping[str, NDArray]) -> str:
    """How `answer` differs from what the test expects; empty if it does not.

    Args:
        outputs: The model's; outputs that the test does not name may be anything.
        test: The test.
        answer: Every output.
    """
    for spec in outputs:
        want = test.outputs.get(spec.name)
        if want is None:
            continue
        have = answer[spec.name]
        if list(have.shape) != list(want.shape):
            return f"answered output '{spec.name}' in {list(have.shape)}, expected {list(want.shape)}"
        if misfit := _difference(spec, want, have, test.tolerance):
            return misfit
    return ""


def _difference(spec: TensorSpec, want: WarmupTensor, have: NDArray, tolerance: float) -> str:
    try:
        expected = from_raw(spec.datatype, want.shape, want.raw) if want.raw else zeros(spec.datatype, want.shape)
    except BadTensor as error:
        return f"cannot be held to output '{spec.name}' of its smoke test: {error}"
    if spec.datatype == "BYTES":
        return "" if bool((have == expected).all()) else f"answered other bytes than expected in output '{spec.name}'"
    return difference(spec.name, _numbers(spec, have), _numbers(spec, expected), tolerance)


def _numbers(spec: TensorSpec, array: NDArray) -> NDArray:
    """The elements, flat, as numbers that can be subtracted."""
    if spec.datatype == "BF16":
        array = float_from_bf16(array)
    numbers: NDArray = array.ravel().astype(np.float64)
    return numbers
