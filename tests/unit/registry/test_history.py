"""Export, import and verification, with the store in memory: byte for byte, whole or not at all."""

from collections.abc import AsyncIterator, Callable

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.clock import ManualClock
from services.domain.deadline import Deadline
from services.domain.errors import Internal, InvalidRequest, RevisionMoved
from services.registry import bundle, layout
from services.registry.history import History, Imported
from services.registry.values import Values
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model, a_version
from tests.unit.registry.test_apply import DIGITS, Replica


class Yard(Replica):
    """A replica that can also export, import and verify."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.history = History(
            values=Values(client=self.etcd, clock=self.clock), applier=self.applier, clock=self.clock
        )

    async def state_file(self) -> bytes:
        return b"".join(bundle.of_state(await self.store.head(timeout_s=1.0)))

    async def history_file(self) -> bytes:
        return b"".join([piece async for piece in self.history.export()])

    async def take(self, file: bytes, *, step: int = 100, dry_run: bool = False) -> Imported:
        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(file), step):
                yield file[start : start + step]

        options = pb.ImportOptions(reason="import", author="ann", dry_run=dry_run)
        return await self.history.take(options, parts(), Deadline.after(10.0, self.clock))

    async def verify(self) -> pb.VerifyResponse:
        *_, last = [answer async for answer in self.history.verify()]
        assert last.done
        return last


@pytest.fixture
def yard() -> Yard:
    return Yard(FakeEtcd())


@pytest.fixture
async def lived(yard: Yard) -> Yard:
    """One with four revisions, the last a rollback."""
    await yard.apply([*DIGITS, a_model("old")], reason="first")
    await yard.apply([a_model(f"m-{index}") for index in range(300)], ["Model/old"])
    await yard.apply([], [f"Model/m-{index}" for index in range(299)])
    await yard.apply(restores=1)
    return yard


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_a_state_makes_the_round_trip_into_an_empty_store_byte_for_byte(lived: Yard, step: int) -> None:
    other = Yard(FakeEtcd())
    file = await lived.state_file()

    done = await other.take(file, step=step)

    assert (done.applied.revision, len(done.applied.changes), done.revisions) == (1, 4, 0)
    assert await other.state_file() == file
    assert await other.names() == await lived.names()


async def test_an_imported_state_takes_the_place_of_the_one_there(lived: Yard) -> None:
    other = Yard(FakeEtcd())
    await other.apply([a_model("elsewhere"), a_version("elsewhere")])

    done = await other.take(await lived.state_file())

    assert done.applied.revision == 2
    assert await other.names() == await lived.names()


async def test_a_history_makes_the_round_trip_with_every_revision_and_digest(lived: Yard) -> None:
    other = Yard(FakeEtcd())
    file = await lived.history_file()

    done = await other.take(file)

    assert (done.applied.revision, done.revisions) == (4, 4)
    assert await other.history_file() == file
    stored = {key: kv.value for key, kv in lived.etcd.keys.items() if "/requests/" not in key}
    assert {key: kv.value for key, kv in other.etcd.keys.items()} == stored
    assert (await other.verify()).broken == pb.BrokenLink()
    assert (await other.apply([a_model("next")])).revision == 5
    assert len((await other.store.at(2, timeout_s=1.0)).objects) == 303


async def test_a_history_is_refused_where_something_is_stored(lived: Yard) -> None:
    other = Yard(FakeEtcd())
    await other.apply([a_model("there")])
    before = dict(other.etcd.keys)

    with pytest.raises(RevisionMoved, match="the head is revision 1"):
        await other.take(await lived.history_file())

    assert other.etcd.keys == before


async def test_a_history_that_was_cut_off_while_it_was_written_can_be_imported_again(lived: Yard) -> None:
    other = Yard(FakeEtcd())
    record = lived.etcd.keys[layout.revision_key(2)].value
    await other.etcd.put(layout.revision_key(2), record)

    assert (await other.take(await lived.history_file())).revisions == 4

    foreign = Yard(FakeEtcd())
    await foreign.etcd.put(layout.revision_key(2), b"\x08\x02")
    with pytest.raises(RevisionMoved, match="other revisions are stored"):
        await foreign.take(await lived.history_file())


async def test_a_dry_run_writes_nothing(lived: Yard) -> None:
    other = Yard(FakeEtcd())

    assert (await other.take(await lived.history_file(), dry_run=True)).revisions == 4
    assert len((await other.take(await lived.state_file(), dry_run=True)).applied.changes) == 4

    assert other.etcd.keys == {}


async def test_an_empty_yard_exports_and_imports(yard: Yard) -> None:
    state, history = await yard.state_file(), await yard.history_file()

    assert (await yard.take(state)).applied.changes == ()
    assert (await yard.take(history)).revisions == 0
    assert (await yard.verify()).head == 0


def cut(file: bytes) -> bytes:
    return file[:-1]


def without_end(file: bytes) -> bytes:
    return file[: -len(bundle.end(5))]


def flipped(file: bytes) -> bytes:
    middle = len(file) // 2
    return file[:middle] + bytes([file[middle] ^ 0x01]) + file[middle + 1 :]


def twice(file: bytes) -> bytes:
    return file + file


@pytest.mark.parametrize("kind", ["state", "history"])
@pytest.mark.parametrize("damage", [cut, without_end, flipped, twice, lambda _: b"", lambda _: b"kind: Model\n" * 9])
async def test_a_damaged_file_is_refused_and_changes_no_head(
    lived: Yard, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    other = Yard(FakeEtcd())
    file = await (lived.state_file() if kind == "state" else lived.history_file())

    with pytest.raises(InvalidRequest) as refused:
        await other.take(damage(file))

    assert all(fault.path for fault in refused.value.faults)
    assert layout.HEAD not in other.etcd.keys
    assert not [key for key in other.etcd.keys if key.startswith(layout.REVISIONS)]


async def test_every_flipped_bit_of_a_file_is_found(yard: Yard) -> None:
    await yard.apply([a_model("a")])
    file = await yard.state_file()
    for index in range(len(file)):
        other = Yard(FakeEtcd())
        with pytest.raises(InvalidRequest):
            await other.take(file[:index] + bytes([file[index] ^ 0x10]) + file[index + 1 :])


async def test_a_whole_chain_is_counted(lived: Yard) -> None:
    said = await lived.verify()

    objects = sum(1 for key in lived.etcd.keys if key.startswith(f"{layout.PREFIX}objects/"))
    trees = sum(1 for key in lived.etcd.keys if key.startswith(f"{layout.PREFIX}trees/"))
    assert not said.HasField("broken")
    assert (said.head, said.oldest, said.revisions, said.trees, said.objects) == (4, 1, 4, trees, objects)


async def test_the_first_broken_link_is_named(lived: Yard) -> None:
    key = layout.revision_key(2)
    forged = pb.Revision.FromString(lived.etcd.keys[key].value)
    forged.author = "nobody"
    await lived.etcd.put(key, layout.raw_of(forged))

    broken = (await lived.verify()).broken

    assert (broken.revision, broken.key) == (2, key)
    assert "has the digest" in broken.what
    with pytest.raises(Internal, match="broken and cannot be exported: revision 2"):
        await lived.history_file()


@pytest.mark.parametrize("prefix", ["objects/", "trees/", "revisions/"])
async def test_every_missing_and_every_altered_value_is_found(yard: Yard, prefix: str) -> None:
    await yard.apply([a_model("a"), a_model("b")])
    await yard.apply([a_model("c")], ["Model/a"])
    for key in [key for key in yard.etcd.keys if key.startswith(f"{layout.PREFIX}{prefix}")]:
        kept = yard.etcd.keys.pop(key)
        assert (await yard.verify()).broken.key == key
        yard.etcd.keys[key] = type(kept)(key=kept.key, value=kept.value + b"\x00")
        assert (await yard.verify()).broken.key == key
        yard.etcd.keys[key] = kept
    assert not (await yard.verify()).HasField("broken")


async def test_verification_tells_how_far_it_has_come(lived: Yard) -> None:
    class Racing(ManualClock):
        def now_s(self) -> float:
            self.advance(0.1)
            return super().now_s()

    history = History(values=Values(client=lived.etcd, clock=lived.clock), applier=lived.applier, clock=Racing())

    answers = [answer.done async for answer in history.verify()]

    assert len(answers) > 3
    assert answers.index(True) == len(answers) - 1
