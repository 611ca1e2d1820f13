"""Changes come in an order one could make them in, and name every field by its path in the message."""

import re
from dataclasses import replace

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.registry.v1 import objects_pb2
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Cache,
    Choose,
    Generation,
    Lineage,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Padding,
    Policy,
    Pool,
    Route,
    RouteTarget,
    SegmentQuality,
    Single,
    SmokeTest,
    Template,
    Tenant,
    WarmupTensor,
)
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    CandidateRule,
    Cascade,
    CascadeStep,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    HashKey,
    Pipeline,
    PipelineStep,
    RouteName,
    Shadow,
    Split,
    SplitTarget,
    StaticTensor,
    Strategy,
    TensorSource,
)
from services.domain.templates import Binding, Parameter, ParameterType
from services.domain.tenancy import (
    Balancing,
    BalancingStrategy,
    Budget,
    HedgeRules,
    Preemption,
    PriceRules,
    Protection,
    Quotas,
    RateLimit,
    RetryRules,
    SessionAffinity,
    Tier,
    ZoneSpill,
)
from services.policy.tree_diff import Action, Change, FieldChange, diff, field_changes, immutable_changes, with_fields
from tests.fakes import arbitrary_objects

EMPTY_MODEL = Model(Metadata("digits"), (), ())
FULL_MODEL = Model(
    Metadata("digits", {"team": "vision"}, {"owner": "ann"}, "acme"),
    (TensorSpec("x", "FP32", (-1, 64), True, True),),
    (TensorSpec("y", "INT64", (-1,)),),
    "classification",
    "image",
    "Digits.",
    0.05,
    "ann",
    0.999,
    deterministic=True,
    shareable_answers=True,
)
EMPTY_VERSION = ModelVersion(Metadata("digits"), "1.0.0", Backend("identity"))
FULL_VERSION = ModelVersion(
    Metadata("digits", {"a": "b"}, {"c": "d"}),
    "1.0.0",
    Backend("torch", "cnn", {"width": "8"}, executes_code=True),
    Artifact("file:/w", "0" * 64),
    {"tokenizer": Artifact("file:/t", "1" * 64)},
    DeviceKind.CUDA,
    1,
    8,
    0.5,
    2,
    "gpu",
    7,
    0.9,
    "accuracy",
    0.02,
    Lineage("c0ffee", "mnist", "0.9.0", "MIT", {"torch": "2.13.0"}, "run-1"),
    ({"x": WarmupTensor((1, 64), b"\0" * 256)},),
    (SegmentQuality("triage", "language=de", 0.8, "F1"),),
    ("blurred scans",),
    "ann",
    SmokeTest({"x": WarmupTensor((1,), b"1234")}, {"y": WarmupTensor((1,), b"5678")}, 0.1, 0.2),
    generation=Generation(2, 3, 4, 5),
    on_demand=True,
    padding=(Padding("x", 1, -1.0, {"y": 1}),),
)
SINGLE = Route(Metadata("read"), Single(RouteTarget("digits")))
CHOOSE = Route(Metadata("read"), Choose((RouteTarget("digits", "1.0.0"),), 2.0, 0.1, 3.0), "Reads digits.", 1.0, 2.0, 5)
TARGET = RouteTarget("digits", "1.0.0")
NAMED = RouteName("other")
SURE = Calibration((CalibrationPoint(0.5, 0.75),))
STRATEGIES: tuple[Strategy, ...] = (
    Choose((TARGET,), 2.0, 0.1, 3.0, (CandidateRule("digits", {"a": "b"}, ("law",), ("easy",), 1, 9),)),
    Split((SplitTarget(TARGET, 100.0),), HashKey.TENANT),
    Shadow(TARGET, TARGET, 5.0, Budget(7, 60.0), 2),
    Fallback((TARGET, NAMED), {"y": StaticTensor((1,), b"12345678")}),
    Cascade((CascadeStep(TARGET, Escalation("y", 0.5, SURE, 0.25)),)),
    Ensemble((EnsembleMember(TARGET, 2.0),), Combine.VOTE, 1),
    Pipeline(
        (PipelineStep("a", TARGET, {"x": TensorSource("x", "b")}), PipelineStep("b", NAMED, {})),
        {"y": TensorSource("y", "a")},
    ),
)
FULL_ROUTE = replace(
    SINGLE,
    policy="standard",
    owner="ann",
    protected=True,
    inputs=FULL_MODEL.inputs,
    outputs=FULL_MODEL.outputs,
    max_in_flight=9,
    cache=Cache(5.0, False, 2.0),
)
EMPTY_POLICY = Policy(Metadata("standard"), ())
FULL_POLICY = Policy(
    Metadata("standard"),
    (Tier("gold", 1, 1.0, 2.0, 0.5, 3.0, 9, True, Preemption.NEVER, 4.0, 0.02),),
    "For all.",
    "gold",
    RetryRules(5, 0.2),
    HedgeRules(True, 0.9),
    PriceRules(0.002, 0.2, 0.2, 1.0, 2.0),
    Balancing(BalancingStrategy.RANDOM, SessionAffinity(True, 2.0), ZoneSpill(0.2, 0.01)),
    protection=Protection(False, False, False, False),
)
EMPTY_TENANT = Tenant(Metadata("acme"), "standard", "gold")
FULL_TENANT = Tenant(
    Metadata("acme"), "other", "lead", "Acme.", "ann", Quotas(1, 2, 3, 4, 5), RateLimit(2.0, 4), 6, Budget(7, 60.0)
)
EMPTY_TEMPLATE = Template(Metadata("served"), (), ())
FULL_TEMPLATE = Template(
    Metadata("served"),
    (Parameter("name", "Whose.", ParameterType.INTEGER, "1", ("1", "2")),),
    (b"\x52\x00",),
    (Binding(1, "pool.min_hosts", "name"),),
    "A served model.",
    "ann",
    True,
    True,
)
EMPTY_POOL = Pool(Metadata("local"), DeviceKind.CPU, 1, 1, 1)
FULL_POOL = Pool(Metadata("local"), DeviceKind.CUDA, 2, 2, 4, "z1", "Local.", True, True, 9, 0.5)


