"""Every fault of a change is found at once, at the place in the request that is to blame."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from services.domain.errors import Fault
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    KINDS,
    Artifact,
    Choose,
    Lineage,
    Metadata,
    Object,
    ObjectKey,
    Policy,
    Pool,
    Route,
    RouteTarget,
    SegmentQuality,
    Single,
    references,
)
from services.domain.strategies import (
    Cascade,
    CascadeStep,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    Shadow,
    Split,
    SplitTarget,
    Strategy,
    TensorSource,
)
from services.domain.tenancy import Quotas, Tier
from services.policy.change_check import Submitted, check, nearest
from services.policy.change_reach import UsersOf
from tests.fakes.objects import a_model, a_policy, a_pool, a_route, a_tenant, a_version

ROUTE = Route(Metadata("read"), Single(RouteTarget("digits", "1.0.0")))
STATE: tuple[Object, ...] = (a_pool(), a_model("digits"), a_version("digits", pool="cpu"), ROUTE)


def users_in(state: Mapping[ObjectKey, Object]) -> UsersOf:
    return lambda key: [user for user, item in state.items() if key in references(item)]


def faults(state: Iterable[Object], apply: Iterable[Object] = (), delete: Iterable[str] = ()) -> list[str]:
    before = {item.key: item for item in state}
    submitted = [Submitted(item.key, item) for item in apply]
    deletes = [ObjectKey.parse(text) for text in delete]
    return [str(fault) for fault in check(before, submitted, deletes, users_in(before))]


def test_a_valid_change_has_no_faults() -> None:
    assert faults([], STATE) == []
    assert faults(STATE, [], ["Route/read", "ModelVersion/digits/1.0.0", "Model/digits", "Pool/cpu"]) == []


def test_every_fault_is_found_at_its_index_in_the_request() -> None:
    broken = replace(a_version("digits", "1.0"), artifact=Artifact("file:/w", "abc"), min_replicas=-1)

    found = faults([], [a_model("Digits"), a_model("digits"), broken, Route(Metadata("r"), Single(RouteTarget("no")))])

    assert [fault.split(": ")[0] for fault in found] == [
        "objects[0].metadata.name",
        "objects[2].model_version.version",
        "objects[2].model_version.artifact.sha256",
        "objects[2].model_version.min_replicas",
        "objects[3].route.single.target.model",
    ]


def test_a_version_is_immutable_and_the_fault_says_what_to_do() -> None:
    (found,) = faults(STATE, [replace(a_version("digits", pool="cpu"), cost_microusd=5)])

    assert found == (
        "objects[0].model_version.cost_microusd: cannot change from '0' to '5': a ModelVersion is immutable but for "
        "min_replicas, failure_modes, owner, labels, annotations and tenant; make it a new version"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"artifact": Artifact("file:/other", "0" * 64)},
        {"lineage": Lineage(code_commit="c0ffee")},
        {"lineage": Lineage(dependencies={"torch": "2"})},
        {"segment_qualities": (SegmentQuality("triage", "", 0.5),)},
        {"quality": 0.5},
    ],
)
def test_what_a_version_is_and_where_it_came_from_stay(change: dict[str, object]) -> None:
    changed = replace(a_version("digits", pool="cpu"), **change)  # type: ignore[arg-type]

    found = faults(STATE, [changed])

    assert found
    assert all("a ModelVersion is immutable but for" in fault for fault in found)


def test_what_people_learn_of_a_version_and_who_answers_for_it_may_change() -> None:
    changed = replace(a_version("digits", pool="cpu"), owner="ann", failure_modes=("glare",))

    assert faults(STATE, [changed]) == []


def test_replicas_labels_and_annotations_of_a_version_may_change() -> None:
    changed = replace(a_version("digits", pool="cpu", replicas=7), metadata=Metadata("digits", {"a": "b"}, {"c": "d"}))

    assert faults(STATE, [changed]) == []


def test_a_deletion_of_what_is_in_use_names_who_uses_it() -> None:
    found = faults(STATE, [], ["Model/digits", "Pool/cpu"])

    assert found == [
        "deletes[0]: Model/digits is still used by ModelVersion/digits/1.0.0, Route/read: "
        "delete or change these too, or first",
        "deletes[1]: Pool/cpu is still used by ModelVersion/digits/1.0.0: delete or change these too, or first",
    ]


def test_many_users_are_counted() -> None:
    versions = [a_version("digits", f"1.0.{patch}") for patch in range(12)]

    (found,) = faults([a_model("digits"), *versions], [], ["Model/digits"])

    assert "ModelVersion/digits/1.0.0" in found
    assert "and 7 more" in found


def test_a_version_is_in_use_only_by_routes_that_name_it() -> None:
    any_version = Route(Metadata("read"), Single(RouteTarget("digits")))

    assert faults([*STATE[:3], any_version], [], ["ModelVersion/digits/1.0.0"]) == []
    assert len(faults(STATE, [], ["ModelVersion/digits/1.0.0"])) == 1


def test_what_does_not_exist_cannot_be_deleted_and_what_is_near_it_is_named() -> None:
    found = faults(STATE, [], ["Model/digit", "ModelVersion/digits/2.0.0", "Secret/x"])

    assert found == [
        "deletes[0]: there is no Model/digit to delete; near it: digits",
        "deletes[1]: there is no ModelVersion/digits/2.0.0 to delete; 'digits' has 1.0.0",
        f"deletes[2].kind: 'Secret' is none of {', '.join(KINDS)}",
    ]


def test_an_object_may_stand_in_a_request_once() -> None:
    found = faults(STATE, [a_model("digits"), a_model("digits"), a_model("m")], ["Model/m", "Route/read", "Route/read"])

    assert found == [
        "objects[1]: Model/digits stands in the request twice, at objects[0] already",
        "deletes[0]: Model/m is both applied, at objects[2], and deleted",
        "deletes[2]: Route/read stands in the request twice, at deletes[1] already",
    ]


def test_a_change_that_breaks_another_object_is_blamed_for_it() -> None:
    cuda = Pool(Metadata("cpu"), DeviceKind.CUDA, 1, 1, 1)
    pinned = a_version("digits", pool="cpu", device_kind=DeviceKind.CPU)

    (found,) = faults([a_pool(), a_model("digits"), pinned], [cuda])

    assert found.startswith("objects[0]: would break ModelVersion/digits/1.0.0: model_version.pool: ")


def test_a_schema_change_that_parts_the_candidates_of_a_route_is_blamed_for_it() -> None:
    route = Route(Metadata("pick"), Choose((RouteTarget("a"), RouteTarget("b"))))
    other = replace(a_model("b"), inputs=(TensorSpec("z", "INT64", (1,)),))

    (found,) = faults([a_model("a"), a_model("b"), route], [other])

    assert found.startswith("objects[0]: would break Route/pick: route.choose.candidates: ")


def test_a_model_named_like_a_route_is_blamed_for_it() -> None:
    (found,) = faults(STATE, [a_model("read")])

    assert found.startswith("objects[0]: would break Route/read: metadata.name: a Model is called 'read' too")


def test_what_refers_to_an_object_that_could_not_be_read_is_not_blamed() -> None:
    unread = Submitted(ObjectKey("Model", "digits"), None, (Fault("model.inputs", "cannot be read"),))
    version = a_version("digits")

    found = check({}, [unread, Submitted(version.key, version)], [], users_in({}))

    assert [str(fault) for fault in found] == ["objects[0].model.inputs: cannot be read"]


def test_near_names_come_before_the_whole_list() -> None:
    keys = [ObjectKey("Model", name) for name in ("minilm-large", "minilm-small", "vad")]

    assert nearest(ObjectKey("Model", "minilm-larg"), keys).startswith("near it: minilm-large")
    assert nearest(ObjectKey("Model", "zzz"), keys) == "there are: minilm-large, minilm-small, vad"
    assert nearest(ObjectKey("Pool", "zzz"), keys) == "there is no Pool at all"


PINNED, OTHER = RouteTarget("digits", "1.0.0"), RouteTarget("m")
EACH_STRATEGY: list[Strategy] = [
    Single(PINNED),
    Choose((OTHER, PINNED)),
    Split((SplitTarget(OTHER, 99.5), SplitTarget(PINNED, 0.5))),
    Shadow(OTHER, PINNED),
    Fallback((OTHER, PINNED)),
    Cascade((CascadeStep(OTHER, Escalation("y", 0.5)), CascadeStep(PINNED))),
    Ensemble((EnsembleMember(OTHER), EnsembleMember(PINNED)), Combine.MEAN, 1),
    Pipeline((PipelineStep("one", PINNED, {"x": TensorSource("x")}),), {"y": TensorSource("y", "one")}),
]


@pytest.mark.parametrize("strategy", EACH_STRATEGY)
def test_what_any_strategy_names_is_in_use(strategy: Strategy) -> None:
    model = a_model("digits")
    route = replace(a_route("read", strategy), inputs=model.inputs, outputs=model.outputs)
    state = (model, a_model("m"), a_version("digits"), route)

    assert faults(state, [], ["ModelVersion/digits/1.0.0"]) == [
        "deletes[0]: ModelVersion/digits/1.0.0 is still used by Route/read: delete or change these too, or first"
    ]
    assert faults(state, [], ["ModelVersion/digits/1.0.0", "Route/read"]) == []


def test_policies_tenants_and_routes_in_use_name_who_uses_them() -> None:
    owned = replace(a_model("theirs"), metadata=Metadata("theirs", tenant="acme"))
    by_policy = replace(ROUTE, policy="standard")
    by_route = a_route("outer", Fallback((RouteTarget("digits"), RouteName("read"))))
    state = (*STATE[:3], by_policy, by_route, a_policy(), a_tenant("acme"), owned)

    assert sorted(faults(state, [], ["Tenant/acme", "Route/read"])) == [
        "deletes[0]: Tenant/acme is still used by Model/theirs: delete or change these too, or first",
        "deletes[1]: Route/read is still used by Route/outer: delete or change these too, or first",
    ]
    assert faults(state, [], ["Policy/standard"]) == [
        "deletes[0]: Policy/standard is still used by Route/read, Tenant/acme: delete or change these too, or first"
    ]


def test_a_tier_that_goes_is_blamed_for_its_tenants() -> None:
    (found,) = faults([a_policy(), a_tenant("acme")], [Policy(Metadata("standard"), (Tier("lead", 1),))])

    assert found == (
        "objects[0]: would break Tenant/acme: tenant.tier: Policy 'standard' has no tier 'gold'; it has lead"
    )


def test_what_goes_over_a_quota_is_blamed_for_it() -> None:
    state = (a_policy(), a_tenant("acme", quotas=Quotas(max_models=1)), theirs("one"))

    assert faults(state, [a_model("shared"), theirs("two")]) == [
        "objects[1]: would break Tenant/acme: tenant.quotas.max_models: 2 would belong to it, at most 1 may"
    ]


def theirs(name: str) -> Object:
    return replace(a_model(name), metadata=Metadata(name, tenant="acme"))


def test_a_change_far_down_a_chain_of_routes_is_blamed_for_what_it_breaks_above() -> None:
    fallback = a_route("outer", Fallback((RouteTarget("m"), RouteName("read"))))
    state = (*STATE, a_model("m"), fallback)
    other = replace(a_model("digits"), inputs=(TensorSpec("z", "INT64", (1,)),))

    (found,) = faults(state, [other])

    assert found.startswith("objects[0]: would break Route/outer: route.fallback.targets: its models take different")


def test_what_was_wrong_before_is_no_fault_of_a_change() -> None:
    # A release with stricter rules must not keep everybody from changing anything.
    wrong = a_route("old", Single(RouteTarget("gone")))

    assert faults([*STATE, wrong], [a_model("m")]) == []
    assert faults([*STATE, wrong], [wrong]) == ["objects[0].route.single.target.model: there is no Model 'gone'"]


def test_keys_that_can_name_nothing_are_refused_before_anything_near_is_looked_for() -> None:
    found = faults(STATE, [], [f"Model/{'x' * 1_000_000}", "Model/..\x00", "Pool/cpu/1.0.0", "ModelVersion/digits/one"])

    assert [fault.split(": ")[0] for fault in found] == [
        "deletes[0].name",
        "deletes[1].name",
        "deletes[2].version",
        "deletes[3].version",
    ]
    assert all(len(fault) < 300 and fault.isprintable() for fault in found)
