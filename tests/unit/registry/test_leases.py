"""A host is listed while its reports prove progress; only the plan of who leads is written."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from modelyard.type.v1 import resources_pb2
from services.chassis.codec import record_to
from services.domain.errors import InvalidRequest, StaleFencingToken
from services.registry import layout
from services.registry.host_orders import HostOrders
from services.registry.leases import HostLeases
from services.registry.listing import RETRY_S, TTL_S, Listing
from tests.fakes.clock import SteppedClock, settle
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_host

RECORD = record_to(a_host("cpu-0"))
KEY = layout.host_key("cpu-0")
ELECTION = layout.PLANNER_ELECTION


@pytest.fixture
def etcd() -> FakeEtcd:
    return FakeEtcd()


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def leases(etcd: FakeEtcd, clock: SteppedClock) -> HostLeases:
    return HostLeases(client=etcd, clock=clock, orders=HostOrders(client=etcd, clock=clock))


@pytest.fixture
async def listing(leases: HostLeases) -> AsyncIterator[Listing]:
    listing = leases.open(RECORD)
    listing.start()
    listing.report(1, None)
    await settle()
    yield listing
    await listing.leave()


def listed(etcd: FakeEtcd) -> resources_pb2.HostRecord | None:
    kv = etcd.keys.get(KEY)
    return None if kv is None else resources_pb2.HostRecord.FromString(kv.value)


async def test_a_host_is_listed_under_a_lease(etcd: FakeEtcd, listing: Listing) -> None:
    assert listed(etcd) == RECORD
    assert etcd.keys[KEY].lease in etcd.leases


async def test_only_reports_that_show_progress_keep_the_lease(etcd: FakeEtcd, listing: Listing) -> None:
    etcd.keepalives.clear()
    for progress in (2, 2, 2, 1):
        assert listing.report(progress, None) == 2
        await settle()

    assert len(etcd.keepalives) == 1


async def test_a_changed_record_is_written_and_an_equal_one_is_not(etcd: FakeEtcd, listing: Listing) -> None:
    revision = etcd.revision
    listing.report(2, RECORD)
    await settle()
    assert etcd.revision == revision

    listing.report(3, record_to(a_host("cpu-0", draining=True)))
    await settle()
    record = listed(etcd)
    assert record is not None
    assert record.draining


async def test_a_host_that_progresses_again_after_its_lease_ran_out_is_listed_again(
    etcd: FakeEtcd, listing: Listing
) -> None:
    etcd.expire(etcd.keys[KEY].lease)
    assert listed(etcd) is None

    listing.report(1, None)
    await settle()
    assert listed(etcd) is None  # no progress, no listing

    listing.report(2, None)
    await settle()
    assert listed(etcd) == RECORD


async def test_a_host_is_listed_again_as_soon_as_the_store_is_back(
    etcd: FakeEtcd, clock: SteppedClock, listing: Listing
) -> None:
    etcd.away = True
    for progress in range(2, 62):
        listing.report(progress, None)
        await clock.advance(1.0)
    etcd.away = False
    etcd.expire(etcd.keys[KEY].lease)  # it ran out in the meantime

    await clock.advance(RETRY_S)

    assert listed(etcd) == RECORD


async def test_a_host_that_hung_during_an_outage_is_not_listed_again(
    etcd: FakeEtcd, clock: SteppedClock, listing: Listing
) -> None:
    etcd.away = True
    listing.report(2, None)
    for _ in range(TTL_S + 2):
        await clock.advance(1.0)
    etcd.away = False
    etcd.expire(etcd.keys[KEY].lease)

    await clock.advance(RETRY_S)

    assert listed(etcd) is None


async def test_a_host_that_registers_during_an_outage_is_listed_after_it(
    etcd: FakeEtcd, clock: SteppedClock, leases: HostLeases
) -> None:
    etcd.away = True
    listing = leases.open(RECORD)
    listing.start()
    listing.report(1, None)
    await clock.advance(RETRY_S)
    etcd.away = False
    await clock.advance(RETRY_S)

    assert listed(etcd) == RECORD
    await listing.leave()


async def test_an_end_takes_the_host_off_at_once_and_a_break_does_not(etcd: FakeEtcd, listing: Listing) -> None:
    await listing.leave()
    assert listed(etcd) == RECORD

    await listing.end()
    assert listed(etcd) is None


async def test_the_end_of_an_old_stream_does_not_take_the_host_of_a_new_one_off(
    etcd: FakeEtcd, leases: HostLeases, listing: Listing
) -> None:
    again = leases.open(RECORD)
    again.start()
    await settle()

    await listing.end()

    assert listed(etcd) == RECORD
    await again.leave()


async def test_an_end_without_the_store_leaves_the_lease_to_run_out(etcd: FakeEtcd, listing: Listing) -> None:
    etcd.away = True

    await listing.end()

    assert listed(etcd) == RECORD


async def test_changes_begin_with_the_whole_list_and_say_who_goes(etcd: FakeEtcd, leases: HostLeases) -> None:
    lease = await etcd.lease_grant(TTL_S)
    await etcd.put(KEY, RECORD.SerializeToString(), lease=lease)
    changes = leases.changes()

    first = await anext(changes)
    etcd.expire(lease)
    second = await anext(changes)

    assert (first.reset, [record.host_id for record in first.listed]) == (True, ["cpu-0"])
    assert (second.reset, second.listed, second.gone) == (False, (), ("cpu-0",))
    await changes.aclose()


async def test_changes_are_listed_anew_after_a_compaction(etcd: FakeEtcd, leases: HostLeases) -> None:
    changes = leases.changes()
    await anext(changes)
    await etcd.put(KEY, RECORD.SerializeToString())
    etcd.compacted = etcd.revision
    etcd.revision += 1

    again = await anext(changes)

    assert (again.reset, [record.host_id for record in again.listed]) == (True, ["cpu-0"])
    await changes.aclose()


async def test_a_record_that_is_none_is_left_out(etcd: FakeEtcd, leases: HostLeases) -> None:
    await etcd.put(KEY, b"\xff\xff")
    await etcd.put(layout.host_key("other"), RECORD.SerializeToString())

    assert (await leases.hosts(timeout_s=1.0)).listed == ()


async def test_the_leader_publishes_and_others_do_not(etcd: FakeEtcd, leases: HostLeases) -> None:
    first = await etcd.put(f"{ELECTION}a", b"rm-1")
    second = await etcd.put(f"{ELECTION}b", b"rm-2")

    await leases.publish(b"plan", election_key=f"{ELECTION}a", fencing_token=first, timeout_s=1.0)
    assert etcd.keys[layout.PLAN].value == b"plan"

    for key, token in (("b", second), ("a", second), ("b", first), ("c", second + 1)):
        with pytest.raises(StaleFencingToken):
            await leases.publish(b"stale", election_key=f"{ELECTION}{key}", fencing_token=token, timeout_s=1.0)
    assert etcd.keys[layout.PLAN].value == b"plan"


async def test_a_leader_that_loses_its_place_while_publishing_is_refused(etcd: FakeEtcd, leases: HostLeases) -> None:
    lease = await etcd.lease_grant(5)
    token = await etcd.put(f"{ELECTION}a", b"rm-1", lease=lease)
    etcd.before_txn = lambda _: etcd.expire(lease)

    with pytest.raises(StaleFencingToken):
        await leases.publish(b"stale", election_key=f"{ELECTION}a", fencing_token=token, timeout_s=1.0)

    assert layout.PLAN not in etcd.keys


@pytest.mark.parametrize(("key", "token"), [(f"{ELECTION}none", 0), (layout.HEAD, 5), (f"{ELECTION}a", -1)])
async def test_a_fence_that_would_never_fall_is_refused(
    etcd: FakeEtcd, leases: HostLeases, key: str, token: int
) -> None:
    await etcd.put(layout.HEAD, b"")

    with pytest.raises(InvalidRequest):
        await leases.publish(b"plan", election_key=key, fencing_token=token, timeout_s=1.0)

    assert layout.PLAN not in etcd.keys


async def test_a_stopped_listing_has_no_task_left(listing: Listing) -> None:
    await listing.leave()

    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("listing")]
