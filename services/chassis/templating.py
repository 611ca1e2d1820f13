"""Templates opened: what is wrong with what one would make, and what it makes of parameters. Pure.

Works along the descriptors, so that every text of every kind may hold a placeholder and every other field a binding,
also in kinds that come later. What is made is checked by the registry like any object.
"""

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from modelyard.registry.v1 import objects_pb2 as pb
from services.chassis.object_codec import message_key
from services.chassis.template_bindings import Misfit, bound_by, check_values, converted, place_of
from services.chassis.template_codec import parameters_from
from services.domain.errors import Fault, InvalidRequest
from services.domain.objects import ObjectKey
from services.domain.template_validation import known_names, value_faults
from services.domain.templates import value_of
from services.domain.texts import shown

MAX_MADE_BYTES = 8 << 20
"""Most that parameters' values may take in all that a template makes: one long value can stand in 100,000 places."""

TOLD_FAULTS = 50
"""Faults of one template that are told; a text of a megabyte can have 100,000."""

_PLACEHOLDER = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z0-9_]*)(?P<end>\}?)")


def check(spec: pb.TemplateSpec) -> list[Fault]:
    """Everything wrong with what a template would make, whatever its parameters; paths begin with `template`."""
    faults: list[Fault] = []
    parameters = {each.name: each for each in parameters_from(spec.parameters)}
    texts = _Texts({name: f"${{{name}}}" for name in parameters}, faults, literal="$${")
    seen: dict[ObjectKey, int] = {}
    for index, item in enumerate(spec.objects):
        at = f"template.objects[{index}]"
        if not _opened(item, at, faults):
            continue
        first = seen.setdefault(message_key(item), index)
        if first != index:
            faults.append(Fault(at, f"{_key(item)} stands in the template twice, at objects[{first}] already"))
        _fill(_copy(item), at, texts)
    bound: set[tuple[int, str]] = set()
    for index, binding in enumerate(spec.bindings):
        at = f"template.bindings[{index}]"
        try:
            place = place_of(spec.objects, binding)
            check_values(bound_by(parameters, binding), place.field)
        except Misfit as misfit:
            faults.append(Fault(at, str(misfit)))
        if (binding.object, binding.path) in bound:
            faults.append(Fault(at, f"{shown(binding.path)} of objects[{binding.object}] is bound already"))
        bound.add((binding.object, binding.path))
    used = texts.used | {binding.parameter for binding in spec.bindings}
    for index, name in enumerate(parameters):
        if name not in used and not faults:
            faults.append(Fault(f"template.parameters[{index}]", f"{shown(name)} is used nowhere"))
    return faults[:TOLD_FAULTS]


def render(spec: pb.TemplateSpec, given: Mapping[str, str]) -> list[pb.Object]:
    """The objects that a template makes of parameters, in its order.

    Args:
        spec: A template that `check` finds nothing wrong with.
        given: Values as text, by parameter.

    Raises:
        InvalidRequest: With every fault: of parameters as `parameters[name]`, of what becomes of an object as
            `template.objects[3]`.
    """
    parameters = {each.name: each for each in parameters_from(spec.parameters)}
    if faults := value_faults(parameters, given):
        raise InvalidRequest.of(faults)
    values = {name: given.get(name, parameter.default or "") for name, parameter in parameters.items()}
    made = [_copy(item) for item in spec.objects]
    for binding in spec.bindings:
        try:
            parameter = bound_by(parameters, binding)
            place = place_of(made, binding)
            value = value_of(parameter.type, values[parameter.name])
            assert value is not None  # its faults were looked for above
            place.put(converted(value, place.field))
        except Misfit as misfit:
            faults.append(Fault(f"parameters[{shown(binding.parameter)[1:-1]}]", f"{binding.path}: {misfit}"))
    texts = _Texts(values, faults, literal="${")
    seen: dict[ObjectKey, int] = {}
    for index, item in enumerate(made):
        at = f"template.objects[{index}]"
        if not _opened(item, at, faults):
            continue
        _fill(item, at, texts)
        first = seen.setdefault(message_key(item), index)
        if first != index:
            faults.append(Fault(at, f"becomes {_key(item)}, as objects[{first}] does"))
    if faults:
        raise InvalidRequest.of(faults[:TOLD_FAULTS])
    return made


