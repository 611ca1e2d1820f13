"""Properties of placement over random fleets; single scenarios are in tests/golden/placement."""

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.domain.host import DeviceKind, HostedModel
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion
from services.policy.fitting import Failure, Site, Standing, memory_need
from services.policy.placement import Assignment, place
from tests.fakes.objects import MIB, a_host, a_version, hosted

NAMES = ("m0", "m1", "m2", "m3", "m4")
Measured = dict[tuple[ModelKey, DeviceKind], int]

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[ModelVersion], list[Site], Measured]:
    """Versions, some of them already on hosts that have room for them, and some that nobody knows."""
    versions = [
        a_version(
            name,
            replicas=draw(st.integers(0, 4)),
            mib=draw(st.integers(0, 60)),
            pool=draw(st.sampled_from(("", "", "p0", "p1"))),
            device_kind=draw(st.sampled_from((None, None, DeviceKind.CPU, DeviceKind.CUDA))),
            executes_code=draw(st.booleans()),
        )
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True))
    ]
    by_name = {version.metadata.name: version for version in versions}
    sites = []
    for index in range(draw(st.integers(0, 5))):
        record = a_host(
            f"h{index}",
            mib=draw(st.integers(1, 120)),
            pool=draw(st.sampled_from(("p0", "p1"))),
            zone=draw(st.sampled_from(("", "east", "west"))),
            kind=draw(st.sampled_from(tuple(DeviceKind))),
            trusts_artifacts=draw(st.booleans()),
        )
        free = record.device.memory_bytes
        entries = []
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
            state = draw(st.sampled_from(tuple(ModelState)))
            measured = draw(st.sampled_from((0, 0, 5, 20))) if state is not ModelState.LOADING else 0
            declared = by_name[name].memory_bytes if name in by_name else 0
            need = 0 if state is ModelState.FAILED else (measured * MIB or declared)
            if need <= free:
                free -= need
                entries.append(HostedModel(ModelKey(name, "1.0.0"), state, "", measured * MIB))
        failures = {
            ModelKey(name, "1.0.0"): Failure(draw(st.integers(1, 5)), "it broke", draw(st.booleans()))
            for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
        }
        standing = draw(st.sampled_from((Standing.LISTED,) * 3 + (Standing.ABSENT, Standing.LEAVING)))
        sites.append(Site(replace(record, models=tuple(entries)), standing, failures))
    return versions, sites, {}


def _carried_out(assignment: Assignment, sites: list[Site]) -> list[Site]:
    after = []
    for site in sites:
        gone = {order.key for order in assignment.unloads if order.host_id == site.host_id}
        come = {order.key for order in assignment.loads if order.host_id == site.host_id}
        models = [one for one in site.record.models if one.key not in gone | come]
        models += [HostedModel(key, ModelState.READY) for key in sorted(come)]
        failures = {key: failure for key, failure in site.failures.items() if key not in come}
        after.append(Site(replace(site.record, models=tuple(models)), site.standing, failures))
    return after


def _state(site: Site, key: ModelKey) -> ModelState | None:
    hosted = site.record.hosted(key)
    return None if hosted is None else hosted.state


@quick
@given(fleets())
def test_no_host_is_given_more_than_its_memory(fleet: tuple[list[ModelVersion], list[Site], Measured]) -> None:
    versions, sites, measured = fleet
    by_key = {version.model_key: version for version in versions}

    assignment = place(versions, sites, measured)

    for site in sites:
        loads = [order.key for order in assignment.loads if order.host_id == site.host_id]
        if not loads:
            continue
        held = sum(
            memory_need(by_key[one.key], site.record, measured) if one.key in by_key else one.memory_bytes
            for one in site.record.models
            if one.state is not ModelState.FAILED and one.key not in loads
        )
        held += sum(memory_need(by_key[key], site.record, measured) for key in loads)
        assert held <= site.record.device.memory_bytes


@quick
@given(fleets())
def test_no_version_is_twice_on_a_host_and_none_above_its_replicas(
    fleet: tuple[list[ModelVersion], list[Site], Measured],
) -> None:
    versions, sites, measured = fleet

    assignment = place(versions, sites, measured)

    pairs = [(placed.key, placed.host_id) for placed in assignment.placements]
    assert len(pairs) == len(set(pairs))
    counts = Counter(placed.key for placed in assignment.placements)
    for version in versions:
        assert counts[version.model_key] <= version.min_replicas
    held = {(one.key, site.host_id): one.state for site in sites for one in site.record.models}
    for order in assignment.loads:
        assert held.get((order.key, order.host_id), ModelState.FAILED) is ModelState.FAILED


