"""The registry as a process: it starts, says when it is ready, is killed, comes back, and stops in order."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from services.chassis.channels import open_channel
from services.domain.errors import YardError
from services.registry.listing import TTL_S
from tests.fakes.objects import a_model
from tests.integration.registry.conftest import StartReplica
from tests.integration.registry.replicas import Replica, Watcher, until
from tests.support.etcd import EtcdProcess

ROOT = Path(__file__).parents[3]
SERVICE = "modelyard.registry.v1.RegistryService"


class RunRegistry(Protocol):
    """Starts a registry on a port, with more flags."""

    def __call__(self, port: int, *more: str) -> subprocess.Popen[str]: ...


@pytest.fixture
def run_registry(own_etcd: EtcdProcess) -> Iterator[RunRegistry]:
    """Starts registries on `own_etcd`; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(port: int, *more: str) -> subprocess.Popen[str]:
        flags = ["--etcd", own_etcd.endpoint, "--address", f"127.0.0.1:{port}", "--metrics-port", "0", *more]
        process = subprocess.Popen(
            [sys.executable, "-m", "services.registry", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that end with the test."""
    running: list[asyncio.Task[None]] = []
    yield running
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Replica]:
    """What calls a registry that runs elsewhere."""
    replica = Replica("", port)
    try:
        yield replica
    finally:
        await replica.channel.close()


async def serving(port: int) -> bool:
    async with open_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=1.0
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_it_is_ready_once_it_has_read_its_store_and_stops_in_order(
    run_registry: RunRegistry, free_port: int
) -> None:
    process = run_registry(free_port)
    await until(lambda: serving(free_port))

    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.to_thread(process.communicate, timeout=15.0)

    assert process.returncode == 0
    assert "Traceback" not in log


async def test_a_taken_port_and_bad_settings_are_told_in_lines(run_registry: RunRegistry, replica: Replica) -> None:
    port = int(replica.address.rpartition(":")[2])
    taken = run_registry(port)
    wrong = run_registry(port, "--trace-ratio", "7", "--log-level", "loud")

    _, said = await asyncio.to_thread(taken.communicate, timeout=15.0)
    assert taken.returncode == 1
    assert f"127.0.0.1:{port} is in use" in said
    assert "Traceback" not in said
    _, said = await asyncio.to_thread(wrong.communicate, timeout=15.0)
    assert wrong.returncode == 2
    assert "trace" in said
    assert "loud" in said


async def test_a_killed_registry_costs_its_readers_and_hosts_nothing(
    run_registry: RunRegistry, start_replica: StartReplica, free_port: int, tasks: list[asyncio.Task[None]]
) -> None:
    other = await start_replica()
    steady = await other.watch(include_hosts=True).until(lambda heard: heard.snapshots == 1)
    process = run_registry(free_port)
    await until(lambda: serving(free_port))
    seen: list[int] = []
    async with client(free_port) as killed:

        async def host() -> None:
            while True:
                try:
                    await killed.register().keep_reporting()
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await asyncio.sleep(0.2)

        async def reader() -> None:
            while True:
                watcher = killed.watch(seen[-1] if seen else 0)
                try:
                    await _note(watcher, seen)
                except (grpc.aio.AioRpcError, AssertionError):
                    await asyncio.sleep(0.2)

        tasks.append(asyncio.create_task(host()))
        tasks.append(asyncio.create_task(reader()))
        await steady.until(lambda heard: heard.hosts == {"cpu-0"})
        await killed.apply([a_model("before")])
        await until(lambda: _is(seen, [0, 1]))

        process.kill()
        await asyncio.to_thread(process.wait)
        await other.apply([a_model("during-1")])
        await other.apply([a_model("during-2")])
        run_registry(free_port)
        await until(lambda: serving(free_port))

        async def applied() -> bool:
            try:
                return bool((await killed.apply([a_model("after")], request_id="after")).revision)
            except YardError:
                return False

        await until(applied)
        await until(lambda: _is(seen, [0, 1, 2, 3, 4]))
        with pytest.raises(TimeoutError):  # longer than the lease of the broken stream lives
            await steady.until(lambda heard: heard.gone != [], within_s=TTL_S + 2)
    steady.cancel()


async def _is(seen: list[int], wanted: list[int]) -> bool:
    return seen == wanted


async def _note(watcher: Watcher, seen: list[int]) -> None:
    """Keep every revision heard."""
    while True:
        known = len(watcher.revisions)
        await watcher.read()
        seen += watcher.revisions[known:]
