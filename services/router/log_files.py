"""The files of a decision log: one is written, begun anew when it is large or old, and the oldest of many go.

What is written is handed to the system at once, and forced to the disk when a file is closed: a process that dies
loses nothing that was handed over, a machine that does loses what its system had not written yet. Either may leave a
last entry that is cut off.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO

AGE_S = 3600.0
"""A file is not written for longer than this, so that old ones can be taken away."""

SUFFIX = ".decisions"


class LogFiles:
    """The files of one process, of which there may be others in the directory."""

    def __init__(self, directory: Path, name: str, *, most_bytes: int, most_files: int) -> None:
        """Write into `directory`; nothing is done there yet.

        Args:
            directory: Made when it is first needed.
            name: The process among its replicas.
            most_bytes: A file that has as many is closed.
            most_files: How many are kept, the one that is written included.
        """
        self._directory = directory
        self._stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        self._ours = re.compile(re.escape(self._stem) + r"\.\d{13}-\d{6}" + re.escape(SUFFIX))
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._begun_s = 0.0
        self._number = 0

    def full(self, now_s: float) -> bool:
        """Whether a file must be begun before anything is written."""
        return self._file is None or self._bytes >= self._most_bytes or now_s - self._begun_s >= AGE_S

    def begin(self, header: bytes, *, wall_s: float, now_s: float) -> None:
        """Begin a file with its first entry; close the one before, and take the oldest away.

        Raises:
            OSError: The disk does not take it.
        """
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._number += 1
        name = f"{self._stem}.{int(wall_s * 1000):013d}-{self._number:06d}{SUFFIX}"
        self._file = (self._directory / name).open("xb", buffering=0)
        self._bytes, self._begun_s = 0, now_s
        self.write(header)
        for old in self.kept()[: -self._most_files]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()

    def write(self, data: bytes) -> None:
        """Append whole entries.

        Raises:
            OSError: The disk does not take them; what it took of them may be at the end of the file, which is then
                not written any more.
        """
        assert self._file is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            raise
        self._bytes += len(data)

    def kept(self) -> list[Path]:
        """This process's files and those of others of its name, oldest first."""
        return sorted(path for path in self._directory.iterdir() if self._ours.fullmatch(path.name))

    def close(self) -> None:
        """Force what was written to the disk.

        Raises:
            OSError: It does not take it.
        """
        file, self._file = self._file, None
        if file is not None:
            with file:
                os.fsync(file.fileno())
