"""Calls of different lengths in one batch: each gets what it would have got alone."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import ModelFailed
from services.domain.model import TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion, Padding
from services.model_host.padded import PaddedShapes
from services.model_host.predictor import Predictor
from services.model_host.tensors import NDArray
from services.model_host.wire import Schema, tensors_from

MODEL = Model(
    Metadata("m"),
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "FP32", (-1, -1))),
    (TensorSpec("each", "FP32", (-1, -1)), TensorSpec("sum", "FP32", (-1, 1))),
)
PADDINGS = (Padding("ids", 1, -7.0, {"each": 1}), Padding("mask", 1))
VERSION = ModelVersion(Metadata("m"), "1.0.0", Backend("torch"), max_batch_size=16, padding=PADDINGS)


class Masked:
    """Sums what the mask lets through; what fills a row up must be what the version says."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        ids, mask = inputs["ids"], inputs["mask"]
        self.shapes.append(ids.shape)
        assert ((mask == 1) | (ids == -7)).all()
        each = (ids * mask).astype(np.float32)
        return {"each": each, "sum": each.sum(1, keepdims=True, dtype=np.float32)}


def a_call(length: int, rows: int, seed: int) -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 1000, (rows, length)),
        "mask": np.ones((rows, length), np.float32),
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(0, 99)), min_size=1, max_size=6))
def test_each_call_of_a_padded_batch_gets_what_it_would_have_got_alone(calls: list[tuple[int, int, int]]) -> None:
    model = Masked()
    predictor = Predictor(model, MODEL, VERSION)
    inputs = [a_call(*call) for call in calls]
    together = predictor.predict_batch(inputs, [rows for _, rows, _ in calls])
    assert model.shapes == [(sum(rows for _, rows, _ in calls), max(length for length, _, _ in calls))]
    for call, got in zip(inputs, together, strict=True):
        alone = predictor.predict(call, call["ids"].shape[0])
        np.testing.assert_array_equal(got["each"], alone["each"])
        np.testing.assert_array_equal(got["sum"], alone["sum"])


def test_two_dimensions_of_an_image_are_filled_up() -> None:
    model = Model(Metadata("m"), (TensorSpec("image", "FP32", (-1, 3, -1, -1)),), (TensorSpec("y", "FP32", (-1, 1)),))
    shapes = PaddedShapes((Padding("image", 2, 5.0), Padding("image", 3, 6.0)), model)
    small, wide = np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 3, 1, 4), np.float32)
    row = shapes.common("image", [small, wide])
    assert row == (3, 2, 4)
    target: NDArray = np.full((1, *row), 9.0, np.float32)
    shapes.fill("image", target, wide)
    assert target[0, 0].tolist() == [[0, 0, 0, 0], [5, 5, 5, 5]]
    shapes.fill("image", target, small)
    assert target[0, 2].tolist() == [[0, 0, 6, 6], [0, 0, 6, 6]]


def group_of(length: int) -> object:
    request = pb.InferRequest(model_name="m")
    for name, datatype, itemsize in (("ids", "INT64", 8), ("mask", "FP32", 4)):
        request.inputs.add(name=name, datatype=datatype, shape=[1, length])
        request.raw_input_contents.append(bytes(itemsize * length))
    schema = Schema(MODEL, VERSION.model_key, max_batch_size=16, padded=PaddedShapes(PADDINGS, MODEL))
    return tensors_from(request, schema).group


def test_lengths_within_a_factor_of_two_share_a_batch() -> None:
    assert group_of(9) == group_of(16)
    assert group_of(8) != group_of(9)
    assert group_of(16) != group_of(17)


@pytest.mark.parametrize(
    ("padding", "why"),
    [
        (Padding("other", 1), "has no input 'other'"),
        (Padding("ids", 2), "is not a free one"),
        (Padding("ids", 1, 0.0, {"sum": 1}), "is not a free one"),
        (Padding("ids", 1, 0.0, {"none": 1}), "has no output 'none'"),
    ],
)
def test_a_padding_that_does_not_fit_the_model_is_refused_when_it_is_loaded(padding: Padding, why: str) -> None:
    with pytest.raises(ModelFailed, match=why):
        PaddedShapes((padding,), MODEL)


def test_text_cannot_be_filled_up() -> None:
    model = Model(Metadata("m"), (TensorSpec("t", "BYTES", (-1, -1)),), ())
    with pytest.raises(ModelFailed, match="BYTES"):
        PaddedShapes((Padding("t", 1),), model)
