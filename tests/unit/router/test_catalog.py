"""The mirror of the registry's watch, and the snapshot on disk."""

from pathlib import Path

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_to
from services.chassis.object_codec import object_key_to, object_to
from services.domain.host import HostRecord
from services.domain.objects import Object, ObjectKey
from services.router import snapshot_file
from services.router.catalog import GRACE_S, Mirror, OutOfStep
from services.router.snapshot import Snapshot
from tests.fakes.objects import a_host, a_model, a_pool, a_version, hosted
from tests.unit.router.yards import a_choice, a_single, a_snapshot, rated


def snapshot_of(revision: int, *objects: Object, first: bool = True, last: bool = True) -> pb.WatchResponse:
    part = pb.WatchSnapshot(revision=revision, objects=map(object_to, objects), first=first, last=last)
    return pb.WatchResponse(snapshot=part)


def delta_of(revision: int, *upserts: Object, deletes: tuple[ObjectKey, ...] = ()) -> pb.WatchResponse:
    delta = pb.WatchDelta(revision=revision, upserts=map(object_to, upserts), deletes=map(object_key_to, deletes))
    return pb.WatchResponse(delta=delta)


def all_hosts(*hosts: HostRecord) -> pb.WatchResponse:
    return pb.WatchResponse(hosts=pb.WatchHosts(reset=True, listed=map(record_to, hosts)))


def changed_hosts(*hosts: HostRecord, gone: tuple[str, ...] = ()) -> pb.WatchResponse:
    return pb.WatchResponse(hosts=pb.WatchHosts(listed=map(record_to, hosts), gone=gone))


