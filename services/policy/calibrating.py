"""What a confidence is worth: the chance that an answer of it is right, fitted to answers known to be right or wrong.

Isotonic regression: the non-decreasing steps that are nearest to the labels in squares, by pooling adjacent violators
(Ayer, Brunk, Ewing, Reid and Silverman, 1955; for classifiers Zadrozny and Elkan, "Transforming classifier scores into
accurate multiclass probability estimates", KDD 2002, section 4).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.strategies import MOST_CALIBRATION_POINTS, Calibration, CalibrationPoint

LEAST_SAMPLES = 50
"""Fewer say too little: at 50 a chance of 0.9 is still uncertain by 0.04."""


class Sample(NamedTuple):
    """One answer: how sure it was, and whether it was right."""

    confidence: float
    right: bool


@dataclass(slots=True)
class _Block:
    """Neighbours that have one chance."""

    low: float
    high: float
    count: int
    right: int

    @property
    def chance(self) -> float:
        return self.right / self.count


def fit(samples: Iterable[Sample], *, most_points: int = MOST_CALIBRATION_POINTS) -> Calibration:
    """The chances that fit samples best.

    Args:
        samples: At least `LEAST_SAMPLES`.
        most_points: Of the table; a block has two, its ends, or one.

    Raises:
        ValueError: They are too few, or a confidence is not finite.
    """
    ordered = sorted(samples)
    if len(ordered) < LEAST_SAMPLES:
        raise ValueError(f"{len(ordered)} samples are too few to fit: {LEAST_SAMPLES} are the fewest")
    if not all(math.isfinite(each.confidence) for each in ordered):
        raise ValueError("a confidence is not finite")
    blocks = _pooled(_bins(ordered, most_points // 2))
    points: list[CalibrationPoint] = []
    least = 0.0
    for block in blocks:
        # As if one more had been half right: what was never seen to be wrong is not therefore sure.
        least = max(least, (block.right + 0.5) / (block.count + 1.0))
        points.append(CalibrationPoint(block.low, least))
        if block.high > block.low:
            points.append(CalibrationPoint(block.high, least))
    return Calibration(tuple(points))


def _bins(ordered: Sequence[Sample], most: int) -> list[_Block]:
    """Samples in at most so many bins of about as many each; those of one confidence stay together."""
    size = -(-len(ordered) // most)
    bins: list[_Block] = []
    for sample in ordered:
        last = bins[-1] if bins else None
        if last is None or (last.count >= size and sample.confidence > last.high):
            bins.append(_Block(sample.confidence, sample.confidence, 1, int(sample.right)))
        else:
            last.high, last.count, last.right = sample.confidence, last.count + 1, last.right + sample.right
    return bins


def _pooled(bins: Iterable[_Block]) -> list[_Block]:
    """Neighbours that would decrease are made one, until none does."""
    blocks: list[_Block] = []
    for block in bins:
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2].chance >= blocks[-1].chance:
            last = blocks.pop()
            before = blocks[-1]
            before.high, before.count, before.right = last.high, before.count + last.count, before.right + last.right
    return blocks


def chance(calibration: Calibration, confidence: float) -> float:
    """Chance that an answer of this confidence is right: between two points a straight line, beyond the ends level."""
    points = calibration.points
    at = bisect_right(points, confidence, key=lambda point: point.confidence)
    if at == 0:
        return points[0].right
    if at == len(points):
        return points[-1].right
    before, after = points[at - 1], points[at]
    way = (confidence - before.confidence) / (after.confidence - before.confidence)
    return before.right + way * (after.right - before.right)


def calibration_error(calibration: Calibration, samples: Sequence[Sample], *, bins: int = 10) -> float:
    """Expected calibration error (Guo et al., 2017) in bins of equal width of the chance that is claimed."""
    sums = [[0, 0.0, 0] for _ in range(bins)]
    for sample in samples:
        claimed = chance(calibration, sample.confidence)
        one = sums[min(bins - 1, int(claimed * bins))]
        one[0] += 1
        one[1] += claimed
        one[2] += sample.right
    return sum(abs(claimed - right) for count, claimed, right in sums if count) / max(1, len(samples))
