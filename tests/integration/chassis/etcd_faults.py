"""Ways for etcd to be hard to reach: a cluster to break, and a proxy that swallows."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.chassis.etcd import EtcdClient
from services.domain.errors import StoreUnavailable
from tests.support.etcd import find_etcd
from tests.support.ports import free_ports

WAIT_S = 30.0


async def until_serving(client: EtcdClient) -> None:
    """Return once some endpoint answers and has a leader."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await client.status()
                return


class EtcdCluster:
    """Three members on loopback, to freeze and kill one by one."""

    def __init__(self, directory: Path) -> None:
        """Keep data in `directory`."""
        ports = free_ports(6)
        self._directory = directory
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[:3]]
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[3:]]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all three; they need a moment to elect."""
        binary = find_etcd()
        assert binary is not None, "no etcd: set ETCD_BIN or install etcd-server"
        members = ",".join(f"m{n}={peer}" for n, peer in enumerate(self._peers))
        for n, (endpoint, peer) in enumerate(zip(self.endpoints, self._peers, strict=True)):
            command = [
                *(binary, "--name", f"m{n}", "--data-dir", str(self._directory / f"m{n}")),
                *("--listen-client-urls", f"http://{endpoint}", "--advertise-client-urls", f"http://{endpoint}"),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", members, "--heartbeat-interval", "50", "--election-timeout", "500"),
            ]
            with (self._directory / f"m{n}.log").open("wb") as log:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def send(self, member: int, what: signal.Signals) -> None:
        """Signal one member."""
        self._processes[member].send_signal(what)

    def stop(self) -> None:
        """End all, frozen ones as well."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(WAIT_S)


@contextlib.contextmanager
def etcd_cluster(directory: Path) -> Iterator[EtcdCluster]:
    """A cluster that is gone afterwards."""
    cluster = EtcdCluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class SwallowingProxy:
    """Passes bytes on to `target`; connections that were swallowed stay open and silent for good."""

    def __init__(self, target: str) -> None:
        """Store where to pass on to."""
        self._target = target
        self.address = ""
        self.connections = 0
        self._swallowed: list[bool] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def swallow(self) -> None:
        """Let nothing more through on the connections there are; new ones work."""
        for n in range(len(self._swallowed)):
            self._swallowed[n] = True

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until both ends have closed it."""
        number = self.connections
        self.connections += 1
        self._swallowed.append(False)
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host, _, port = self._target.rpartition(":")
        with contextlib.suppress(ConnectionError):
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            self._writers.append(up_writer)
            await asyncio.gather(self._pass_on(number, reader, up_writer), self._pass_on(number, up_reader, writer))

    async def _pass_on(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if not self._swallowed[number]:
                    sink.write(data)
                    await sink.drain()
        sink.close()

    async def close(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def swallowing_proxy(target: str) -> AsyncIterator[SwallowingProxy]:
    """A proxy on a port of its own."""
    proxy = SwallowingProxy(target)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


@contextlib.asynccontextmanager
async def mute_member() -> AsyncIterator[str]:
    """A member that takes watches and says nothing, and of which all else fails; yields its `HOST:PORT`.

    Its connection is alive and answers pings, so only a question to it tells that it is of no use.
    """

    async def watch(_requests: Any, _context: Any) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def fail(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, dict[str, Any]] = {
        "Watch": {"Watch": grpc.stream_stream_rpc_method_handler(watch)},
        "Maintenance": {"Status": grpc.unary_unary_rpc_method_handler(fail)},
    }
    for service, methods in handlers.items():
        handler = grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", methods)
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
