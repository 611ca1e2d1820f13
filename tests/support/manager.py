"""Real resource managers in processes of their own."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc.aio

from modelyard.resource.v1 import resource_pb2, resource_pb2_grpc
from tests.support.ports import free_ports

T = TypeVar("T")

SOON_S = 30.0


async def until(look: Callable[[], Awaitable[T | None]], what: str, *, within_s: float = SOON_S) -> T:
    """What `look` returns once it is not None and not False; fails with `what` after `within_s`."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + within_s
    while True:
        found = await look()
        if found is not None and found is not False:
            return found
        assert loop.time() < end_s, f"{what}: not within {within_s:g} s"
        await asyncio.sleep(0.02)


class Manager:
    """One resource manager on a port of its own."""

    def __init__(self, directory: Path, *, registry: str, etcd: str, flags: tuple[str, ...] = ("--no-launch",)) -> None:
        """Keep its log in `directory`; `flags` are added to the command line."""
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.directory = directory
        self._command = [
            *(sys.executable, "-m", "services.resource_manager", "--address", self.address, "--metrics-port", "0"),
            *("--registry", registry, "--etcd", etcd, "--dir", str(directory), *flags),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def candidate(self) -> str:
        """Its name in the election."""
        return f"resource-manager@{self.address}"

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.directory / f"{self.address.rpartition(':')[2]}.log").read_text()

    def start(self) -> None:
        """Start its process."""
        with (self.directory / f"{self.address.rpartition(':')[2]}.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> int:
        """Signal it, unless told not to, and wait until it has ended; its exit code."""
        if self.process is None:
            return 0
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(SOON_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(SOON_S)
            raise
        self.process = None
        return code

    @asynccontextmanager
    async def stub(self) -> AsyncIterator["resource_pb2_grpc.ResourceManagerServiceAsyncStub"]:
        """A stub of its service."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            yield resource_pb2_grpc.ResourceManagerServiceStub(channel)

    async def plan(self) -> resource_pb2.GetPlanResponse | None:
        """Its plan; None while it does not answer."""
        async with self.stub() as stub:
            try:
                return await stub.GetPlan(resource_pb2.GetPlanRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return None

    async def leads(self) -> resource_pb2.GetPlanResponse | None:
        """Its plan if it leads."""
        plan = await self.plan()
        return plan if plan is not None and plan.leading else None

    async def decisions(self) -> list[resource_pb2.PlacementDecision]:
        """What it has done, newest first."""
        async with self.stub() as stub:
            return list((await stub.ListDecisions(resource_pb2.ListDecisionsRequest(), timeout=5)).decisions)
