"""What kind of call it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.model import TensorMeta, TensorSpec
from services.domain.request import RouteOptions
from services.policy.complexity import Kind, kind_of, size_bucket

IMAGES = (TensorSpec("image", "FP32", (-1, 3, -1, -1)),)


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [
        ((1, 3, 8, 8), "256x1"),
        ((1, 3, 16, 16), "1024x1"),
        ((1, 3, 224, 224), "262144x1"),
        ((5, 3, 8, 8), "256x16"),
        ((0, 3, 8, 8), "1x1"),
    ],
)
def test_size_is_elements_of_a_row_and_rows_by_powers_of_four(shape: tuple[int, ...], bucket: str) -> None:
    assert size_bucket([TensorMeta("image", "FP32", shape)], IMAGES) == bucket


def test_a_first_dimension_that_the_schema_fixes_is_no_batch() -> None:
    inputs = [TensorMeta("x", "FP32", (16, 4))]

    assert size_bucket(inputs, (TensorSpec("x", "FP32", (-1, 4)),)) == "4x16"
    assert size_bucket(inputs, (TensorSpec("x", "FP32", (16, 4)),)) == "64x1"


def test_a_text_is_as_long_as_its_bytes_make_tokens() -> None:
    spec = (TensorSpec("text", "BYTES", (-1,)),)

    assert size_bucket([TensorMeta("text", "BYTES", (1,), raw_bytes=4000)], spec) == "1024x1"
    assert size_bucket([TensorMeta("text", "BYTES", (1,), typed_count=1)], spec) == "1x1"


def test_several_inputs_add_up() -> None:
    specs = (TensorSpec("a", "FP32", (-1, 8)), TensorSpec("b", "FP32", (-1, 8)))

    assert size_bucket([TensorMeta("a", "FP32", (2, 8)), TensorMeta("b", "FP32", (2, 8))], specs) == "16x4"


def test_what_the_caller_declares_goes_before_what_is_measured() -> None:
    options = RouteOptions(domain="law", complexity="hard", labels=(("language", "de"),))

    assert kind_of(options, [TensorMeta("image", "FP32", (1, 3, 8, 8))], IMAGES) == Kind(
        "law", "hard", (("language", "de"),)
    )
    assert kind_of(RouteOptions(), [], IMAGES) == Kind()


@settings(deadline=None)
@given(st.integers(1, 1 << 20))
def test_a_bucket_is_less_than_four_times_what_is_in_it(size: int) -> None:
    bucket = int(size_bucket([TensorMeta("x", "FP32", (1, size))], (TensorSpec("x", "FP32", (-1, -1)),)).split("x")[0])

    assert size <= bucket < 4 * size
