"""A template is valid by itself if its parameters are, and if somebody could approve where approval is required."""

from dataclasses import replace
from typing import Any

import pytest

from services.domain.objects import Metadata, Template
from services.domain.templates import Parameter, ParameterType
from services.domain.validation import object_faults

POOLS = Template(Metadata("pools"), (Parameter("name"),), (b"\x52\x00",))


def with_parameter(name: str = "it", **changes: Any) -> Template:
    return replace(POOLS, parameters=(Parameter(name, **changes),))


def test_a_small_template_is_valid() -> None:
    assert object_faults(POOLS) == []
    assert object_faults(replace(POOLS, requires_approval=True, owner="olga, otto")) == []


@pytest.mark.parametrize(
    ("template", "path", "why"),
    [
        (replace(POOLS, body=()), "objects", "at least one"),
        (replace(POOLS, body=POOLS.body * 201), "objects", "has 201 entries, at most 200"),
        (replace(POOLS, parameters=POOLS.parameters * 2), "parameters[1].name", "'name' stands twice"),
        (replace(POOLS, requires_approval=True, owner=" , "), "owner", "nobody could approve"),
        (replace(POOLS, description="\x00"), "description", "printable"),
        (with_parameter("Name"), "parameters[0].name", "lower-case"),
        (with_parameter("a" * 64), "parameters[0].name", "lower-case"),
        (with_parameter(default="x" * 4097), "parameters[0].default", "at most 4096 characters"),
        (with_parameter(type=ParameterType.INTEGER, default=""), "parameters[0].default", "'' is not a whole number"),
        (with_parameter(type=ParameterType.BOOLEAN, allowed=("1",)), "parameters[0].allowed[0]", "true or false"),
        (with_parameter(default="c", allowed=("a", "b")), "parameters[0].default", "'c' is none of a, b"),
        (with_parameter(allowed=("a",) * 257), "parameters[0].allowed", "has 257 entries"),
    ],
)
def test_what_is_wrong_with_a_template_is_told_at_its_place(template: Template, path: str, why: str) -> None:
    (fault,) = object_faults(template)

    assert fault.path == f"template.{path}"
    assert why in fault.message


def test_there_may_be_64_parameters() -> None:
    many = tuple(Parameter(f"p{number}") for number in range(65))

    assert object_faults(replace(POOLS, parameters=many[:64])) == []
    assert [fault.path for fault in object_faults(replace(POOLS, parameters=many))] == ["template.parameters"]
