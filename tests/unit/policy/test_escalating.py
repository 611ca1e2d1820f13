"""When a cascade asks its next step."""

import numpy as np
import pytest

from services.domain.strategies import Calibration, CalibrationPoint, Escalation
from services.domain.tensor import RawTensor
from services.policy.choosing import Worth
from services.policy.escalating import Enough, Escalate, Facts, agree, confidence, escalate


def scores(*rows: list[float]) -> RawTensor:
    made = np.array(rows, "<f4")
    return RawTensor("FP32", made.shape, made.tobytes())


def test_the_least_sure_row_counts() -> None:
    assert confidence(scores([0.1, 0.9], [0.25, 0.5])) == 0.5


def test_a_single_confidence_will_do() -> None:
    assert confidence(RawTensor("FP32", (), np.float32(0.75).tobytes())) == 0.75
    assert confidence(RawTensor("FP32", (2,), np.array([0.75, 0.5], "<f4").tobytes())) == 0.5


def test_what_is_not_a_number_is_not_sure() -> None:
    assert confidence(scores([float("nan"), float("nan")], [0.9, 0.1])) == float("-inf")
    assert confidence(scores([float("nan"), 0.5])) == 0.5


def test_without_rows_nothing_is_unsure() -> None:
    assert confidence(RawTensor("FP32", (0, 10), b"")) == 1.0
    assert confidence(RawTensor("FP32", (2, 0), b"")) == float("-inf")


def test_texts_are_no_scores() -> None:
    with pytest.raises(ValueError, match="BYTES are no numbers"):
        confidence(RawTensor("BYTES", (1,), b"\0\0\0\0"))


def verdict(sure: float, *, remaining_s: float = 1.0, most: int | None = None) -> Enough | Escalate:
    return escalate(Escalation("scores", 0.9), Facts(sure, remaining_s, 0.1, 0.97, 10, 40, most))


def test_an_answer_that_is_sure_is_enough() -> None:
    assert verdict(0.9) == Enough("sure enough: 0.9, at least 0.9", unsure=False)


def test_an_unsure_one_is_not() -> None:
    assert verdict(0.62) == Escalate("unsure: 0.62, below 0.9")


def test_never_without_slack() -> None:
    found = verdict(0.62, remaining_s=0.19)

    assert found == Enough("unsure: 0.62, below 0.9; the next step takes 100 ms, and 190 ms are left", unsure=True)


def test_never_for_more_than_the_caller_allows() -> None:
    found = verdict(0.62, most=49)

    assert found == Enough("unsure: 0.62, below 0.9; with the next step it costs 50 µUSD, over the 49 allowed", True)
    assert isinstance(verdict(0.62, most=50), Escalate)


TABLE = Calibration((CalibrationPoint(0.5, 0.6), CalibrationPoint(0.9, 0.95)))


def weighed(sure: float, worth: Worth, *, remaining_s: float = 10.0, quality: float | None = 0.99) -> Enough | Escalate:
    return escalate(Escalation("scores", 0.9, TABLE), Facts(sure, remaining_s, 0.1, quality, 10, 40, None, worth))


def test_calibrated_the_next_one_is_asked_if_it_is_worth_more_than_it_costs() -> None:
    assert weighed(0.9, Worth(1.0, 0.0009, 1.0)) == Escalate(
        "unsure: p = 0.95 at 0.9; the next step is worth 0.04 more, and costs 0.036"
    )
    assert weighed(0.9, Worth(1.0, 0.0011, 1.0)) == Enough(
        "sure enough: p = 0.95 at 0.9; the next step is worth 0.04 more, and costs 0.044", unsure=False
    )


def test_what_quality_is_worth_and_what_lateness_costs_count_too() -> None:
    assert isinstance(weighed(0.9, Worth(2.0, 0.0011, 1.0)), Escalate)
    assert isinstance(weighed(0.7, Worth(1.0, 0.001, 1.0), remaining_s=0.21), Escalate)
    assert isinstance(weighed(0.7, Worth(1.0, 0.001, 10.0), remaining_s=0.21), Enough)


def test_calibrated_too_never_without_slack() -> None:
    found = weighed(0.5, Worth(), remaining_s=0.19)

    assert isinstance(found, Enough)
    assert found.unsure


def test_where_the_next_ones_quality_is_unknown_the_threshold_counts() -> None:
    assert weighed(0.89, Worth(), quality=None) == Escalate("unsure: 0.89, below 0.9")


def test_two_agree_if_every_row_says_the_same() -> None:
    one = scores([0.1, 0.9], [0.6, 0.4])

    assert agree(one, scores([0.4, 0.6], [0.9, 0.1]))
    assert not agree(one, scores([0.4, 0.6], [0.1, 0.9]))
    assert agree(one, scores([0.4, 0.6])) is None
    assert agree(scores([0.4], [0.1]), scores([0.9], [0.2])) is None
