"""What runs on this machine, as files: `run/<host-id>.json`, and which leader may change it.

A file is written before its process starts, so that one that starts while the launcher dies is
found again. Whoever changes anything holds the lock and shows a fencing token that is not lower
than the highest one seen, so that a leader that was paused in between changes nothing.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.domain.errors import StaleFencingToken

LOCK = ".launcher"
"""Name of the lock file, which holds the highest fencing token seen."""


class LauncherBusy(Exception):
    """Another launcher is changing something at this moment."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """One process."""

    name: str
    """The host's id."""
    pid: int
    """0 from before the start until it is known."""
    create_time: float
    """As the operating system tells it, seconds since the Unix epoch: with the pid, it names a process."""
    argv: list[str]
    address: str
    """`HOST:PORT` it serves on."""
    pool: str = ""
    """Only hosts have one; other processes of the mesh keep their files here too."""

    @property
    def port(self) -> int:
        """The port it serves on; 0 if the address has none."""
        port = self.address.rpartition(":")[2]
        return int(port) if port.isdigit() else 0


class RunDirectory:
    """The run files below one mesh directory."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`/run, which `guarded` makes."""
        self._run = directory / "run"

    def hosts(self) -> dict[str, RunFile]:
        """Every host that has a file, by id. Files of other processes and half-read ones are left out."""
        found = {}
        for path in sorted(self._run.glob("*.json")) if self._run.is_dir() else ():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                entry = msgspec.json.decode(path.read_bytes(), type=RunFile)
                if entry.pool and entry.name == path.stem:
                    found[entry.name] = entry
        return found

    def write(self, entry: RunFile) -> None:
        """Put a file in one step, so that nobody reads half of it."""
        path = self._run / f"{entry.name}.json"
        fresh = path.with_suffix(".tmp")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(entry))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        (self._run / f"{name}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def guarded(self, fencing_token: int, *, seize: bool = False) -> Iterator[None]:
        """Hold the lock while something is changed.

        Args:
            fencing_token: The leader's.
            seize: Take the place of an earlier leader even where that one's token is higher: its
                election is gone, with everything it started.

        Raises:
            LauncherBusy: The lock is held.
            StaleFencingToken: A later leader has been here.
        """
        self._run.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LauncherBusy("another launcher is at work in this directory") from error
            text = os.pread(handle, 32, 0).strip()
            seen = int(text) if text.isdigit() else 0
            if fencing_token < seen and not seize:
                raise StaleFencingToken(f"token {fencing_token} is below {seen}, which leads on this machine")
            if fencing_token != seen:
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(fencing_token).encode(), 0)
            yield
        finally:
            os.close(handle)
