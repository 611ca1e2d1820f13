"""What a Template is made of: parameters, what values they take, and where values go besides texts."""

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_VALUE_LENGTH = 4096
"""Longest value of a parameter."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)

TEMPLATE_ANNOTATION = "modelyard/template"
"""Annotation of what a template made."""

Value = str | int | float | bool


class ParameterType(enum.Enum):
    """What the value of a parameter is."""

    TEXT = "TEXT"
    INTEGER = "INTEGER"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that differs from one use of a template to the next; values are given as text."""

    name: str
    description: str = ""
    type: ParameterType = ParameterType.TEXT
    default: str | None = None
    """None: a value must be given."""
    allowed: tuple[str, ...] = ()
    """Empty: any value of the type."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Puts a parameter's value where no text can stand."""

    object: int
    """Which of the template's objects."""
    path: str
    """Where in it, such as `model_version.min_replicas`."""
    parameter: str


def origin_of(name: str, digest: str) -> str:
    """Value of the annotation of what a template made: its name and the first digits of its digest."""
    return f"{name}@{digest[:12]}"


def made_by(annotations: Mapping[str, str]) -> str:
    """Name of the template that made an object; empty if none did."""
    return annotations.get(TEMPLATE_ANNOTATION, "").partition("@")[0]


def is_parameter_name(name: str) -> bool:
    """Whether `name` may name a parameter."""
    return _NAME.fullmatch(name) is not None


def value_of(parameter_type: ParameterType, text: str) -> Value | None:
    """The value that `text` stands for; None if it is none of that type."""
    match parameter_type:
        case ParameterType.TEXT:
            return text if len(text) <= MAX_VALUE_LENGTH else None
        case ParameterType.INTEGER:
            value = int(text) if _INTEGER.fullmatch(text) else None
            return value if value is not None and -(1 << 63) <= value < 1 << 63 else None
        case ParameterType.NUMBER:
            number = float(text) if _NUMBER.fullmatch(text) else math.inf
            return number if math.isfinite(number) else None
        case ParameterType.BOOLEAN:
            return {"true": True, "false": False}.get(text)


def wanted(parameter_type: ParameterType) -> str:
    """What a value of a type looks like, for a message."""
    match parameter_type:
        case ParameterType.TEXT:
            return f"a text of at most {MAX_VALUE_LENGTH} characters"
        case ParameterType.INTEGER:
            return "a whole number of at most 64 bits"
        case ParameterType.NUMBER:
            return "a finite number such as 0.5 or 1e-3"
        case ParameterType.BOOLEAN:
            return "true or false"
