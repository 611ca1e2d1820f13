"""Whether a cascade asks its next step: the answer is unsure, and there are time and money for another."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from services.domain.strategies import Choose, Escalation
from services.domain.tensor import RawTensor
from services.policy.calibrating import chance
from services.policy.choosing import USUAL, Worth, late_probability
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


def agree(one: RawTensor, other: RawTensor) -> bool | None:
    """Whether two have their largest elements at the same places, row by row; None if that says nothing.

    Raises:
        ValueError: They are no numbers.
    """
    first, second = numbers_of(one), numbers_of(other)
    if first.shape != second.shape or first.ndim == 0 or first.size == 0 or first.shape[-1] < 2:
        return None
    return bool(np.array_equal(first.argmax(axis=-1), second.argmax(axis=-1)))


class Facts(NamedTuple):
    """What it depends on."""

    confidence: float
    """The answer's."""
    remaining_s: float
    """What is left of the deadline."""
    next_s: float
    """What the next step is expected to take."""
    next_quality: float | None
    """How good it is; None if that was not measured."""
    spent_microusd: int
    """What the call has cost so far."""
    next_microusd: int
    """What the next step costs."""
    most_microusd: int | None
    """What the caller allows for the call; None for any price."""
    worth: Worth | Choose = USUAL
    """What quality, money and lateness are worth to the call."""


def escalate(escalation: Escalation, facts: Facts) -> Escalate | Enough:
    """Whether to ask the next step: the answer is unsure, and there are time and money for it.

    Unsure is an answer whose confidence is below the threshold. Where it is known what a confidence is worth and how
    good the next step is: one for which `v * (Q - p) > lambda * cost + mu * P(too late)`.
    """
    unsure = _doubt(escalation, facts)
    if isinstance(unsure, Enough):
        return unsure
    if SLACK_FACTOR * facts.next_s > facts.remaining_s:
        left_ms = max(0.0, facts.remaining_s) * 1e3
        return Enough(
            f"{unsure}; the next step takes {facts.next_s * 1e3:.3g} ms, and {left_ms:.3g} ms are left", unsure=True
        )
    cost = facts.spent_microusd + facts.next_microusd
    if facts.most_microusd is not None and cost > facts.most_microusd:
        text = f"{unsure}; with the next step it costs {cost} µUSD, over the {facts.most_microusd} allowed"
        return Enough(text, unsure=True)
    return Escalate(unsure)


def _doubt(escalation: Escalation, facts: Facts) -> Enough | str:
    """Why the answer is unsure."""
    sure = facts.confidence
    if escalation.calibration is None or facts.next_quality is None:
        if sure >= escalation.threshold:
            return Enough(f"sure enough: {sure:.4g}, at least {escalation.threshold:g}", unsure=False)
        return f"unsure: {sure:.4g}, below {escalation.threshold:g}"
    right, worth = chance(escalation.calibration, sure), facts.worth
    gain = worth.quality_weight * (facts.next_quality - right)
    late = late_probability(facts.next_s, facts.remaining_s)
    price = worth.cost_weight * facts.next_microusd + worth.latency_weight * late
    said = f"p = {right:.3g} at {sure:.4g}; the next step is worth {gain:.3g} more, and costs {price:.3g}"
    return f"unsure: {said}" if gain > price else Enough(f"sure enough: {said}", unsure=False)
