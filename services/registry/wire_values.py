"""Values of a message that a domain object could not show, since they would be read as something else.

Durations that are none, and numbers that are no value of their enum. Works along the descriptor, so that every field
of every contract is looked at.
"""

from collections.abc import Iterator
from functools import cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from services.domain.errors import Fault
from services.domain.texts import shown

_LONGEST_DURATION_S = 315_576_000_000
"""Ten thousand years, as google.protobuf.Duration has it."""


def value_faults(message: Message, path: str = "") -> list[Fault]:
    """Faults of the fields that are set, with their paths."""
    if isinstance(message, Duration):
        return list(_duration_faults(message, path))
    faults: list[Fault] = []
    for field, is_map, is_list in _telling(message.DESCRIPTOR):
        if not is_map and not is_list and field.message_type is not None and not message.HasField(field.name):
            continue
        at = f"{path}.{field.name}" if path else field.name
        value = getattr(message, field.name)
        if is_map:
            each = [(f"{at}[{shown(str(key))[1:-1]}]", value[key]) for key in sorted(value)]
        elif is_list:
            each = [(f"{at}[{index}]", item) for index, item in enumerate(value)]
        else:
            each = [(at, value)]
        for inner, item in each:
            faults += (
                value_faults(item, inner) if field.enum_type is None else _enum_faults(item, field.enum_type, inner)
            )
    return faults


@cache
def _telling(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, bool, bool], ...]:
    """The fields under which a duration or an enum can stand, and whether each is a map or a list.

    They are few, and objects come by the hundred thousand.
    """
    return tuple(
        (field, field.message_type is not None and field.message_type.GetOptions().map_entry, field.is_repeated)
        for field in descriptor.fields
        if field.enum_type is not None or (field.message_type is not None and _can_tell(field.message_type))
    )


def _can_tell(descriptor: Descriptor, around: tuple[str, ...] = ()) -> bool:
    """Whether a duration or an enum can stand under it; a Template holds objects, and so in the contract itself."""
    if descriptor is Duration.DESCRIPTOR:
        return True
    if descriptor.full_name in around:
        return False
    inside = (*around, descriptor.full_name)
    return any(
        field.enum_type is not None or (field.message_type is not None and _can_tell(field.message_type, inside))
        for field in descriptor.fields
    )


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
