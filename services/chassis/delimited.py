"""Files of messages, each after its length as a varint: protobuf's delimited streams."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from services.chassis.encoding import read_varint, varint

M = TypeVar("M", bound=Message)

LONGEST = 64 << 20
"""Bytes of a message; a length beyond it is none."""

_READ_BYTES = 1 << 20
_VARINT_BYTES = 10


def framed(message: Message) -> bytes:
    """A message as it stands in a file."""
    raw = message.SerializeToString()
    return varint(len(raw)) + raw


class Delimited(Generic[M]):
    """Reads one file. What is cut off at the end, or damaged, ends it: `torn` then says where and how."""

    def __init__(self, path: Path, kind: type[M]) -> None:
        """Of messages of one kind, none of which is empty."""
        self.path = path
        self.torn = ""
        """Why the file was not read to its end; empty if it was."""
        self._kind = kind

    def __iter__(self) -> Iterator[M]:
        """The messages.

        Raises:
            OSError: The file cannot be read.
        """
        with self.path.open("rb") as file:
            yield from self._read(file)

    def _read(self, file: BinaryIO) -> Iterator[M]:
        held, at, begun = b"", 0, 0
        while True:
            length, start = _length(held, at)
            if length > LONGEST or length == 0:
                self.torn = f"damaged at byte {begun + at}"
                return
            if length < 0 or start + length > len(held):
                more = file.read(max(_READ_BYTES, length))
                if not more:
                    if at < len(held):
                        self.torn = f"cut off in its last entry, at byte {begun + at}"
                    return
                held, begun, at = held[at:] + more, begun + at, 0
                continue
            try:
                message = self._kind.FromString(held[start : start + length])
            except DecodeError:
                self.torn = f"damaged at byte {begun + at}"
                return
            at = start + length
            yield message


def _length(held: bytes, at: int) -> tuple[int, int]:
    """Length of the message at a place, and where it starts; -1 if that is not there yet."""
    try:
        return read_varint(held, at)
    except DecodeError:
        return (-1 if len(held) - at < _VARINT_BYTES else LONGEST + 1), at
