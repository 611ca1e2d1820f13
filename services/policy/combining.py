"""Several answers made into one, element by element; and how long to wait for the last ones."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from services.domain.strategies import Combine
from services.domain.tensor import RawTensor
from services.policy.numbers import numbers_of, raw_of, raw_texts, texts

PATIENCE_FACTOR = 1.0
"""Once enough have answered, the others get as long again as that took."""

PATIENCE_MOST = 0.5
"""But no more than this part of what is left of the deadline."""


def patience_s(took_s: float, remaining_s: float) -> float:
    """How long to wait for the others once enough have answered.

    Args:
        took_s: What it took until enough had.
        remaining_s: What is left of the deadline.
    """
    return max(0.0, min(PATIENCE_FACTOR * took_s, PATIENCE_MOST * remaining_s))


def combine(
    how: Combine, answers: Sequence[Mapping[str, RawTensor]], weights: Sequence[float], outputs: Iterable[str]
) -> dict[str, RawTensor]:
    """Make one answer.

    Args:
        how: MEAN and WEIGHTED for floating point, VOTE for everything else.
        answers: At least one, in the order of the members.
        weights: What each counts; only WEIGHTED asks.
        outputs: Those of the route; those of them that the first answer has are combined.

    Raises:
        ValueError: They do not fit together; says why.
    """
    made = {}
    for name in outputs:
        if name not in answers[0]:
            continue
        tensors = [answer.get(name) for answer in answers]
        present = [tensor for tensor in tensors if tensor is not None]
        if len(present) < len(tensors) or any(tensor[:2] != present[0][:2] for tensor in present):
            raise ValueError(f"output '{name}' is not of one type and shape in all answers")
        if how is Combine.VOTE:
            made[name] = _voted(present)
        else:
            made[name] = _averaged(present, [1.0] * len(present) if how is Combine.MEAN else weights)
    return made


def _averaged(tensors: Sequence[RawTensor], weights: Sequence[float]) -> RawTensor:
    stacked = np.stack([numbers_of(tensor).astype("f8") for tensor in tensors])
    # Of what is infinite or no number, so is the mean.
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.average(stacked, axis=0, weights=weights)
        return tensors[0]._replace(raw=raw_of(mean, tensors[0].datatype))


def _voted(tensors: Sequence[RawTensor]) -> RawTensor:
    """What most members say; at a tie the earliest of them."""
    first = tensors[0]
    if first.datatype == "BYTES":
        spoken = [texts(tensor.raw) for tensor in tensors]
        if len({len(each) for each in spoken}) > 1:
            raise ValueError("texts are not as many as their shape says")
        return first._replace(raw=raw_texts([max(said, key=said.count) for said in zip(*spoken, strict=True)]))
    stacked = np.stack([numbers_of(tensor) for tensor in tensors])
    votes = np.stack([(stacked == each).sum(axis=0) for each in stacked])
    winner = votes.argmax(axis=0)
    chosen = np.take_along_axis(stacked, winner[np.newaxis], axis=0)[0]
    return first._replace(raw=chosen.tobytes())
