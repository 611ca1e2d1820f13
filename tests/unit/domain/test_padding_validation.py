"""What is wrong with a version's padding, each with its path."""

from dataclasses import replace

import pytest

from services.domain.objects import Backend, Generation, Metadata, ModelVersion, Padding
from services.domain.validation import MAX_PADDINGS, object_faults

VERSION = ModelVersion(Metadata("m"), "1.0.0", Backend("identity"), max_batch_size=8)
AT = "model_version.batching.padding"


def faults(version: ModelVersion) -> dict[str, str]:
    return {fault.path: fault.message for fault in object_faults(version)}


def test_a_padding_of_a_batching_version_is_well() -> None:
    assert not faults(replace(VERSION, padding=(Padding("ids", 1, 0.0, {"y": 1}), Padding("ids", 2))))


@pytest.mark.parametrize(
    ("padding", "path", "why"),
    [
        (Padding("", 1), f"{AT}[0].input", "must name an input"),
        (Padding("ids", 0), f"{AT}[0].dimension", "dimension 0 is the batch's own"),
        (Padding("ids", 9), f"{AT}[0].dimension", "must be in 1 to 8"),
        (Padding("ids", 1, 0.0, {"y": 0}), f"{AT}[0].outputs[y]", "dimension 0 is the batch's own"),
        (Padding("ids", 1, float("nan")), f"{AT}[0].value", "must be finite"),
    ],
)
def test_what_is_wrong_is_named(padding: Padding, path: str, why: str) -> None:
    assert why in faults(replace(VERSION, padding=(padding,)))[path]


def test_a_dimension_stands_once() -> None:
    found = faults(replace(VERSION, padding=(Padding("ids", 1), Padding("ids", 1, 2.0))))
    assert found[f"{AT}[1]"] == "dimension 1 of 'ids' stands twice"


def test_a_version_that_does_not_batch_needs_none() -> None:
    assert "set max_batch_size" in faults(replace(VERSION, max_batch_size=1, padding=(Padding("ids", 1),)))[AT]


def test_there_are_not_too_many() -> None:
    many = tuple(Padding(f"x{number}", 1) for number in range(MAX_PADDINGS + 1))
    assert AT in faults(replace(VERSION, padding=many))


def test_a_version_that_generates_does_not_come_and_go() -> None:
    version = replace(VERSION, max_batch_size=1, generation=Generation(), on_demand=True)
    assert "stays in memory" in faults(version)["model_version.on_demand"]
