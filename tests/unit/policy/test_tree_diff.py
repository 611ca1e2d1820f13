"""Changes come in an order one could make them in, and name every field by its path in the message."""

import re
from dataclasses import replace

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from modelyard.registry.v1 import objects_pb2
from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Choose,
    Lineage,
    Metadata,
    Model,
    ModelVersion,
    Object,
    ObjectKey,
    Pool,
    Route,
    RouteTarget,
    Single,
    WarmupTensor,
)
from services.policy.tree_diff import Action, Change, FieldChange, diff, field_changes, immutable_changes, with_fields

EMPTY_MODEL = Model(Metadata("digits"), (), ())
FULL_MODEL = Model(
    Metadata("digits", {"team": "vision"}, {"owner": "ann"}),
    (TensorSpec("x", "FP32", (-1, 64), True, True),),
    (TensorSpec("y", "INT64", (-1,)),),
    "classification",
    "image",
    "Digits.",
    0.05,
    "ann",
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
    Lineage("c0ffee", "mnist", "0.9.0", "MIT"),
    ({"x": WarmupTensor((1, 64), b"\0" * 256)},),
)
SINGLE = Route(Metadata("read"), Single(RouteTarget("digits")))
CHOOSE = Route(Metadata("read"), Choose((RouteTarget("digits", "1.0.0"),), 2.0, 0.1, 3.0), "Reads digits.", 1.0, 2.0, 5)
EMPTY_POOL = Pool(Metadata("local"), DeviceKind.CPU, 1, 1, 1)
FULL_POOL = Pool(Metadata("local"), DeviceKind.CUDA, 2, 2, 4, "z1", "Local.", True)


def key(text: str) -> ObjectKey:
    return ObjectKey.parse(text)


def test_changes_are_ordered_so_that_nothing_refers_to_what_is_not_there() -> None:
    before = {key(text): "old" for text in ("Model/a", "ModelVersion/a/1.0.0", "Route/gone", "Pool/gone", "Model/gone")}
    after = {
        key(text): "new"
        for text in ("Route/r", "ModelVersion/a/1.10.0", "ModelVersion/a/1.9.0", "Model/a", "Pool/p", "Model/b")
    } | {key("ModelVersion/a/1.0.0"): "old"}

    changes = diff(before, after)

    assert [f"{change.action.value} {change.key}" for change in changes] == [
        "CREATE Pool/p",
        "UPDATE Model/a",
        "CREATE Model/b",
        "CREATE ModelVersion/a/1.9.0",
        "CREATE ModelVersion/a/1.10.0",
        "CREATE Route/r",
        "DELETE Route/gone",
        "DELETE Model/gone",
        "DELETE Pool/gone",
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


def test_a_version_may_change_replicas_labels_and_annotations_only() -> None:
    free = replace(FULL_VERSION, min_replicas=9, metadata=Metadata("digits", {"x": "y"}, {"z": "w"}))
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
        (EMPTY_POOL, FULL_POOL),
    ]
    seen = {re.sub(r"\[[^]]*]", "", change.path) for before, after in pairs for change in field_changes(before, after)}

    known = {path for path in _leaves(objects_pb2.Object.DESCRIPTOR, "") if path != "metadata.name"}
    known -= {"model_version.version"}  # part of the key
    # A dropped strategy shows up as well; a warm-up is also counted as a whole.
    assert seen - {"model_version.warmup"} == known - {"route.single.target.version"}


def _leaves(message: Descriptor, at: str) -> set[str]:
    found: set[str] = set()
    for field in message.fields:
        path = f"{at}{field.name}"
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value: FieldDescriptor = inner.fields_by_name["value"]
            inner = value.message_type
        if inner is None or inner.full_name.startswith("google.protobuf"):
            found.add(path)
        else:
            found |= _leaves(inner, f"{path}.")
    return found
