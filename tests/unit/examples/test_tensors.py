"""The examples' own client code against what the model host makes of its bytes."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.tensors import infer_request, outputs, texts
from modelyard.inference.v1 import inference_pb2 as pb
from services.model_host import tensors as host


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.float64).reshape(3, 2).T,
        np.array([[True, False]]),
        np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)[:, ::-1],
        np.array([-1, 2**40], dtype=np.int64),
        np.zeros((0, 4), dtype=np.int32),
        texts("naïve café", "", "yard"),
    ],
    ids=["fp32", "fp64 transposed", "bool", "uint8 reversed", "int64", "empty int32", "bytes"],
)
def test_the_host_reads_what_the_client_wrote(array: NDArray[Any]) -> None:
    request = infer_request("route", {"input": array})

    (tensor,) = request.inputs
    read = host.from_raw(tensor.datatype, tuple(tensor.shape), request.raw_input_contents[0])

    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3), texts("a", "", "bcd")])
def test_the_client_reads_what_the_host_wrote(array: NDArray[Any]) -> None:
    datatype = "BYTES" if array.dtype == object else "FP32"
    response = pb.InferResponse(raw_output_contents=[host.to_raw(array)])
    response.outputs.add(name="answer", datatype=datatype, shape=array.shape)

    np.testing.assert_array_equal(outputs(response)["answer"], array)


def test_an_answer_with_an_output_too_few_is_not_taken() -> None:
    response = pb.InferResponse(raw_output_contents=[])
    response.outputs.add(name="answer", datatype="FP32", shape=[1])

    with pytest.raises(ValueError, match="zip"):
        outputs(response)
