"""What is stored is immutable, checked when read, shared between revisions, and survives surprises."""

import hashlib
from dataclasses import replace

import pytest

from modelyard.registry.v1 import registry_pb2
from services.domain.clock import ManualClock
from services.domain.errors import Internal, RevisionNotFound, StoreUnavailable
from services.registry import layout
from services.registry.object_store import ObjectStore
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model
from tests.unit.registry.test_apply import DIGITS, Replica


@pytest.fixture
def replica() -> Replica:
    return Replica(FakeEtcd())


def fresh(replica: Replica) -> ObjectStore:
    """A replica that has just started."""
    return ObjectStore(client=replica.etcd, clock=ManualClock())


async def test_everything_immutable_is_named_by_its_sha256(replica: Replica) -> None:
    await replica.apply(DIGITS)

    kinds = set()
    for key, kv in replica.etcd.keys.items():
        kind, _, name = key.removeprefix(layout.PREFIX).partition("/")
        if kind in ("objects", "trees"):
            kinds.add(kind)
            assert name == hashlib.sha256(kv.value).hexdigest()
    assert kinds == {"objects", "trees"}
    head = registry_pb2.Head.FromString(replica.etcd.keys[layout.HEAD].value)
    record = replica.etcd.keys[layout.revision_key(1)].value
    assert head.digest == hashlib.sha256(record).hexdigest()
    assert layout.revision_key(1).endswith("revisions/0000000000000001")


async def test_a_replica_that_starts_reads_the_head_and_every_revision(replica: Replica) -> None:
    for index in range(3):
        await replica.apply([a_model(f"m-{index}")])
    store = fresh(replica)

    assert len((await store.head(timeout_s=1.0)).objects) == 3
    assert len((await store.at(1, timeout_s=1.0)).objects) == 1
    assert (await store.at(2, timeout_s=1.0)).digest == (await replica.store.at(2, timeout_s=1.0)).digest
    assert (await store.at(2, timeout_s=1.0)).objects == (await replica.store.at(2, timeout_s=1.0)).objects


async def test_one_change_among_many_objects_writes_one_shard(replica: Replica) -> None:
    await replica.apply([a_model(f"m-{index}") for index in range(2000)])
    before = set(replica.etcd.keys)

    await replica.apply([a_model("one-more")])

    written = [key for key in replica.etcd.keys if key not in before]
    assert sorted(key.removeprefix(layout.PREFIX).split("/")[0] for key in written) == [
        "objects",
        "requests",
        "revisions",
        "trees",
        "trees",
    ]
    shard_bytes = [len(replica.etcd.keys[key].value) for key in written if "/trees/" in key]
    assert max(shard_bytes) < 40_000


async def test_writes_keep_to_the_limits_of_a_transaction(replica: Replica) -> None:
    large = "x" * 300_000
    objects = [a_model(f"m-{index}") for index in range(250)]
    objects += [replace(a_model(f"large-{index}"), description=large) for index in range(8)]

    await replica.apply(objects)

    writes = [txn for txn in replica.etcd.txns if txn.success and txn.success[0].HasField("request_put")]
    assert max(len(txn.success) for txn in writes) <= 100
    assert max(txn.ByteSize() for txn in writes) <= 1_100_000
    assert len((await fresh(replica).head(timeout_s=1.0)).objects) == 258


async def test_a_deleted_object_made_again_is_the_same_object(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    await replica.apply([], ["Model/m"])
    await replica.apply([a_model("m")])

    first, third = await fresh(replica).at(1, timeout_s=1.0), await fresh(replica).at(3, timeout_s=1.0)

    assert first.tree_digest == third.tree_digest
    assert (await fresh(replica).at(2, timeout_s=1.0)).objects == {}


async def test_a_revision_that_does_not_exist_is_told_with_the_head(replica: Replica) -> None:
    await replica.apply([a_model("m")])

    with pytest.raises(RevisionNotFound, match="there is no revision 7; the head is 1"):
        await replica.store.at(7, timeout_s=1.0)


@pytest.mark.parametrize("kind", ["objects", "trees"])
async def test_tampering_with_what_is_stored_is_noticed(replica: Replica, kind: str) -> None:
    await replica.apply([a_model("m")])
    key = next(key for key in replica.etcd.keys if f"/{kind}/" in key)
    await replica.etcd.put(key, replica.etcd.keys[key].value + b"\n\0")

    with pytest.raises(Internal, match="tampered"):
        await fresh(replica).head(timeout_s=1.0)


async def test_a_rewritten_history_is_noticed(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    record = registry_pb2.Revision.FromString(replica.etcd.keys[layout.revision_key(1)].value)
    record.author = "mallory"
    await replica.etcd.put(layout.revision_key(1), layout.raw_of(record))

    with pytest.raises(Internal, match="not the one that the head names"):
        await fresh(replica).head(timeout_s=1.0)


async def test_a_missing_object_is_told_by_its_key(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    key = next(key for key in replica.etcd.keys if "/objects/" in key)
    del replica.etcd.keys[key]

    with pytest.raises(Internal, match=f"the store has lost {key}"):
        await fresh(replica).head(timeout_s=1.0)


async def test_the_head_is_read_from_memory_while_the_store_is_away(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    replica.etcd.away = True

    assert (await replica.store.head_or_last(timeout_s=1.0)).revision == 1
    with pytest.raises(StoreUnavailable):
        await fresh(replica).head_or_last(timeout_s=1.0)


async def test_the_head_is_read_from_the_store_again_once_it_is_back(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    replica.etcd.away = True
    await replica.store.head_or_last(timeout_s=1.0)
    replica.etcd.away = False
    await Replica(replica.etcd).apply([a_model("n")])
    replica.clock.advance(1.0)

    assert (await replica.store.head_or_last(timeout_s=1.0)).revision == 2


async def test_an_emptied_store_is_believed(replica: Replica) -> None:
    await replica.apply([a_model("m")])
    replica.etcd.empty()

    assert (await replica.store.head(timeout_s=1.0)).revision == 0
    assert (await replica.apply([a_model("n")])).revision == 1
    assert await replica.names() == ["Model/n"]


async def test_a_replica_behind_reads_only_what_changed(replica: Replica) -> None:
    await replica.apply([a_model(f"m-{index}") for index in range(300)])
    other = fresh(replica)
    await other.head(timeout_s=1.0)
    await replica.apply([a_model("one-more")])
    replica.etcd.txns.clear()

    assert len((await other.head(timeout_s=1.0)).objects) == 301

    read = [op.request_range.key.decode() for txn in replica.etcd.txns for op in txn.success]
    assert len(read) == 5  # head, revision, root, one shard, one object


async def test_a_read_that_was_overtaken_does_not_take_the_head_back(replica: Replica) -> None:
    await replica.apply([a_model("a")])
    look = await replica.store._look([layout.HEAD], 1.0)
    await replica.apply([a_model("b")])

    assert (await replica.store._load(look, 1.0)).revision == 2
    assert (await replica.store.head(timeout_s=1.0)).revision == 2


async def test_what_the_first_apply_would_wait_for_is_prepared_although_the_head_moves_on(replica: Replica) -> None:
    await replica.apply(DIGITS)
    store = fresh(replica)
    state = await store.head(timeout_s=1.0)
    assert not state.knows_users
    await replica.apply([a_model("meanwhile")])
    await store.head(timeout_s=1.0)

    await store.prepare()

    assert (await store.head(timeout_s=1.0)).knows_users
    assert state.knows_users
    assert list(state.users_of(DIGITS[1].key)) == [DIGITS[2].key]
