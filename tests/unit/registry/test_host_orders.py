"""What operators want of hosts reaches every listing, and who vanished is remembered."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_to
from services.domain.errors import InvalidRequest, ObjectNotFound, StaleFencingToken
from services.registry import host_memory, layout
from services.registry.host_memory import KEPT_S, HostMemory
from services.registry.host_orders import HostOrders
from services.registry.leases import HostLeases
from services.registry.listing import Listing
from services.registry.values import Values
from tests.fakes.clock import SteppedClock, settle
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_host
from tests.unit.registry.test_collecting import LEADER, Place

CORDON, UNCORDON, DRAIN = pb.HOST_ACTION_CORDON, pb.HOST_ACTION_UNCORDON, pb.HOST_ACTION_DRAIN


@dataclass
class Yard:
    etcd: FakeEtcd
    clock: SteppedClock

    def __post_init__(self) -> None:
        self.orders = HostOrders(client=self.etcd, clock=self.clock)
        self.leases = HostLeases(client=self.etcd, clock=self.clock, orders=self.orders)
        self.memory = HostMemory(values=Values(client=self.etcd, clock=self.clock), clock=self.clock)

    async def listing(self, pid: int = 7) -> Listing:
        listing = self.leases.open(record_to(a_host("cpu-0", pid=pid)))
        listing.start()
        listing.report(1, None)
        await settle()
        return listing

    async def order(self, action: "pb.HostAction.ValueType", host_id: str = "cpu-0") -> pb.HostOrder:
        request = pb.OrderHostRequest(host_id=host_id, action=action, reason="fans", author="ann")
        order = await self.orders.give(request, timeout_s=1.0)
        await settle()
        return order

    async def cordoned(self) -> bool:
        (record,) = (await self.leases.hosts(timeout_s=1.0)).listed
        return record.cordoned

    async def place(self) -> Place:
        await self.etcd.put(LEADER, b"me")
        return Place(LEADER, self.etcd.keys[LEADER].create_revision)


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    yard = Yard(FakeEtcd(), SteppedClock())
    following = asyncio.create_task(yard.orders.follow())
    await settle()
    yield yard
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_cordon_is_in_the_record_that_everybody_sees_until_it_is_taken_off(yard: Yard) -> None:
    listing = await yard.listing()
    assert not await yard.cordoned()

    order = await yard.order(CORDON)
    assert (order.cordoned, order.drain_pid, order.author, order.reason) == (True, 0, "ann", "fans")
    assert await yard.cordoned()
    assert yard.orders.in_force == [order]

    assert not (await yard.order(UNCORDON)).cordoned
    assert not await yard.cordoned()
    assert yard.orders.in_force == []
    await listing.leave()


async def test_a_host_that_comes_back_is_cordoned_still_and_what_it_says_of_itself_is_ignored(yard: Yard) -> None:
    listing = await yard.listing()
    await yard.order(CORDON)
    await listing.end()

    again = yard.leases.open(record_to(a_host("cpu-0", pid=8)))
    again.start()
    again.report(1, None)
    await settle()
    assert await yard.cordoned()
    await yard.order(UNCORDON)
    boasting = record_to(a_host("cpu-0", pid=8))
    boasting.cordoned = True
    again.report(2, boasting)
    await settle()
    assert not await yard.cordoned()
    await again.leave()


async def test_a_drain_is_for_the_process_that_is_listed_and_not_for_the_next(yard: Yard) -> None:
    listing = await yard.listing(pid=7)
    assert not listing.drain

    order = await yard.order(DRAIN)
    assert (order.cordoned, order.drain_pid, listing.drain) == (True, 7, True)
    assert (await yard.order(CORDON)).drain_pid == 7, "a cordon does not take a drain back"
    await listing.end()

    after = await yard.listing(pid=8)
    assert not after.drain
    assert await yard.cordoned()
    await yard.order(UNCORDON)
    assert not listing.drain
    await after.leave()


async def test_an_order_for_no_host_is_refused_with_those_there_are(yard: Yard) -> None:
    listing = await yard.listing()

    with pytest.raises(ObjectNotFound, match="host 'cpu-9' never was; listed are cpu-0"):
        await yard.order(CORDON, "cpu-9")
    with pytest.raises(InvalidRequest, match="action"):
        await yard.order(pb.HOST_ACTION_UNSPECIFIED)
    with pytest.raises(InvalidRequest, match="host_id"):
        await yard.order(CORDON, "")
    await listing.end()
    with pytest.raises(ObjectNotFound, match="is not listed, so that nothing can be drained; no host is listed"):
        await yard.order(DRAIN)
    assert (await yard.order(CORDON)).cordoned, "one that is gone can be cordoned before it comes back"


async def test_orders_are_heard_after_a_compaction_and_by_other_replicas(yard: Yard) -> None:
    listing = await yard.listing()
    other = HostOrders(client=yard.etcd, clock=yard.clock)
    request = pb.OrderHostRequest(host_id="cpu-0", action=CORDON)

    await other.give(request, timeout_s=1.0)
    await settle()

    assert await yard.cordoned()
    await listing.leave()


async def test_a_host_that_signs_off_is_remembered_so(yard: Yard) -> None:
    listing = await yard.listing()
    assert await yard.memory.gone(timeout_s=1.0) == []

    await listing.end()

    (gone,) = await yard.memory.gone(timeout_s=1.0)
    assert (gone.record.host_id, gone.record.pid, gone.end) == ("cpu-0", 7, pb.HOST_END_SIGNED_OFF)
    assert gone.HasField("registered")


async def test_a_host_whose_lease_runs_out_is_found_by_the_second_look(yard: Yard) -> None:
    listing = await yard.listing()
    place = await yard.place()
    await listing.leave()
    yard.etcd.expire(next(iter(yard.etcd.leases)))

    assert await yard.memory.look(place) == 0
    assert await yard.memory.look(place) == 1
    assert await yard.memory.look(place) == 0

    (gone,) = await yard.memory.gone(timeout_s=1.0)
    assert (gone.record.host_id, gone.end) == ("cpu-0", pb.HOST_END_VANISHED)
    again = await yard.listing()
    assert await yard.memory.gone(timeout_s=1.0) == [], "it is here again"
    await again.leave()


async def test_a_process_that_vanished_is_remembered_beside_the_next_one_of_its_name(yard: Yard) -> None:
    listing = await yard.listing(pid=7)
    place = await yard.place()
    await listing.leave()
    yard.etcd.expire(next(iter(yard.etcd.leases)))
    after = await yard.listing(pid=8)

    assert [await yard.memory.look(place) for _ in range(3)] == [0, 1, 0]

    (gone,) = await yard.memory.gone(timeout_s=1.0)
    assert (gone.record.pid, gone.end) == (7, pb.HOST_END_VANISHED)
    await after.end()
    assert [host.record.pid for host in await yard.memory.gone(timeout_s=1.0)] == [7, 8]


async def test_the_gone_are_forgotten_after_a_week_and_beyond_their_number(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "KEPT_HOSTS", 2)
    place = await yard.place()
    for index in range(4):
        record = record_to(a_host(f"cpu-{index}"))
        raw = host_memory.signed_off(host_memory.known(record, 0.0), yard.clock.wall_s() + index)
        await yard.etcd.put(layout.known_host_key(record.host_id, record.pid), raw)

    await yard.memory.look(place)
    assert [host.record.host_id for host in await yard.memory.gone(timeout_s=1.0)] == ["cpu-3", "cpu-2"]

    await yard.clock.advance(KEPT_S + 10.0)
    await yard.memory.look(place)
    assert await yard.memory.gone(timeout_s=1.0) == []


async def test_one_that_leads_no_longer_notes_nothing(yard: Yard) -> None:
    listing = await yard.listing()
    place = await yard.place()
    await listing.leave()
    yard.etcd.expire(next(iter(yard.etcd.leases)))
    await yard.memory.look(place)
    del yard.etcd.keys[LEADER]

    with pytest.raises(StaleFencingToken):
        await yard.memory.look(place)
    assert await yard.memory.gone(timeout_s=1.0) == []
