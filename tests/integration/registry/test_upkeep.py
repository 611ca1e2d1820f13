"""What the leading replica does for all, on a real etcd: garbage goes, and another takes over when it does."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.etcd import EtcdClient
from services.domain.errors import RevisionNotFound
from services.registry import layout
from tests.fakes.objects import a_model
from tests.integration.registry.conftest import StartReplica
from tests.integration.registry.replicas import Replica, until
from tests.integration.registry.test_history import verify
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

CANDIDATES = f"{layout.PREFIX}elections/registry/"


@pytest.fixture
async def client(own_etcd: EtcdProcess) -> AsyncIterator[EtcdClient]:
    client = EtcdClient([own_etcd.endpoint])
    yield client
    await client.close()


@pytest.fixture
async def pair(own_etcd: EtcdProcess) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas that keep five revisions and collect often; the first leads."""
    replicas = [Replica(own_etcd.endpoint, port, keep_revisions=5, collect_every_s=0.1) for port in free_ports(2)]
    for replica in replicas:
        await replica.start()
        await replica.apply()  # serves
    yield replicas[0], replicas[1]
    await asyncio.gather(*(replica.stop() for replica in replicas))


async def count(client: EtcdClient, prefix: str) -> int:
    return len((await client.range_prefix(prefix, keys_only=True)).kvs)


async def leader(client: EtcdClient) -> str:
    found = await client.range_prefix(CANDIDATES)
    return min(found.kvs, key=lambda kv: kv.create_revision).value.decode() if found.kvs else ""


async def test_the_leader_keeps_the_newest_revisions_and_what_they_name(
    pair: tuple[Replica, Replica], client: EtcdClient, start_replica: StartReplica
) -> None:
    first, second = pair
    for number in range(1, 31):
        replica = pair[number % 2]
        await replica.apply([a_model(f"m-{number}")], [f"Model/m-{number - 1}"] if number > 1 else [])

    async def collected() -> bool:
        return await count(client, layout.OBJECTS) == 5 and await count(client, layout.TREES) == 10

    await until(collected)

    assert await count(client, layout.REVISIONS) == 5
    said = await verify(second)
    assert (said.head, said.oldest, said.HasField("broken")) == (30, 26, False)
    assert [revision.number for revision in await first.history()] == [30, 29, 28, 27, 26]
    with pytest.raises(RevisionNotFound, match="the oldest kept is 26"):
        await call(first.stub.Diff, pb.DiffRequest(from_revision=3), timeout_s=5.0)
    fresh = await start_replica()
    found = await call(fresh.stub.GetRevision, pb.GetRevisionRequest(revision=26), timeout_s=5.0)
    assert (found.oldest, len(found.changes)) == (True, 0)
    watcher = await fresh.watch(from_revision=3).until(lambda heard: heard.snapshots == 1)
    assert (watcher.names, watcher.revisions) == ({"m-30"}, [30])
    watcher.cancel()


async def test_when_the_leader_stops_another_leads_at_once(pair: tuple[Replica, Replica], client: EtcdClient) -> None:
    first, second = pair

    async def leads(replica: Replica) -> bool:
        return await leader(client) == f"registry@{replica.address}" and await count(client, CANDIDATES) > 0

    await until(lambda: leads(first))

    async def both() -> bool:
        return await count(client, CANDIDATES) == 2

    await until(both)
    start_s = time.monotonic()
    stopping = asyncio.create_task(first.stop())
    await until(lambda: leads(second))
    took_s = time.monotonic() - start_s
    await stopping

    assert took_s < 3.0, "without resigning it takes the lease's 5 s"
    for number in range(8):
        await second.apply([a_model(f"m-{number}")])

    async def collected() -> bool:
        return await count(client, layout.REVISIONS) == 5

    await until(collected)
    assert not (await verify(second)).HasField("broken")
