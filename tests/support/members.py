"""A real etcd of three members, to freeze, kill and start again one by one; on loopback, or in nodes of a network.

What the members say of themselves is read from etcd's own JSON gateway, so that no client of ours is in between.
"""

import base64
import contextlib
import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.etcd import find_etcd
from tests.support.netns import Network
from tests.support.ports import free_ports
from tests.support.signals import freeze

READY_S = 30.0
STOP_S = 10.0
ASK_S = 0.5
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Put before a command, ends it when this process ends, however that ends."""

NODES = ("e0", "e1", "e2")
"""What the members' nodes are called."""


class Member:
    """One member; its data outlives it."""

    def __init__(self, name: str, directory: Path, address: str, ports: tuple[int, int], inside: Sequence[str]) -> None:
        """Serve clients and peers on two `ports` of `address`; `inside` is put before its command."""
        self.name = name
        self.endpoint = f"{address}:{ports[0]}"
        self.peer = f"http://{address}:{ports[1]}"
        self.frozen = False
        self._directory = directory
        self._inside = inside
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, cluster: str) -> None:
        """Start it, again if need be; does not wait for it.

        Args:
            cluster: All members, as etcd wants them.
        """
        assert not self.running, f"{self.name} is running already"
        binary = find_etcd()
        assert binary is not None, "no etcd: set ETCD_BIN or install etcd-server"
        command = [
            *(*DIES_WITH_US, *self._inside),
            *(binary, "--name", self.name, "--data-dir", str(self._directory / self.name)),
            *("--listen-client-urls", f"http://{self.endpoint}", "--advertise-client-urls", f"http://{self.endpoint}"),
            *("--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer),
            *("--initial-cluster", cluster, "--heartbeat-interval", "50", "--election-timeout", "500"),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self._directory / f"{self.name}.log"

    def kill(self) -> None:
        """End it with SIGKILL, as a crash; no error if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process, self.frozen = None, False

    def freeze(self) -> None:
        """Stop it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        freeze(self._process.pid)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None and self.frozen:
            self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def ask(self, method: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """Ask its JSON gateway; None if it does not answer."""
        host, _, port = self.endpoint.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=ASK_S)
        try:
            connection.request("POST", f"/v3/{method}", json.dumps(request))
            answer = connection.getresponse()
            found = json.loads(answer.read())
            return dict(found) if answer.status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()


class Members:
    """Three of them."""

    def __init__(self, directory: Path, network: Network | None = None) -> None:
        """Keep data and logs in `directory`; with a network, in its nodes `NODES`."""
        if network is None:
            ports = free_ports(2 * len(NODES))
            places = [("127.0.0.1", (ports[2 * n], ports[2 * n + 1]), list[str]()) for n in range(len(NODES))]
        else:
            places = [(network.address(node), (2379, 2380), network.inside(node)) for node in NODES]
        self.all = [
            Member(node, directory, address, pair, inside)
            for node, (address, pair, inside) in zip(NODES, places, strict=True)
        ]
        self._cluster = ",".join(f"{member.name}={member.peer}" for member in self.all)

    @property
    def endpoints(self) -> list[str]:
        """`HOST:PORT` for clients, of each member."""
        return [member.endpoint for member in self.all]

    def start(self, member: Member) -> None:
        """Start one, again if need be."""
        member.start(self._cluster)

    def wait_leader(self) -> Member:
        """The leader, once there is one; fails with the logs' ends after `READY_S`."""
        end_s = time.monotonic() + READY_S
        while (leader := self.leader()) is None:
            if time.monotonic() > end_s:
                tails = "\n".join(f"{m.name}: {m.log.read_text(errors='replace')[-800:]}" for m in self.all)
                raise AssertionError(f"etcd has no leader after {READY_S:g} s:\n{tails}")
            time.sleep(0.05)
        return leader

    def leader(self) -> Member | None:
        """The member that says of itself that it leads, if one that runs does."""
        for member in self.all:
            if member.running and not member.frozen:
                said = member.ask("maintenance/status", {})
                if said is not None and said.get("leader", "") == said["header"]["member_id"]:
                    return member
        return None

    def first_under(self, prefix: str) -> str | None:
        """The value of the key under `prefix` that was created first, if a member answers and there is one."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        request = {
            "key": base64.b64encode(prefix.encode()).decode(),
            "range_end": base64.b64encode(end.encode()).decode(),
            "sort_target": "CREATE",
            "sort_order": "ASCEND",
            "limit": "1",
        }
        for member in self.all:
            if member.running and not member.frozen:
                said = member.ask("kv/range", request)
                if said is not None:
                    kvs = said.get("kvs", [])
                    return base64.b64decode(kvs[0]["value"]).decode() if kvs else None
        return None

    def stop(self) -> None:
        """End all, frozen ones as well."""
        for member in self.all:
            member.kill()


@contextlib.contextmanager
def members(directory: Path, network: Network | None = None) -> Iterator[Members]:
    """Three members with a leader, gone afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Members(directory, network)
    try:
        for member in made.all:
            made.start(member)
        made.wait_leader()
        yield made
    finally:
        made.stop()
