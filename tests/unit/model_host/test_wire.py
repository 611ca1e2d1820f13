import struct
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import CONTENTS
from services.domain.errors import InvalidRequest
from services.domain.model import ModelKey, TensorSpec
from services.domain.objects import Metadata, Model
from services.model_host.tensors import (
    NUMPY,
    BadTensor,
    NDArray,
    all_finite,
    bf16_from_float,
    float_from_bf16,
    from_raw,
    to_raw,
    zeros,
)
from services.model_host.wire import Schema, encode_answer, is_raw, tensors_from, wanted_outputs


def schema_of(*inputs: TensorSpec, batch: int = 32, outputs: tuple[TensorSpec, ...] = ()) -> Schema:
    model = Model(Metadata("m"), inputs, outputs or (TensorSpec("y", "FP32", (-1, 4)),))
    return Schema(model, ModelKey("m", "1.0.0"), max_batch_size=batch)


PLAIN = schema_of(TensorSpec("x", "FP32", (-1, 4)))


def raw_request(inputs: Mapping[str, tuple[str, NDArray]]) -> pb.InferRequest:
    request = pb.InferRequest()
    for name, (datatype, array) in inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    return request


def typed_request(datatype: str, shape: list[int], elements: list[object], name: str = "x") -> pb.InferRequest:
    request = pb.InferRequest()
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    getattr(tensor.contents, CONTENTS[datatype]).extend(elements)
    return request


def faults_of(request: pb.InferRequest, schema: Schema = PLAIN) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        tensors_from(request, schema)
    return [str(fault) for fault in caught.value.faults]


ARRAYS = st.sampled_from([name for name in NUMPY if name not in ("BYTES", "BF16")]).flatmap(
    lambda datatype: st.tuples(
        st.just(datatype), hnp.arrays(NUMPY[datatype], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    )
)


@given(ARRAYS)
def test_raw_form_and_back_is_the_same(case: tuple[str, NDArray]) -> None:
    datatype, array = case
    back = from_raw(datatype, array.shape, to_raw(array))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@given(st.lists(st.binary(max_size=20), max_size=12))
def test_bytes_form_and_back_is_the_same(elements: list[bytes]) -> None:
    array: NDArray = np.empty(len(elements), np.object_)
    array[:] = elements
    assert from_raw("BYTES", array.shape, to_raw(array)).tolist() == elements


@given(ARRAYS)
def test_typed_form_and_back_is_the_same(case: tuple[str, NDArray]) -> None:
    datatype, array = case
    if datatype not in CONTENTS:
        return
    spec = TensorSpec("x", datatype, (-1,) * array.ndim, allow_non_finite=True)
    request = typed_request(datatype, list(array.shape), array.ravel().tolist())
    tensors = tensors_from(request, schema_of(spec, batch=1))
    assert np.array_equal(tensors.inputs["x"], array, equal_nan=array.dtype.kind == "f")
    encoded = encode_answer(schema_of(spec, outputs=(spec,)), (spec,), tensors.inputs, request_id="r", raw=False)
    response = pb.InferResponse.FromString(encoded.SerializeToString())
    assert list(response.outputs[0].shape) == list(array.shape)
    back = np.array(getattr(response.outputs[0].contents, CONTENTS[datatype]), array.dtype).reshape(array.shape)
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@given(st.binary(max_size=64), st.lists(st.integers(0, 4), max_size=3))
def test_any_bytes_are_a_tensor_or_refused(raw: bytes, shape: list[int]) -> None:
    for datatype in NUMPY:
        try:
            array = from_raw(datatype, shape, raw)
        except BadTensor:
            continue
        assert list(array.shape) == shape
        assert to_raw(array) == raw


def test_what_is_not_a_bool_or_a_length_is_refused() -> None:
    with pytest.raises(BadTensor, match="0 or 1"):
        from_raw("BOOL", (2,), b"\x01\x02")
    with pytest.raises(BadTensor, match="element 1 of 2 is 9 bytes long, 1 are left"):
        from_raw("BYTES", (2,), struct.pack("<I1sI1s", 1, b"a", 9, b"b"))
    with pytest.raises(BadTensor, match="2 bytes are left over"):
        from_raw("BYTES", (1,), struct.pack("<I1s", 1, b"a") + b"zz")
    with pytest.raises(BadTensor, match="out of range"):
        from_raw("FP32", (0, 1 << 62), b"")


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32)))
def test_bf16_is_the_nearest(values: NDArray) -> None:
    bits = bf16_from_float(values)
    back = float_from_bf16(bits)
    assert np.array_equal(np.isnan(back), np.isnan(values))
    assert np.array_equal(bf16_from_float(back)[~np.isnan(values)], bits[~np.isnan(values)])
    finite = np.isfinite(values) & np.isfinite(back)
    assert np.all(np.abs(back[finite] - values[finite]) <= np.abs(values[finite]) * 2.0**-8 + 1e-38)


