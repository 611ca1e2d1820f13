"""How far two answers are apart."""

import math

import numpy as np
import pytest

from services.domain.tenancy import Budget
from services.domain.tensor import RawTensor
from services.policy.comparing import COMPARED_BYTES, Comparison, Verdict, compare
from services.policy.numbers import numbers_of, raw_of
from services.policy.spending import Spending


def floats(*values: float, datatype: str = "FP32") -> RawTensor:
    return RawTensor(datatype, (1, len(values)), raw_of(np.array([values]), datatype))


def test_the_same_is_equal() -> None:
    assert compare({"y": floats(1.0, 2.0)}, {"y": floats(1.0, 2.0)}) == (Verdict.EQUAL, 0.0, "")


def test_the_largest_difference_is_found_over_all_outputs() -> None:
    one = {"y": floats(1.0, 2.0), "z": floats(0.0)}
    other = {"y": floats(1.0, 2.5), "z": floats(-3.0)}

    assert compare(one, other) == (Verdict.DIFFERENT, 3.0, "z")


def test_outputs_that_only_one_has_do_not_count() -> None:
    assert compare({"y": floats(1.0)}, {"y": floats(1.0), "more": floats(2.0)}).verdict is Verdict.EQUAL
    assert compare({"y": floats(1.0)}, {"more": floats(2.0)}) == Comparison(Verdict.OTHER_SHAPE)


def test_another_shape_or_type_is_said() -> None:
    assert compare({"y": floats(1.0)}, {"y": floats(1.0, 2.0)}) == (Verdict.OTHER_SHAPE, None, "y")
    assert compare({"y": floats(1.0)}, {"y": floats(1.0, datatype="FP64")}) == (Verdict.OTHER_SHAPE, None, "y")


def test_what_is_not_a_number_is_infinitely_far_from_a_number_and_near_its_like() -> None:
    nan = float("nan")

    assert compare({"y": floats(nan, 1.0)}, {"y": floats(2.0, 1.0)}).largest == math.inf
    assert compare({"y": floats(nan, 1.0)}, {"y": floats(nan, 1.5)}).largest == 0.5


def test_texts_are_the_same_or_not() -> None:
    one, other = RawTensor("BYTES", (1,), b"\x01\0\0\0a"), RawTensor("BYTES", (1,), b"\x01\0\0\0b")

    assert compare({"y": one}, {"y": one}).verdict is Verdict.EQUAL
    assert compare({"y": one}, {"y": other}) == (Verdict.DIFFERENT, None, "y")


def test_of_large_outputs_only_whether_they_are_the_same_is_told() -> None:
    count = COMPARED_BYTES // 4 + 1
    one = RawTensor("FP32", (count,), bytes(4 * count))
    other = RawTensor("FP32", (count,), bytes(4 * count - 1) + b"\x40")

    assert compare({"y": one}, {"y": memoryviewed(one)}).verdict is Verdict.EQUAL
    assert compare({"y": one}, {"y": other}) == (Verdict.DIFFERENT, None, "y")


def memoryviewed(tensor: RawTensor) -> RawTensor:
    return tensor._replace(raw=memoryview(tensor.raw))


@pytest.mark.parametrize("value", [0.0, -1.5, 3.140625, 1e30, float("inf"), float("-inf")])
def test_bf16_comes_back_as_it_went(value: float) -> None:
    once = numbers_of(floats(value, datatype="BF16"))

    assert numbers_of(floats(float(once[0, 0]), datatype="BF16")) == once
    assert once[0, 0] == pytest.approx(value, rel=1 / 256)


def test_bf16_keeps_what_is_not_a_number() -> None:
    assert np.isnan(numbers_of(floats(float("nan"), datatype="BF16")))[0, 0]


def test_a_budget_is_spent_by_period() -> None:
    spending = Spending(Budget(100, 60.0), 0.0, share=0.5)

    assert [spending.spend(20, now_s) for now_s in (0.0, 1.0, 2.0, 59.0, 60.0)] == [True, True, False, False, True]
