"""What makes a state valid: each rule has an object that breaks it, and every fault is found at once."""

from dataclasses import replace

from services.domain.host import DeviceKind
from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Choose,
    Metadata,
    Model,
    ModelVersion,
    Object,
    Pool,
    Route,
    RouteTarget,
    Single,
)
from services.domain.validation import validate

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
        artifact=Artifact("https://x/y", "abc"),
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
