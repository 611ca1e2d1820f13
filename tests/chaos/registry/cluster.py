"""The processes of a run: three members of etcd, three registries, and relays in front of the registries."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from modelyard.registry.v1 import registry_pb2_grpc
from services.chassis.channels import open_channel
from tests.chaos.registry.appliers import Stub
from tests.chaos.registry.truth import PREFIX
from tests.support import members as etcd_members
from tests.support import netns
from tests.support.members import DIES_WITH_US, Members, members
from tests.support.netns import Network, NoNamespaces
from tests.support.relay import Relay
from tests.support.signals import freeze

ROOT = Path(__file__).resolve().parents[3]
REGISTRIES = ("r0", "r1", "r2")
STOP_S = 20.0
END_S = 90.0


class Registry:
    """One replica; killed, frozen and started again."""

    def __init__(self, name: str, directory: Path, command: Sequence[str]) -> None:
        """Serve on a socket in `directory`, which is reached from every network namespace."""
        self.name = name
        self.address = f"unix:{directory}/{name}.sock"
        self.log = directory / f"{name}.log"
        self.frozen = False
        self._command = [*command, "--address", self.address, "--instance", name]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; does not wait for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it with SIGKILL, as a crash; no error if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process, self.frozen = None, False

    def freeze(self) -> None:
        """Stop it where it is."""
        assert self._process is not None
        freeze(self._process.pid)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None and self.frozen:
            self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def stop(self) -> int:
        """End it in good order; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(STOP_S)
        self._process = None
        return code


@dataclass
class Cluster:
    """Everything of a run that can be broken."""

    directory: Path
    etcd: Members
    registries: list[Registry]
    relays: list[Relay] = field(default_factory=list)
    stubs: list[Stub] = field(default_factory=list)
    network: Network | None = None
    no_network: str = ""
    """Why there is no network to cut."""

    def leading_registry(self) -> Registry | None:
        """The replica that leads, as etcd has it."""
        name = self.etcd.first_under(f"{PREFIX}elections/registry/")
        return next((registry for registry in self.registries if registry.name == name), None)

    def heal(self) -> None:
        """Let everything run again; `faults` undo theirs by themselves, this is for the end of a run."""
        if self.network is not None:
            self.network.join_all()
        for relay in self.relays:
            relay.heal()
        for member in self.etcd.all:
            member.thaw()
            if not member.running:
                self.etcd.start(member)
        for registry in self.registries:
            registry.thaw()
            if not registry.running:
                registry.start()


def environ() -> dict[str, str]:
    """For processes of this tree."""
    return dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'gen'}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A short-lived directory with a short name, in memory where that is possible."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="yard-", dir=shm if os.access(shm, os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, *, arguments: Sequence[str] = (), bug: str = "", apart: bool = True
) -> AsyncIterator[Cluster]:
    """A cluster that is gone afterwards.

    Args:
        directory: For data, sockets and logs.
        arguments: For each registry.
        bug: A bug to plant in each registry; see `faulty`.
        apart: Whether each part gets a node of a network of its own, where that can be made.
    """
    with contextlib.ExitStack() as stack:
        why_not = netns.why_not() if apart else "not asked for"
        network: Network | None = None
        if why_not is None:
            try:
                network = stack.enter_context(netns.network([*etcd_members.NODES, *REGISTRIES]))
            except NoNamespaces as error:
                why_not = str(error)
        etcd = stack.enter_context(members(directory / "etcd", network))
        module = ("tests.chaos.registry.faulty", bug) if bug else ("services.registry",)
        settings = ("--etcd", ",".join(etcd.endpoints), "--metrics-port", "0", "--log-level", "warning", *arguments)
        made = Cluster(directory, etcd, [], network=network, no_network=why_not or "")
        for name in REGISTRIES:
            inside = network.inside(name) if network is not None else []
            command = [*DIES_WITH_US, *inside, sys.executable, "-m", *module, *settings]
            made.registries.append(Registry(name, directory, command))
            stack.callback(made.registries[-1].kill)
        for registry in made.registries:
            registry.start()
        async with _clients(made):
            yield made


@contextlib.asynccontextmanager
async def _clients(made: Cluster) -> AsyncIterator[None]:
    channels: list[grpc.aio.Channel] = []
    try:
        for registry in made.registries:
            relay = Relay(registry.address)
            made.relays.append(relay)
            channels.append(open_channel(await relay.listen(f"unix:{made.directory}/{registry.name}.relay")))
            made.stubs.append(registry_pb2_grpc.RegistryServiceStub(channels[-1]))
        yield
    finally:
        for channel in channels:
            await channel.close()
        for relay in made.relays:
            await relay.close()


class Recording:
    """The recorder's process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        """Made by `recording`."""
        self.log = log
        self.last = 0
        """etcd's revision of the last event, once it has ended."""
        self._process = process

    async def end(self) -> None:
        """Wait until everything that has happened so far is written down."""
        async with asyncio.timeout(END_S):
            said, _ = await self._process.communicate(b"")
        assert self._process.returncode == 0, f"the recorder failed: {said.decode(errors='replace')[-2000:]}"
        self.last = int(said.split()[-2])


@contextlib.asynccontextmanager
async def recording(endpoints: Sequence[str], log: Path) -> AsyncIterator[Recording]:
    """Records everything from revision 1 on; see `recorder`."""
    process = await asyncio.create_subprocess_exec(
        *(*DIES_WITH_US, sys.executable, "-m", "tests.chaos.registry.recorder", str(log), *endpoints),
        cwd=ROOT,
        env=environ(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Recording(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