def _opened(item: pb.Object, at: str, faults: list[Fault]) -> bool:
    """Whether an object of a template may be looked into."""
    kind = item.WhichOneof("spec")
    if kind == "template":
        faults.append(Fault(at, "a Template makes no Templates"))
    elif kind is None:
        faults.append(Fault(at, "has no spec"))
    return kind not in (None, "template")


def _key(item: pb.Object) -> str:
    return shown(str(message_key(item)))[1:-1]


def _copy(item: pb.Object) -> pb.Object:
    copy = pb.Object()
    copy.CopyFrom(item)
    return copy


# --- texts -------------------------------------------------------------------------------------


class _Texts:
    """Puts values in the place of placeholders."""

    def __init__(self, values: Mapping[str, str], faults: list[Fault], *, literal: str) -> None:
        """Store the arguments; `literal` is what `$${` becomes."""
        self._values = values
        self._sizes = {name: len(value.encode()) for name, value in values.items()}
        self._literal = literal
        self._left_bytes = MAX_MADE_BYTES
        self.faults = faults
        self.used: set[str] = set()

    def filled(self, text: str, path: str) -> str:
        """The text with values; as it is after a fault."""
        if "${" not in text:
            return text
        parts: list[str] = []
        wrong: set[str] = set()
        begin = 0
        for match in _PLACEHOLDER.finditer(text):
            parts.append(text[begin : match.start()])
            begin = match.end()
            name = match["name"]
            if name is None:
                parts.append(self._literal)
            elif not match["end"]:
                wrong.add("a '${' is not followed by a parameter's name and '}'; '$${' stands for '${' itself")
            elif name not in self._values:
                wrong.add(f"there is no parameter {shown(name)}; there is {known_names(self._values)}")
            else:
                self._left_bytes -= self._sizes[name]
                if self._left_bytes < 0:
                    wrong.add(f"with these values all of it takes more than {MAX_MADE_BYTES >> 20} MiB")
                    break
                self.used.add(name)
                parts.append(self._values[name])
            if len(wrong) > TOLD_FAULTS:
                break
        if wrong:
            if len(self.faults) < TOLD_FAULTS:
                self.faults += [Fault(path, each) for each in sorted(wrong)]
            return text
        parts.append(text[begin:])
        return "".join(parts)


def _fill(message: Message, path: str, texts: _Texts) -> None:
    """Put values into every text of a message."""
    for field, value in message.ListFields():
        at = f"{path}.{field.name}"
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            _fill_map(value, inner, at, texts)
        elif field.is_repeated:
            for index in range(len(value)):
                if inner is not None:
                    _fill(value[index], f"{at}[{index}]", texts)
                elif field.type == FieldDescriptor.TYPE_STRING:
                    value[index] = texts.filled(value[index], f"{at}[{index}]")
        elif inner is not None:
            _fill(value, at, texts)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, texts.filled(value, at))


def _fill_map(entries: Any, entry: Descriptor, path: str, texts: _Texts) -> None:
    is_text = entry.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING
    filled: dict[str, Any] = {}
    for key in sorted(entries):
        at = f"{path}[{shown(key)[1:-1]}]"
        value = entries[key]
        if is_text:
            value = texts.filled(value, at)
        elif isinstance(value, Message):
            _fill(value, at, texts)
            copy = type(value)()  # a map's messages do not outlive their entry
            copy.CopyFrom(value)
            value = copy
        name = texts.filled(key, at)
        if name in filled:
            texts.faults.append(Fault(at, f"becomes {shown(name)}, as another key does"))
        filled[name] = value
    entries.clear()
    for name, value in filled.items():
        if isinstance(value, Message):
            entries[name].CopyFrom(value)
        else:
            entries[name] = value
