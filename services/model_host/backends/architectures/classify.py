"""What every classifier here answers: logits, probabilities and the most probable class."""

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from services.model_host.backends.torch_tensors import to_arrays


def answers(logits: Tensor) -> dict[str, NDArray[Any]]:
    """Outputs of a classifier.

    Args:
        logits: One row per item, one column per class.

    Returns:
        `logits` and `probabilities` (FP32 [items, classes]), `label` (INT64 [items]).
    """
    rows = logits.float()
    return to_arrays({"logits": rows, "probabilities": rows.softmax(dim=1), "label": rows.argmax(dim=1)})
