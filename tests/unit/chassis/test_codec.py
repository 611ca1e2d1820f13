"""What passes over the wire and back is the same; what is not set takes the contract's default."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis import codec, object_codec
from services.domain.errors import InvalidRequest
from services.domain.host import Device, DeviceKind, HostedModel, HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.objects import (
    Artifact,
    Backend,
    Choose,
    Lineage,
    Metadata,
    Model,
    ModelVersion,
    Pool,
    Route,
    RouteTarget,
    Single,
    WarmupTensor,
)

names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
counts = st.integers(0, 1 << 31 - 1)
millis = st.integers(1, 10_000_000).map(lambda value: value / 1000)
labels = st.dictionaries(names, names, max_size=3)
metadata = st.builds(Metadata, names, labels, labels)
tensors = st.builds(
    TensorSpec, names, st.sampled_from(["FP32", "BYTES"]), st.lists(st.integers(-1, 9), max_size=3).map(tuple)
)
schemas = st.lists(tensors, max_size=3).map(tuple)
models = st.builds(Model, metadata, schemas, schemas, names, names, names, st.none() | millis, names)
artifacts = st.builds(Artifact, names, names)
versions = st.builds(
    ModelVersion,
    metadata,
    names,
    st.builds(Backend, names, names, labels, st.booleans()),
    st.none() | artifacts,
    st.dictionaries(names, artifacts, max_size=2),
    st.none() | st.sampled_from(DeviceKind),
    counts,
    counts,
    millis,
    counts,
    names,
    counts,
    st.none() | st.floats(0, 1),
    names,
    millis,
    st.builds(Lineage, names, names, names, names),
    st.lists(
        st.dictionaries(names, st.builds(WarmupTensor, st.just((1, 2)), st.binary(max_size=8)), max_size=2), max_size=2
    ).map(tuple),
)
targets = st.builds(RouteTarget, names, names)
strategies = st.builds(Single, targets) | st.builds(
    Choose, st.lists(targets, min_size=1, max_size=3).map(tuple), st.floats(0.1, 9), st.floats(0.1, 9), st.just(1.0)
)
routes = st.builds(Route, metadata, strategies, names, millis, millis, st.integers(1, 9))
pools = st.builds(
    Pool,
    metadata,
    st.sampled_from(DeviceKind),
    counts,
    st.integers(1, 9),
    st.integers(1, 9),
    names,
    names,
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(models | versions | routes | pools)
def test_objects_read_back_the_same(item: Model | ModelVersion | Route | Pool) -> None:
    wire = object_codec.object_to(item).SerializeToString()

    assert object_codec.object_from(objects_pb2.Object.FromString(wire)) == item


@given(st.floats(-1e6, 1e6))
def test_durations_read_back_to_the_nanosecond(seconds: float) -> None:
    assert codec.seconds_from(codec.duration_to(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_a_host_reads_back_the_same() -> None:
    record = HostRecord(
        "local-0",
        "127.0.0.1:7610",
        "local",
        "a",
        Device(DeviceKind.CUDA, "H200", 1 << 37, 5),
        tuple(HostedModel(ModelKey("m", f"1.0.{n}"), state, "why", 7, 0.5) for n, state in enumerate(ModelState)),
        draining=True,
        pid=4242,
        trusts_artifacts=True,
    )
    load = HostLoad("local-0", 9, (ModelLoad(ModelKey("m", "1.0.0"), 1, 2, 3, 0.5, 0.25),), 5, 0.5, draining=True)

    assert codec.record_from(codec.record_to(record)) == record
    assert codec.load_from(codec.load_to(load)) == load


def test_a_state_of_a_later_contract_is_neither_used_nor_given_up() -> None:
    record = resources_pb2.HostRecord(host_id="h")
    record.models.add().state = 77  # type: ignore[assignment]

    assert codec.record_from(record).models[0].state is ModelState.LOADING


def test_an_object_without_a_kind_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has no spec"):
        object_codec.object_from(objects_pb2.Object(metadata=objects_pb2.Metadata(name="x")))


def test_a_route_without_a_strategy_is_refused() -> None:
    message = objects_pb2.Object(metadata=objects_pb2.Metadata(name="x"), route=objects_pb2.RouteSpec())

    with pytest.raises(InvalidRequest, match="has no strategy"):
        object_codec.object_from(message)


def test_what_is_not_set_takes_the_default_of_the_contract() -> None:
    message = objects_pb2.Object(metadata=objects_pb2.Metadata(name="x"))
    message.route.choose.candidates.add().model = "m"

    route = object_codec.object_from(message)

    assert route == Route(Metadata("x"), Choose((RouteTarget("m"),), 1.0, 0.001, 1.0), "", 30.0, 300.0, 3)
