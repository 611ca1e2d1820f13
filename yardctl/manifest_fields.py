"""YAML nodes to protobuf messages, field by field along the descriptor, every fault kept.

YAML is composed, not constructed, so that each value still knows its line; and the
descriptor decides what a value means, so that the contract stays the only schema.
"""

import base64
import binascii
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from services.domain.errors import Fault
from yardctl.quantities import parse_duration, parse_size

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = (f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value")
_TYPE = FieldDescriptor
_INT_RANGES = {
    _TYPE.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _TYPE.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _TYPE.TYPE_UINT32: (0, (1 << 32) - 1),
    _TYPE.TYPE_UINT64: (0, (1 << 64) - 1),
}
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
DURATION = Duration.DESCRIPTOR.full_name

AfterMessage = Callable[[Message, str], None]
"""Called with each message read and its path."""

ReadMessage = Callable[[yaml.Node, Message, str], None]
"""Reads a node into a message at a path."""

Bind = Callable[[str, str], None]
"""Called with the path of a field and the parameter that gives its value."""

_PLACEHOLDER = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")


class _WrongValue(Exception):
    """A scalar that does not fit its field."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where something stands in a manifest; both count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        """`file:line:column`, as editors and terminals understand it."""
        return f"{self.file}:{self.line}:{self.column}"


@dataclass
class FieldReader:
    """Reads the nodes of one document of one file."""

    file: str
    faults: list[Fault]
    """Grows by everything that is wrong."""
    positions: dict[str, Position] = field(default_factory=dict)
    """Grows by the position of every field read, by its path in the protobuf object."""
    after_message: AfterMessage | None = None
    read_otherwise: Mapping[str, ReadMessage] = field(default_factory=dict)
    """By full name: messages that are not written as their fields."""
    bind: Bind | None = None
    """Set within a template: `${parameter}` may stand where no text can."""

    def at(self, node: yaml.Node) -> Position:
        """Where a node begins."""
        return Position(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def fault(self, node: yaml.Node, message: str) -> None:
        """Keep one fault at a node."""
        self.faults.append(Fault(str(self.at(node)), message))

    def entries(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Key, key node and value node of a mapping; duplicate and wrong keys become faults."""
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, f"{what} must be a mapping of fields, not {_kind_of(node)}")
            return
        seen: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TEXT_TAGS:
                self.fault(key_node, f"a name in {what} must be text, not {_kind_of(key_node)}: quote it")
                continue
            key = key_node.value
            if key in seen:
                self.fault(key_node, f"'{key}' stands twice in {what}; first at line {self.at(seen[key]).line}")
                continue
            seen[key] = key_node
            yield key, key_node, value_node

    def unknown(self, node: yaml.Node, name: str, known: Iterable[str], what: str) -> None:
        """Keep the fault of a name that is none of `known`."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        self.fault(node, f"unknown {what} '{name}'; {hint}")

    def message(self, node: yaml.Node, message: Message, path: str, what: str) -> None:
        """Read a mapping into a message that is already part of its parent."""
        message.SetInParent()
        if (otherwise := self.read_otherwise.get(message.DESCRIPTOR.full_name)) is not None:
            otherwise(node, message, path)
            return
        fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
        chosen: dict[str, str] = {}
        for name, key_node, value_node in self.entries(node, what):
            spec = fields.get(name)
            if spec is None:
                self.unknown(key_node, name, fields, f"field of {what}")
                continue
            oneof = spec.containing_oneof
            # The oneof of an `optional` field is the compiler's own.
            if oneof is not None and len(oneof.fields) > 1:
                if oneof.name in chosen:
                    self.fault(key_node, f"only one of '{chosen[oneof.name]}' and '{name}' may be set in {what}")
                    continue
                chosen[oneof.name] = name
            inner = f"{path}.{name}" if path else name
            self.positions[inner] = self.at(value_node if isinstance(value_node, yaml.ScalarNode) else key_node)
            self._field(value_node, message, spec, inner)
        if self.after_message is not None:
            self.after_message(message, path)

    def _field(self, node: yaml.Node, message: Message, spec: FieldDescriptor, path: str) -> None:
        if spec.message_type is not None and spec.message_type.GetOptions().map_entry:
            self._map(node, getattr(message, spec.name), spec, path)
        elif spec.is_repeated:
            self._list(node, getattr(message, spec.name), spec, path)
        elif spec.message_type is not None and spec.message_type.full_name != DURATION:
            self.message(node, getattr(message, spec.name), path, f"'{spec.name}'")
        elif self._is_bound(node, spec, path):
            pass  # it stays unset until there is a value
        elif (value := self._scalar(node, spec)) is not None:
            if isinstance(value, Duration):
                getattr(message, spec.name).CopyFrom(value)
            else:
                setattr(message, spec.name, value)

    def _list(self, node: yaml.Node, items: Any, spec: FieldDescriptor, path: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, f"'{spec.name}' must be a list, not {_kind_of(node)}")
            return
        for index, item in enumerate(node.value):
            inner = f"{path}[{index}]"
            self.positions[inner] = self.at(item)
            if spec.message_type is not None and spec.message_type.full_name != DURATION:
                self.message(item, items.add(), inner, f"'{spec.name}'")
            elif self._is_bound(item, spec, inner):
                items.append(0)
            elif (value := self._scalar(item, spec)) is not None:
                items.append(value)

    def _map(self, node: yaml.Node, items: Any, spec: FieldDescriptor, path: str) -> None:
        assert spec.message_type is not None
        value_spec = spec.message_type.fields_by_name["value"]
        for key, key_node, value_node in self.entries(node, f"'{spec.name}'"):
            inner = f"{path}[{key}]"
            self.positions[inner] = self.at(value_node if isinstance(value_node, yaml.ScalarNode) else key_node)
            if value_spec.message_type is not None:
                self.message(value_node, items[key], inner, f"'{spec.name}[{key}]'")
            elif (value := self._scalar(value_node, value_spec, name=f"{spec.name}[{key}]")) is not None:
                items[key] = value

    def _is_bound(self, node: yaml.Node, spec: FieldDescriptor, path: str) -> bool:
        """Whether a parameter of a template gives the value."""
        if self.bind is None or not isinstance(node, yaml.ScalarNode) or node.tag not in _TEXT_TAGS:
            return False
        match = _PLACEHOLDER.fullmatch(node.value)
        if match is None or spec.type in (_TYPE.TYPE_STRING, _TYPE.TYPE_BYTES):
            return False
        self.bind(path, match[1])
        return True

    def _scalar(self, node: yaml.Node, spec: FieldDescriptor, *, name: str = "") -> Any:
        """The value of a scalar field; None after a fault."""
        name = name or spec.name
        if not isinstance(node, yaml.ScalarNode):
            self.fault(node, f"'{name}' must be {_wanted(spec)}, not {_kind_of(node)}")
            return None
        try:
            return _READERS[spec.cpp_type](node, spec)
        except _WrongValue as error:
            detail = str(error)
            wanted = f"'{name}' must be {_wanted(spec)}"
            self.fault(node, f"{wanted}: {detail}" if detail else f"{wanted}, not {_kind_of(node)}")
            return None


def enum_names(descriptor: EnumDescriptor) -> Mapping[str, int]:
    """Values by short name: `DEVICE_KIND_CPU` is `CPU`. The zero, which means unset, is left out."""
    zero = next(value.name for value in descriptor.values if value.number == 0)
    prefix = zero.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix): value.number for value in descriptor.values if value.number != 0}


def _wanted(spec: FieldDescriptor) -> str:
    if spec.message_type is not None:
        return "a duration such as 30s or 250ms"
    if spec.enum_type is not None:
        return f"one of {', '.join(enum_names(spec.enum_type))}"
    if spec.type == _TYPE.TYPE_BYTES:
        return "bytes in base64"
    if spec.type == _TYPE.TYPE_STRING:
        return "text"
    if spec.type == _TYPE.TYPE_BOOL:
        return "true or false"
    if spec.type in (_TYPE.TYPE_DOUBLE, _TYPE.TYPE_FLOAT):
        return "a number"
    return "a whole number or a size such as 512MiB" if spec.name.endswith("_bytes") else "a whole number"


def _kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    match node.tag.removeprefix(_TAG):
        case "null":
            return "empty"
        case "str":
            return f"the text '{_short(node.value)}'"
        case "bool":
            return f"the truth value {node.value}"
        case "int" | "float":
            return f"the number {_short(node.value)}"
        case other:
            return f"'{_short(node.value)}' ({other})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_text(node: yaml.ScalarNode, spec: FieldDescriptor) -> str | bytes:
    if spec.type == _TYPE.TYPE_BYTES:
        if node.tag not in (*_TEXT_TAGS, f"{_TAG}binary"):
            raise _WrongValue
        try:
            return base64.b64decode("".join(node.value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _WrongValue(str(error)) from error
    if node.tag not in _TEXT_TAGS:
        raise _WrongValue(f"{_kind_of(node)} needs quotes to be text" if node.tag != f"{_TAG}null" else "")
    return str(node.value)


def _read_int(node: yaml.ScalarNode, spec: FieldDescriptor) -> int:
    if node.tag == f"{_TAG}int":
        try:
            value = int(_CONSTRUCTOR.construct_yaml_int(node))
        except ValueError as error:
            raise _WrongValue(str(error)) from error
    elif spec.name.endswith("_bytes") and node.tag == f"{_TAG}str":
        try:
            value = parse_size(node.value)
        except ValueError as error:
            raise _WrongValue(str(error)) from error
    else:
        raise _WrongValue
    lowest, highest = _INT_RANGES[spec.type]
    if not lowest <= value <= highest:
        raise _WrongValue(f"{_short(str(value))} is out of range")
    return value


def _read_float(node: yaml.ScalarNode, _spec: FieldDescriptor) -> float:
    try:
        if node.tag == f"{_TAG}int":
            value = float(_CONSTRUCTOR.construct_yaml_int(node))
        elif node.tag == f"{_TAG}float":
            value = float(_CONSTRUCTOR.construct_yaml_float(node))
        elif node.tag == f"{_TAG}str" and node.style is None:
            # YAML 1.1 takes 1e-3, which has no point, for text.
            value = float(node.value)
            if not math.isfinite(value):
                raise _WrongValue
        else:
            raise _WrongValue
    except (ValueError, OverflowError) as error:
        raise _WrongValue from error
    return value


def _read_bool(node: yaml.ScalarNode, _spec: FieldDescriptor) -> bool:
    if node.tag != f"{_TAG}bool":
        raise _WrongValue
    return bool(_CONSTRUCTOR.construct_yaml_bool(node))


def _read_enum(node: yaml.ScalarNode, spec: FieldDescriptor) -> int:
    assert spec.enum_type is not None
    number = enum_names(spec.enum_type).get(node.value) if node.tag in _TEXT_TAGS else None
    if number is None:
        raise _WrongValue
    return number


def _read_duration(node: yaml.ScalarNode, _spec: FieldDescriptor) -> Duration:
    if node.tag not in _TEXT_TAGS:
        raise _WrongValue(f"{_kind_of(node)} has no unit" if node.tag != f"{_TAG}null" else "")
    duration = Duration()
    try:
        duration.FromNanoseconds(parse_duration(node.value))
    except ValueError as error:
        raise _WrongValue(str(error)) from error
    return duration


_READERS: dict[int, Callable[[yaml.ScalarNode, FieldDescriptor], Any]] = {
    _TYPE.CPPTYPE_STRING: _read_text,
    _TYPE.CPPTYPE_INT32: _read_int,
    _TYPE.CPPTYPE_INT64: _read_int,
    _TYPE.CPPTYPE_UINT32: _read_int,
    _TYPE.CPPTYPE_UINT64: _read_int,
    _TYPE.CPPTYPE_DOUBLE: _read_float,
    _TYPE.CPPTYPE_FLOAT: _read_float,
    _TYPE.CPPTYPE_BOOL: _read_bool,
    _TYPE.CPPTYPE_ENUM: _read_enum,
    _TYPE.CPPTYPE_MESSAGE: _read_duration,
}
