import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from modelyard.inference.v1 import inference_pb2
from yardctl.errors import CommandError
from yardctl.tensors import DTYPES, Spec, add_input, outputs_of


def sent(spec: Spec, text: str) -> tuple[list[int], bytes]:
    request = inference_pb2.InferRequest()
    add_input(request, spec, text)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype) == (spec.name, spec.datatype)
    return list(tensor.shape), request.raw_input_contents[0]


def answered(datatype: str, shape: list[int], raw: bytes) -> NDArray[np.generic]:
    response = inference_pb2.InferResponse(raw_output_contents=[raw])
    response.outputs.add(name="y", datatype=datatype, shape=shape)
    (output,) = outputs_of(response)
    return output.array


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16"])
def test_numbers_go_out_and_come_back_as_they_were(datatype: str) -> None:
    shape, raw = sent(Spec("x", datatype, (-1, 2)), "[[1, 0], [0, 1]]")

    assert shape == [2, 2]
    assert answered(datatype, shape, raw).astype(float).tolist() == [[1, 0], [0, 1]]


def test_texts_go_out_and_come_back_as_they_were() -> None:
    texts = ["", "ä long one", '["x"]']

    shape, raw = sent(Spec("x", "BYTES", (-1,)), json.dumps(texts))

    assert shape == [3]
    assert [item.decode() for item in answered("BYTES", shape, raw).tolist()] == texts


@pytest.mark.parametrize(
    ("spec", "text", "shape"),
    [
        (Spec("x", "FP32", (-1, 3)), "[1, 2, 3]", [1, 3]),
        (Spec("x", "FP32", (-1, 3)), "[1, 2, 3, 4, 5, 6]", [2, 3]),
        (Spec("x", "FP32", (-1,)), "5", [1]),
        (Spec("x", "FP32", (-1, 2, 2)), "[[1, 2], [3, 4]]", [1, 2, 2]),
        (Spec("x", "BYTES", (-1,)), "two words", [1]),
        (Spec("x", "BYTES", (-1, 1)), "[broken", [1, 1]),
        (Spec("x", "BYTES", (-1, 2)), '["a", "b"]', [1, 2]),
        (Spec("x", "BYTES", (-1,)), '"quoted"', [1]),
    ],
)
def test_dimensions_that_one_row_leaves_out_are_added(spec: Spec, text: str, shape: list[int]) -> None:
    assert sent(spec, text)[0] == shape


@pytest.mark.parametrize(
    ("datatype", "text", "message"),
    [
        ("FP32", "abc", "needs numbers as JSON"),
        ("FP32", '["a"]', "no number"),
        ("FP32", "[[1], [2, 3]]", "differ in length"),
        ("FP32", "null", "no number"),
        ("INT8", "[300]", "no INT8"),
        ("INT64", "[1.5]", "no INT64"),
        ("UINT8", "[-1]", "no UINT8"),
        ("BYTES", "[1, 2]", "needs text"),
        ("FP32", "@absent.npy", "cannot be read"),
        ("FP32", "@picture.png", "needs a .npy or .json file"),
    ],
)
def test_what_is_no_such_tensor_is_refused(datatype: str, text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        sent(Spec("x", datatype, (-1, 2)), text)


def test_files_are_read_by_their_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0]]))
    (tmp_path / "a.json").write_text("[[1, 2]]")
    (tmp_path / "a.wav").write_bytes(b"RIFF\x00")
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    pair = Spec("x", "FP32", (-1, 2))

    assert sent(pair, f"@{tmp_path}/a.npy") == sent(pair, f"@{tmp_path}/a.json")
    assert sent(Spec("x", "BYTES", (-1,)), f"@{tmp_path}/a.wav") == ([1], b"\x05\x00\x00\x00RIFF\x00")
    with pytest.raises(CommandError, match="cannot be read"):
        sent(pair, f"@{tmp_path}/evil.npy")


def test_outputs_are_shown_short_and_given_whole() -> None:
    response = inference_pb2.InferResponse(
        raw_output_contents=[np.arange(20, dtype="<f4").tobytes(), b"\x01\x00\x00\x00\xff"]
    )
    response.outputs.add(name="y", datatype="FP32", shape=[1, 20])
    response.outputs.add(name="z", datatype="BYTES", shape=[1])

    numbers, texts = outputs_of(response)

    assert numbers.short() == "0, 1, 2, 3, 4, 5, 6, 7, … (20 in all)"
    assert numbers.plain() == [[float(n) for n in range(20)]]
    assert texts.plain() == ["base64:/w=="]
