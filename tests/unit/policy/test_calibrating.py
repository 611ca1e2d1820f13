"""What confidences are worth, fitted to answers that were right or wrong."""

import random
from itertools import pairwise

import pytest

from services.domain.strategies import Calibration, CalibrationPoint
from services.policy.calibrating import Sample, calibration_error, chance, fit


def drawn(count: int, seed: int) -> list[Sample]:
    """Answers that are right by the square of their confidence."""
    rng = random.Random(seed)
    sure = [rng.random() for _ in range(count)]
    return [Sample(each, rng.random() < each * each) for each in sure]


def test_chances_that_are_seen_are_found() -> None:
    table = fit(drawn(20_000, 1))

    for confidence in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert chance(table, confidence) == pytest.approx(confidence**2, abs=0.04)
    assert calibration_error(table, drawn(20_000, 2)) < 0.02


def test_a_table_is_bounded_and_rises() -> None:
    table = fit(drawn(5000, 3))

    assert 2 <= len(table.points) <= 64
    for before, after in pairwise(table.points):
        assert before.confidence < after.confidence
        assert before.right <= after.right


def test_neighbours_that_fall_are_pooled() -> None:
    table = fit([Sample(0.1, True)] * 30 + [Sample(0.2, False)] * 30 + [Sample(0.3, True)] * 40)

    assert table.points == (
        CalibrationPoint(0.1, 30.5 / 61),
        CalibrationPoint(0.2, 30.5 / 61),
        CalibrationPoint(0.3, 40.5 / 41),
    )


def test_what_was_never_seen_to_be_wrong_is_not_sure() -> None:
    assert 0.98 < chance(fit([Sample(0.9, True)] * 50), 0.9) < 1.0


def test_between_points_a_straight_line_and_level_beyond() -> None:
    table = Calibration((CalibrationPoint(0.5, 0.6), CalibrationPoint(0.9, 0.8)))

    assert [chance(table, at) for at in (0.0, 0.5, 0.7, 0.9, 2.0)] == pytest.approx([0.6, 0.6, 0.7, 0.8, 0.8])
    assert chance(table, float("-inf")) == 0.6


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="49 samples are too few to fit: 50 are the fewest"):
        fit([Sample(0.5, True)] * 49)
    with pytest.raises(ValueError, match="not finite"):
        fit([Sample(float("-inf"), True)] * 50)
