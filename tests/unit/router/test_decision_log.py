"""The decision log's files: what is written comes back, whatever happens to them; nobody waits for the disk."""

from pathlib import Path

import pytest

from modelyard.inference.v1 import decision_log_pb2 as pb
from services.chassis.delimited import Delimited
from services.domain.errors import YardError
from services.domain.model import ModelKey
from services.router.log_files import AGE_S, LogFiles
from services.router.log_states import FIELDS, Taken, facts_of, message_of, state_from
from tests.fakes.objects import a_host
from tests.unit.router.logged import LoggedWorld
from tests.unit.router.yards import a_call


def kinds(path: Path) -> list[str | None]:
    """What the entries of a file are."""
    return [entry.WhichOneof("entry") for entry in Delimited(path, pb.LogEntry)]


async def test_a_call_is_written_with_what_it_refers_to_before_it(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, hosts=4)

    await world.pipeline.route(a_call("one"), remaining_s=5.0)
    world.log.close()

    (path,) = world.files.kept()
    found = kinds(path)
    assert found[0] == "header"
    assert found[1:3] == ["profile", "call"]
    assert found[-1] == "outcome"
    assert found.index("fleet") < found.index("choice")


async def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(400)
    states = [
        state for entry in world.entries() if entry.WhichOneof("entry") == "choice" for state in entry.choice.states
    ]

    assert len(states) > 100
    for message in states:
        state = state_from(message)
        again = message_of(Taken(a_host(message.host), state_key(message), facts_of(state)))
        assert again.SerializeToString() == message.SerializeToString()


def state_key(message: pb.LogState) -> ModelKey:
    """Whose state it is."""
    return ModelKey(message.key.model, message.key.version)


def test_every_field_of_a_logged_state_is_a_fact() -> None:
    assert set(FIELDS) | {"host", "key"} == set(pb.LogState.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("cut", [1, 7, 40])
async def test_a_torn_last_entry_is_skipped_and_said(tmp_path: Path, cut: int) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(20)
    (path,) = world.files.kept()
    whole = kinds(path)
    path.write_bytes(path.read_bytes()[:-cut])

    entries = Delimited(path, pb.LogEntry)
    left = [entry.WhichOneof("entry") for entry in entries]

    assert left == whole[: len(left)]
    assert len(whole) - 3 <= len(left) < len(whole)
    assert "cut off" in entries.torn


async def test_zeros_at_the_end_are_no_entries(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(20)
    (path,) = world.files.kept()
    whole = kinds(path)
    with path.open("ab") as file:
        file.write(bytes(100))

    entries = Delimited(path, pb.LogEntry)

    assert [entry.WhichOneof("entry") for entry in entries] == whole
    assert "damaged" in entries.torn


async def test_files_rotate_by_size_each_stands_alone_and_old_ones_go(tmp_path: Path) -> None:
    other = tmp_path / "router_test_1.x.decisions"
    other.write_bytes(b"another's")
    world = LoggedWorld(tmp_path, most_bytes=100_000, most_files=3)

    for _ in range(30):
        await world.run(20)

    assert len(world.files.kept()) == 3
    assert all(kinds(path)[0] == "header" for path in world.files.kept())
    assert world.replay().differences == 0
    assert other.exists()


async def test_what_refers_to_a_call_of_an_earlier_file_brings_the_call_along(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, most_bytes=20_000)
    world.names = ("careful",)

    await world.run(300)

    assert len(world.files.kept()) > 3
    assert world.replay().first is None
    for path in world.files.kept():
        file = list(Delimited(path, pb.LogEntry))
        calls = {entry.call.sequence for entry in file if entry.HasField("call")}
        assert {entry.escalation.call for entry in file if entry.HasField("escalation")} <= calls


def test_files_rotate_by_age(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, "r", most_bytes=1000, most_files=2)
    assert files.full(0.0)

    files.begin(b"x", wall_s=1.0, now_s=0.0)

    assert not files.full(AGE_S - 1.0)
    assert files.full(AGE_S)
    files.close()


async def test_what_does_not_fit_into_the_queue_is_dropped_counted_and_written_down(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path, queued=10)

    for number in range(20):
        try:
            await world.pipeline.route(a_call("one", request_id=f"r{number}"), remaining_s=5.0)
        except YardError:
            continue
    world.log.close()

    dropped = world.dropped.value
    assert dropped >= 20
    assert world.replay().dropped == dropped
    assert world.replay().differences == 0


async def test_a_disk_that_refuses_drops_and_the_next_file_stands_alone(tmp_path: Path) -> None:
    inside = tmp_path / "not-yet"
    inside.write_bytes(b"a file where the directory should be")
    world = LoggedWorld(inside)
    await world.run(20)
    lost = world.dropped.value
    assert lost > 0

    inside.unlink()
    await world.run(20)

    assert world.replay().dropped == lost
    assert world.replay().choices > 0
    assert world.replay().differences == 0


async def test_a_share_is_the_same_calls_on_every_router(tmp_path: Path) -> None:
    ids = []
    for number, seed in enumerate((1, 2)):
        world = LoggedWorld(tmp_path / str(number), seed=seed, ratio=0.3)
        await world.run(1000)
        ids.append({entry.call.request_id for entry in world.entries() if entry.WhichOneof("entry") == "call"})
        assert world.replay().differences == 0

    assert ids[0] == ids[1]
    assert 230 < len(ids[0]) < 370


async def test_no_file_is_there_before_there_is_anything_to_write(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path / "log")

    world.log.close()

    assert not (tmp_path / "log").exists()
