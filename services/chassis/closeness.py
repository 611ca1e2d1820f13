"""Whether numbers that a model answered are those that were expected, for whoever holds a version to its smoke test."""

import numpy as np
from numpy.typing import NDArray


def difference(output: str, found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> str:
    """How an output differs from what is expected by more than the tolerance; empty if it does not.

    Args:
        output: Its name.
        found: What was answered, flat.
        expected: As many elements; NaN is equal to NaN.
        tolerance: Most that an element may be off.
    """
    off = ~np.isclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True)
    if not off.any():
        return ""
    at = int(np.argmax(off))
    return (
        f"answered {found[at]:g} as element {at} of output '{output}', expected {expected[at]:g} ± {tolerance:g} "
        f"({int(off.sum())} of {off.size} differ)"
    )
