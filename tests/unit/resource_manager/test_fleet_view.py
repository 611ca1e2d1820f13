"""What the resource manager makes of the registry's watch, and when it believes it."""

import pytest

from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.codec import record_to
from services.chassis.object_codec import object_key_to, object_to
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.domain.objects import Object, ObjectKey
from services.domain.strategies import RouteTarget, Split, SplitTarget
from services.resource_manager.fleet_view import GRACE_S, QUIET_S, FleetMirror, OutOfStep
from services.resource_manager.reconciler import Fleet
from tests.fakes.objects import a_host, a_model, a_policy, a_pool, a_route, a_tenant, a_version


def snapshot(revision: int, *objects: Object, first: bool = True, last: bool = True) -> pb.WatchResponse:
    part = pb.WatchSnapshot(revision=revision, objects=[object_to(one) for one in objects], first=first, last=last)
    return pb.WatchResponse(snapshot=part)


def delta(revision: int, *upserts: Object, deletes: tuple[ObjectKey, ...] = ()) -> pb.WatchResponse:
    change = pb.WatchDelta(
        revision=revision,
        upserts=[object_to(one) for one in upserts],
        deletes=[object_key_to(key) for key in deletes],
    )
    return pb.WatchResponse(delta=change)


def listing(*hosts: HostRecord, reset: bool = False, gone: tuple[str, ...] = ()) -> pb.WatchResponse:
    return pb.WatchResponse(
        hosts=pb.WatchHosts(reset=reset, listed=[record_to(host) for host in hosts], gone=list(gone))
    )


