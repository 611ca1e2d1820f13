"""Nodes on a network of the test's own, to cut apart: each in a network namespace, around one bridge.

A namespace lives as long as the process that holds it, and that one dies with this process, so that nothing is left
behind even by a crash. This process is on the network too, by an interface that goes with the bridge. What is cut is
silence, as in a real partition: packets are sent to a hardware address that nobody has, in one direction or both.
"""

import contextlib
import functools
import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

NOBODY = "02:00:00:00:00:01"
"""A hardware address that nobody has."""

HERE = "here"
"""This process, among the nodes."""

RUN_S = 10.0
_FIRST_HOST = 11


class NoNamespaces(Exception):
    """Namespaces cannot be made here; its text says why."""


@functools.cache
def why_not() -> str | None:
    """Why there can be no network of one's own here; None if there can."""
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(["probe"]):
            return None
    except NoNamespaces as error:
        return str(error)


class Network:
    """A bridge with nodes around it."""

    def __init__(self, nodes: Sequence[str]) -> None:
        """Name the nodes; `open` makes them."""
        self._nodes = tuple(nodes)
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses: dict[str, str] = {}
        self._device = f"yard{os.getpid()}"
        self._cuts: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Make everything.

        Raises:
            NoNamespaces: It cannot be made; what was made is gone again.
        """
        try:
            self._open()
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise NoNamespaces(f"no network namespace with a bridge can be made: {said}") from error

    def close(self) -> None:
        """Let everything go."""
        for holder in self._holders.values():
            holder.kill()
        for holder in self._holders.values():
            holder.wait(RUN_S)
        self._holders = {}
        # Gone with the bridge's namespace, but only a moment later: a next network may have the same name.
        with contextlib.suppress(subprocess.SubprocessError):
            _run(["ip", "link", "del", self._device])

    def address(self, node: str) -> str:
        """A node's IP address."""
        return self._addresses[node]

    def inside(self, node: str) -> list[str]:
        """What to put before a command to run it in a node; it is the command's own process then."""
        return ["nsenter", f"--net=/proc/{self._holders[node].pid}/ns/net", "--"]

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing that `sender` sends arrive at `receiver`; what goes the other way still does."""
        to = self._addresses[receiver]
        self._ip(sender, f"neigh replace {to} lladdr {NOBODY} dev {self._link(sender)} nud permanent")
        self._cuts.add((sender, receiver))

    def join(self, sender: str, receiver: str) -> None:
        """Undo a `cut`."""
        if (sender, receiver) in self._cuts:
            self._cuts.discard((sender, receiver))
            self._ip(sender, f"neigh del {self._addresses[receiver]} dev {self._link(sender)}")

    def join_all(self) -> None:
        """Undo every `cut`."""
        for sender, receiver in sorted(self._cuts):
            self.join(sender, receiver)

    def _open(self) -> None:
        subnet = _free_subnet()
        hosts = [str(host) for host in subnet.hosts()]
        self._addresses = {HERE: hosts[0], **dict(zip(self._nodes, hosts[_FIRST_HOST - 1 :], strict=False))}
        for name in ("bridge", *self._nodes):
            self._hold(name)
        bridge = self._holders["bridge"].pid
        self._ip("bridge", "link add br0 type bridge", "link set br0 up")
        _run(["ip", "link", "add", self._device, "type", "veth", "peer", "name", "here", "netns", str(bridge)])
        _run(["ip", "addr", "add", f"{hosts[0]}/{subnet.prefixlen}", "dev", self._device])
        _run(["ip", "link", "set", self._device, "up"])
        self._ip("bridge", "link set here master br0", "link set here up")
        for index, node in enumerate(self._nodes):
            pid = self._holders[node].pid
            self._ip("bridge", f"link add port{index} type veth peer name eth0 netns {pid}")
            self._ip("bridge", f"link set port{index} master br0", f"link set port{index} up")
            address = f"{self._addresses[node]}/{subnet.prefixlen}"
            self._ip(node, f"addr add {address} dev eth0", "link set eth0 up", "link set lo up")

    def _hold(self, name: str) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"]
        holder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=True
        )
        self._holders[name] = holder
        assert holder.stdout is not None
        assert holder.stderr is not None
        with holder.stdout, holder.stderr:
            if holder.stdout.readline() != b"made\n":
                raise OSError(holder.stderr.read().decode(errors="replace").strip() or "unshare failed")

    def _link(self, node: str) -> str:
        return self._device if node == HERE else "eth0"

    def _ip(self, node: str, *lines: str) -> None:
        inside = [] if node == HERE else self.inside(node)
        _run([*inside, "ip", "-batch", "-"], "\n".join(lines))


@contextlib.contextmanager
def network(nodes: Sequence[str]) -> Iterator[Network]:
    """A network that is gone afterwards.

    Raises:
        NoNamespaces: It cannot be made.
    """
    made = Network(nodes)
    made.open()
    try:
        yield made
    finally:
        made.close()


def _free_subnet() -> ipaddress.IPv4Network:
    """One that nothing on this machine has a route to."""
    routes = json.loads(_run(["ip", "-json", "route", "show", "table", "all"]) or "[]")
    taken = [ipaddress.ip_network(r["dst"], strict=False) for r in routes if r.get("dst", "default")[0].isdigit()]
    first = os.getpid() % 200
    for number in range(first, first + 200):
        subnet = ipaddress.IPv4Network(f"10.{230 + number % 20}.{number % 200}.0/24")
        if not any(subnet.overlaps(other) for other in taken if isinstance(other, ipaddress.IPv4Network)):
            return subnet
    raise OSError("every subnet of 10.230.0.0/12 is taken")


def _run(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=RUN_S, check=True)
    return done.stdout
