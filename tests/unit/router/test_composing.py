"""Messages taken apart where a route asks several."""

import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from services.domain.errors import InvalidRequest, ModelFailed
from services.router.composing import Composer
from services.router.frames import Payload
from tests.unit.router.yards import a_call


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 1000), ("INT16", -40_000), ("UINT8", 256)])
def test_an_element_that_is_not_of_its_type_is_refused_and_not_cut_down(datatype: str, value: int) -> None:
    contents = pb.InferTensorContents()
    (contents.uint_contents if datatype == "UINT8" else contents.int_contents).extend([1, value])
    tensor = pb.InferRequest.InferInputTensor(name="x", datatype=datatype, shape=[2], contents=contents)
    call = a_call()._replace(payload=Payload(pb.InferRequest(model_name="m", inputs=[tensor]).SerializeToString()))

    with pytest.raises(InvalidRequest, match=rf"inputs\[0\].contents: an element is no {datatype}"):
        Composer().inputs(call)

    output = pb.InferResponse.InferOutputTensor(name="y", datatype=datatype, shape=[2], contents=contents)
    with pytest.raises(ModelFailed, match="not of their type"):
        Composer().outputs(pb.InferResponse(outputs=[output]).SerializeToString())
