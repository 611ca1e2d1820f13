"""Garbage goes, and nothing else: whatever an apply does meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from modelyard.etcd.v3 import rpc_pb2 as etcd
from services.domain.errors import RevisionNotFound, StaleFencingToken
from services.registry import layout
from services.registry.chain import Broken
from services.registry.collecting import NOTES_S, Collected, Collector
from services.registry.layout import Draft
from services.registry.ports import Outcome
from services.registry.values import Values
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model
from tests.unit.registry.test_history import Yard

LEADER = "/modelyard/v1/elections/registry/1"


@dataclass(frozen=True)
class Place:
    key: str
    fencing_token: int


class Kept(Yard):
    """A yard whose leader keeps three revisions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.collector = Collector(
            values=Values(client=self.etcd, clock=self.clock), clock=self.clock, keep_revisions=3
        )

    async def lead(self) -> Place:
        await self.etcd.put(LEADER, b"me")
        return Place(LEADER, self.etcd.keys[LEADER].create_revision)

    async def live(self, revisions: int) -> None:
        """Each revision replaces the one object of the one before."""
        for number in range(1, revisions + 1):
            await self.apply(
                [a_model(f"m-{number}")], [f"Model/m-{number - 1}"] if number > 1 else [], request_id=f"r-{number}"
            )

    def count(self, prefix: str) -> int:
        return sum(1 for key in self.etcd.keys if key.startswith(prefix))


@pytest.fixture
def yard() -> Kept:
    return Kept(FakeEtcd())


async def test_what_is_beyond_the_kept_revisions_goes(yard: Kept) -> None:
    await yard.live(10)

    done = await yard.collector.collect(await yard.lead())

    assert done == Collected(revisions=7, values=21, requests=7)
    assert (yard.count(layout.REVISIONS), yard.count(layout.OBJECTS), yard.count(layout.TREES)) == (3, 3, 6)
    assert yard.count(layout.REQUESTS) == 3
    said = await yard.verify()
    assert (said.head, said.oldest, said.revisions, said.HasField("broken")) == (10, 8, 3, False)
    fresh = Kept(yard.etcd)
    assert await fresh.names() == ["Model/m-10"]
    assert [str(key) for key in (await fresh.store.at(8, timeout_s=1.0)).objects] == ["Model/m-8"]
    with pytest.raises(RevisionNotFound, match="no revision 7; the oldest kept is 8"):
        await fresh.store.at(7, timeout_s=1.0)
    assert await yard.collector.collect(await yard.lead()) == Collected()


async def test_nothing_goes_while_every_revision_is_kept(yard: Kept) -> None:
    assert await yard.collector.collect(await yard.lead()) == Collected()
    await yard.live(3)
    before = {key: kv.value for key, kv in yard.etcd.keys.items()}

    assert await yard.collector.collect(await yard.lead()) == Collected()

    assert before.items() <= {key: kv.value for key, kv in yard.etcd.keys.items()}.items()


async def test_what_an_apply_that_died_left_behind_goes(yard: Kept) -> None:
    await yard.live(1)
    await yard.etcd.put(layout.object_key("dead"), b"never named")

    assert await yard.collector.collect(await yard.lead()) == Collected(values=1)


async def test_what_a_kept_revision_shares_with_a_collected_one_stays(yard: Kept) -> None:
    await yard.apply([a_model(f"m-{index}") for index in range(500)])
    for index in range(6):
        await yard.apply([], [f"Model/m-{index}"])

    await yard.collector.collect(await yard.lead())

    assert not (await yard.verify()).HasField("broken")
    assert len(await Kept(yard.etcd).names()) == 494