def beat(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(heartbeat=pb.WatchHeartbeat(revision=revision))


def a_mirror(*hosts: HostRecord, revision: int = 3) -> Mirror:
    mirror = Mirror()
    mirror.take(snapshot_of(revision, a_model("m"), a_version("m")), 0.0)
    mirror.take(all_hosts(*hosts), 0.0)
    return mirror


def view(mirror: Mirror) -> Snapshot:
    assert mirror.snapshot is not None
    return mirror.snapshot


READY = a_host("h0", hosted("m"))
OTHER = a_host("h1", hosted("m"))


def test_there_is_no_view_before_objects_and_hosts_are_known() -> None:
    mirror = Mirror()

    mirror.take(snapshot_of(3, a_model("m")), 0.0)
    assert mirror.snapshot is None

    mirror.take(all_hosts(), 0.0)
    assert view(mirror).revision == 3


def test_a_snapshot_in_parts_counts_when_its_last_part_is_there() -> None:
    mirror = a_mirror()

    mirror.take(snapshot_of(4, a_model("a"), last=False), 0.0)
    assert set(view(mirror).objects.models) == {"m"}

    mirror.take(snapshot_of(4, a_model("b"), first=False), 0.0)
    assert set(view(mirror).objects.models) == {"a", "b"}


def test_a_change_makes_a_new_view_and_leaves_the_old_one() -> None:
    mirror = a_mirror(READY)
    before = view(mirror)

    mirror.take(delta_of(4, a_version("m", "2.0.0"), deletes=(ObjectKey("ModelVersion", "m", "1.0.0"),)), 0.0)

    assert set(before.objects.versions["m"]) == {"1.0.0"}
    assert set(view(mirror).objects.versions["m"]) == {"2.0.0"}
    assert mirror.resume_from == 4


def test_a_change_that_was_seen_is_dropped_and_one_that_skips_is_refused() -> None:
    mirror = a_mirror()

    mirror.take(delta_of(3, a_model("late")), 0.0)
    assert "late" not in view(mirror).objects.models

    with pytest.raises(OutOfStep):
        mirror.take(delta_of(5, a_model("early")), 0.0)


def test_a_host_that_left_stays_for_its_grace() -> None:
    mirror = a_mirror(READY, OTHER)

    mirror.take(changed_hosts(gone=("h0",)), 100.0)
    mirror.expire(100.0 + GRACE_S - 0.1)
    assert set(view(mirror).hosts) == {"h0", "h1"}

    mirror.expire(100.0 + GRACE_S)
    assert set(view(mirror).hosts) == {"h1"}


def test_a_host_that_left_and_does_not_answer_goes_at_once() -> None:
    mirror = a_mirror(READY, OTHER)
    mirror.take(changed_hosts(gone=("h0",)), 100.0)

    mirror.lost("h0")
    mirror.lost("h1")  # listed still: the registry's word counts

    assert set(view(mirror).hosts) == {"h1"}


def test_a_host_that_left_by_draining_goes_at_once() -> None:
    mirror = a_mirror(READY, OTHER)
    mirror.take(changed_hosts(a_host("h0", hosted("m"), draining=True)), 1.0)

    mirror.take(changed_hosts(gone=("h0",)), 2.0)

    assert set(view(mirror).hosts) == {"h1"}


def test_a_registry_that_comes_back_empty_handed_takes_nothing_away_inside_the_grace() -> None:
    mirror = a_mirror(READY, OTHER)

    mirror.take(all_hosts(), 100.0)
    assert set(view(mirror).hosts) == {"h0", "h1"}

    mirror.take(changed_hosts(READY), 105.0)
    mirror.expire(100.0 + GRACE_S)
    assert set(view(mirror).hosts) == {"h0"}


def test_the_grace_counts_from_the_first_absence() -> None:
    mirror = a_mirror(READY)

    mirror.take(all_hosts(), 100.0)
    mirror.take(all_hosts(), 110.0)
    mirror.expire(100.0 + GRACE_S)

    assert view(mirror).hosts == {}


def test_hosts_that_did_not_change_make_no_new_view() -> None:
    mirror = a_mirror(READY)
    before = view(mirror)

    mirror.take(all_hosts(READY), 1.0)
    mirror.take(beat(3), 2.0)

    assert view(mirror) is before


def test_a_registry_that_fell_behind_is_not_believed_until_it_caught_up() -> None:
    mirror = a_mirror(READY)

    mirror.take(snapshot_of(1), 1.0)
    assert mirror.behind
    assert set(view(mirror).objects.models) == {"m"}

    with pytest.raises(OutOfStep):
        mirror.take(beat(3), 2.0)


def test_a_heartbeat_tells_that_the_registry_fell_behind() -> None:
    mirror = a_mirror(READY)

    mirror.take(beat(2), 1.0)

    assert mirror.behind


def test_the_registrys_first_word_replaces_what_was_on_disk_even_if_it_is_older() -> None:
    mirror = Mirror()
    mirror.start_from(a_snapshot([a_model("old")], [READY], revision=90))
    assert mirror.resume_from == 0

    mirror.take(snapshot_of(2, a_model("m")), 1.0)

    assert not mirror.behind
    assert set(view(mirror).objects.models) == {"m"}
    assert view(mirror).revision == 2


def test_hosts_from_disk_stay_for_their_grace_when_the_registry_lists_none() -> None:
    mirror = Mirror()
    mirror.start_from(a_snapshot([a_model("m"), a_version("m")], [READY]))

    mirror.take(all_hosts(), 5.0)

    assert set(view(mirror).hosts) == {"h0"}


# --- on disk -----------------------------------------------------------------------------------


def everything() -> Snapshot:
    return a_snapshot(
        [
            a_model("m"),
            rated("m", "1.0.0", quality=0.5, cost=3),
            a_version("m", "2.0.0-rc.1"),
            a_single("s", "m", "1.0.0"),
            a_choice("c", "m", quality_weight=2.0),
            a_pool("cpu"),
        ],
        [READY, OTHER],
        revision=12,
    )


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "router.binpb"

    snapshot_file.write(path, everything())
    found = snapshot_file.read(path)

    assert found is not None
    assert found.revision == 12
    assert found.hosts == everything().hosts
    assert sorted(found.objects.all(), key=lambda item: str(item.key)) == sorted(
        everything().objects.all(), key=lambda item: str(item.key)
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["router.binpb"]


def test_many_objects_read_back_from_several_parts(tmp_path: Path) -> None:
    models = [a_model(f"m{number}") for number in range(2 * snapshot_file.OBJECTS_PER_PART + 1)]

    snapshot_file.write(tmp_path / "s", a_snapshot(models, [], revision=4))
    found = snapshot_file.read(tmp_path / "s")

    assert found is not None
    assert len(found.objects.models) == len(models)
    assert found.revision == 4


def test_no_file_is_no_snapshot(tmp_path: Path) -> None:
    assert snapshot_file.read(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "format", "empty"])
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    snapshot_file.write(path, everything())
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "flip": content[:-1] + bytes([content[-1] ^ 1]),
            "format": content.replace(b"snapshot 2\n", b"snapshot 3\n", 1),
            "empty": b"",
        }[damage]
    )

    with pytest.raises(snapshot_file.UnusableSnapshot):
        snapshot_file.read(path)


def test_a_disk_that_takes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.mkdir()

    with pytest.raises(OSError, match="s"):
        snapshot_file.write(path, everything())

    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
