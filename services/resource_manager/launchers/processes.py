"""Starts, recognises and ends operating system processes.

A process is named by its pid and the time it was created; a pid alone may be anybody's by now.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from services.chassis.process import RECYCLE

SAME_START_S = 1.0
"""Creation times this close are the same: the operating system derives them from a boot time that
moves a little when the clock is set. No pid comes round again within it."""


class Processes:
    """The processes of one machine, among them children that this process must reap."""

    def __init__(self) -> None:
        """No children yet."""
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._ended: dict[int, int] = {}

    def start(self, argv: Sequence[str], *, log: Path, environ: Mapping[str, str]) -> tuple[int, float]:
        """Start a process in a session of its own, which outlives this one.

        Args:
            argv: The command.
            log: Takes both its outputs, at the end of what is there.
            environ: Its environment.

        Returns:
            Its pid and creation time.

        Raises:
            OSError: It cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
                close_fds=True,
            )
        self._children[child.pid] = child
        self._ended.pop(child.pid, None)
        # Not reaped before the next call of `reap`, so the pid is still this child's.
        return child.pid, psutil.Process(child.pid).create_time()

    def reap(self) -> None:
        """Collect children that ended, so that none stays a zombie."""
        for pid, child in list(self._children.items()):
            if (code := child.poll()) is not None:
                del self._children[pid]
                self._ended[pid] = code

    def ending(self, pid: int) -> str:
        """How a process ended, for people; taken from memory once."""
        code = self._ended.pop(pid, None)
        if code is None:
            return "ended"  # somebody else's child: the operating system does not say
        if code == RECYCLE:
            return "ended to be started anew"
        if code >= 0:
            return f"ended with code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def running(self, pid: int, create_time: float) -> bool:
        """Whether that very process runs. A zombie does not."""
        return _find(pid, create_time) is not None

    def search(self, argv: Sequence[str]) -> tuple[int, float] | None:
        """A process that was started with exactly these arguments: pid and creation time; None if there is none."""
        for process in psutil.process_iter(["cmdline", "create_time", "status"]):
            facts = process.info
            if facts["cmdline"] == list(argv) and facts["status"] != psutil.STATUS_ZOMBIE:
                return process.pid, facts["create_time"]
        return None

    def send(self, pid: int, create_time: float, number: signal.Signals) -> bool:
        """Signal that very process, and never another one that has its pid by now.

        Returns:
            Whether it ran.
        """
        process = _find(pid, create_time)
        if process is None:
            return False
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return True


def _find(pid: int, create_time: float) -> psutil.Process | None:
    if pid <= 0:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do; it lets the probe pass connections that linger, and not other listeners.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def environment(without: Sequence[str]) -> dict[str, str]:
    """This process's environment, less some variables."""
    return {name: value for name, value in os.environ.items() if name not in without}
