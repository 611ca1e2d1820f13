"""A real etcd of one member, to start, pause, kill and start again."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.ports import free_ports
from tests.support.signals import freeze

READY_S = 20.0
STOP_S = 10.0


def find_etcd() -> str | None:
    """The binary: $ETCD_BIN, else on PATH, else beside this Python."""
    beside = Path(sys.prefix) / "bin" / "etcd"
    return os.environ.get("ETCD_BIN") or shutil.which("etcd") or (str(beside) if beside.exists() else None)


class EtcdProcess:
    """One member on fixed loopback ports; its data outlives `kill` and `stop`, so `start` brings it back."""

    def __init__(self, directory: Path) -> None:
        """Keep data and log in `directory`, on ports free now."""
        self._directory = directory
        self._port, self._peer_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def endpoint(self) -> str:
        """`HOST:PORT` for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self._directory / "etcd.log"

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, again if need be, and wait until it says that it is healthy.

        Args:
            wait: False returns at once, for tests that want to see it come up.
        """
        assert not self.running, "etcd is running already"
        binary = find_etcd()
        assert binary is not None, "no etcd: set ETCD_BIN or install etcd-server"
        self._directory.mkdir(parents=True, exist_ok=True)
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        command = [
            *(binary, "--name", "test", "--data-dir", str(self._directory / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"test={peer}"),
            *("--heartbeat-interval", "10", "--election-timeout", "100"),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._paused = False
        if wait:
            self.wait_healthy()

    def wait_healthy(self) -> None:
        """Return once it has a leader; fail with its log's end after `READY_S`."""
        deadline_s = time.monotonic() + READY_S
        while not self._healthy():
            if not self.running or time.monotonic() > deadline_s:
                raise AssertionError(f"etcd does not come up:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order; no error if it is not running."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        assert self._process is not None
        freeze(self._process.pid)
        self._paused = True

    def resume(self) -> None:
        """Thaw it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._paused and how != signal.SIGKILL:
            self.resume()
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None
        self._paused = False

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            return b'"health":"true"' in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
