"""Values of a message that a domain object could not show, since they would be read as something else.

Durations that are none, and numbers that are no value of their enum. Works along the descriptor, so that every field
of every contract is looked at.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from services.domain.errors import Fault
from services.domain.texts import shown

_LONGEST_DURATION_S = 315_576_000_000
"""Ten thousand years, as google.protobuf.Duration has it."""


def value_faults(message: Message, path: str = "") -> Iterator[Fault]:
    """Faults of the fields that are set, with their paths."""
    if isinstance(message, Duration):
        yield from _duration_faults(message, path)
        return
    for field in _telling(message.DESCRIPTOR):
        at = f"{path}.{field.name}" if path else field.name
        for inner, value in _values(message, field, at):
            if field.enum_type is not None:
                yield from _enum_faults(value, field.enum_type, inner)
            else:
                yield from value_faults(value, inner)


@cache
def _telling(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields under which a duration or an enum can stand: few, and objects come by the hundred thousand.

    No message may hold itself, over however many others; none of the contracts does.
    """
    return tuple(
        field
        for field in descriptor.fields
        if field.enum_type is not None or (field.message_type is not None and _can_tell(field.message_type))
    )


def _can_tell(descriptor: Descriptor) -> bool:
    return descriptor is Duration.DESCRIPTOR or bool(_telling(descriptor))


def _values(message: Message, field: FieldDescriptor, path: str) -> Iterable[tuple[str, Any]]:
    """The values of a field that are set, each with its path."""
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return ((f"{path}[{shown(str(key))[1:-1]}]", value[key]) for key in sorted(value))
    if field.is_repeated:
        return ((f"{path}[{index}]", item) for index, item in enumerate(value))
    if field.message_type is not None and not message.HasField(field.name):
        return ()
    return ((path, value),)


def _enum_faults(number: int, enum: EnumDescriptor, path: str) -> Iterator[Fault]:
    if number not in enum.values_by_number:
        # Names carry the enum's own as a prefix; what is left are the words of manifests.
        prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
        known = ", ".join(value.name.removeprefix(prefix) for value in enum.values[1:])
        yield Fault(path, f"{number} is none of {known}")


def _duration_faults(duration: Duration, path: str) -> Iterator[Fault]:
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _LONGEST_DURATION_S or abs(nanos) >= 1_000_000_000 or seconds * nanos < 0:
        yield Fault(path, f"{seconds} seconds and {nanos} nanos are no valid Duration")