def key(text: str) -> ObjectKey:
    return ObjectKey.parse(text)


def test_changes_are_ordered_so_that_nothing_refers_to_what_is_not_there() -> None:
    before = {key(text): "old" for text in ("Model/a", "ModelVersion/a/1.0.0", "Route/gone", "Pool/gone", "Model/gone")}
    before |= {key("Policy/gone"): "old", key("Tenant/gone"): "old"}
    after = {
        key(text): "new"
        for text in (
            "Route/r",
            "ModelVersion/a/1.10.0",
            "ModelVersion/a/1.9.0",
            "Model/a",
            "Tenant/t",
            "Pool/p",
            "Policy/p",
            "Model/b",
        )
    } | {key("ModelVersion/a/1.0.0"): "old"}

    changes = diff(before, after)

    assert [f"{change.action.value} {change.key}" for change in changes] == [
        "CREATE Policy/p",
        "CREATE Tenant/t",
        "CREATE Pool/p",
        "UPDATE Model/a",
        "CREATE Model/b",
        "CREATE ModelVersion/a/1.9.0",
        "CREATE ModelVersion/a/1.10.0",
        "CREATE Route/r",
        "DELETE Route/gone",
        "DELETE Model/gone",
        "DELETE Pool/gone",
        "DELETE Tenant/gone",
        "DELETE Policy/gone",
    ]


def test_equal_trees_do_not_differ() -> None:
    assert diff({key("Model/a"): "x"}, {key("Model/a"): "x"}) == ()


def test_an_update_says_each_field_before_and_after() -> None:
    after = replace(FULL_VERSION, min_replicas=3, quality=None, metadata=Metadata("digits", {"a": "b", "e": "f"}))

    assert field_changes(FULL_VERSION, after) == (
        FieldChange("metadata.labels[e]", "", "f"),
        FieldChange("model_version.min_replicas", "2", "3"),
        FieldChange("model_version.quality", "0.9", ""),
        FieldChange("metadata.annotations[c]", "d", ""),
    )


