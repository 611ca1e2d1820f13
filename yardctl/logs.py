"""The logs of a mesh: the last lines of each file, new ones as they come, and how a line reads."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 64 << 10
_PLAIN = ("time", "ts", "level", "message", "msg", "service", "instance", "trace_id", "span_id", "caller")


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            position = file.tell()
            content = b""
            while position > 0 and content.count(b"\n") <= lines:
                step = min(_BLOCK_BYTES, position)
                position -= step
                file.seek(position)
                content = file.read(step) + content
    except OSError:
        return []
    return content.decode(errors="replace").splitlines()[-lines:] if lines else []


@dataclass
class Follower:
    """Reads what is appended to the logs in a folder, those of new processes included."""

    folder: Path
    name: str = ""
    """Only this log; empty follows all."""
    _positions: dict[Path, int] = field(default_factory=dict)

    def skip(self) -> None:
        """Begin at the current ends."""
        for path in self._files():
            self._positions[path] = path.stat().st_size

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Log name and line for every whole line appended since the last call."""
        for path in self._files():
            try:
                with path.open("rb") as file:
                    file.seek(self._positions.get(path, 0))
                    content = file.read()
            except OSError:
                continue
            whole = content[: content.rfind(b"\n") + 1]
            self._positions[path] = self._positions.get(path, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                yield path.stem, line

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name or '*'}.log"))


def parse(line: str) -> dict[str, Any] | None:
    """The fields of a JSON log line; None if it is no such line."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def time_of(line: str) -> str:
    """What lines are sorted by; empty if the line does not say when it was written."""
    fields = parse(line)
    return str(fields.get("time") or fields.get("ts") or "") if fields else ""


def readable(line: str) -> str:
    """A log line for people: time, level, message, and what else it says."""
    fields = parse(line)
    if fields is None:
        return line
    time = str(fields.get("time") or fields.get("ts") or "")
    clock = time.partition("T")[2][:12] or time
    message = fields.get("message") or fields.get("msg") or ""
    rest = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key not in _PLAIN)
    return " ".join(part for part in (clock, str(fields.get("level", "")), str(message), rest) if part)


def last_words(path: Path) -> str:
    """The last thing a process wrote, as one line for an error message; empty if it wrote nothing."""
    for line in reversed(tail(path, 20)):
        if not line.strip():
            continue
        fields = parse(line)
        if fields is None:
            return line.strip()
        if fields.get("level") in ("error", "fatal", "panic", "warning", "warn"):
            message = str(fields.get("message") or fields.get("msg") or "")
            cause = fields.get("error") or fields.get("exception") or ""
            return f"{message}: {str(cause).strip().splitlines()[-1]}" if cause else message
    return ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if "\n" not in text else "\n" + text