def test_not_finite_is_found_in_every_float_type() -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        array = np.array([1.0, np.inf], NUMPY[datatype])
        assert not all_finite(datatype, array)
        assert all_finite(datatype, array[:1])
    assert not all_finite("BF16", bf16_from_float(np.array([np.nan], np.float32)))
    assert all_finite("BF16", bf16_from_float(np.array([1e38], np.float32)))
    assert all_finite("INT32", zeros("INT32", (2,)))


def test_a_raw_request_is_read_without_a_copy_of_the_tensor() -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensors = tensors_from(raw_request({"x": ("FP32", array)}), PLAIN)
    assert np.array_equal(tensors.inputs["x"], array)
    assert not tensors.inputs["x"].flags.owndata
    assert (tensors.rows, tensors.elements, tensors.group, tensors.payload_bytes) == (2, 4, (), 32)


def test_every_fault_is_named() -> None:
    request = pb.InferRequest()
    request.inputs.add(name="x", datatype="FP64", shape=[1, 5])
    request.inputs.add(name="q", datatype="FP32", shape=[1])
    request.raw_input_contents.extend([b"\0" * 40, b"\0" * 4])
    assert faults_of(request) == [
        "inputs[0].datatype: input 'x' must be FP32, FP64 came",
        "inputs[0].shape: input 'x' must have shape [-1, 4] (-1 is any size), [1, 5] came",
        "inputs[1].name: input 'q' is not one of the model's: x",
    ]


