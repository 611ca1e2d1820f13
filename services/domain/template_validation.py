"""What makes a Template valid by itself, as far as its objects need not be opened; `chassis.templating` does that.

The values that an instantiation gives are checked here too: they are held against the same parameters.
"""

from collections.abc import Iterable, Mapping

from services.domain.errors import Fault
from services.domain.objects import Template
from services.domain.templates import Parameter, is_parameter_name, value_of, wanted
from services.domain.texts import line_faults, note_faults, shown, too_many

MAX_PARAMETERS = 64
MAX_OBJECTS = 200
MAX_BINDINGS = 1024
MAX_ALLOWED = 256

_NAMED = 16
"""Parameters that a refusal names; the rest is counted."""


def template_faults(template: Template) -> list[Fault]:
    """Everything wrong with a template that can be seen without its objects."""
    at = "template"
    faults = note_faults(template.description, f"{at}.description") + line_faults(template.owner, f"{at}.owner")
    if template.requires_approval and not template.owner.replace(",", "").strip():
        faults.append(Fault(f"{at}.owner", "must not be empty: requires_approval is set, and nobody could approve"))
    if not template.body:
        faults.append(Fault(f"{at}.objects", "at least one is needed"))
    for path, count, most in (
        ("parameters", len(template.parameters), MAX_PARAMETERS),
        ("objects", len(template.body), MAX_OBJECTS),
        ("bindings", len(template.bindings), MAX_BINDINGS),
    ):
        if count > most:
            faults.append(too_many(count, most, f"{at}.{path}"))
    seen: set[str] = set()
    for index, parameter in enumerate(template.parameters[:MAX_PARAMETERS]):
        faults += _parameter_faults(parameter, f"{at}.parameters[{index}]")
        if parameter.name in seen:
            faults.append(Fault(f"{at}.parameters[{index}].name", f"{shown(parameter.name)} stands twice"))
        seen.add(parameter.name)
    return faults


def _parameter_faults(parameter: Parameter, at: str) -> list[Fault]:
    faults = note_faults(parameter.description, f"{at}.description")
    if not is_parameter_name(parameter.name):
        rule = "must be a lower-case letter, then lower-case letters, digits and '_', at most 63 in all"
        faults.append(Fault(f"{at}.name", f"{shown(parameter.name)} {rule}"))
    if len(parameter.allowed) > MAX_ALLOWED:
        return [*faults, too_many(len(parameter.allowed), MAX_ALLOWED, f"{at}.allowed")]
    kind = parameter.type
    for index, text in enumerate(parameter.allowed):
        if value_of(kind, text) is None:
            faults.append(Fault(f"{at}.allowed[{index}]", f"{shown(text)} is not {wanted(kind)}"))
    if parameter.default is not None:
        faults += _value_faults(parameter, parameter.default, f"{at}.default")
    return faults


def value_faults(parameters: Mapping[str, Parameter], given: Mapping[str, str]) -> list[Fault]:
    """Everything wrong with the values that are given to a template's parameters."""
    faults = []
    for name, text in sorted(given.items()):
        at = f"parameters[{shown(name)[1:-1]}]"
        if name in parameters:
            faults += _value_faults(parameters[name], text, at)
        elif len(faults) < MAX_PARAMETERS:
            faults.append(Fault(at, f"the template has no such parameter; there is {known_names(parameters)}"))
    for name, parameter in parameters.items():
        if parameter.default is None and name not in given:
            faults.append(Fault(f"parameters[{name}]", f"is not given and has no default: {wanted(parameter.type)}"))
    return faults


def known_names(parameters: Iterable[str]) -> str:
    """Names of parameters for a message."""
    names = list(parameters)
    more = len(names) - _NAMED
    listed = ", ".join(shown(name)[1:-1] for name in names[:_NAMED])
    return listed + (f" and {more} more" if more > 0 else "") if names else "no parameter at all"


def _value_faults(parameter: Parameter, text: str, at: str) -> list[Fault]:
    value = value_of(parameter.type, text)
    if value is None:
        return [Fault(at, f"{shown(text)} is not {wanted(parameter.type)}")]
    if parameter.allowed and value not in [value_of(parameter.type, one) for one in parameter.allowed]:
        return [Fault(at, f"{shown(text)} is none of {', '.join(shown(one)[1:-1] for one in parameter.allowed)}")]
    return []
