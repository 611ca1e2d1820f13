"""Several answers made into one."""

import numpy as np
import pytest

from services.domain.strategies import Combine
from services.domain.tensor import RawTensor
from services.policy.combining import combine, patience_s
from services.policy.numbers import numbers_of, raw_of, raw_texts, texts


def floats(*values: float, datatype: str = "FP32") -> dict[str, RawTensor]:
    return {"y": RawTensor(datatype, (1, len(values)), raw_of(np.array([values]), datatype))}


def whole(*values: int) -> dict[str, RawTensor]:
    return {"y": RawTensor("INT64", (len(values),), np.array(values, "<i8").tobytes())}


def words(*values: bytes) -> dict[str, RawTensor]:
    return {"y": RawTensor("BYTES", (len(values),), raw_texts(values))}


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_the_mean_is_taken_element_by_element(datatype: str) -> None:
    answers = [floats(1.0, 2.0, datatype=datatype), floats(2.0, 4.0, datatype=datatype)]

    made = combine(Combine.MEAN, answers, [5.0, 1.0], ["y"])

    assert made["y"][:2] == (datatype, (1, 2))
    assert numbers_of(made["y"]).tolist() == [[1.5, 3.0]]


def test_weights_need_not_add_up_to_anything() -> None:
    made = combine(Combine.WEIGHTED, [floats(0.0), floats(8.0)], [1.0, 3.0], ["y"])

    assert numbers_of(made["y"]).tolist() == [[6.0]]


def test_most_votes_win_and_the_earlier_member_at_a_tie() -> None:
    made = combine(Combine.VOTE, [whole(1, 1, 7), whole(2, 5, 8), whole(2, 5, 9)], [], ["y"])

    assert numbers_of(made["y"]).tolist() == [2, 5, 7]


def test_texts_are_voted_on() -> None:
    made = combine(Combine.VOTE, [words(b"cat", b"a"), words(b"dog", b"b"), words(b"dog", b"c")], [], ["y"])

    assert texts(made["y"].raw) == [b"dog", b"a"]


def test_answers_of_other_shapes_do_not_fit() -> None:
    with pytest.raises(ValueError, match="output 'y' is not of one type and shape"):
        combine(Combine.MEAN, [floats(1.0), floats(1.0, 2.0)], [], ["y"])
    with pytest.raises(ValueError, match="output 'y' is not of one type and shape"):
        combine(Combine.MEAN, [floats(1.0), {}], [], ["y"])


def test_outputs_that_the_route_does_not_promise_are_left_out() -> None:
    both = {**floats(1.0), "more": floats(2.0)["y"]}

    assert list(combine(Combine.MEAN, [both, floats(2.0)], [], ["y"])) == ["y"]


def test_texts_that_are_cut_off_are_no_texts() -> None:
    for raw in (b"\x05\0\0\0abc", b"\x05\0"):
        with pytest.raises(ValueError, match="cut off"):
            texts(raw)


@pytest.mark.parametrize(
    ("took_s", "remaining_s", "wait_s"), [(0.1, 10.0, 0.1), (0.1, 0.1, 0.05), (0.1, -1.0, 0.0), (0.0, 1.0, 0.0)]
)
def test_those_who_are_late_get_as_long_again(took_s: float, remaining_s: float, wait_s: float) -> None:
    assert patience_s(took_s, remaining_s) == pytest.approx(wait_s)
