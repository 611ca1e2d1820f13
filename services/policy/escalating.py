"""Whether a cascade asks its next step: the answer is unsure, and there are time and money for another."""

from dataclasses import dataclass

import numpy as np

from services.domain.tensor import RawTensor
from services.policy.numbers import numbers_of

SLACK_FACTOR = 2.0
"""The next step must be expected to take no more than the part of what is left that this leaves: registered times are
rough, and an answer that is sure but late is none."""


@dataclass(frozen=True, slots=True)
class Enough:
    """The answer is the caller's."""

    reason: str
    unsure: bool
    """Another would have been asked, had there been time and money."""


@dataclass(frozen=True, slots=True)
class Escalate:
    """The next step is asked."""

    reason: str


def confidence(scores: RawTensor) -> float:
    """That of the least sure row: the smallest of the rows' largest elements. Without rows there is nothing unsure.

    Raises:
        ValueError: They are no numbers.
    """
    numbers = numbers_of(scores).astype("f8")
    if numbers.size == 0:
        return 1.0 if numbers.shape[:1] == (0,) else float("-inf")
    rows = numbers.reshape(numbers.shape[0] if numbers.ndim else 1, -1)
    # What is not a number is not sure.
    return float(np.where(np.isnan(rows), -np.inf, rows).max(axis=1).min())


def escalate(
    sure: float,
    threshold: float,
    *,
    remaining_s: float,
    next_s: float,
    spent_microusd: int,
    next_microusd: int,
    most_microusd: int | None,
) -> Escalate | Enough:
    """Whether to ask the next step.

    Args:
        sure: The answer's confidence.
        threshold: Below it the answer is unsure.
        remaining_s: What is left of the deadline.
        next_s: What the next step is expected to take.
        spent_microusd: What the call has cost so far.
        next_microusd: What the next step costs.
        most_microusd: What the caller allows for the call; None for any price.
    """
    if sure >= threshold:
        return Enough(f"sure enough: {sure:.4g}, at least {threshold:g}", unsure=False)
    unsure = f"unsure: {sure:.4g}, below {threshold:g}"
    if SLACK_FACTOR * next_s > remaining_s:
        left_ms = max(0.0, remaining_s) * 1e3
        return Enough(
            f"{unsure}; the next step takes {next_s * 1e3:.3g} ms, and {left_ms:.3g} ms are left", unsure=True
        )
    if most_microusd is not None and spent_microusd + next_microusd > most_microusd:
        cost = f"{spent_microusd + next_microusd} µUSD"
        return Enough(f"{unsure}; with the next step it costs {cost}, over the {most_microusd} allowed", unsure=True)
    return Escalate(unsure)
