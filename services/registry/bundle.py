"""The file that an export writes and an import reads: `Bundle` messages, each after its length as a varint.

Pure. Knows the form and what makes a file whole; where its contents come from and go to is `history`'s.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.encoding import read_varint, varint
from services.domain.errors import Fault, InvalidRequest
from services.registry.layout import State

FORMAT = "modelyard.bundle/1"

PART_BYTES = 1 << 20
"""About how much of the file travels in one message."""

MAX_RECORD_BYTES = 8 << 20
"""A record that claims to be longer is none; stored values take at most 1.5 MiB."""

_VARINT_BYTES = 10


def framed(record: pb.Bundle) -> bytes:
    """A record as it stands in the file."""
    raw = record.SerializeToString(deterministic=True)
    return varint(len(raw)) + raw


def header(digest: str, *, history: bool) -> bytes:
    """The file's first record."""
    return framed(pb.Bundle(header=pb.BundleHeader(format=FORMAT, digest=digest, history=history)))


def end(records: int) -> bytes:
    """The file's last record, after so many others."""
    return framed(pb.Bundle(end=pb.BundleEnd(records=records)))


def of_state(state: State) -> Iterator[bytes]:
    """The file of a state: the same bytes for the same objects, whatever their history."""
    yield header(state.tree_digest, history=False)
    for key in state.ordered:
        yield framed(pb.Bundle(object=state.entries[key].raw))
    yield end(1 + len(state.entries))


def parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of about `PART_BYTES`."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


class Reader:
    """Takes a file in parts, and gives its records; tells when it is not whole."""

    def __init__(self) -> None:
        """At the file's first byte."""
        self.header: pb.BundleHeader | None = None
        self._waiting = bytearray()
        self._at = 0
        self._records = 0
        self._ended = False

    def feed(self, data: bytes) -> list[pb.Bundle]:
        """The records that the next bytes complete, without header and end.

        Raises:
            InvalidRequest: This is no such file, or a damaged one.
        """
        self._waiting += data
        found: list[pb.Bundle] = []
        start = 0
        while (bounds := self._next(start)) is not None:
            begin, start = bounds
            record = self._record(bytes(memoryview(self._waiting)[begin:start]))
            if record is not None:
                found.append(record)
            self._records += 1
            self._at += start - begin
        del self._waiting[:start]
        return found

    def finish(self) -> None:
        """The file has no more bytes.

        Raises:
            InvalidRequest: It should have.
        """
        if not self._ended:
            raise self._damaged(f"ends after {self._records} records without saying so: it was cut off")

    def _next(self, start: int) -> tuple[int, int] | None:
        """Where the record that begins at `start` lies; None if it is not all there."""
        prefix = bytes(memoryview(self._waiting)[start : start + _VARINT_BYTES])
        if not prefix:
            return None
        try:
            length, skip = read_varint(prefix, 0)
        except DecodeError:
            if len(prefix) < _VARINT_BYTES:
                return None
            raise self._damaged("has no length where a record begins") from None
        if length > MAX_RECORD_BYTES:
            raise self._damaged(f"claims a record of {length} bytes, at most {MAX_RECORD_BYTES}")
        stop = start + skip + length
        return (start + skip, stop) if stop <= len(self._waiting) else None

    def _record(self, raw: bytes) -> pb.Bundle | None:
        if self._ended:
            raise self._damaged("goes on after its end")
        try:
            record = pb.Bundle.FromString(raw)
        except DecodeError:
            raise self._damaged(f"has something that is no record, after {self._records} that are") from None
        kind = record.WhichOneof("record")
        if self.header is None:
            if kind != "header" or record.header.format != FORMAT:
                raise self._damaged(f"does not begin as a file of the format {FORMAT}")
            self.header = record.header
            return None
        if kind == "end":
            if record.end.records != self._records:
                raise self._damaged(f"has {self._records} records and should have {record.end.records}")
            self._ended = True
            return None
        if kind not in (("object", "tree", "revision") if self.header.history else ("object",)):
            raise self._damaged(f"has a record of the kind '{kind or 'unknown'}', which does not belong there")
        return record

    def _damaged(self, what: str) -> InvalidRequest:
        return damaged(f"{what}, near byte {self._at}")


def damaged(what: str) -> InvalidRequest:
    """The refusal of a file."""
    return InvalidRequest.of([Fault("data", f"the file {what}; nothing was changed")])
