"""When a cascade asks its next step."""

import numpy as np
import pytest

from services.domain.tensor import RawTensor
from services.policy.escalating import Enough, Escalate, confidence, escalate


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
    return escalate(
        sure,
        0.9,
        remaining_s=remaining_s,
        next_s=0.1,
        spent_microusd=10,
        next_microusd=40,
        most_microusd=most,
    )


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
