"""What reads trees reads those whose shards are split: a replica that starts, a verification, a file, the collector."""

import pytest

from services.registry import layout, tree
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model
from tests.unit.registry.test_collecting import Kept
from tests.unit.registry.test_history import Yard
from tests.unit.registry.test_object_store import fresh


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "SPLIT", 2)


@pytest.fixture
async def yard() -> Kept:
    """One with a revision of many objects, some that change a few of them, and one with few left."""
    yard = Kept(FakeEtcd())
    await yard.apply([a_model(f"m-{index}") for index in range(1500)])
    await yard.apply([a_model("one-more")], ["Model/m-7"])
    await yard.apply([], [f"Model/m-{index}" for index in range(100, 1500)])
    await yard.apply([a_model("last")])
    return yard


def count(yard: Yard, prefix: str) -> int:
    return sum(1 for key in yard.etcd.keys if key.startswith(prefix))


async def test_a_replica_that_starts_reads_every_revision(yard: Kept) -> None:
    store = fresh(yard)

    for revision, objects in ((4, 101), (1, 1500), (3, 100), (2, 1500)):
        state = await store.at(revision, timeout_s=1.0)
        assert len(state.objects) == objects
        assert state.digest == (await yard.store.at(revision, timeout_s=1.0)).digest
        assert set(state.entries) == set((await yard.store.at(revision, timeout_s=1.0)).entries)


async def test_every_node_is_verified_and_none_is_left_over(yard: Kept) -> None:
    said = await yard.verify()

    assert not said.HasField("broken")
    assert (said.trees, said.objects) == (count(yard, layout.TREES), count(yard, layout.OBJECTS))


async def test_a_history_makes_the_round_trip(yard: Kept) -> None:
    other = Yard(FakeEtcd())
    file = await yard.history_file()

    assert (await other.take(file)).revisions == 4

    assert await other.history_file() == file
    assert len((await other.store.at(1, timeout_s=1.0)).objects) == 1500


async def test_a_state_makes_the_round_trip(yard: Kept) -> None:
    other = Yard(FakeEtcd())

    await other.take(await yard.state_file())

    assert await other.state_file() == await yard.state_file()


async def test_the_collector_leaves_what_kept_revisions_name(yard: Kept) -> None:
    done = await yard.collector.collect(await yard.lead())

    assert done.revisions == 1
    assert done.values > 0
    said = await yard.verify()
    assert (said.oldest, said.HasField("broken")) == (2, False)
    assert (said.trees, said.objects) == (count(yard, layout.TREES), count(yard, layout.OBJECTS))
    assert len(await Kept(yard.etcd).names()) == 101
