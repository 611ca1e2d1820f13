"""The file on disk grows by what changes, and survives whatever is left of its end."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from services.chassis.object_codec import object_to
from services.domain.objects import Object, ObjectKey
from services.router import snapshot_file
from services.router.catalog import Mirror
from services.router.snapshot import Objects, Snapshot
from services.router.snapshot_file import SnapshotFile
from tests.fakes.objects import a_host, a_model, a_pool, a_version, hosted
from tests.unit.router.test_catalog import all_hosts, delta_of, snapshot_of, view
from tests.unit.router.yards import a_single, a_snapshot

HOST = a_host("h0", hosted("m"))
MANY: list[Object] = [a_model(f"m{number}") for number in range(300)]


def followed(snapshot: Snapshot, *upserts: Object, deletes: tuple[ObjectKey, ...] = ()) -> Snapshot:
    objects = snapshot.objects.changed(snapshot.revision + 1, upserts, deletes)
    return snapshot.followed_by(objects, [*(item.key for item in upserts), *deletes])


def same(found: Snapshot | None, wanted: Snapshot) -> bool:
    return found is not None and (found.objects, found.hosts) == (wanted.objects, wanted.hosts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.binpb"


@pytest.fixture
def base() -> Snapshot:
    return a_snapshot(MANY, [HOST], revision=7)


def test_a_change_is_added_and_not_the_whole_written_anew(path: Path, base: Snapshot) -> None:
    file = SnapshotFile(path)
    file.write(base)
    before = path.read_bytes()

    after = followed(base, a_version("m7"), a_single("r", "m7"), a_pool("p"), deletes=(ObjectKey("Model", "m8"),))
    file.write(after)

    content = path.read_bytes()
    assert content.startswith(before)
    assert len(content) - len(before) < 1000
    assert same(snapshot_file.read(path), after)


def test_hosts_that_change_alone_are_added_too(path: Path, base: Snapshot) -> None:
    file = SnapshotFile(path)
    file.write(base)
    before = path.read_bytes()

    other = Snapshot(base.objects, {"h1": a_host("h1", hosted("m"))})
    file.write(other)

    assert path.read_bytes().startswith(before)
    assert same(snapshot_file.read(path), other)


def test_a_revision_that_changes_nothing_here_is_noted(path: Path, base: Snapshot) -> None:
    file = SnapshotFile(path)
    file.write(base)

    file.write(followed(base))

    found = snapshot_file.read(path)
    assert found is not None
    assert found.revision == 8


def test_changes_go_on_where_the_process_before_stopped(path: Path, base: Snapshot) -> None:
    SnapshotFile(path).write(base)
    before = path.read_bytes()
    again = SnapshotFile(path)
    found = again.read()
    assert found is not None

    # The registry's first word after the start: the same objects, but not the same in memory.
    heard = a_snapshot([*MANY, a_model("new")], [HOST], revision=9)
    again.write(heard)

    assert path.read_bytes().startswith(before)
    assert same(snapshot_file.read(path), heard)


@pytest.mark.parametrize("seed", range(4))
def test_any_changes_read_back_after_any_restart(path: Path, base: Snapshot, seed: int) -> None:
    rng = random.Random(seed)
    file, current = SnapshotFile(path), base
    file.write(base)
    for _ in range(40):
        names = [f"m{rng.randrange(310)}" for _ in range(3)]
        upserts: list[Object] = [
            a_model(names[0]),
            a_version(names[1], f"{rng.randrange(3)}.0.0"),
            a_single("r", names[2]),
        ]
        deletes = (ObjectKey("Model", f"m{rng.randrange(310)}"), ObjectKey("ModelVersion", names[2], "1.0.0"))
        current = followed(current, *rng.sample(upserts, rng.randrange(4)), deletes=deletes[: rng.randrange(3)])
        if rng.random() < 0.3:
            file = SnapshotFile(path)
            assert file.read() is not None
        file.write(current)

        assert same(snapshot_file.read(path), current)


@pytest.mark.parametrize("damage", ["cut", "flip", "zeros", "garbage"])
def test_a_change_that_is_not_whole_does_not_count_and_is_written_over(path: Path, base: Snapshot, damage: str) -> None:
    file = SnapshotFile(path)
    file.write(base)
    whole = len(path.read_bytes())
    first, second = followed(base, a_model("first")), followed(followed(base, a_model("first")), a_model("second"))
    file.write(first)
    kept = len(path.read_bytes())
    file.write(second)
    content = path.read_bytes()
    damaged = {
        "cut": content[:-1],
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "zeros": content[:kept] + bytes(len(content) - kept),
        "garbage": content[:kept] + b"\xff" * 60,
    }[damage]
    path.write_bytes(damaged)

    again = SnapshotFile(path)
    assert same(again.read(), first)
    again.write(second)

    assert same(snapshot_file.read(path), second)
    assert whole < kept < len(path.read_bytes())


def test_a_file_that_has_grown_enough_is_written_anew(
    path: Path, base: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_file, "LEAST_GROWTH", 0)
    file, current = SnapshotFile(path), base
    file.write(base)
    alone = len(path.read_bytes())
    sizes = []
    for number in range(600):
        current = followed(current, a_model(f"m{number % 300}"), a_version(f"m{number % 300}", f"{number}.0.0"))
        file.write(current)
        sizes.append(len(path.read_bytes()))

    assert any(later < earlier for earlier, later in pairwise(sizes))
    assert max(sizes) < 10 * alone
    assert same(snapshot_file.read(path), current)


def test_a_change_of_very_much_is_written_whole(path: Path, base: Snapshot) -> None:
    file = SnapshotFile(path)
    file.write(base)
    others: list[Object] = [a_model(f"other{number}") for number in range(2 * snapshot_file.OBJECTS_PER_PART)]

    file.write(a_snapshot(others, [HOST], revision=8))

    assert len(path.read_bytes()) < 3 * len(others) * 100
    assert same(snapshot_file.read(path), a_snapshot(others, [HOST], revision=8))


@pytest.mark.parametrize("how", ["gone", "shorter"])
def test_a_file_that_somebody_took_away_is_written_whole(path: Path, base: Snapshot, how: str) -> None:
    file = SnapshotFile(path)
    file.write(base)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])

    after = followed(base, a_model("new"))
    file.write(after)

    assert same(snapshot_file.read(path), after)


def test_a_disk_that_refused_is_given_the_whole_next_time(path: Path, base: Snapshot) -> None:
    file = SnapshotFile(path)
    file.write(base)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="router"):
        file.write(followed(base, a_model("new")))
    path.rmdir()

    after = followed(followed(base, a_model("new")), a_model("newer"))
    file.write(after)

    assert same(snapshot_file.read(path), after)


@pytest.mark.parametrize("changed", [False, True])
def test_a_state_is_written_as_it_came(path: Path, changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(keeps_parts=True)
    for number in range(3):
        some = MANY[100 * number : 100 * (number + 1)]
        mirror.take(snapshot_of(7, *some, first=number == 0, last=number == 2), 0.0)
    mirror.take(all_hosts(HOST), 0.0)
    if changed:
        mirror.take(delta_of(8, a_version("m7"), deletes=(ObjectKey("Model", "m8"),)), 0.0)
    encoded = []
    monkeypatch.setattr(snapshot_file, "object_to", lambda item: encoded.append(item) or object_to(item))  # type: ignore[func-returns-value]

    SnapshotFile(path).write(view(mirror), mirror.heard)

    assert same(snapshot_file.read(path), view(mirror))
    assert len(encoded) == int(changed)


def test_what_a_reader_only_reads_is_not_kept() -> None:
    mirror = Mirror()

    mirror.take(snapshot_of(7, a_model("m")), 0.0)

    assert mirror.heard is None


def test_an_objects_view_tells_what_differs() -> None:
    before = Objects().changed(1, [a_model("a"), a_version("a"), a_version("a", "2.0.0"), a_single("r", "a")])

    after = before.changed(
        2, [a_version("a", "3.0.0"), a_pool("p")], [ObjectKey("ModelVersion", "a", "1.0.0"), ObjectKey("Route", "r")]
    )

    upserts, deletes = after.differing(before)
    assert sorted(str(item.key) for item in upserts) == ["ModelVersion/a/3.0.0", "Pool/p"]
    assert sorted(map(str, deletes)) == ["ModelVersion/a/1.0.0", "Route/r"]
    assert after.differing(after) == ([], [])
    assert list(after.names) == ["a"]
