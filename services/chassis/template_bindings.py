"""Where a template's bindings put the values of parameters: in numbers, truth values, enums and durations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from modelyard.registry.v1 import objects_pb2 as pb
from services.chassis.codec import duration_to
from services.domain.template_validation import known_names
from services.domain.templates import Parameter, ParameterType, Value, value_of
from services.domain.texts import shown

MAX_PATH_LENGTH = 512

_STEP = re.compile(r"(?:^|\.)(?P<field>[a-z][a-z0-9_]*)|\[(?P<index>[^\]]*)\]")
_LONGEST_DURATION_S = 315_576_000_000
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_NUMBERS = (ParameterType.INTEGER, ParameterType.NUMBER)


class Misfit(Exception):
    """A place or value that a binding cannot have; says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value goes."""

    holder: Any
    """The message that has the field, or the list that has the element."""
    field: FieldDescriptor
    index: int | None = None

    def put(self, value: Any) -> None:
        """Put a value there."""
        if isinstance(value, Duration):
            getattr(self.holder, self.field.name).CopyFrom(value)
        elif self.index is not None:
            self.holder[self.index] = value
        else:
            setattr(self.holder, self.field.name, value)


def bound_by(parameters: Mapping[str, Parameter], binding: pb.TemplateBinding) -> Parameter:
    """The parameter that a binding takes its value of.

    Raises:
        Misfit: There is none.
    """
    parameter = parameters.get(binding.parameter)
    if parameter is None:
        raise Misfit(f"there is no parameter {shown(binding.parameter)}; there is {known_names(parameters)}")
    return parameter


def place_of(objects: Sequence[pb.Object], binding: pb.TemplateBinding) -> Place:
    """Where a binding puts its value.

    Raises:
        Misfit: There is no such place, or it takes texts.
    """
    if not 0 <= binding.object < len(objects):
        raise Misfit(f"there is no objects[{binding.object}]; there are {len(objects)}")
    holder: Message = objects[binding.object]
    steps = _steps(binding.path)
    where = ""
    for name in steps:
        fields: Mapping[str, Any] = holder.DESCRIPTOR.fields_by_name
        field = fields.get(name)
        if field is None or name == "template":
            raise Misfit(f"{where or 'the object'} has no field {shown(name)}")
        where = f"{where}.{name}" if where else name
        choice = field.containing_oneof
        if choice is not None and len(choice.fields) > 1 and holder.WhichOneof(choice.name) != name:
            raise Misfit(f"objects[{binding.object}] has another {choice.name} than {shown(where)}")
        value = getattr(holder, name)
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            key = _inner(next(steps, ""))
            if key not in value or not isinstance(value[key], Message):
                raise Misfit(f"{where} has no {shown(key)} that could be bound")
            holder = value[key]
        elif field.is_repeated:
            index = _index(_inner(next(steps, "")), len(value), where)
            if inner is None:
                return _last(Place(value, field, index), steps)
            holder = value[index]
        elif inner is None or inner is Duration.DESCRIPTOR:
            return _last(Place(holder, field), steps)
        else:
            holder = value
    raise Misfit(f"{shown(binding.path)} is not a single value but what holds some")


def _steps(path: str) -> Iterator[str]:
    """Names of fields, and indices and keys after a bracket, one after the other."""
    found: list[str] = []
    begin = 0
    while begin < len(path) <= MAX_PATH_LENGTH:
        match = _STEP.match(path, begin)
        if match is None:
            break
        found.append(f"[{match['index']}" if match["field"] is None else match["field"])
        begin = match.end()
    if begin != len(path) or not found:
        raise Misfit(f"{shown(path)} is no path such as 'model_version.min_replicas'")
    return iter(found)


def _inner(step: str) -> str:
    """What stands in the brackets; empty if they are missing."""
    return step[1:] if step.startswith("[") else ""


def _index(text: str, count: int, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count):
        raise Misfit(f"{where} has no [{shown(text)[1:-1]}]; it has {count} elements")
    return int(text)


def _last(place: Place, steps: Iterator[str]) -> Place:
    if (further := next(steps, None)) is not None:
        raise Misfit(f"'{place.field.name}' has nothing in it, no {shown(further)} either")
    if place.field.type == FieldDescriptor.TYPE_STRING:
        raise Misfit(f"'{place.field.name}' is a text: write the parameter into it, as '${{...}}'")
    if place.field.type == FieldDescriptor.TYPE_BYTES:
        raise Misfit(f"'{place.field.name}' is bytes, which no parameter gives")
    return place


def check_values(parameter: Parameter, field: FieldDescriptor) -> None:
    """Make sure that a parameter can give a field its value, as far as its type and the values it is known to have say.

    Raises:
        Misfit: It cannot.
    """
    takes, what = _takes(field)
    if parameter.type not in takes:
        types = " or ".join(each.value for each in takes)
        text = (
            f"'{field.name}' is {what}, for a parameter of type {types}; '{parameter.name}' is {parameter.type.value}"
        )
        raise Misfit(text)
    for text in (*parameter.allowed, *(() if parameter.default is None else (parameter.default,))):
        value = value_of(parameter.type, text)
        if value is not None:
            converted(value, field)


def _takes(field: FieldDescriptor) -> tuple[tuple[ParameterType, ...], str]:
    """Types of parameters that a field takes, and what it is."""
    if field.message_type is not None:
        return _NUMBERS, "a duration in seconds"
    if field.enum_type is not None:
        return (ParameterType.TEXT,), "one of a few names"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return (ParameterType.BOOLEAN,), "true or false"
    if field.cpp_type in _RANGES:
        return (ParameterType.INTEGER,), "a whole number"
    return _NUMBERS, "a number"


def converted(value: Value, field: FieldDescriptor) -> Any:
    """A parameter's value as the field takes it.

    Raises:
        Misfit: It does not.
    """
    if field.message_type is not None:
        seconds = float(value)
        if abs(seconds) > _LONGEST_DURATION_S:
            raise Misfit(f"{value} seconds are too long")
        return duration_to(seconds)
    if field.enum_type is not None:
        # Names carry the enum's own as a prefix; what is left are the words of manifests.
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        names = {each.name.removeprefix(prefix): each.number for each in field.enum_type.values if each.number}
        if value not in names:
            raise Misfit(f"{shown(str(value))} is none of {', '.join(names)}")
        return names[str(value)]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return value
    if field.cpp_type not in _RANGES:
        return float(value)
    least, most = _RANGES[field.cpp_type]
    if not least <= int(value) <= most:
        raise Misfit(f"{value} is out of the range of '{field.name}', {least} to {most}")
    return int(value)
