"""Watches over real gRPC and etcd: in order, none left out, over outages and from replica to replica."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.registry.v1 import registry_pb2_grpc
from services.chassis.channels import call
from services.chassis.errors import from_rpc_error
from services.domain.errors import Draining, InvalidRequest, RevisionNotFound, StoreUnavailable, YardError
from services.registry import watch_reader
from tests.fakes.objects import a_model
from tests.integration.registry.conftest import StartReplica
from tests.integration.registry.replicas import Replica, Watcher, key_of, until
from tests.support.etcd import EtcdProcess


@pytest.fixture
async def watcher(replica: Replica) -> AsyncIterator[Watcher]:
    watcher = replica.watch(include_hosts=True)
    await watcher.until(lambda heard: heard.snapshots == 1)
    yield watcher
    watcher.cancel()


async def error_of(watcher: Watcher) -> YardError:
    try:
        while True:
            await watcher.read()
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)


async def test_every_replica_tells_every_revision_in_order(start_replica: StartReplica) -> None:
    one, two = await start_replica(), await start_replica()
    watchers = [one.watch(), two.watch()]
    for watcher in watchers:
        await watcher.until(lambda heard: heard.snapshots == 1)

    for index in range(10):
        await (one, two)[index % 2].apply([a_model(f"m-{index}")])
    await one.apply([], ["Model/m-0"])

    for watcher in watchers:
        await watcher.until(lambda heard: heard.revisions[-1] == 11)
        assert watcher.revisions == list(range(12))
        assert watcher.names == {f"m-{index}" for index in range(1, 10)}
        watcher.cancel()


async def test_a_large_state_comes_in_parts_of_about_a_mebibyte(replica: Replica) -> None:
    for batch in range(2):
        models = [replace(a_model(f"m-{batch}-{index}"), description="x" * 10_000) for index in range(150)]
        await replica.apply(models, timeout_s=30.0)
    earlier = await replica.watch().until(lambda heard: heard.revisions[-1:] == [2])
    earlier.cancel()
    watcher = replica.watch()

    parts: list[pb.WatchSnapshot] = []
    while not parts or not parts[-1].last:
        parts.append((await watcher.read()).snapshot)

    assert len(parts) >= 3
    assert max(part.ByteSize() for part in parts) <= 1_100_000
    assert len(watcher.names) == 300
    watcher.cancel()


async def test_a_reader_resumes_at_another_replica_that_has_just_started(start_replica: StartReplica) -> None:
    one = await start_replica()
    for index in range(5):
        await one.apply([a_model(f"m-{index}")])
    two = await start_replica()

    watcher = two.watch(from_revision=2)
    await watcher.until(lambda heard: 5 in heard.revisions)

    assert (watcher.snapshots, watcher.revisions) == (0, [3, 4, 5])
    watcher.cancel()


async def test_a_reader_ahead_of_the_history_begins_anew(replica: Replica) -> None:
    await replica.apply([a_model("a")])

    watcher = await replica.watch(from_revision=50).until(lambda heard: bool(heard.revisions))

    assert (watcher.snapshots, watcher.names) == (1, {"a"})
    watcher.cancel()


async def test_a_negative_revision_is_refused(replica: Replica) -> None:
    assert isinstance(await error_of(replica.watch(from_revision=-1)), InvalidRequest)


async def test_watches_outlive_a_killed_etcd_and_miss_nothing(
    own_etcd: EtcdProcess, replica: Replica, watcher: Watcher
) -> None:
    await replica.apply([a_model("before")])
    await watcher.until(lambda heard: heard.revisions == [0, 1])
    own_etcd.kill()

    # The stream stays and says how fresh it is; what needs the store is refused; what is known is read.
    await watcher.until(lambda heard: len(heard.heartbeats) >= 2)
    with pytest.raises(StoreUnavailable) as refused:
        await replica.apply([a_model("during")])
    assert refused.value.retry_after_s is not None
    assert (await replica.get("Model/before")).revision == 1
    assert len(await replica.list_all(pb.ListRequest())) == 1
    assert await replica.hosts() == []

    own_etcd.start()
    await replica.apply([a_model("after-1")])
    await replica.apply([a_model("after-2")])
    await watcher.until(lambda heard: 3 in heard.revisions)
    assert watcher.revisions == [0, 1, 2, 3]
    assert watcher.names == {"before", "after-1", "after-2"}
    assert watcher.heartbeats[:2] == [1, 1]


async def test_an_apply_under_way_when_etcd_is_killed_is_done_once_or_not_at_all(
    own_etcd: EtcdProcess, start_replica: StartReplica
) -> None:
    one, two = await start_replica(), await start_replica()
    acknowledged: list[str] = []
    refused: list[str] = []
    enough = asyncio.Event()

    async def apply_all(replica: Replica, name: str) -> None:
        for index in range(40):
            request_id = f"{name}-{index}"
            try:
                await replica.apply([a_model(request_id)], request_id=request_id, timeout_s=20.0)
                acknowledged.append(request_id)
                if len(acknowledged) == 10:
                    enough.set()
            except StoreUnavailable:
                refused.append(request_id)
                await asyncio.sleep(0.1)

    appliers = asyncio.gather(apply_all(one, "one"), apply_all(two, "two"))
    await enough.wait()
    own_etcd.kill()
    await asyncio.sleep(0.3)
    own_etcd.start()
    await appliers

    history = await one.history()
    made = [revision.request_id for revision in history]
    assert len(made) == len(set(made))
    assert set(acknowledged) <= set(made)
    assert [revision.number for revision in history] == list(range(len(made), 0, -1))
    for request_id in refused:  # whatever became of it, asking again settles it
        await two.apply([a_model(request_id)], request_id=request_id)
    made = [revision.request_id for revision in await two.history()]
    assert sorted(made) == sorted({*acknowledged, *refused})


async def test_a_replica_starts_without_etcd_and_serves_once_it_comes(
    own_etcd: EtcdProcess, start_replica: StartReplica
) -> None:
    own_etcd.stop()
    replica = await start_replica()

    assert isinstance(await error_of(replica.watch()), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await replica.get("Model/a", timeout_s=2.0)

    own_etcd.start()
    assert (await replica.apply([a_model("a")])).revision == 1
    watcher = await replica.watch().until(lambda heard: heard.names == {"a"})
    watcher.cancel()


async def test_a_reader_that_stops_reading_is_cut_and_resumes(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_reader, "MAX_WAITING", 20)
    # Without a window that grows, little is under way to a reader that does not read.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    narrow = grpc.aio.insecure_channel(replica.address, options=options)
    stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(narrow)
    slow = Watcher(stub.Watch(pb.WatchRequest(), timeout=3600.0))
    await slow.until(lambda heard: heard.snapshots == 1)
    large = "x" * 60_000
    for index in range(60):  # more than gRPC buffers, and more than may wait
        await replica.apply([replace(a_model("m"), description=f"{index}{large}")])

    error = await error_of(slow)

    assert isinstance(error, StoreUnavailable)
    assert "too slow" in error.message
    seen = slow.revisions[-1]
    assert slow.revisions == list(range(seen + 1))
    assert seen < 60
    resumed = await replica.watch(from_revision=seen).until(lambda heard: 60 in heard.revisions)
    assert resumed.revisions == list(range(seen + 1, 61))
    resumed.cancel()
    await narrow.close()


async def test_a_stopping_replica_sends_its_readers_elsewhere(start_replica: StartReplica) -> None:
    replica = await start_replica()
    watcher = await replica.watch().until(lambda heard: heard.snapshots == 1)

    stopping = asyncio.ensure_future(replica.drain())

    assert isinstance(await error_of(watcher), Draining)
    await stopping


async def test_an_emptied_etcd_is_followed(
    own_etcd: EtcdProcess, replica: Replica, watcher: Watcher, tmp_path: Path
) -> None:
    await replica.apply([a_model("a")])
    await watcher.until(lambda heard: heard.revisions == [0, 1])
    own_etcd.kill()
    shutil.rmtree(tmp_path / "etcd" / "data")
    own_etcd.start()

    async def applied() -> bool:
        try:
            return (await replica.apply([a_model("new")])).revision == 1
        except YardError:
            return False

    await until(applied)
    await watcher.until(lambda heard: heard.names == {"new"}, within_s=30.0)


async def test_heartbeats_say_how_old_the_head_is(replica: Replica, own_etcd: EtcdProcess) -> None:
    await replica.apply([a_model("digits")])
    watcher = await replica.watch().until(lambda heard: len(heard.heartbeats) >= 2)
    assert watcher.age_s < 5.0

    own_etcd.pause()
    await watcher.until(lambda heard: heard.age_s > 5.0, within_s=20.0)
    assert watcher.heartbeats[-1] == 1
    own_etcd.resume()
    await watcher.until(lambda heard: heard.age_s < 5.0, within_s=20.0)
    watcher.cancel()


async def test_a_read_may_be_from_memory_if_it_is_recent_enough(replica: Replica, own_etcd: EtcdProcess) -> None:
    await replica.apply([a_model("digits")])
    key = key_of("Model/digits")
    own_etcd.pause()

    found = await call(replica.stub.Get, pb.GetRequest(key=key, at_least_revision=1), timeout_s=0.2)
    page = await call(replica.stub.List, pb.ListRequest(at_least_revision=1), timeout_s=0.2)
    own_etcd.resume()

    assert (found.revision, page.revision, len(page.objects)) == (1, 1, 1)
    with pytest.raises(RevisionNotFound, match="no revision 2 yet; the head is 1"):
        await call(replica.stub.Get, pb.GetRequest(key=key, at_least_revision=2), timeout_s=5.0)
    with pytest.raises(InvalidRequest, match="at_least_revision: must be 0 with revision"):
        await call(replica.stub.Get, pb.GetRequest(key=key, at_least_revision=1, revision=1), timeout_s=5.0)
    with pytest.raises(InvalidRequest, match="-3 must not be negative"):
        await call(replica.stub.Get, pb.GetRequest(key=key, at_least_revision=-3), timeout_s=5.0)
