"""The spans of a mesh as files: JSON lines, appended by the collector, read by `yardctl trace`.

`spans.jsonl` is the current file. When it is full it becomes `spans.1.jsonl`, whose
predecessor goes, so that the store never takes more than twice the limit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

FILE_BYTES = 64 << 20
CURRENT = "spans.jsonl"
PREVIOUS = "spans.1.jsonl"

Value: TypeAlias = Any
"""What an attribute may hold: text, number, truth value, or a list of these."""


class SpanLink(msgspec.Struct, frozen=True):
    """Another span that a span worked for."""

    trace_id: str
    span_id: str


class StoredSpan(msgspec.Struct, frozen=True, omit_defaults=True):
    """One span, as a line of the store. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    name: str
    start_ns: int
    """Nanoseconds since the Unix epoch."""
    end_ns: int
    parent_id: str = ""
    """Empty for a root."""
    kind: str = "internal"
    service: str = ""
    instance: str = ""
    error: str = ""
    """Why it failed; empty if it did not."""
    attributes: Mapping[str, Value] = {}
    links: Sequence[SpanLink] = []

    @property
    def duration_s(self) -> float:
        """Seconds from begin to end."""
        return (self.end_ns - self.start_ns) / 1e9


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(StoredSpan)


@dataclass
class SpanWriter:
    """Appends spans to the files in `folder`. One process may write at a time."""

    folder: Path
    file_bytes: int = FILE_BYTES

    def write(self, spans: Sequence[StoredSpan]) -> None:
        """Append; a reader meets whole lines only, or the beginning of the last one.

        Raises:
            OSError: The files cannot be written.
        """
        if not spans:
            return
        lines = b"".join(_ENCODER.encode(span) + b"\n" for span in spans)
        current = self.folder / CURRENT
        if current.exists() and current.stat().st_size + len(lines) > self.file_bytes:
            current.replace(self.folder / PREVIOUS)
        with current.open("ab") as file:
            file.write(lines)


@dataclass(frozen=True, slots=True)
class StoredSpans:
    """The spans in a store, in the order of arrival; each iteration reads the files anew."""

    folder: Path

    def __iter__(self) -> Iterator[StoredSpan]:
        """Every span; lines that are none are left out."""
        for name in (PREVIOUS, CURRENT):
            try:
                with (self.folder / name).open("rb") as file:
                    for line in file:
                        try:
                            yield _DECODER.decode(line)
                        except msgspec.DecodeError:
                            continue
            except FileNotFoundError:
                continue


def read_spans(folder: Path) -> StoredSpans:
    """Every span in the store of a folder, which may be missing."""
    return StoredSpans(folder)


def to_json(span: StoredSpan) -> dict[str, Any]:
    """The span as plain values, as in its line."""
    plain: dict[str, Any] = json.loads(_ENCODER.encode(span))
    return plain
