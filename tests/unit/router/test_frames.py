"""Messages as bytes: what is spliced must be what protobuf itself would say."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.host.v1 import host_pb2
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.codec import key_to
from services.chassis.encoding import Encoded
from services.chassis.layouts import SMALL_BYTES
from services.chassis.outbox import LARGEST_BYTES
from services.domain.errors import ModelFailed
from services.domain.model import ModelKey
from services.router import frames
from services.router.frames import Payload, Received

KEY = ModelKey("echo", "1.0.0")


def a_request(*sizes: int, request_id: str = "") -> pb.InferRequest:
    request = pb.InferRequest(model_name="echo", id=request_id)
    for index, size in enumerate(sizes):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[1, size])
        request.raw_input_contents.append(bytes([index + 1]) * size)
    request.parameters["timeout"].int64_param = 10**15
    request.parameters["share"].double_param = 0.5
    request.route.min_quality = 0.5
    return request


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * SMALL_BYTES), max_size=4))
def test_a_request_reads_the_same_with_and_without_its_tensors(sizes: list[int]) -> None:
    request = a_request(*sizes)

    received = Received.FromString(request.SerializeToString())

    assert received.raw_lengths == tuple(sizes)
    without = pb.InferRequest()
    without.CopyFrom(received.message)
    del without.raw_input_contents[:]
    expected = a_request(*sizes)
    del expected.raw_input_contents[:]
    assert without == expected


def test_a_large_request_is_parsed_without_its_tensors() -> None:
    received = Received.FromString(a_request(2 * SMALL_BYTES).SerializeToString())

    assert len(received.message.raw_input_contents) == 0
    assert received.raw_lengths == (2 * SMALL_BYTES,)


@pytest.mark.parametrize("filler", [0, 2 * SMALL_BYTES])
@pytest.mark.parametrize(
    "tail",
    [
        b"\x3a\xff\xff\xff\xff\x0f",  # a length far beyond the end
        b"\x3a",  # a tag without a length
        b"\x0f",  # a wire type that does not exist
        b"\x0a\x02\xff\xfe",  # a name that is no UTF-8
        b"\x80" * 11,  # a varint without an end
        b"\x09\x00",  # eight bytes announced, one there
    ],
)
def test_bytes_that_are_no_request_are_refused_whatever_their_size(tail: bytes, filler: int) -> None:
    raw = a_request(filler).SerializeToString() + tail

    with pytest.raises(DecodeError):
        Received.FromString(raw)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 2))
def test_any_bytes_are_judged_as_protobuf_judges_them(tail: bytes, kind: int) -> None:
    filler = [b"", a_request(10).SerializeToString(), a_request(2 * SMALL_BYTES).SerializeToString()][kind]
    raw = filler + tail
    try:
        expected = pb.InferRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            Received.FromString(raw)
        return

    received = Received.FromString(raw)

    assert received.raw_lengths == tuple(map(len, expected.raw_input_contents))
    assert received.message.model_name == expected.model_name
    assert list(received.message.inputs) == list(expected.inputs)


@pytest.mark.parametrize("size", [0, 5, 200, 2 * SMALL_BYTES])
def test_the_host_reads_what_the_caller_wrote(size: int) -> None:
    request = a_request(size, request_id="mine")
    payload = Payload(request.SerializeToString())

    command = host_pb2.ExecuteRequest.FromString(frames.execute_request(key_to(KEY), payload))

    assert (command.key.model, command.key.version) == ("echo", "1.0.0")
    assert command.request == request


def test_the_host_reads_the_id_that_was_made_up() -> None:
    request = a_request(5)
    payload = Payload(request.SerializeToString(), "made-up")

    command = host_pb2.ExecuteRequest.FromString(frames.execute_request(key_to(KEY), payload))

    assert command.request == a_request(5, request_id="made-up")


def an_answer() -> host_pb2.ExecuteResponse:
    answer = host_pb2.ExecuteResponse(batch_size=3)
    answer.response.model_name = "echo"
    answer.response.outputs.add(name="x", datatype="UINT8", shape=[300])
    answer.response.raw_output_contents.append(b"\1" * 300)
    answer.queue.nanos = 5
    answer.load.host_id = "h0"
    return answer


def test_the_answer_is_cut_out_of_its_frame() -> None:
    response, rest = frames.open_response(an_answer().SerializeToString(), host_pb2.ExecuteResponse)

    assert pb.InferResponse.FromString(bytes(response)) == an_answer().response
    assert (rest.batch_size, rest.queue.nanos, rest.load.host_id) == (3, 5, "h0")


def test_fields_in_another_order_are_read_too() -> None:
    answer = an_answer()
    rest = host_pb2.ExecuteResponse()
    rest.CopyFrom(answer)
    rest.ClearField("response")
    only = host_pb2.ExecuteResponse(response=answer.response)

    for raw in (
        rest.SerializeToString() + only.SerializeToString(),
        only.SerializeToString() + rest.SerializeToString() + host_pb2.ExecuteResponse(response={}).SerializeToString(),  # type: ignore[arg-type]
    ):
        response, opened = frames.open_response(raw, host_pb2.ExecuteResponse)
        assert pb.InferResponse.FromString(bytes(response)) == answer.response
        assert opened.batch_size == 3


def test_an_answer_without_a_response_is_an_empty_response() -> None:
    response, rest = frames.open_response(b"", host_pb2.ExecuteResponse)

    assert response == b""
    assert rest.batch_size == 0


@pytest.mark.parametrize("raw", [b"\x0a", b"\x0a\x05ab", b"\xff\xff"])
def test_an_answer_that_is_cut_off_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        frames.open_response(raw, host_pb2.ExecuteResponse)


def test_the_decision_rides_on_the_answer() -> None:
    response = an_answer().response
    decision = pb.Decision(route="r", reason="x" * 200)

    encoded = frames.with_decision(response.SerializeToString(), decision.SerializeToString())

    response.decision.CopyFrom(decision)
    assert pb.InferResponse.FromString(encoded.SerializeToString()) == response


def test_a_streamed_answer_reads_as_one_of_the_protocol() -> None:
    response = an_answer().response.SerializeToString()

    message = v2.ModelStreamInferResponse.FromString(frames.streamed(Encoded((response,))).SerializeToString())

    assert message.infer_response.SerializeToString() == response
    assert message.error_message == ""


def test_an_answer_that_no_message_has_room_for_is_not_streamed() -> None:
    with pytest.raises(ModelFailed):
        frames.streamed(Encoded((bytes(LARGEST_BYTES), b"1")))
