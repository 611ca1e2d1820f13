"""Hosts over real gRPC and etcd: listed while they make progress, and without flapping."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.codec import record_to
from services.chassis.election import Election
from services.chassis.errors import from_rpc_error
from services.chassis.etcd import EtcdClient
from services.domain.clock import SystemClock
from services.domain.errors import InvalidRequest, StaleFencingToken
from services.registry import layout
from services.registry.listing import TTL_S
from tests.fakes.objects import a_host
from tests.integration.registry.conftest import StartReplica
from tests.integration.registry.replicas import HostStream, Replica, Watcher, until
from tests.support.etcd import EtcdProcess

HOST_SCRIPT = """
import asyncio, sys
from tests.integration.registry.replicas import HostStream
from services.chassis.channels import open_channel
from services.chassis.codec import record_to
from modelyard.registry.v1 import registry_pb2_grpc
from tests.fakes.objects import a_host

async def main():
    stub = registry_pb2_grpc.RegistryServiceStub(open_channel(sys.argv[1]))
    await HostStream(stub.RegisterHost(timeout=3600.0), record_to(a_host("cpu-0"))).keep_reporting(every_s=0.2)

asyncio.run(main())
"""


@asynccontextmanager
async def reporting(stream: HostStream) -> AsyncIterator[HostStream]:
    """The host reports on its own, until the block ends."""
    task = asyncio.create_task(stream.keep_reporting())
    try:
        yield stream
    finally:
        task.cancel()
        await asyncio.wait([task])


async def listed(watcher: Watcher, *hosts: str) -> Watcher:
    return await watcher.until(lambda heard: heard.hosts == set(hosts))


async def test_a_host_is_listed_and_its_changes_are_told_at_every_replica(start_replica: StartReplica) -> None:
    one, two = await start_replica(), await start_replica()
    watcher = two.watch(include_hosts=True)
    stream = one.register()

    answer = await stream.report()
    assert (answer.lease_ttl.seconds, answer.progress) == (TTL_S, 1)
    await listed(watcher, "cpu-0")
    stream.record = record_to(a_host("cpu-0", draining=True))
    await stream.report(record=True)
    response = await watcher.read()
    while response.WhichOneof("event") != "hosts":
        response = await watcher.read()

    assert response.hosts.listed[0].draining
    assert await one.hosts() == await two.hosts() == ["cpu-0"]
    watcher.cancel()


async def test_a_half_close_ends_the_listing_at_once(replica: Replica) -> None:
    watcher = replica.watch(include_hosts=True)
    stream = replica.register()
    await stream.report()
    await listed(watcher, "cpu-0")

    await stream.half_close()

    await watcher.until(lambda heard: heard.gone == ["cpu-0"], within_s=TTL_S / 2)
    assert await stream.stream.code() is grpc.StatusCode.OK
    watcher.cancel()


async def test_a_host_that_breaks_off_and_comes_back_does_not_flap(start_replica: StartReplica) -> None:
    one, two = await start_replica(), await start_replica()
    watcher = one.watch(include_hosts=True)
    stream = one.register()
    await stream.report()
    await listed(watcher, "cpu-0")

    stream.break_off()
    async with reporting(two.register()):
        with pytest.raises(TimeoutError):  # longer than the old lease lives
            await watcher.until(lambda heard: heard.gone != [], within_s=TTL_S + 3)

    assert await one.hosts() == ["cpu-0"]
    watcher.cancel()


async def test_a_stream_that_breaks_is_never_taken_for_a_half_close(replica: Replica) -> None:
    watcher = replica.watch(include_hosts=True)
    streams = [replica.register(record_to(a_host(f"cpu-{index}"))) for index in range(100)]
    for stream in streams:
        await stream.report()
    await watcher.until(lambda heard: len(heard.hosts) == 100)

    for stream in streams:
        stream.break_off()

    with pytest.raises(TimeoutError):
        await watcher.until(lambda heard: heard.gone != [], within_s=2.0)
    watcher.cancel()


async def test_a_killed_host_stays_listed_until_its_lease_ends(own_etcd: EtcdProcess, replica: Replica) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST_SCRIPT, replica.address, env={"PYTHONPATH": ".:gen", "PATH": ""},
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    watcher = replica.watch(include_hosts=True)
    await listed(watcher, "cpu-0")

    process.kill()
    await process.wait()

    loop = asyncio.get_running_loop()
    killed_s = loop.time()
    await watcher.until(lambda heard: heard.gone == ["cpu-0"], within_s=TTL_S + 10)
    assert loop.time() - killed_s > TTL_S / 2  # not taken for a half-close
    watcher.cancel()


async def test_reports_without_progress_let_the_lease_run_out_and_progress_lists_again(replica: Replica) -> None:
    watcher = replica.watch(include_hosts=True)
    stream = replica.register()
    await stream.report()
    await listed(watcher, "cpu-0")

    async def hang() -> None:
        while True:
            assert (await stream.report(grown=False)).progress == 1
            await asyncio.sleep(0.5)

    hung = asyncio.create_task(hang())
    await watcher.until(lambda heard: heard.gone == ["cpu-0"], within_s=TTL_S + 10)
    hung.cancel()
    await asyncio.wait([hung])

    await stream.report()
    await listed(watcher, "cpu-0")
    watcher.cancel()


async def test_a_host_stays_listed_over_a_killed_etcd(own_etcd: EtcdProcess, replica: Replica) -> None:
    watcher = replica.watch(include_hosts=True)
    async with reporting(replica.register()):
        await listed(watcher, "cpu-0")
        own_etcd.kill()
        await watcher.until(lambda heard: len(heard.heartbeats) >= 6, within_s=30.0)  # more than a lease's time
        own_etcd.start()
        with pytest.raises(TimeoutError):
            await watcher.until(lambda heard: heard.gone != [], within_s=TTL_S + 3)
    assert watcher.hosts == {"cpu-0"}
    watcher.cancel()


async def test_a_host_is_listed_again_after_etcd_lost_everything(
    own_etcd: EtcdProcess, replica: Replica, tmp_path: Path
) -> None:
    client = EtcdClient([own_etcd.endpoint])
    async with reporting(replica.register()):
        await until(lambda: _written(client))
        own_etcd.kill()
        shutil.rmtree(tmp_path / "etcd" / "data")
        own_etcd.start()

        await until(lambda: _written(client), within_s=5.0)
    await client.close()


async def _written(client: EtcdClient) -> bool:
    return await client.get(layout.host_key("cpu-0")) is not None


async def test_a_record_with_faults_is_refused_whole(replica: Replica) -> None:
    stream = replica.register(record_to(a_host("Bad Name", address="nowhere")))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.report()

    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidRequest)
    assert [fault.path for fault in error.faults] == ["record.host_id", "record.address"]
    assert await replica.hosts() == []


async def test_only_the_leader_publishes_the_plan(own_etcd: EtcdProcess, replica: Replica) -> None:
    first = Election(endpoints=[own_etcd.endpoint], name="resource-manager", candidate="rm-1", clock=SystemClock())
    second = Election(endpoints=[own_etcd.endpoint], name="resource-manager", candidate="rm-2", clock=SystemClock())
    led = await first.campaign()

    async def publish(leader_id: str, key: str, token: int) -> None:
        request = pb.PublishPlanRequest(
            plan=pb.Plan(revision=1, leader_id=leader_id), election_key=key, fencing_token=token
        )
        await call(replica.stub.PublishPlan, request, timeout_s=5.0)

    client = EtcdClient([own_etcd.endpoint])

    async def planner() -> str:
        kv = await client.get(layout.PLAN)
        assert kv is not None
        return pb.Plan.FromString(kv.value).leader_id

    await publish("rm-1", led.key, led.fencing_token)
    assert await planner() == "rm-1"
    await first.close()
    leads = await second.campaign()
    with pytest.raises(StaleFencingToken) as refused:
        await publish("rm-1", led.key, led.fencing_token)
    assert isinstance(refused.value.__cause__, grpc.aio.AioRpcError)
    assert refused.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await planner() == "rm-1"
    await publish("rm-2", leads.key, leads.fencing_token)
    assert await planner() == "rm-2"
    with pytest.raises(InvalidRequest):
        await publish("rm-3", layout.HEAD, 5)
    await second.close()
    await client.close()
