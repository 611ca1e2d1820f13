"""Real service processes, started one by one: for tests of one service beside those that it needs."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.registry.v1 import registry_pb2, registry_pb2_grpc
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import key_to
from services.chassis.object_codec import object_to
from services.domain.model import ModelKey
from services.domain.objects import Model, ModelVersion, Object
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
STOP_S = 20.0


async def eventually(done: Callable[[], Awaitable[bool]], what: str, within_s: float = READY_S) -> None:
    """Wait until `done` says so; fail with `what` after `within_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not await done():
        assert loop.time() < end, f"{what} did not come about in {within_s:g} s"
        await asyncio.sleep(0.05)


class ServiceProcess:
    """One `python -m services.NAME`; `start` brings it back after `kill` or `stop`."""

    def __init__(self, name: str, port: int, log: Path, *arguments: str) -> None:
        """Serve on `port`, log to `log`."""
        self.address = f"127.0.0.1:{port}"
        self.log = log
        self._command = [sys.executable, "-m", f"services.{name}", "--address", self.address, *arguments]
        self.metrics_port = 0
        """Where its metrics are to be served; 0: nowhere."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until its health answers, whatever it says."""
        environ = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'gen'}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--metrics-port", str(self.metrics_port)],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await eventually(self._answers, f"{self.address} answering\n{self._tail()}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order; no error if it is not running."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._command} ended:\n{self._tail()}"
        async with grpc.aio.insecure_channel(self.address) as channel:
            check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                await check(b"", timeout=1.0)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND
            return True


@dataclass
class Bench:
    """etcd, a registry, hosts that are told what to load, and a router."""

    directory: Path
    etcd: EtcdProcess
    registry: ServiceProcess
    router: ServiceProcess
    hosts: dict[str, ServiceProcess] = field(default_factory=dict)

    @property
    def snapshot(self) -> Path:
        """The router's snapshot on disk."""
        return self.directory / "router.binpb"

    async def add_host(self, host_id: str, *arguments: str) -> ServiceProcess:
        """Start one more host."""
        (port,) = free_ports(1)
        host = ServiceProcess(
            "model_host",
            port,
            self.directory / f"{host_id}.log",
            *("--host-id", host_id, "--pool", "cpu", "--registry", self.registry.address),
            *("--cache-dir", str(self.directory / "cache" / host_id), "--memory-bytes", str(1 << 30)),
            *("--device", "cpu", *arguments),
        )
        self.hosts[host_id] = host
        await host.start()
        return host

    async def apply(self, *objects: Object) -> int:
        """Apply objects; returns the revision."""
        async with grpc.aio.insecure_channel(self.registry.address) as channel:
            registry = registry_pb2_grpc.RegistryServiceStub(channel)
            request = registry_pb2.ApplyRequest(objects=[object_to(item) for item in objects], reason="test")
            return int((await registry.Apply(request, timeout=10.0)).revision)

    async def load(self, host_id: str, model: Model, version: ModelVersion) -> None:
        """Order a load, as the resource manager would."""
        async with grpc.aio.insecure_channel(self.hosts[host_id].address) as channel:
            host = host_pb2_grpc.ModelHostServiceStub(channel)
            await host.LoadModel(
                host_pb2.LoadModelRequest(
                    model=object_to(model), version=object_to(version), decision_id="test", fencing_token=1
                ),
                timeout=10.0,
            )

    async def unload(self, host_id: str, key: ModelKey) -> None:
        """Order an unload."""
        async with grpc.aio.insecure_channel(self.hosts[host_id].address) as channel:
            host = host_pb2_grpc.ModelHostServiceStub(channel)
            request = host_pb2.UnloadModelRequest(key=key_to(key), decision_id="test", fencing_token=1)
            await host.UnloadModel(request, timeout=10.0)

    async def listed(self) -> list[resources_pb2.HostRecord]:
        """The hosts that the registry lists."""
        async with grpc.aio.insecure_channel(self.registry.address) as channel:
            registry = registry_pb2_grpc.RegistryServiceStub(channel)
            return list((await registry.ListHosts(registry_pb2.ListHostsRequest(), timeout=5.0)).hosts)

    def stop(self) -> None:
        """End everything."""
        callers = (self.router, *self.hosts.values())
        with ThreadPoolExecutor(len(callers)) as together:
            list(together.map(ServiceProcess.stop, callers))
        self.registry.stop()
        self.etcd.stop()


@asynccontextmanager
async def bench(directory: Path, *, hosts: int, router_arguments: tuple[str, ...] = ()) -> AsyncIterator[Bench]:
    """A bench with hosts host-0, host-1, ... and nothing applied."""
    registry_port, router_port, metrics_port = free_ports(3)
    etcd = EtcdProcess(directory / "etcd")
    registry = ServiceProcess("registry", registry_port, directory / "registry.log", "--etcd", etcd.endpoint)
    router = ServiceProcess(
        "router",
        router_port,
        directory / "router.log",
        *("--registry", registry.address, "--snapshot", str(directory / "router.binpb"), *router_arguments),
    )
    router.metrics_port = metrics_port
    made = Bench(directory, etcd, registry, router)
    try:
        etcd.start()
        await registry.start()
        await asyncio.gather(router.start(), *(made.add_host(f"host-{number}") for number in range(hosts)))
        yield made
    finally:
        made.stop()
