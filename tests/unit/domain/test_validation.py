"""What makes a state valid: each rule has an object that breaks it, and every fault is found at once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Pool,
    Route,
    RouteTarget,
    SegmentQuality,
    Single,
)
from services.domain.validation import object_faults, validate
from tests.fakes import arbitrary_objects

MODEL = Model(Metadata("digits"), (TensorSpec("x", "FP32", (-1, 64)),), (TensorSpec("y", "INT64", (-1,)),))
VERSION = ModelVersion(
    Metadata("digits"), "1.0.0", Backend("torch", "small_cnn"), Artifact("file:/models/digits", "0" * 64)
)
POOL = Pool(Metadata("local"), DeviceKind.CPU, 1 << 30, 1, 2)
ROUTE = Route(Metadata("read"), Single(RouteTarget("digits", "1.0.0")))


def faults_of(*objects: Object) -> list[str]:
    state = {item.key: item for item in objects}
    return [f"{key}: {fault}" for key, faults in validate(state, state).items() for fault in faults]


def test_a_whole_state_is_valid() -> None:
    assert faults_of(MODEL, VERSION, POOL, ROUTE) == []


def test_every_fault_is_found_at_once() -> None:
    version = replace(
        VERSION,
        version="1.0",
        backend=Backend("tensorflow"),
        artifact=Artifact("ftp://x/y", "abc"),
        min_replicas=-1,
        quality=2.0,
    )

    found = faults_of(MODEL, version)

    assert [fault.split(": ")[1] for fault in found] == [
        "model_version.version",
        "model_version.backend.name",
        "model_version.artifact.uri",
        "model_version.artifact.sha256",
        "model_version.min_replicas",
        "model_version.quality",
    ]


def test_a_path_that_climbs_is_refused() -> None:
    version = replace(VERSION, artifact=Artifact("file:/models/../etc/passwd", "0" * 64))

    assert any("must not contain '..'" in fault for fault in faults_of(MODEL, version))


def test_a_version_needs_its_model() -> None:
    assert any("there is no Model 'digits'" in fault for fault in faults_of(VERSION))


def test_a_route_needs_its_models_and_versions() -> None:
    route = replace(ROUTE, strategy=Choose((RouteTarget("digits", "9.0.0"), RouteTarget("letters"))))

    found = faults_of(MODEL, VERSION, route)

    assert any("has no version '9.0.0'" in fault for fault in found)
    assert any("there is no Model 'letters'" in fault for fault in found)


def test_a_route_whose_models_take_different_inputs_is_refused() -> None:
    other = replace(MODEL, metadata=Metadata("wide"), inputs=(TensorSpec("x", "FP32", (-1, 65)),))
    route = replace(ROUTE, strategy=Choose((RouteTarget("digits"), RouteTarget("wide"))))

    assert any("different inputs" in fault for fault in faults_of(MODEL, other, VERSION, route))


def test_code_needs_a_pool_that_trusts_it() -> None:
    version = replace(VERSION, pool="local", backend=replace(VERSION.backend, executes_code=True))

    assert any("does not trust" in fault for fault in faults_of(MODEL, version, POOL))
    assert faults_of(MODEL, version, replace(POOL, trusts_artifacts=True)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "1.0.0-" + "a" * 200}, "version: has 206 characters, at most 128"),
        ({"owner": "a\nb"}, r"owner: 'a\nb' must be one line of printable characters"),
        ({"failure_modes": ("",)}, "failure_modes[0]: must not be empty"),
        ({"failure_modes": ("x" * 1025,)}, "failure_modes[0]: has 1025 characters, at most 1024"),
        ({"failure_modes": ("x",) * 65}, "failure_modes: has 65 entries, at most 64"),
        ({"segment_qualities": (SegmentQuality("", "", 0.5),)}, "segment_qualities[0]: names neither a task nor"),
        (
            {"segment_qualities": (SegmentQuality("t", "s", 1.5),)},
            "segment_qualities[0].quality: 1.5 must be in [0, 1]",
        ),
        (
            {"segment_qualities": (SegmentQuality("t", "", 0.5), SegmentQuality("t", "", 0.6))},
            "segment_qualities[1]: task 't', segment '' stands twice",
        ),
        (
            {"segment_qualities": tuple(SegmentQuality(str(n), "", 0.5) for n in range(257))},
            "segment_qualities: has 257 entries, at most 256",
        ),
        ({"lineage": Lineage(parent="1.0.0")}, "lineage.parent: '1.0.0' is the version itself"),
        ({"lineage": Lineage(parent="digits:1.0.0")}, "lineage.parent: 'digits:1.0.0' is the version itself"),
        ({"lineage": Lineage(code_commit="c\x000ffee")}, r"lineage.code_commit: 'c\x000ffee' must be one line"),
        ({"lineage": Lineage(dependencies={"torch": ""})}, "lineage.dependencies[torch]: must not be empty"),
        (
            {"lineage": Lineage(dependencies={str(n): "1" for n in range(257)})},
            "lineage.dependencies: has 257 entries, at most 256",
        ),
        ({"files": {str(n): Artifact("file:/f", "0" * 64) for n in range(65)}}, "files: has 65 entries, at most 64"),
        ({"files": {"../f": Artifact("file:/f", "0" * 64)}}, "files: '../f' must be a plain file name"),
        ({"backend": Backend("identity", "", {str(n): "" for n in range(257)})}, "backend.options: has 257 entries"),
    ],
)
def test_what_a_version_says_of_itself_is_bounded(change: dict[str, object], fault: str) -> None:
    (found,) = object_faults(replace(VERSION, **change))  # type: ignore[arg-type]

    assert str(found).startswith(f"model_version.{fault}")


def test_lineage_owners_and_qualities_that_make_sense_are_valid() -> None:
    lineage = Lineage("c0ffee", "mnist\nand more", "0.9.0", "MIT", {"torch": "2.13.0", "base image": "12"}, "run-1")
    places = (SegmentQuality("", "language=de", 0.7), SegmentQuality("triage", "", 0.9, "F1"))
    version = replace(VERSION, lineage=lineage, segment_qualities=places, failure_modes=("blurred scans",), owner="ann")

    assert faults_of(replace(MODEL, availability_slo=0.999), version, POOL, ROUTE) == []
    # What it was made from may be outside of this mesh, or gone.
    assert object_faults(replace(VERSION, lineage=Lineage(parent="gone:9.9.9"))) == []


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_promise_of_all_or_nothing_is_none(share: float) -> None:
    assert "model.availability_slo" in str(object_faults(replace(MODEL, availability_slo=share))[0])


def test_labels_and_names_are_checked_whatever_the_kind() -> None:
    metadata = Metadata("a/../b", {"../x": "y"}, {"x": "\x00"}, "Acme")

    for item in (MODEL, VERSION, POOL, ROUTE):
        assert [fault.path for fault in object_faults(replace(item, metadata=metadata))][:4] == [
            "metadata.name",
            "metadata.labels",
            "metadata.annotations[x]",
            "metadata.tenant",
        ]


@settings(max_examples=200, deadline=None)
@given(st.lists(arbitrary_objects.objects, max_size=6))
def test_any_state_is_judged_and_none_makes_the_judge_stumble(items: list[Object]) -> None:
    state = {item.key: item for item in items}

    for faults in validate(state, state).values():
        assert all(fault.message.isprintable() for fault in faults)


@pytest.mark.parametrize(
    ("backend", "fault"),
    [
        (Backend("plugin", executes_code=True), "backend.architecture: plugin needs the name of an entry point"),
        (Backend("plugin", "mine"), "backend.executes_code: a plugin is code: it must be true"),
        (Backend("remote"), "backend.options: remote needs the option 'address'"),
    ],
)
def test_plugins_and_remote_models_say_what_they_need(backend: Backend, fault: str) -> None:
    assert any(fault in found for found in faults_of(MODEL, replace(VERSION, backend=backend)))


@pytest.mark.parametrize(
    "uri", ["https://models.example/v1/w", "s3://bucket/w", "mlflow://mlflow.example/models/m/1/w"]
)
def test_artifacts_may_lie_elsewhere(uri: str) -> None:
    assert faults_of(MODEL, replace(VERSION, artifact=Artifact(uri, "0" * 64))) == []


def test_a_remote_model_needs_no_artifact() -> None:
    backend = Backend("remote", options={"address": "triton.example:8001"})
    assert faults_of(MODEL, replace(VERSION, backend=backend, artifact=None)) == []
