"""Replicas of the registry over real gRPC, on an etcd of the test's own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.registry.replicas import Replica
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

StartReplica = Callable[[], Awaitable[Replica]]


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd to break."""
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def start_replica(own_etcd: EtcdProcess) -> AsyncIterator[StartReplica]:
    """Starts a replica on `own_etcd`; each is stopped after the test."""
    replicas: list[Replica] = []

    async def start() -> Replica:
        replica = Replica(own_etcd.endpoint, free_ports(1)[0])
        replicas.append(replica)
        await replica.start()
        return replica

    yield start
    await asyncio.gather(*(replica.stop() for replica in replicas))


@pytest.fixture
async def replica(start_replica: StartReplica) -> Replica:
    """One replica."""
    return await start_replica()