@pytest.mark.parametrize("safe", [True, False])
async def test_an_apply_whose_objects_were_written_before_the_mark_loses_none(yard: Kept, safe: bool) -> None:
    await yard.live(3)
    await yard.apply([a_model("again")])
    await yard.apply([], ["Model/again"])
    for number in range(5):  # by now no kept revision names what is applied again below
        await yard.apply([a_model(f"x-{number}")])
    place = await yard.lead()
    await yard.collector.collect(place)
    write, advance = yard.store.write, yard.store.advance
    collections = 0

    async def write_and_collect(draft: Draft, *, timeout_s: float) -> None:
        nonlocal collections
        await write(draft, timeout_s=timeout_s)
        if collections == 0:
            collections += 1
            await yard.collector.collect(place)

    async def without_the_mark(draft: Draft, *, timeout_s: float) -> Outcome:
        now = yard.etcd.keys[layout.SWEEP].mod_revision
        base = replace(draft.base, sweep=now)
        return await advance(replace(draft, base=base), timeout_s=timeout_s)

    yard.store.write = write_and_collect  # type: ignore[method-assign]
    if not safe:
        yard.store.advance = without_the_mark  # type: ignore[method-assign]
    await yard.apply([a_model("again")])

    assert (await yard.verify()).HasField("broken") is not safe, "without the mark the new head names what is gone"


async def test_one_that_leads_no_longer_deletes_nothing(yard: Kept) -> None:
    await yard.live(10)
    place = await yard.lead()
    del yard.etcd.keys[LEADER]
    before = set(yard.etcd.keys)

    with pytest.raises(StaleFencingToken):
        await yard.collector.collect(place)
    assert set(yard.etcd.keys) == before

    place = await yard.lead()
    taken = 0

    def take_over(request: etcd.TxnRequest) -> None:
        nonlocal taken
        taken += 1
        if taken == 3:
            del yard.etcd.keys[LEADER]

    on_each_txn(yard.etcd, take_over)
    with pytest.raises(StaleFencingToken):
        await yard.collector.collect(place)
    assert not (await yard.verify()).HasField("broken")


def on_each_txn(fake: FakeEtcd, hook: Callable[[etcd.TxnRequest], None]) -> None:
    """Call `hook` before every transaction that writes or deletes."""
    commit = fake.commit

    def hooked(request: etcd.TxnRequest) -> etcd.TxnResponse:
        if any(not op.HasField("request_range") for op in request.success):
            hook(request)
        return commit(request)

    fake.commit = hooked  # type: ignore[method-assign]


async def test_what_is_written_again_while_it_is_collected_stays(yard: Kept) -> None:
    await yard.live(10)
    victim = next(key for key in yard.etcd.keys if key.startswith(layout.OBJECTS))

    def write_again(request: etcd.TxnRequest) -> None:
        if any(op.request_delete_range.key.decode() == victim for op in request.success):
            kv = yard.etcd.keys[victim]
            kv.mod_revision = yard.etcd.revision + 1

    place = await yard.lead()
    on_each_txn(yard.etcd, write_again)
    await yard.collector.collect(place)

    assert victim in yard.etcd.keys


async def test_a_damaged_history_is_left_alone(yard: Kept) -> None:
    await yard.live(10)
    tree = layout.tree_key((await yard.store.record(9, 1.0))[0].tree_digest)
    del yard.etcd.keys[tree]
    before = set(yard.etcd.keys)

    with pytest.raises(Broken, match="is missing"):
        await yard.collector.collect(await yard.lead())

    assert before <= set(yard.etcd.keys)


async def test_the_note_of_a_change_of_nothing_is_kept_for_a_day(yard: Kept) -> None:
    await yard.live(2)
    await yard.apply([a_model("m-2")], request_id="same")
    note = layout.request_key("same")
    place = await yard.lead()

    await yard.collector.collect(place)
    yard.clock.advance(NOTES_S / 2)
    await yard.collector.collect(place)
    assert note in yard.etcd.keys

    yard.clock.advance(NOTES_S / 2)
    assert await yard.collector.collect(place) == Collected(requests=3)
    assert note not in yard.etcd.keys