def test_raw_and_typed_do_not_mix() -> None:
    array = np.zeros((1, 4), np.float32)
    both = raw_request({"x": ("FP32", array)})
    both.inputs[0].contents.fp32_contents.extend([0, 0, 0, 0])
    assert "typed contents beside raw_input_contents" in faults_of(both)[0]
    two = schema_of(TensorSpec("x", "FP32", (-1, 4)), TensorSpec("z", "FP32", (-1, 1)))
    half = raw_request({"x": ("FP32", array)})
    half.inputs.add(name="z", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(1.0)
    assert any("1 entries for 2 inputs" in fault for fault in faults_of(half, two))


@pytest.mark.parametrize(
    ("shape", "raw", "said"),
    [
        ([1, 4], b"\0" * 15, "takes 16 bytes, 15 came"),
        ([-1, 4], b"\0" * 16, "negative dimension"),
        ([1 << 62, 4], b"", "more than"),
        ([0, 4], b"", "at least 1"),
    ],
)
def test_absurd_shapes_are_refused(shape: list[int], raw: bytes, said: str) -> None:
    request = pb.InferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    assert said in faults_of(request)[0]


def test_typed_elements_must_be_as_many_and_as_small_as_declared() -> None:
    assert "2 came in the field for FP32" in faults_of(typed_request("FP32", [1, 4], [1.0, 2.0]))[0]
    small = schema_of(TensorSpec("x", "INT8", (-1,)))
    assert "does not fit INT8" in faults_of(typed_request("INT8", [1], [300]), small)[0]
    half = schema_of(TensorSpec("x", "FP16", (-1,)))
    request = pb.InferRequest()
    request.inputs.add(name="x", datatype="FP16", shape=[1]).contents.fp32_contents.append(1.0)
    assert "travels in raw_input_contents only" in faults_of(request, half)[0]


def test_nan_is_refused_unless_the_schema_takes_it() -> None:
    bad = raw_request({"x": ("FP32", np.array([[1, np.nan, 3, 4]], np.float32))})
    assert faults_of(bad) == ["inputs[0]: input 'x' holds NaN or an infinity, and the model does not take them"]
    takes = schema_of(TensorSpec("x", "FP32", (-1, 4), allow_non_finite=True))
    assert np.isnan(tensors_from(bad, takes).inputs["x"][0, 1])


def test_batch_dimensions_must_agree() -> None:
    two = schema_of(TensorSpec("a", "INT32", (-1, 1)), TensorSpec("b", "INT32", (-1, 1)))
    request = raw_request({"a": ("INT32", np.zeros((2, 1), np.int32)), "b": ("INT32", np.zeros((3, 1), np.int32))})
    assert faults_of(request, two) == ["inputs: the batch dimensions differ: 'a' 2, 'b' 3"]
    scalar = schema_of(TensorSpec("a", "INT32", ()))
    assert "at least 1" in faults_of(raw_request({"a": ("INT32", np.array(5, np.int32))}), scalar)[0]


def test_without_batching_shapes_pass_as_they_are() -> None:
    schema = schema_of(TensorSpec("a", "INT32", ()), TensorSpec("b", "INT32", (7,)), batch=1)
    request = raw_request({"a": ("INT32", np.array(5, np.int32)), "b": ("INT32", np.zeros(7, np.int32))})
    tensors = tensors_from(request, schema)
    assert (tensors.rows, tensors.inputs["a"].shape, tensors.inputs["b"].shape) == (1, (), (7,))


def test_calls_of_one_group_have_the_same_inputs_and_shapes() -> None:
    free = schema_of(TensorSpec("a", "INT32", (-1, -1)), TensorSpec("b", "INT32", (-1,), optional=True))

    def group(width: int, with_b: bool) -> object:
        inputs: dict[str, tuple[str, NDArray]] = {"a": ("INT32", np.zeros((2, width), np.int32))}
        if with_b:
            inputs["b"] = ("INT32", np.zeros(2, np.int32))
        return tensors_from(raw_request(inputs), free).group

    assert group(3, False) == group(3, False)
    assert len({group(3, False), group(4, False), group(3, True)}) == 3


def test_outputs_are_those_asked_for_in_that_order() -> None:
    schema = schema_of(
        TensorSpec("x", "FP32", (-1,)), outputs=(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,)))
    )
    assert [spec.name for spec in wanted_outputs(pb.InferRequest(), schema)] == ["a", "b"]
    request = pb.InferRequest()
    request.outputs.add(name="b")
    request.outputs.add(name="a")
    assert [spec.name for spec in wanted_outputs(request, schema)] == ["b", "a"]
    request.outputs.add(name="a")
    request.outputs.add(name="c")
    with pytest.raises(InvalidRequest, match=r"'a' is asked for twice; .*output 'c' is not one of the model's: a, b"):
        wanted_outputs(request, schema)


def test_an_answer_without_a_typed_form_is_raw() -> None:
    spec = TensorSpec("h", "FP16", (-1,))
    outputs = {"h": np.array([1.5], np.float16)}
    encoded = encode_answer(schema_of(spec, outputs=(spec,)), (spec,), outputs, request_id="", raw=False)
    response = pb.InferResponse.FromString(encoded.SerializeToString())
    assert response.raw_output_contents[0] == np.array([1.5], np.float16).tobytes()
    assert is_raw(pb.InferRequest(raw_input_contents=[b""]))
    assert not is_raw(pb.InferRequest())
