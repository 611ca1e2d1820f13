"""What is not parsed is what parsing would have found."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.layouts import FIXED_BYTES, LAYOUTS_KEPT, Layouts, layout_of


def _request(name: str, request_id: str, tensors: list[bytes], wishes: bool = False) -> pb.InferRequest:
    request = pb.InferRequest(model_name=name, id=request_id)
    for index, contents in enumerate(tensors):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[1, len(contents)])
        request.raw_input_contents.append(contents)
    if wishes:
        request.route.zone = "near"
        request.parameters["timeout"].int64_param = 5
    return request


REQUESTS = st.builds(
    _request,
    st.text(max_size=8),
    st.text(max_size=8),
    st.lists(st.binary(max_size=24), max_size=3),
    st.booleans(),
)


def met_twice(raw: bytes) -> Layouts:
    layouts = Layouts()
    layouts.of(raw)
    layouts.of(raw)
    return layouts


def rebuilt(raw: bytes, layouts: Layouts) -> pb.InferRequest | None:
    """The request as a reader of its layout sees it."""
    layout = layouts.of(raw)
    if layout is None:
        return None
    message = pb.InferRequest()
    message.CopyFrom(layout.message)
    message.id = layout.id_of(raw)
    message.raw_input_contents.extend(raw[at : at + length] for at, length in layout.tensors)
    return message


@given(REQUESTS)
def test_a_known_request_is_read_as_it_would_be_parsed(request: pb.InferRequest) -> None:
    raw = request.SerializeToString()

    found = rebuilt(raw, met_twice(raw))

    assert found is None or found == request
    assert (found is None) == (len(raw) < 2)


@given(REQUESTS, st.data())
def test_any_change_of_any_byte_is_read_as_it_would_be_parsed(request: pb.InferRequest, data: st.DataObject) -> None:
    raw = bytearray(request.SerializeToString())
    layouts = met_twice(bytes(raw))
    if not raw:
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(raw)

    try:
        parsed: pb.InferRequest | None = pb.InferRequest.FromString(changed)
    except DecodeError:
        parsed = None
    try:
        found = rebuilt(changed, layouts)
    except DecodeError:
        found = None
        assert parsed is None

    assert found is None or found == parsed


def test_other_ids_and_tensors_of_the_same_lengths_are_the_same_layout() -> None:
    layouts = met_twice(_request("m", "id-1", [b"abc", b"de"]).SerializeToString())
    other = _request("m", "id-2", [b"xyz", b"uv"])

    assert rebuilt(other.SerializeToString(), layouts) == other


def test_tensors_of_other_shapes_in_as_many_bytes_are_not_mistaken() -> None:
    layouts = met_twice(_request("m", "", [b"abcd", b"ef"]).SerializeToString())
    other = _request("m", "", [b"ab", b"cdef"]).SerializeToString()

    assert rebuilt(other, layouts) != _request("m", "", [b"abcd", b"ef"])
    assert rebuilt(other, layouts) in (None, _request("m", "", [b"ab", b"cdef"]))


def test_an_id_that_is_not_utf_8_is_refused() -> None:
    raw = _request("m", "ab", [b"abc"]).SerializeToString()
    layouts = met_twice(raw)

    with pytest.raises(DecodeError):
        rebuilt(raw.replace(b"\x1a\x02ab", b"\x1a\x02\xff\xfe"), layouts)


def test_of_two_ids_the_parser_judges() -> None:
    twice = _request("m", "ab", [b"abc"]).SerializeToString() + b"\x1a\x02cd"

    assert layout_of(twice) is None


def test_kinds_that_never_come_again_cost_a_look_and_no_layout() -> None:
    layouts = Layouts()
    for number in range(3 * LAYOUTS_KEPT):
        assert layouts.of(_request(f"m{number}", "", [b"abc"]).SerializeToString()) is None
    assert len(layouts._kept) <= LAYOUTS_KEPT


def test_much_that_is_fixed_is_not_kept() -> None:
    typed = pb.InferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[FIXED_BYTES]).contents.fp32_contents.extend([1.0] * FIXED_BYTES)
    raw = typed.SerializeToString()
    layouts = met_twice(raw)

    assert all(kept.layout is None for kept in layouts._kept.values())
