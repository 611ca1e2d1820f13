"""The etcd client against real etcd: what it reads and writes, and what it outlives."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.chassis.etcd import (
    PAGE_KEYS,
    Compacted,
    EtcdClient,
    LeaseGone,
    WatchBatch,
    compare_create,
    compare_mod,
    delete_op,
    get_op,
    put_op,
)
from services.chassis.etcd_endpoint import STALE_TIMEOUTS
from services.chassis.etcd_watch import PROBE_EVERY_S
from services.domain.errors import Internal, StoreUnavailable
from tests.integration.chassis.etcd_faults import WAIT_S, etcd_cluster, mute_member, swallowing_proxy, until_serving
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

_names = itertools.count()


@pytest.fixture
async def client(etcd_endpoint: str) -> AsyncIterator[EtcdClient]:
    made = EtcdClient([etcd_endpoint])
    yield made
    await made.close()


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone, in the session's etcd."""
    return f"/test_etcd/{next(_names)}/"


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd to break."""
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.stop()


async def test_written_key_is_read_and_its_revisions_tell_its_history(client: EtcdClient, prefix: str) -> None:
    key = prefix + "a"
    created = await client.put(key, b"one")
    changed = await client.put(key, b"two")

    kv = await client.get(key)

    assert kv is not None
    assert (kv.key, kv.value, kv.create_revision, kv.mod_revision) == (key.encode(), b"two", created, changed)
    before = await client.get(key, revision=created)
    assert before is not None
    assert before.value == b"one"
    assert await client.delete(key)
    assert not await client.delete(key)
    assert await client.get(key) is None


async def test_prefix_is_read_whole_over_many_pages_at_one_revision(client: EtcdClient, prefix: str) -> None:
    keys = [f"{prefix}{n:05d}" for n in range(2 * PAGE_KEYS + 7)]
    for batch in _batched(keys, 120):
        await client.txn([], [put_op(key, key.encode()) for key in batch])
    await client.put(prefix[:-1] + "0", b"just behind the prefix")

    found = await client.range_prefix(prefix)
    await client.put(keys[0], b"later")
    again = await client.range_prefix(prefix, revision=found.revision, keys_only=True)

    assert [kv.key.decode() for kv in found.kvs] == keys
    assert [kv.value for kv in found.kvs] == [key.encode() for key in keys]
    assert again.revision == found.revision
    assert [(kv.key.decode(), kv.mod_revision) for kv in again.kvs] == [
        (kv.key.decode(), kv.mod_revision) for kv in found.kvs
    ]
    assert {kv.value for kv in again.kvs} == {b""}


def _batched(keys: list[str], size: int) -> Iterator[list[str]]:
    return (keys[n : n + size] for n in range(0, len(keys), size))


async def test_transaction_does_one_branch_whole(client: EtcdClient, prefix: str) -> None:
    key, other = prefix + "a", prefix + "b"

    made = await client.txn([compare_create(key, 0)], [put_op(key, b"1"), put_op(other, b"1")], [get_op(key)])
    refused = await client.txn([compare_create(key, 0)], [put_op(key, b"2")], [get_op(key)])
    moved = await client.txn(
        [compare_mod(key, made.header.revision), compare_create(key, made.header.revision)],
        [put_op(key, b"3"), delete_op(other)],
    )

    assert (made.succeeded, refused.succeeded, moved.succeeded) == (True, False, True)
    assert refused.responses[0].response_range.kvs[0].value == b"1"
    assert [kv.value for kv in (await client.range_prefix(prefix)).kvs] == [b"3"]


async def test_lease_lives_while_kept_and_takes_its_keys_along(client: EtcdClient, prefix: str) -> None:
    lease = await client.lease_grant(2)
    await client.put(prefix + "a", b"x", lease=lease)

    for _ in range(4):
        await asyncio.sleep(0.7)
        assert await client.lease_keep_alive(lease) == 2
    state = await client.lease_time_to_live(lease, keys=True)
    assert (state.granted_ttl, list(state.keys)) == (2, [(prefix + "a").encode()])

    async with asyncio.timeout(WAIT_S):
        while await client.get(prefix + "a") is not None:  # noqa: ASYNC110 - etcd decides when
            await asyncio.sleep(0.1)
    assert await client.lease_keep_alive(lease) == 0
    assert (await client.lease_time_to_live(lease)).ttl == -1
    with pytest.raises(LeaseGone):
        await client.put(prefix + "a", b"x", lease=lease)


async def test_revoked_lease_takes_its_keys_at_once_and_may_be_revoked_again(client: EtcdClient, prefix: str) -> None:
    lease = await client.lease_grant(600)
    await client.put(prefix + "a", b"x", lease=lease)

    await client.lease_revoke(lease)
    await client.lease_revoke(lease)

    assert await client.get(prefix + "a") is None


async def test_what_etcd_never_accepts_is_no_outage(client: EtcdClient, prefix: str) -> None:
    for size_bytes in (int(1.6 * 2**20), 3 * 2**20):
        with pytest.raises(Internal, match="too large"):
            await client.put(prefix + "big", b"x" * size_bytes)
    with pytest.raises(Internal, match="duplicate key"):
        await client.txn([], [put_op(prefix + "a", b"1"), put_op(prefix + "a", b"2")])
    with pytest.raises(Internal, match="too many operations"):
        await client.txn([], [put_op(f"{prefix}{n}", b"") for n in range(129)])


class Watcher:
    """Follows a prefix in a task and keeps what came."""

    def __init__(self, client: EtcdClient, prefix: str, start_revision: int) -> None:
        self.batches: list[WatchBatch] = []
        self._came = asyncio.Event()
        self._task = asyncio.create_task(self._run(client, prefix, start_revision))

    async def _run(self, client: EtcdClient, prefix: str, start_revision: int) -> None:
        async with contextlib.aclosing(client.watch(prefix, start_revision=start_revision)) as batches:
            async for batch in batches:
                self.batches.append(batch)
                self._came.set()

    @property
    def revisions(self) -> list[int]:
        return [event.kv.mod_revision for batch in self.batches for event in batch.events]

    async def until(self, revision: int) -> list[int]:
        """Every event's revision, once `revision` has come."""
        async with asyncio.timeout(WAIT_S):
            while not self.batches or self.batches[-1].revision < revision:
                self._came.clear()
                await self._came.wait()
        return self.revisions

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def put_surely(client: EtcdClient, key: str, value: bytes) -> int:
    """Write over outages: read back what has an unknown outcome, as every caller must."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await client.put(key, value)
            except StoreUnavailable as error:
                if error.metadata["outcome"] == "none":
                    continue
                with contextlib.suppress(StoreUnavailable):
                    kv = await client.get(key)
                    if kv is not None and kv.value == value:
                        return kv.mod_revision


async def serves(client: EtcdClient) -> bool:
    try:
        await client.status(timeout_s=0.5)
    except StoreUnavailable:
        return False
    return True


async def test_watch_gives_history_then_news_with_whole_revisions(client: EtcdClient, prefix: str) -> None:
    first = await client.put(prefix + "a", b"1")
    second = (await client.txn([], [put_op(prefix + "b", b"1"), put_op(prefix + "c", b"1")])).header.revision
    watcher = Watcher(client, prefix, first)

    await watcher.until(second)
    await client.delete(prefix + "a")
    third = second + 1

    assert await watcher.until(third) == [first, second, second, third]
    assert watcher.batches[-1].events[0].type == 1
    for batch in watcher.batches:
        assert batch.revision == batch.events[-1].kv.mod_revision
    await watcher.stop()


async def test_answer_sent_in_fragments_comes_with_whole_revisions(client: EtcdClient, prefix: str) -> None:
    big = b"x" * 500_000
    puts = [put_op(prefix + "a", big), put_op(prefix + "b", big), put_op(prefix + "c", big)]
    wrote = [(await client.txn([], puts)).header.revision for _ in range(6)]
    watcher = Watcher(client, prefix, wrote[0])

    assert await watcher.until(wrote[-1]) == [revision for revision in wrote for _ in puts]
    for batch in watcher.batches:
        assert len(batch.events) % len(puts) == 0
        assert all(event.kv.value == big for event in batch.events)
    await watcher.stop()


async def test_client_and_watch_go_on_after_etcd_is_killed_and_started(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    wrote = [await client.put("/a/0", b"0")]
    watcher = Watcher(client, "/a/", wrote[0])
    for n in range(1, 4):
        wrote += [await put_surely(client, f"/a/{n}", b"%d" % m) for m in range(5)]
        await client.put("/other", b"moves the store on without an event")
        own_etcd.kill()
        with pytest.raises(StoreUnavailable):
            await client.get("/a/0", timeout_s=0.5)
        own_etcd.start()
    wrote.append(await put_surely(client, "/a/last", b""))

    assert await watcher.until(wrote[-1]) == wrote
    await watcher.stop()
    await client.close()


async def test_watch_outlives_a_frozen_etcd(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    wrote = [await client.put("/a/0", b"0")]
    watcher = Watcher(client, "/a/", wrote[0])
    await watcher.until(wrote[0])

    own_etcd.pause()
    with pytest.raises(StoreUnavailable) as refused:
        await client.put("/b", b"")
    await asyncio.sleep(2.5)
    own_etcd.resume()
    wrote += [await put_surely(client, "/a/0", b"%d" % n) for n in range(1, 4)]

    assert refused.value.metadata["outcome"] == "unknown"
    assert await watcher.until(wrote[-1]) == wrote
    await watcher.stop()
    await client.close()


async def test_write_that_reached_nobody_is_known_not_to_be_done(free_port: int) -> None:
    client = EtcdClient([f"127.0.0.1:{free_port}"])

    with pytest.raises(StoreUnavailable) as refused:
        await client.put("/a", b"", timeout_s=0.5)

    assert refused.value.metadata["outcome"] == "none"
    assert refused.value.retry_after_s is not None
    await client.close()


async def test_dead_endpoint_is_passed_over_for_reads_and_writes(etcd_endpoint: str, prefix: str) -> None:
    dead = [f"127.0.0.1:{port}" for port in free_ports(2)]
    client = EtcdClient([dead[0], etcd_endpoint, dead[1]])

    wrote = await client.put(prefix + "a", b"1")
    kv = await client.get(prefix + "a")

    assert kv is not None
    assert kv.mod_revision == wrote
    await client.close()


async def test_watch_of_a_compacted_revision_says_so(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    first = await client.put("/a", b"0")
    last = [await client.put("/a", b"%d" % n) for n in range(20)][-1]
    await client.compact(last)
    await client.compact(last)

    with pytest.raises(Compacted) as watched:
        await anext(client.watch("/a", start_revision=first))
    with pytest.raises(Compacted):
        await client.get("/a", revision=first)
    watcher = Watcher(client, "/a", last)

    assert watched.value.compact_revision == last
    assert await watcher.until(last) == [last]
    await watcher.stop()
    await client.close()


async def test_watcher_that_was_away_during_a_compaction_is_told(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    async with swallowing_proxy(own_etcd.endpoint) as proxy:
        slow = EtcdClient([proxy.address])
        first = await client.put("/a", b"0")
        batches = slow.watch("/a", start_revision=first)
        assert (await anext(batches)).revision == first

        proxy.swallow()
        last = [await client.put("/a", b"%d" % n) for n in range(5)][-1]
        await client.compact(last)

        async with asyncio.timeout(WAIT_S):
            with pytest.raises(Compacted):
                await anext(batches)
        await slow.close()
    await client.close()


async def test_connection_into_a_black_hole_is_given_up(etcd_endpoint: str, prefix: str) -> None:
    async with swallowing_proxy(etcd_endpoint) as proxy:
        client = EtcdClient([proxy.address])
        wrote = [await client.put(prefix + "a", b"0")]
        watcher = Watcher(client, prefix, wrote[0])
        await watcher.until(wrote[0])
        connections = proxy.connections

        proxy.swallow()
        wrote.append(await put_surely(client, prefix + "a", b"1"))

        assert await watcher.until(wrote[-1]) == wrote
        assert proxy.connections > connections
        await watcher.stop()
        await client.close()


async def test_one_call_outlives_a_quiet_connection_into_a_black_hole(etcd_endpoint: str, prefix: str) -> None:
    async with swallowing_proxy(etcd_endpoint) as proxy:
        client = EtcdClient([proxy.address])
        await client.put(prefix + "a", b"0")
        # Until no ping of the last call is under way any more, which would notice sooner.
        await asyncio.sleep(2.5)

        proxy.swallow()

        # Its attempts are over before a keepalive of the connection could have noticed.
        assert await client.get(prefix + "a") is not None
        await client.close()


async def test_watch_leaves_a_member_that_has_nothing_to_say(etcd_endpoint: str, prefix: str) -> None:
    async with mute_member() as mute:
        client = EtcdClient([mute, etcd_endpoint])
        writer = EtcdClient([etcd_endpoint])
        wrote = await writer.put(prefix + "a", b"")
        watcher = Watcher(client, prefix, wrote)

        assert await watcher.until(wrote) == [wrote]
        await watcher.stop()
        await client.close()
        await writer.close()


async def test_watch_and_writes_move_away_from_frozen_members(tmp_path: Path) -> None:
    with etcd_cluster(tmp_path) as cluster:
        client, watching = EtcdClient(cluster.endpoints), EtcdClient(cluster.endpoints)
        await until_serving(client)
        wrote = [await put_surely(client, "/a", b"0")]
        watcher = Watcher(watching, "/a", wrote[0])
        await watcher.until(wrote[0])

        for member in range(3):
            cluster.send(member, signal.SIGSTOP)
            wrote += [await put_surely(client, "/a", b"%d %d" % (member, n)) for n in range(5)]
            await watcher.until(wrote[-1])
            cluster.send(member, signal.SIGCONT)
            await until_serving(client)

        events = watcher.revisions
        # A write whose outcome was unknown and that was repeated may be there twice, as two changes.
        assert set(wrote) <= set(events)
        assert events == sorted(set(events))
        await watcher.stop()
        await client.close()
        await watching.close()


async def test_isolated_member_does_not_keep_a_watch(tmp_path: Path) -> None:
    with etcd_cluster(tmp_path) as cluster:
        client = EtcdClient(cluster.endpoints)
        await until_serving(client)
        wrote = await put_surely(client, "/a", b"0")
        isolated = EtcdClient(cluster.endpoints[:1])
        watcher = Watcher(isolated, "/a", wrote)
        await watcher.until(wrote)

        cluster.send(1, signal.SIGSTOP)
        cluster.send(2, signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            while await serves(isolated):  # noqa: ASYNC110 - etcd decides when
                await asyncio.sleep(0.1)
        with pytest.raises(StoreUnavailable):
            await isolated.put("/a", b"alone")

        cluster.send(1, signal.SIGCONT)
        cluster.send(2, signal.SIGCONT)
        last = await put_surely(client, "/a", b"together")
        assert (await watcher.until(last))[-1] == last
        await watcher.stop()
        await client.close()
        await isolated.close()


async def test_closed_client_ends_its_calls_and_watches(etcd_endpoint: str, prefix: str) -> None:
    client = EtcdClient([etcd_endpoint])
    wrote = await client.put(prefix + "a", b"")
    batches = client.watch(prefix, start_revision=wrote)
    await anext(batches)
    waiting = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)

    await client.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting
    with pytest.raises(StoreUnavailable, match="closed"):
        await client.get(prefix + "a")


async def test_call_under_way_when_its_client_is_closed_fails_and_cancels_nobody(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    await client.status()
    own_etcd.pause()
    call = asyncio.create_task(client.put("/a", b""))
    await asyncio.sleep(0.1)

    await client.close()

    with pytest.raises(StoreUnavailable) as closed:
        await call
    assert closed.value.metadata["outcome"] == "unknown"


async def test_cancelled_call_is_cancelled(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    await client.status()
    own_etcd.pause()
    call = asyncio.create_task(client.get("/a"))
    await asyncio.sleep(0.1)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    own_etcd.resume()
    await client.close()


async def test_watch_goes_on_after_its_connection_was_given_up_by_others(own_etcd: EtcdProcess) -> None:
    client = EtcdClient([own_etcd.endpoint])
    wrote = [await client.put("/a/0", b"0")]
    watcher = Watcher(client, "/a/", wrote[0])
    await watcher.until(wrote[0])

    own_etcd.pause()
    for _ in range(STALE_TIMEOUTS):  # calls that take too long, on a connection that works
        with pytest.raises(StoreUnavailable):
            await client.get("/a/0", timeout_s=0.05)
    own_etcd.resume()
    await asyncio.sleep(PROBE_EVERY_S + 0.5)
    wrote.append(await client.put("/a/0", b"1"))

    assert await watcher.until(wrote[-1]) == wrote
    await watcher.stop()
    await client.close()
