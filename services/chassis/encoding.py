"""protobuf's wire format by hand, for messages that are handed on without being parsed or copied.

https://protobuf.dev/programming-guides/encoding: varints, tags, length-delimited fields. What only a parser
should judge is left to one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message in pieces that are already encoded; stands in for a message where one is to be sent."""

    parts: tuple[Buffer, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def SerializeToString(self) -> bytes:
        """The bytes."""
        return b"".join(self.parts)


def length_delimited(tag: bytes, parts: Iterable[Buffer], length: int) -> tuple[Buffer, ...]:
    """A field of type string, bytes or message.

    Args:
        tag: Its encoded tag.
        parts: Its contents.
        length: Bytes of these in all.
    """
    return (tag, varint(length), *parts)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends.

    Raises:
        DecodeError: It is cut off or too long.
    """
    value = shift = 0
    try:
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise DecodeError("a varint is longer than 10 bytes")
    except IndexError:
        raise DecodeError("a varint is cut off") from None


def varint(value: int) -> bytes:
    """A varint of `value`, which is not negative."""
    if value < 0x4000:
        return _SHORT[value] if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


_SHORT = tuple(bytes((value,)) for value in range(0x80))