def heartbeat(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(heartbeat=pb.WatchHeartbeat(revision=revision))


def mirror_of(*responses: pb.WatchResponse, now_s: float = 0.0) -> FleetMirror:
    mirror = FleetMirror()
    for response in responses:
        mirror.take(response, now_s)
    return mirror


def fleet_of(mirror: FleetMirror, now_s: float) -> Fleet:
    fleet = mirror.fleet(now_s)
    assert fleet is not None
    return fleet


def test_nothing_is_known_before_both_objects_and_hosts_were_heard() -> None:
    mirror = mirror_of(snapshot(1, a_pool()))
    assert mirror.fleet(0.0) is None

    mirror.take(listing(reset=True), 0.0)

    assert list(fleet_of(mirror, 0.0).pools) == ["cpu"]


def test_a_snapshot_in_parts_counts_only_when_it_is_whole() -> None:
    mirror = mirror_of(snapshot(1, a_model("old")), listing(reset=True))

    mirror.take(snapshot(2, a_model("m"), last=False), 0.0)
    assert list(fleet_of(mirror, 0.0).models) == ["old"]
    mirror.take(snapshot(2, a_version("m"), first=False), 0.0)

    fleet = fleet_of(mirror, 0.0)
    assert (fleet.revision, list(fleet.models), list(fleet.versions)) == (2, ["m"], [ModelKey("m", "1.0.0")])


def test_deltas_follow_one_another_and_repeated_ones_are_ignored() -> None:
    mirror = mirror_of(snapshot(1, a_model("m")), listing(reset=True))

    assert mirror.take(delta(2, a_version("m"), deletes=(ObjectKey("Model", "m"),)), 0.0)
    assert not mirror.take(delta(2, a_model("m")), 0.0)

    fleet = fleet_of(mirror, 0.0)
    assert (fleet.revision, list(fleet.models), len(fleet.versions)) == (2, [], 1)


def test_a_gap_between_deltas_asks_for_a_snapshot() -> None:
    mirror = mirror_of(snapshot(1), listing(reset=True))

    with pytest.raises(OutOfStep, match="revision 3 follows 1"):
        mirror.take(delta(3), 0.0)


def test_a_registry_that_comes_back_empty_is_not_believed() -> None:
    mirror = mirror_of(snapshot(41, a_model("m"), a_version("m")), listing(a_host("a"), reset=True))

    mirror.take(snapshot(0), 1.0)

    fleet = fleet_of(mirror, 1.0)
    assert (fleet.revision, len(fleet.versions), fleet.trusted) == (41, 1, False)
    # Changes made to that other history are not mixed into this one.
    mirror.take(delta(1, a_model("other")), 1.0)
    assert list(fleet_of(mirror, 1.0).models) == ["m"]


def test_a_registry_that_was_behind_and_has_caught_up_is_read_anew() -> None:
    mirror = mirror_of(snapshot(41), listing(reset=True), heartbeat(40))
    assert not fleet_of(mirror, 0.0).trusted

    with pytest.raises(OutOfStep):
        mirror.take(heartbeat(42), 0.0)
    mirror.take(snapshot(42, a_model("m")), 0.0)

    assert fleet_of(mirror, 0.0).trusted
    assert list(fleet_of(mirror, 0.0).models) == ["m"]


def test_an_empty_state_at_a_later_revision_is_believed() -> None:
    mirror = mirror_of(snapshot(41, a_model("m")), listing(reset=True))

    mirror.take(snapshot(42), 0.0)

    fleet = fleet_of(mirror, 0.0)
    assert (list(fleet.models), fleet.trusted) == ([], True)


def test_the_last_state_stays_while_the_registry_is_away_and_is_not_trusted() -> None:
    mirror = mirror_of(snapshot(1, a_model("m")), listing(a_host("a"), reset=True))

    assert fleet_of(mirror, QUIET_S).trusted
    assert not fleet_of(mirror, QUIET_S + 0.1).trusted
    mirror.take(heartbeat(1), QUIET_S + 0.2)
    assert fleet_of(mirror, QUIET_S + 0.2).trusted
    mirror.lost()

    fleet = fleet_of(mirror, 600.0)
    assert (list(fleet.models), list(fleet.hosts), fleet.trusted) == (["m"], ["a"], False)


def test_after_a_break_the_hosts_must_be_listed_again_before_the_view_is_trusted() -> None:
    mirror = mirror_of(snapshot(1), listing(a_host("a"), reset=True))
    mirror.lost()

    mirror.take(heartbeat(1), 1.0)
    assert not fleet_of(mirror, 1.0).trusted
    mirror.take(listing(a_host("a"), reset=True), 1.0)

    assert fleet_of(mirror, 1.0).trusted


def test_a_host_that_leaves_the_list_counts_for_the_grace_time() -> None:
    mirror = mirror_of(snapshot(1), listing(a_host("a"), a_host("b"), reset=True))

    mirror.take(listing(gone=("a",)), 10.0)

    assert fleet_of(mirror, 10.0 + GRACE_S - 0.1).absent == {"a"}
    assert sorted(fleet_of(mirror, 10.0 + GRACE_S - 0.1).hosts) == ["a", "b"]
    assert sorted(fleet_of(mirror, 10.0 + GRACE_S).hosts) == ["b"]


def test_a_list_that_comes_back_empty_takes_no_host_away_at_once() -> None:
    mirror = mirror_of(snapshot(1), listing(a_host("a"), a_host("b"), reset=True))

    mirror.take(listing(reset=True), 5.0)
    assert fleet_of(mirror, 5.0).absent == {"a", "b"}
    mirror.take(listing(a_host("a")), 6.0)

    assert fleet_of(mirror, 6.0).absent == {"b"}


def test_the_grace_time_begins_once_however_often_the_list_is_repeated() -> None:
    mirror = mirror_of(snapshot(1), listing(a_host("a"), reset=True))

    mirror.take(listing(reset=True), 5.0)
    mirror.take(listing(reset=True), 15.0)

    assert fleet_of(mirror, 5.0 + GRACE_S).hosts == {}


def test_a_host_that_said_it_was_draining_is_gone_at_once() -> None:
    mirror = mirror_of(snapshot(1), listing(a_host("a", draining=True), reset=True))

    mirror.take(listing(gone=("a",)), 5.0)

    assert fleet_of(mirror, 5.0).hosts == {}


def test_kinds_and_strategies_that_place_nothing_and_those_of_a_later_release_are_passed_over() -> None:
    split = a_route("r", Split((SplitTarget(RouteTarget("m"), 100.0),)))
    unknown = objects_pb2.Object(metadata=objects_pb2.Metadata(name="new-kind"))
    later = objects_pb2.Object(metadata=objects_pb2.Metadata(name="later"), route=objects_pb2.RouteSpec())
    start = snapshot(1, a_policy(), a_tenant("acme"), split, a_model("m"), a_version("m"))
    start.snapshot.objects.extend([unknown, later])
    change = delta(2, a_pool())
    change.delta.upserts.extend([unknown, later])

    fleet = fleet_of(mirror_of(start, listing(reset=True), change), 0.0)

    assert fleet.revision == 2
    assert list(fleet.versions) == [ModelKey("m", "1.0.0")]
    assert list(fleet.pools) == ["cpu"]
