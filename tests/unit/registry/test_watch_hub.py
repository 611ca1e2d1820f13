"""A reader hears every revision in order, none left out, or is told to begin anew."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_to
from services.domain.clock import Clock
from services.domain.errors import StoreUnavailable
from services.registry import layout, watch_hub, watch_reader
from services.registry.host_orders import HostOrders
from services.registry.leases import HostLeases
from services.registry.watch_hub import WatchHub
from services.registry.watch_reader import Message, Reader
from tests.fakes.clock import SteppedClock, settle
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_host, a_model, a_version
from tests.unit.registry.test_apply import Replica

Watch = AsyncGenerator[pb.WatchResponse, None]


def leases_of(etcd: FakeEtcd, clock: Clock) -> HostLeases:
    return HostLeases(client=etcd, clock=clock, orders=HostOrders(client=etcd, clock=clock))


class Yard:
    """A hub on an etcd in memory, and another replica that applies."""

    def __init__(self) -> None:
        self.etcd = FakeEtcd()
        self.clock = SteppedClock()
        self.other = Replica(self.etcd)
        store = Replica(self.etcd, clock=self.clock).store  # type: ignore[arg-type]
        self.hub = WatchHub(revisions=store, hosts=leases_of(self.etcd, self.clock), clock=self.clock)
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(self.hub.run())
        await settle()

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def put_host(self, host_id: str, *, draining: bool = False) -> None:
        record = record_to(a_host(host_id, draining=draining))
        await self.etcd.put(layout.host_key(host_id), record.SerializeToString())
        await settle()


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    yard = Yard()
    await yard.start()
    yield yard
    await yard.stop()


def told(response: pb.WatchResponse) -> str:
    """One message in short."""
    match response.WhichOneof("event"):
        case "snapshot":
            names = ",".join(sorted(item.metadata.name for item in response.snapshot.objects))
            return f"snapshot {response.snapshot.revision}: {names}"
        case "delta":
            names = ",".join(item.metadata.name for item in response.delta.upserts)
            gone = "".join(f" -{key.name}" for key in response.delta.deletes)
            return f"delta {response.delta.revision}: {names}{gone}"
        case "hosts":
            reset = "all " if response.hosts.reset else ""
            names = ",".join(record.host_id for record in response.hosts.listed)
            return f"{reset}hosts: {names}" + "".join(f" -{host_id}" for host_id in response.hosts.gone)
        case _:
            return f"heartbeat {response.heartbeat.revision}"


async def hear(watch: Watch, count: int) -> list[str]:
    async with asyncio.timeout(5):
        return [told(await anext(watch)) for _ in range(count)]


async def test_a_reader_hears_a_snapshot_and_then_each_revision(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])
    await settle()
    watch = yard.hub.watch(0, include_hosts=False)

    assert await hear(watch, 1) == ["snapshot 1: a"]
    await yard.other.apply([a_model("b"), replace(a_model("a"), owner="bob")])
    await yard.other.apply([], ["Model/a"])
    assert await hear(watch, 2) == ["delta 2: a,b", "delta 3:  -a"]
    await watch.aclose()


async def test_an_empty_registry_has_an_empty_snapshot(yard: Yard) -> None:
    watch = yard.hub.watch(0, include_hosts=True)

    first = await anext(watch)

    assert (first.snapshot.first, first.snapshot.last, first.snapshot.revision) == (True, True, 0)
    assert await hear(watch, 1) == ["all hosts: "]
    await watch.aclose()


async def test_a_snapshot_comes_in_parts_of_a_bounded_size(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_reader, "CHUNK_BYTES", 400)
    await yard.other.apply([a_model(f"m-{index}") for index in range(50)])
    await settle()
    watch = yard.hub.watch(0, include_hosts=False)

    parts = [(await anext(watch)).snapshot]
    while not parts[-1].last:
        parts.append((await anext(watch)).snapshot)

    assert len(parts) > 5
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert max(part.ByteSize() for part in parts) < 600
    assert sorted(item.metadata.name for part in parts for item in part.objects) == sorted(
        f"m-{index}" for index in range(50)
    )
    await watch.aclose()


@pytest.mark.parametrize("kept", [0, 2, 256])
async def test_a_reader_resumes_where_it_stopped(kept: int) -> None:
    yard = Yard()
    await yard.start()
    yard.hub._recent = type(yard.hub._recent)(maxlen=kept)
    for index in range(1, 6):
        await yard.other.apply([a_model(f"m-{index}")])
        await settle()

    watch = yard.hub.watch(2, include_hosts=False)

    assert await hear(watch, 3) == ["delta 3: m-3", "delta 4: m-4", "delta 5: m-5"]
    await yard.other.apply([a_model("m-6")])
    assert await hear(watch, 1) == ["delta 6: m-6"]
    await watch.aclose()
    await yard.stop()


async def test_deltas_are_kept_within_bounds_and_computed_beyond(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_hub, "RECENT_BYTES", 250)
    for index in range(1, 8):
        await yard.other.apply([a_model(f"m-{index}")])
        await settle()

    assert 0 < len(yard.hub._recent) < 5
    watch = yard.hub.watch(1, include_hosts=False)
    assert await hear(watch, 6) == [f"delta {index}: m-{index}" for index in range(2, 8)]
    await watch.aclose()


async def test_a_reader_at_the_head_hears_a_heartbeat_at_once(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])
    await settle()
    watch = yard.hub.watch(1, include_hosts=False)

    assert await hear(watch, 1) == ["heartbeat 1"]
    await watch.aclose()


async def test_a_revision_that_is_not_retained_begins_anew(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_hub, "MAX_CATCH_UP", 2)
    for index in range(1, 5):
        await yard.other.apply([a_model(f"m-{index}")])
    await settle()

    watch = yard.hub.watch(1, include_hosts=False)

    assert await hear(watch, 1) == ["snapshot 4: m-1,m-2,m-3,m-4"]
    await watch.aclose()


async def test_a_reader_that_another_replica_told_more_is_not_told_less(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])  # the hub has had no time to hear of it
    watch = yard.hub.watch(1, include_hosts=False)

    assert await hear(watch, 1) == ["heartbeat 1"]
    await watch.aclose()


async def test_a_revision_from_another_history_begins_anew(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])
    watch = yard.hub.watch(99, include_hosts=False)

    assert await hear(watch, 1) == ["snapshot 1: a"]
    await watch.aclose()


async def test_hosts_come_whole_and_then_as_they_change(yard: Yard) -> None:
    await yard.put_host("h-1")
    watch = yard.hub.watch(0, include_hosts=True)
    assert await hear(watch, 2) == ["snapshot 0: ", "all hosts: h-1"]

    await yard.put_host("h-2")
    await yard.put_host("h-1", draining=True)
    yard.etcd.keys[layout.host_key("h-2")].lease = 7
    yard.etcd.expire(7)

    assert await hear(watch, 3) == ["hosts: h-2", "hosts: h-1", "hosts:  -h-2"]
    await watch.aclose()


async def test_a_host_that_registers_again_as_it_was_is_no_change(yard: Yard) -> None:
    await yard.put_host("h-1")
    watch = yard.hub.watch(0, include_hosts=True)
    await hear(watch, 2)

    await yard.put_host("h-1")
    await yard.put_host("h-2")

    assert await hear(watch, 1) == ["hosts: h-2"]
    await watch.aclose()


async def test_a_list_that_was_overtaken_by_news_takes_nobody_off(yard: Yard) -> None:
    overtaken = await leases_of(yard.etcd, yard.clock).hosts(timeout_s=1.0)
    await yard.put_host("h-1")

    yard.hub._take(overtaken)

    watch = yard.hub.watch(0, include_hosts=True)
    assert await hear(watch, 2) == ["snapshot 0: ", "all hosts: h-1"]
    await watch.aclose()


async def test_who_did_not_ask_for_hosts_hears_none(yard: Yard) -> None:
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)

    await yard.put_host("h-1")
    await yard.other.apply([a_model("a")])

    assert await hear(watch, 1) == ["delta 1: a"]
    await watch.aclose()


async def test_heartbeats_come_every_two_seconds_also_while_the_store_is_away(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])
    await settle()
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)
    yard.etcd.away = True

    for _ in range(3):
        beat = asyncio.ensure_future(hear(watch, 1))
        await yard.clock.advance(2.0)
        assert await beat == ["heartbeat 1"]

    yard.etcd.away = False
    await yard.other.apply([a_model("b")])
    assert await hear(watch, 1) == ["delta 2: b"]
    await watch.aclose()


async def test_a_replica_that_has_not_reached_its_store_says_so() -> None:
    yard = Yard()
    yard.etcd.away = True
    await yard.start()
    watch_hub_wait, watch_hub.FIRST_SYNC_S = watch_hub.FIRST_SYNC_S, 0.01
    try:
        with pytest.raises(StoreUnavailable, match="not reached its store"):
            await anext(yard.hub.watch(0, include_hosts=False))
    finally:
        watch_hub.FIRST_SYNC_S = watch_hub_wait
    await yard.stop()


async def test_revisions_made_while_the_watch_was_broken_are_all_told(yard: Yard) -> None:
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)
    for index in range(1, 4):
        await yard.other.apply([a_model(f"m-{index}")])
    yard.etcd.compacted = yard.etcd.revision  # the hub's watch is told to list anew

    assert await hear(watch, 3) == ["delta 1: m-1", "delta 2: m-2", "delta 3: m-3"]
    await watch.aclose()


async def test_an_emptied_store_makes_readers_begin_anew(yard: Yard) -> None:
    await yard.put_host("h-1")
    await yard.other.apply([a_model("a")])
    await settle()
    watch = yard.hub.watch(0, include_hosts=True)
    await hear(watch, 2)
    yard.etcd.empty()  # the watches now wait for revisions that will not come

    await yard.clock.advance(watch_hub.AUDIT_S)
    await yard.other.apply([a_model("new")])
    heard = await hear(watch, 4)

    assert [text for text in heard if not text.startswith("heartbeat")] == [
        "snapshot 0: ",
        "hosts:  -h-1",
        "delta 1: new",
    ]
    await watch.aclose()


async def test_another_history_that_has_grown_longer_is_not_mistaken_for_the_same(yard: Yard) -> None:
    await yard.other.apply([a_model("a")])
    await settle()
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)
    yard.etcd.empty()
    for name in ("x", "y", "z"):
        await Replica(yard.etcd).apply([a_model(name)])

    await yard.clock.advance(watch_hub.AUDIT_S)

    heard = await hear(watch, 2)
    assert next(text for text in heard if not text.startswith("heartbeat")) == "snapshot 3: x,y,z"
    await watch.aclose()


async def test_a_change_too_large_for_a_message_is_told_as_a_snapshot(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_reader, "MAX_DELTA_BYTES", 100)
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)

    await yard.other.apply([a_model(f"m-{index}") for index in range(3)])

    assert await hear(watch, 1) == ["snapshot 1: m-0,m-1,m-2"]
    await watch.aclose()


async def test_a_reader_that_does_not_keep_up_is_cut_and_costs_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_reader, "MAX_WAITING", 3)
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)
    for index in range(5):
        await yard.other.apply([a_model(f"m-{index}")])
        await settle()

    with pytest.raises(StoreUnavailable, match="too slow") as cut:
        await hear(watch, 1)

    assert cut.value.retry_after_s == 0.0
    assert not yard.hub._readers


def test_a_reader_is_cut_by_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_reader, "MAX_WAITING_BYTES", 1000)
    reader = Reader(include_hosts=False)
    large = Message(pb.WatchResponse(hosts=pb.WatchHosts(gone=["x" * 600])))

    reader.push(large)
    assert not reader.idle
    reader.push(large)

    assert reader.idle


async def test_a_reader_that_leaves_is_forgotten(yard: Yard) -> None:
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)
    assert len(yard.hub._readers) == 1

    await watch.aclose()

    assert not yard.hub._readers


async def test_a_version_is_told_with_all_of_its_message(yard: Yard) -> None:
    watch = yard.hub.watch(0, include_hosts=False)
    await hear(watch, 1)

    await yard.other.apply([a_model("a"), a_version("a", replicas=3)])
    delta = (await anext(watch)).delta

    assert [item.WhichOneof("spec") for item in delta.upserts] == ["model", "model_version"]
    assert delta.upserts[1].model_version.min_replicas == 3
    await watch.aclose()
