"""What fits: requests that are right by the route are right for its models, and answers of those by the route."""

from hypothesis import given
from hypothesis import strategies as st

from services.domain.model import TensorMeta, TensorSpec, schema_faults
from services.domain.schemas import input_misfits, output_misfits, tensor_spec_faults, unlike, wiring_misfit

X = TensorSpec("x", "FP32", (-1, 64))
DIMENSIONS = st.lists(st.sampled_from([-1, 1, 2]), max_size=2).map(tuple)
SPECS = st.builds(TensorSpec, st.sampled_from("ab"), st.sampled_from(["INT8", "FP32"]), DIMENSIONS, st.booleans())
SCHEMAS = st.lists(SPECS, max_size=2, unique_by=lambda spec: spec.name)


def spec(name: str = "x", datatype: str = "FP32", *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, datatype, shape, optional)


def test_a_model_takes_what_the_route_promises_and_more() -> None:
    assert list(input_misfits([X], [X])) == []
    assert list(input_misfits([X], [spec("x", "FP32", 1, 64)])) == []
    assert list(input_misfits([X, spec("mask", "BOOL", -1, optional=True)], [X])) == []


def test_a_model_that_refuses_what_the_route_promises_does_not_fit() -> None:
    loose = TensorSpec("x", "FP32", (-1, 64), allow_non_finite=True)
    for taken, promised, why in (
        (X, spec("y", "FP32", -1, 64), "takes no input 'y'"),
        (X, spec("x", "FP16", -1, 64), "takes FP32 [-1, 64] as input 'x', here it is FP16 [-1, 64]"),
        (X, spec("x", "FP32", -1, -1), "takes FP32 [-1, 64] as input 'x', here it is FP32 [-1, -1]"),
        (X, spec("x", "FP32", -1), "takes FP32 [-1, 64] as input 'x', here it is FP32 [-1]"),
        (X, spec("x", "FP32", -1, 64, optional=True), "needs input 'x', which is optional here"),
        (X, loose, "refuses NaN and infinities in input 'x', which are allowed here"),
    ):
        assert why in list(input_misfits([taken], [promised]))
    assert list(input_misfits([X, spec("z", "BOOL", -1)], [X])) == ["needs input 'z', which is not here"]


def test_a_model_gives_what_the_route_promises_and_may_give_more() -> None:
    assert list(output_misfits([X, spec("more", "BOOL", -1)], [spec("x", "FP32", -1, -1)])) == []
    assert list(output_misfits([spec("x", "FP32", -1, -1)], [X])) == [
        "gives FP32 [-1, -1] as output 'x', here it is FP32 [-1, 64]"
    ]
    assert list(output_misfits([X], [spec("y")])) == ["gives no output 'y'"]


def test_sizes_that_may_meet_are_wired_unless_any_must_do() -> None:
    some, fixed = spec("x", "FP32", -1, -1), spec("x", "FP32", -1, 64)

    assert wiring_misfit(some, fixed, strict=False) == ""
    assert wiring_misfit(some, fixed, strict=True) == "it is FP32 [-1, -1], FP32 [-1, 64] is needed"
    assert wiring_misfit(spec("x", "FP32", -1, 65), fixed, strict=False) != ""
    assert wiring_misfit(spec("x", "INT8", -1, 64), fixed, strict=False) != ""


def test_schemas_are_unlike_whatever_their_order() -> None:
    other = spec("z", "BOOL", -1)

    assert not unlike([X, other], [other, X])
    assert unlike([X], [X, other])


def test_every_fault_of_a_schema_is_named() -> None:
    wrong = [spec("a\n", "FP33", 0), spec("", "FP32"), spec("b", "FP32", *([1] * 9)), spec("b", "FP32", -2)]

    assert [fault.path for fault in tensor_spec_faults(wrong, "in")] == [
        "in[0].name",
        "in[0].datatype",
        "in[0].shape",
        "in[1].name",
        "in[2].shape",
        "in[3].name",
        "in[3].shape",
    ]
    assert [str(fault) for fault in tensor_spec_faults([X] * 257, "in")] == ["in: has 257 entries, at most 256"]


@given(SCHEMAS, SCHEMAS, st.data())
def test_what_fits_takes_every_request_that_is_promised(
    taken: list[TensorSpec], promised: list[TensorSpec], data: st.DataObject
) -> None:
    sent = [
        TensorMeta(
            one.name, one.datatype, tuple(data.draw(st.integers(1, 3)) if size == -1 else size for size in one.shape)
        )
        for one in promised
        if not one.optional or data.draw(st.booleans())
    ]

    if not list(input_misfits(taken, promised)):
        assert schema_faults(sent, taken) == []
