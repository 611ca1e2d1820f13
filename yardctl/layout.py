"""Where a mesh on this machine keeps its files, and which port each of its parts has."""

import atexit
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from yardctl.errors import CommandError

DEFAULT_DIRECTORY = Path(".modelyard")
DEFAULT_BASE_PORT = 7600
LOOPBACK = "127.0.0.1"
METRICS_OFFSET = 1000
HOST_PORTS = 69
"""Ports that follow the first host's and are for hosts too; what comes next belongs to etcd."""
_NAMED_PORTS = 3
_LIKELY_HOSTS = 16
"""Hosts for which ports are looked at when a free base port is chosen."""
_BASE_PORTS = [port for port in range(10_000, 24_000, 100) if port // METRICS_OFFSET % 2 == 0]
"""Where a free base port is looked for: no range meets another one, nor its metrics."""
_CLAIM_OFFSET = 99
"""A port of each range that no part has."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Address of every part, `host:port`."""

    router: str
    registry: str
    resource_manager: str
    collector: str
    etcd: str
    etcd_peer: str
    host_base_port: int
    """Port of the first host; the others follow."""

    @classmethod
    def from_base(cls, base_port: int) -> "Addresses":
        """The addresses that follow from a base port.

        Raises:
            CommandError: A port would lie outside 1024 to 65535.
        """
        highest = base_port + METRICS_OFFSET + 10 + HOST_PORTS
        if base_port < 1024 or highest > 65535:
            limit = 65535 - METRICS_OFFSET - 10 - HOST_PORTS
            raise CommandError(f"--base-port {base_port} must be in 1024 to {limit}", exit_code=2)

        def at(offset: int) -> str:
            return f"{LOOPBACK}:{base_port + offset}"

        return cls(
            router=at(0),
            registry=at(1),
            resource_manager=at(2),
            collector=at(4),
            etcd=at(79),
            etcd_peer=at(80),
            host_base_port=base_port + 10,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one mesh directory. `directory` is absolute."""

    directory: Path

    @classmethod
    def of(cls, directory: Path) -> "Layout":
        """The layout of `directory`, which need not exist."""
        return cls(directory.expanduser().resolve())

    @property
    def mesh_file(self) -> Path:
        """Addresses and settings of the mesh; there once `up` was called."""
        return self.directory / "mesh.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor for as long as it lives."""
        return self.directory / "lock"

    @property
    def run(self) -> Path:
        """One file per running process."""
        return self.directory / "run"

    @property
    def logs(self) -> Path:
        """One file per process, appended to."""
        return self.directory / "logs"

    @property
    def traces(self) -> Path:
        """The collector's spans."""
        return self.directory / "traces"

    @property
    def etcd(self) -> Path:
        """The data of etcd: everything that was ever applied."""
        return self.directory / "etcd"

    @property
    def router_snapshot(self) -> Path:
        """What the router starts from while the registry is away."""
        return self.directory / "snapshots" / "router.binpb"

    def log_file(self, name: str) -> Path:
        """The log of the process called `name`."""
        return self.logs / f"{name}.log"

    def create(self) -> None:
        """Make the folders that are not there yet."""
        for folder in (self.run, self.logs, self.traces, self.router_snapshot.parent):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """What `mesh.json` says: enough for any command to find any part."""

    base_port: int
    hosts: int
    trace_ratio: float
    addresses: Addresses


def write_json(path: Path, content: object) -> None:
    """Replace `path` in one step, so that no reader meets half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def write_mesh_info(layout: Layout, info: MeshInfo) -> None:
    """Keep the addresses of the mesh in its directory."""
    write_json(layout.mesh_file, asdict(info))


def read_mesh_info(layout: Layout) -> MeshInfo:
    """The addresses of the mesh in `layout`.

    Raises:
        CommandError: There is no mesh, or its file cannot be read.
    """
    try:
        content = json.loads(layout.mesh_file.read_text())
        return MeshInfo(
            base_port=content["base_port"],
            hosts=content["hosts"],
            trace_ratio=content["trace_ratio"],
            addresses=Addresses(**content["addresses"]),
        )
    except FileNotFoundError:
        raise CommandError(
            f"no mesh in {layout.directory}: start one with 'yardctl up', or name one with --dir or --address"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CommandError(f"{layout.mesh_file} cannot be read ({error}): delete it and run 'yardctl up'") from error


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the directory against a second supervisor; the system lets go when the process ends.

    Raises:
        CommandError: Another process holds it.
    """
    layout.directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"a mesh is already up in {layout.directory}: see 'yardctl status', end it with 'yardctl down', "
                "or choose another --dir and --base-port"
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback address now."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free, one that is listened on does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def refuse_ports_in_use(ports: dict[str, int]) -> None:
    """Check that every part can have its port.

    Args:
        ports: Port by what it is for.

    Raises:
        CommandError: Some cannot; the message names the first ones, who has them, and what to do.
    """
    taken = {name: port for name, port in ports.items() if not is_free(port)}
    if taken:
        named = [f"port {port} ({name}) is in use{_user_of(port)}" for name, port in list(taken.items())[:_NAMED_PORTS]]
        more = f", and {len(taken) - len(named)} more" if len(taken) > len(named) else ""
        raise CommandError(f"{', '.join(named)}{more}: free it, or shift every port with --base-port")


def _user_of(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and connection.pid and local and local.port == port:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


def free_base_port() -> int:
    """A base port whose whole range, metrics included, is free now. For tests and benchmarks.

    No other process, and no later call, gets the same range: a port of it that no part has stays bound until this
    process ends. The ports are taken below the range from which the system hands out ports of its own, so
    that no outgoing connection lands on one between the choice and the start.
    """
    offsets = [*range(10 + _LIKELY_HOSTS), 79, 80]
    for candidate in random.sample(_BASE_PORTS, len(_BASE_PORTS)):
        claim = socket.socket()
        try:
            claim.bind((LOOPBACK, candidate + _CLAIM_OFFSET))
        except OSError:
            claim.close()
            continue
        if all(is_free(candidate + offset) and is_free(candidate + METRICS_OFFSET + offset) for offset in offsets):
            atexit.register(claim.close)
            return candidate
        claim.close()
    raise CommandError("found no free range of ports between 10000 and 24000")