def test_a_route_that_changes_its_strategy_loses_one_and_gains_the_other() -> None:
    changes = {change.path: (change.before, change.after) for change in field_changes(SINGLE, CHOOSE)}

    assert changes["route.single.target.model"] == ("digits", "")
    assert changes["route.choose.candidates[0].version"] == ("", "1.0.0")
    assert changes["route.default_timeout"] == ("30.0s", "1.0s")


def test_raw_bytes_are_told_by_length_and_digest() -> None:
    after = replace(FULL_VERSION, warmup=({"x": WarmupTensor((1, 64), b"\1" * 256)},))

    (change,) = field_changes(FULL_VERSION, after)

    assert change.path == "model_version.warmup[0].inputs[x].raw"
    assert re.fullmatch(r"256 bytes, sha256 [0-9a-f]{16}", change.after)


def test_creations_and_deletions_have_no_fields() -> None:
    change = Change(Action.CREATE, EMPTY_MODEL.key)

    assert with_fields(change, {}, {EMPTY_MODEL.key: EMPTY_MODEL}) == change


def test_a_version_may_change_in_how_many_whose_and_what_was_learned_only() -> None:
    free = replace(
        FULL_VERSION,
        min_replicas=9,
        failure_modes=("glare", "rain"),
        owner="bob",
        metadata=Metadata("digits", {"x": "y"}, {"z": "w"}, "other"),
    )
    fixed = replace(free, cost_microusd=8, files={})

    assert immutable_changes(FULL_VERSION, free) == ()
    assert [change.path for change in immutable_changes(FULL_VERSION, fixed)] == [
        "model_version.cost_microusd",
        "model_version.files[tokenizer].uri",
        "model_version.files[tokenizer].sha256",
    ]


def test_other_kinds_may_change_in_every_field() -> None:
    assert immutable_changes(EMPTY_POOL, FULL_POOL) == ()


def test_every_path_is_one_of_the_message_and_every_field_has_one() -> None:
    pairs: list[tuple[Object, Object]] = [
        (EMPTY_MODEL, FULL_MODEL),
        (EMPTY_VERSION, FULL_VERSION),
        (SINGLE, CHOOSE),
        (SINGLE, FULL_ROUTE),
        (EMPTY_POOL, FULL_POOL),
        (EMPTY_POLICY, FULL_POLICY),
        (EMPTY_TENANT, FULL_TENANT),
        (EMPTY_TEMPLATE, FULL_TEMPLATE),
        *((SINGLE, replace(SINGLE, strategy=strategy)) for strategy in STRATEGIES),
    ]
    seen = {re.sub(r"\[[^]]*]", "", change.path) for before, after in pairs for change in field_changes(before, after)}

    known = {path for path in _leaves(objects_pb2.Object.DESCRIPTOR, "") if path != "metadata.name"}
    known -= {"model_version.version"}  # part of the key
    # A dropped strategy shows up as well; warm-ups and static answers are also counted as a whole.
    counted = {"model_version.warmup", "route.fallback.static_answer"}
    assert seen - counted == known - {"route.single.target.version"}


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[arbitrary_objects.objects] * 2))
def test_objects_that_differ_have_a_field_that_says_so(pair: tuple[Object, Object]) -> None:
    before, after = pair
    if type(before) is not type(after):
        return
    after = replace(after, metadata=replace(after.metadata, name=before.metadata.name))  # names are keys
    if isinstance(before, ModelVersion) and isinstance(after, ModelVersion):
        after = replace(after, version=before.version)

    assert bool(field_changes(before, after)) == (before != after)


def _leaves(message: Descriptor, at: str) -> set[str]:
    found: set[str] = set()
    for field in message.fields:
        path = f"{at}{field.name}"
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value: FieldDescriptor = inner.fields_by_name["value"]
            inner = value.message_type
        # What a template makes is told as a whole.
        if inner is None or inner.full_name.startswith("google.protobuf") or inner is objects_pb2.Object.DESCRIPTOR:
            found.add(path)
        else:
            found |= _leaves(inner, f"{path}.")
    return found
