"""What names lead to."""

import random

import pytest

from services.domain.errors import InvalidRequest, ModelNotFound, VersionNotFound
from services.domain.model import ModelState
from services.domain.objects import Object, ObjectKey
from services.domain.strategies import Fallback, RouteName, RouteTarget, Split, SplitTarget
from services.router.destination import Destination
from services.router.snapshot import LOOKED_AT, Objects, Snapshot
from tests.fakes.objects import a_host, a_model, a_route, a_version, hosted
from tests.unit.router.yards import a_choice, a_single, a_snapshot, digits

H0 = a_host("h0", hosted("digits", "1.0.0"), hosted("digits", "2.0.0", state=ModelState.LOADING))


def test_a_model_leads_to_its_versions_newest_first() -> None:
    destination = a_snapshot(digits("1.9.0", "1.10.0", "1.10.0-rc.1"), []).destination("digits")

    assert [option.version.version for option in destination.options] == ["1.10.0", "1.10.0-rc.1", "1.9.0"]
    assert destination.strategy == "single"


def test_a_route_goes_before_a_model_of_its_name() -> None:
    destination = a_snapshot([*digits("1.0.0", "2.0.0"), a_single("digits", "digits", "1.0.0")], []).destination(
        "digits"
    )

    assert [option.version.version for option in destination.options] == ["1.0.0"]


def test_a_choice_keeps_the_order_of_its_candidates() -> None:
    objects: list[Object] = [a_model("b"), a_model("a"), a_version("b"), a_version("a"), a_choice("c", "b", "a")]

    assert [str(option.key) for option in a_snapshot(objects, []).destination("c").options] == ["b:1.0.0", "a:1.0.0"]


def test_only_hosts_that_are_ready_and_take_calls_count() -> None:
    draining = a_host("h1", hosted("digits", "1.0.0"), draining=True)

    options = a_snapshot(digits("1.0.0", "2.0.0"), [H0, draining]).destination("digits").options

    newer, older = options
    assert [host.host_id for host in older.hosts] == ["h0"]
    assert older.elsewhere == "draining on h1"
    assert newer.hosts == ()
    assert newer.elsewhere == "LOADING on h0"


def test_a_pinned_destination_has_that_version_only() -> None:
    destination = a_snapshot(digits("1.0.0", "2.0.0"), [H0]).destination("digits")

    assert [option.version.version for option in destination.pinned("1.0.0").options] == ["1.0.0"]
    with pytest.raises(VersionNotFound):
        destination.pinned("3.0.0")


def test_deleted_objects_lead_nowhere() -> None:
    objects = Objects().changed(1, digits())

    fewer = objects.changed(2, [], [ObjectKey("ModelVersion", "digits", "1.0.0"), ObjectKey("Model", "digits")])

    assert (dict(fewer.models), dict(fewer.versions)) == ({}, {})
    assert "digits" in objects.models


def told(snapshot: Snapshot, name: str, version: str) -> object:
    """What a name leads to, or why it does not."""
    try:
        found = snapshot.destination(name, version)
    except (InvalidRequest, ModelNotFound, VersionNotFound) as error:
        return error.message
    return everything(found)


def everything(found: Destination) -> object:
    """All that is known of what a name leads to."""
    options = [(option.version, option.model, option.hosts, option.elsewhere) for option in found.options]
    return found.route, options, found.one_schema, found.target, [everything(callee) for callee in found.callees]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_carried_on_from_view_to_view_is_what_would_be_found_anew(seed: int) -> None:
    rng = random.Random(seed)
    names = ["a", "b", "c", "d"]
    hosts = [a_host("h0", hosted("a"), hosted("b", "2.0.0")), a_host("h1", hosted("a", state=ModelState.LOADING))]
    carried = a_snapshot([], hosts)
    for revision in range(2, 60):
        upserts: list[Object] = [
            a_model(rng.choice(names)),
            a_version(rng.choice(names), rng.choice(["1.0.0", "2.0.0"]), replicas=rng.randrange(3)),
            a_single(rng.choice(names), rng.choice(names), rng.choice(["", "1.0.0"])),
            a_choice(rng.choice(names), *rng.sample(names, 2)),
            a_route(rng.choice(names), Split((SplitTarget(RouteTarget(rng.choice(names)), 100.0),))),
            a_route("over", Fallback((RouteName(rng.choice(names)), RouteTarget(rng.choice(names))))),
        ]
        upserts = rng.sample(upserts, rng.randrange(3))
        deletes = [ObjectKey(rng.choice(["Model", "Route"]), rng.choice(names)) for _ in range(rng.randrange(2))]
        deletes += [ObjectKey("ModelVersion", rng.choice(names), "1.0.0") for _ in range(rng.randrange(2))]
        objects = carried.objects.changed(revision, upserts, deletes)

        carried = carried.followed_by(objects, [*(item.key for item in upserts), *deletes])

        anew = Snapshot(objects, carried.hosts)
        for name in (*names, "over"):
            for version in ("", "1.0.0"):
                assert told(carried, name, version) == told(anew, name, version)


def test_a_change_elsewhere_leaves_what_a_name_leads_to_and_what_fits_it() -> None:
    snapshot = a_snapshot([*digits(), a_model("other")], [H0])
    before = snapshot.destination("digits")

    after = snapshot.followed_by(snapshot.objects.changed(2, [a_version("other")]), [a_version("other").key])

    assert after.destination("digits") is before
    assert after.revision == 2


def test_a_model_that_a_strategy_names_is_found_anew_when_it_changes_and_only_then() -> None:
    split = a_route("r", Split((SplitTarget(RouteTarget("digits"), 100.0),)))
    snapshot = a_snapshot([*digits(), a_model("other"), split], [H0])
    before = snapshot.target(RouteTarget("digits"))
    other, new = a_version("other"), a_version("digits", "2.0.0")

    same = snapshot.followed_by(snapshot.objects.changed(2, [other]), [other.key])
    changed = same.followed_by(same.objects.changed(3, [new]), [new.key])

    assert same.destination("r").callees == (before,)
    assert [option.version.version for option in changed.destination("r").callees[0].options] == ["2.0.0", "1.0.0"]


def test_an_object_of_a_kind_that_is_not_known_here_makes_all_be_found_anew() -> None:
    snapshot = a_snapshot(digits(), [H0])
    before = snapshot.destination("digits")

    assert snapshot.followed_by(snapshot.objects, [ObjectKey("Template", "t")]).destination("digits") is not before


def test_a_name_among_very_many_is_still_told_its_neighbours() -> None:
    many = [a_model(f"model-{number}") for number in range(3 * LOOKED_AT)]
    snapshot = a_snapshot([*many, *digits()], [])

    with pytest.raises(ModelNotFound, match="near it: digits"):
        snapshot.destination("digit")
    with pytest.raises(ModelNotFound, match=f"and {3 * LOOKED_AT - 9} more"):
        snapshot.destination("xyz")