@quick
@given(fleets())
def test_loads_go_only_where_the_version_may_run(fleet: tuple[list[ModelVersion], list[Site], Measured]) -> None:
    versions, sites, measured = fleet
    by_key = {version.model_key: version for version in versions}
    by_id = {site.host_id: site for site in sites}

    for order in place(versions, sites, measured).loads:
        version, site = by_key[order.key], by_id[order.host_id]
        assert site.standing is Standing.LISTED
        assert version.pool in ("", site.record.pool)
        assert version.device_kind in (None, site.record.device.kind)
        assert site.record.trusts_artifacts or not version.backend.executes_code
        assert order.key not in site.failures or not site.failures[order.key].resting


@quick
@given(fleets())
def test_what_is_lacking_is_told_with_a_reason(fleet: tuple[list[ModelVersion], list[Site], Measured]) -> None:
    versions, sites, measured = fleet

    assignment = place(versions, sites, measured)

    counts = Counter(placed.key for placed in assignment.placements)
    lacking = {unplaced.key: unplaced for unplaced in assignment.unplaced}
    for version in versions:
        missing = version.min_replicas - counts[version.model_key]
        if missing > 0:
            assert lacking[version.model_key].missing >= missing
    assert all(unplaced.reason for unplaced in assignment.unplaced)


@quick
@given(fleets())
def test_a_ready_replica_goes_only_where_enough_others_are_ready(
    fleet: tuple[list[ModelVersion], list[Site], Measured],
) -> None:
    versions, sites, measured = fleet
    by_key = {version.model_key: version for version in versions}

    assignment = place(versions, sites, measured)

    taken = {(order.key, order.host_id) for order in assignment.unloads}
    for key in {order.key for order in assignment.unloads} & by_key.keys():
        ready = {site.host_id for site in sites if _state(site, key) is ModelState.READY}
        left = {host_id for host_id in ready if (key, host_id) not in taken}
        assert left == ready or len(left) >= by_key[key].min_replicas


@quick
@given(fleets())
def test_orders_are_the_fewest_and_the_next_look_finds_nothing_more_to_move(
    fleet: tuple[list[ModelVersion], list[Site], Measured],
) -> None:
    versions, sites, measured = fleet
    first = place(versions, sites, measured)
    kept = {(placed.key, placed.host_id) for placed in first.placements}
    held = {
        (one.key, site.host_id)
        for site in sites
        for one in site.record.models
        if one.state in (ModelState.LOADING, ModelState.READY)
    }

    # Every load fills a gap: what is placed is what was there and stays, and the loads.
    assert kept == (kept & held) | {(order.key, order.host_id) for order in first.loads}

    # What is done stays done. Only memory that the unloads gave back may let more in.
    after = _carried_out(first, sites)
    second = place(versions, after, measured)
    assert kept <= {(placed.key, placed.host_id) for placed in second.placements}
    taken = {(order.key, order.host_id) for order in second.unloads}
    assert not taken & kept
    if not first.unloads:
        assert not second.loads


@quick
@given(fleets())
def test_the_order_in_which_facts_come_changes_nothing(
    fleet: tuple[list[ModelVersion], list[Site], Measured],
) -> None:
    versions, sites, measured = fleet
    expected = place(versions, sites, measured)

    assert place(versions[::-1], sites[::-1], measured) == expected


def test_versions_that_may_come_and_go_share_what_the_others_leave() -> None:
    guests = [replace(a_version(f"g{number}", mib=30), on_demand=True) for number in range(6)]
    sites = [Site(a_host(f"h{number}", mib=100)) for number in range(2)]
    pinned = [a_version("pinned", replicas=2, mib=70)]

    found = place([*guests, *pinned], sites, {})

    assert not found.unplaced
    at = Counter(load.host_id for load in found.loads if load.key.model.startswith("g"))
    assert at == {"h0": 3, "h1": 3}


def test_a_version_that_may_come_and_go_must_fit_beside_what_stays() -> None:
    found = place(
        [replace(a_version("guest", mib=31), on_demand=True), a_version("pinned", mib=70)],
        [Site(a_host("h0", hosted("pinned", mib=70), mib=100))],
        {},
    )

    assert [(each.key.model, each.missing) for each in found.unplaced] == [("guest", 1)]
    assert "needs 31.0 MiB" in found.unplaced[0].reason


def test_what_is_away_for_the_moment_leaves_no_room_to_others() -> None:
    """A host's guests are in its record with what they were measured to take, whether in memory just now or not."""
    record = a_host("h0", *(hosted(f"g{number}", mib=40) for number in range(5)), mib=100)
    guests = [replace(a_version(f"g{number}", mib=40), on_demand=True) for number in range(5)]

    found = place([*guests, a_version("fits", mib=60), a_version("not", mib=1)], [Site(record)], {})

    assert [load.key.model for load in found.loads] == ["fits"]
    assert [each.key.model for each in found.unplaced] == ["not"]
