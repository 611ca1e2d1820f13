"""Tensor rules of the Open Inference Protocol: every fault names its input and says what would be right."""

import pytest

from services.domain.model import TensorMeta, TensorSpec, schema_faults, tensor_faults

IMAGE = TensorSpec("image", "UINT8", (-1, -1, -1, 3))
MASK = TensorSpec("mask", "BOOL", (-1,), optional=True)


def faults_of(**fields: object) -> list[str]:
    values: dict[str, object] = {"name": "image", "datatype": "UINT8", "shape": (1, 2, 2, 3), "raw_bytes": 12}
    return [str(fault) for fault in schema_faults([TensorMeta(**{**values, **fields})], [IMAGE, MASK])]  # type: ignore[arg-type]


def test_fitting_input_has_no_fault() -> None:
    assert faults_of() == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"datatype": "FP32", "raw_bytes": 48}, "inputs[0].datatype: input 'image' must be UINT8, FP32 came"),
        ({"datatype": "FLOAT"}, "'FLOAT' is no datatype"),
        ({"shape": (2, 2, 3)}, "inputs[0].shape: input 'image' must have shape [-1, -1, -1, 3]"),
        ({"shape": (1, 2, 2, 4), "raw_bytes": 16}, "must have shape [-1, -1, -1, 3]"),
        ({"shape": (1,) * 9}, "rank 9 is over 8"),
        ({"shape": (1, -2, 2, 3)}, "has a negative dimension"),
        ({"shape": (1 << 62, 1 << 62, 2, 3)}, "has more than"),
        ({"raw_bytes": 11}, "takes 12 bytes, 11 came"),
        ({"raw_bytes": None, "typed_count": 11}, "has 12 elements, 11 came"),
        ({"name": "picture"}, "input 'picture' is not one of the model's: image, mask"),
    ],
)
def test_wrong_input_is_named_with_what_would_be_right(fields: dict[str, object], expected: str) -> None:
    assert any(expected in fault for fault in faults_of(**fields))


def test_missing_input_is_a_fault_and_an_optional_one_is_not() -> None:
    assert [str(fault) for fault in schema_faults([], [IMAGE, MASK])] == [
        "inputs: input 'image' (UINT8 [-1, -1, -1, 3]) is missing"
    ]


def test_the_same_input_twice_is_a_fault() -> None:
    image = TensorMeta("image", "UINT8", (1, 2, 2, 3), raw_bytes=12)

    assert any("came twice" in str(fault) for fault in schema_faults([image, image], [IMAGE]))


def test_sixteen_bit_floats_travel_raw_only() -> None:
    half = TensorMeta("x", "FP16", (2,), typed_count=2)

    assert "raw_input_contents only" in str(tensor_faults(half, "inputs[0]")[0])


def test_bytes_elements_need_room_for_their_lengths() -> None:
    text = TensorMeta("text", "BYTES", (3,), raw_bytes=11)

    assert "at least 12 bytes" in str(tensor_faults(text, "inputs[0]")[0])
