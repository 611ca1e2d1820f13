"""What only the wire form shows: kinds and durations that a domain object would hide."""

import pytest
from google.protobuf.duration_pb2 import Duration

from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import record_to
from services.chassis.object_codec import object_to
from services.domain.errors import InvalidRequest
from services.domain.objects import ObjectKey
from services.policy.change_check import check
from services.registry import wire
from tests.fakes.objects import a_host, a_model, a_policy, a_pool, a_version


def test_objects_that_cannot_be_read_carry_their_faults_along() -> None:
    request = registry_pb2.ApplyRequest(
        objects=[
            objects_pb2.Object(metadata=objects_pb2.Metadata(name="nothing")),
            objects_pb2.Object(metadata=objects_pb2.Metadata(name="r"), route=objects_pb2.RouteSpec()),
            object_to(a_model("fine")),
        ]
    )

    command = wire.command_from(request)
    faults = check({}, command.submitted, command.deletes, lambda _: ())

    assert [fault.path for fault in faults] == ["objects[0].spec", "objects[1].route.strategy"]
    assert command.submitted[1].key == ObjectKey("Route", "r")


def test_device_kinds_and_durations_of_no_meaning_are_faults() -> None:
    pool, version, model = object_to(a_pool()), object_to(a_version("m")), object_to(a_model("m"))
    pool.pool.device_kind = 77  # type: ignore[assignment]
    version.model_version.resources.device_kind = 77  # type: ignore[assignment]
    version.model_version.service_time.CopyFrom(Duration(seconds=1, nanos=-1))
    model.model.latency_slo.CopyFrom(Duration(seconds=1 << 60))

    command = wire.command_from(registry_pb2.ApplyRequest(objects=[pool, version, model]))

    assert [fault.path for fault in check({}, command.submitted, (), lambda _: ())] == [
        "objects[0].pool.device_kind",
        "objects[1].model_version.resources.device_kind",
        "objects[1].model_version.service_time",
        "objects[2].model.latency_slo",
    ]


def test_numbers_that_are_no_value_of_their_enum_are_faults_wherever_they_stand() -> None:
    target = objects_pb2.RouteTarget(model="m")
    split = objects_pb2.Split(targets=[objects_pb2.SplitTarget(target=target, percent=100)])
    split.hash_key = 77  # type: ignore[assignment]
    shadow = objects_pb2.Shadow(primary=target, shadow=objects_pb2.RouteTarget(model="n"))
    shadow.budget.period.nanos = -1
    shadow.budget.period.seconds = 1
    policy = object_to(a_policy())
    policy.policy.tiers[1].preemption = 77  # type: ignore[assignment]
    named = objects_pb2.Metadata(name="r")

    found = [
        wire.submitted(message).faults
        for message in (
            objects_pb2.Object(metadata=named, route=objects_pb2.RouteSpec(split=split)),
            objects_pb2.Object(metadata=named, route=objects_pb2.RouteSpec(shadow=shadow)),
            policy,
        )
    ]

    assert [str(fault) for faults in found for fault in faults] == [
        "route.split.hash_key: 77 is none of SESSION, TENANT, REQUEST",
        "route.shadow.budget.period: 1 seconds and -1 nanos are no valid Duration",
        "policy.tiers[1].preemption: 77 is none of LOWER_BANDS, NEVER",
    ]


def test_an_object_that_is_a_flood_is_refused_before_it_is_read() -> None:
    crowded = object_to(a_model("m"))
    crowded.metadata.labels.update({f"key-{number}": "" for number in range(1_000_000)})
    large = object_to(a_model("m"))
    large.model.description = "x" * (1 << 20)
    many = object_to(a_model("m"))
    many.model.inputs.extend([many.model.inputs[0]] * 100_000)

    found = [wire.submitted(message) for message in (crowded, large, many)]

    assert [entry.item for entry in found] == [None] * 3
    assert [entry.key for entry in found] == [ObjectKey("Model", "m")] * 3
    faults = [str(fault) for entry in found for fault in entry.faults]
    assert faults[0] == "metadata.labels: has 1000000 entries, at most 64"
    assert all("bytes, at most 1048576: large data belongs in artifacts" in fault for fault in faults[1:])


def test_every_fault_of_a_host_record_comes_at_once() -> None:
    record = resources_pb2.HostRecord(host_id="Bad Id", address="nowhere", device=resources_pb2.Device(memory_bytes=-1))

    assert [fault.path for fault in wire.record_faults(record)] == [
        "record.host_id",
        "record.address",
        "record.pool",
        "record.device.kind",
        "record.device.memory_bytes",
    ]
    assert wire.record_faults(record_to(a_host("cpu-0"))) == []


def test_a_record_too_large_to_be_written_often_is_a_fault() -> None:
    record = record_to(a_host("cpu-0"))
    record.device.name = "x" * wire.MAX_RECORD_BYTES

    assert [fault.path for fault in wire.record_faults(record)] == ["record"]


def test_a_stream_has_one_host_and_begins_with_its_record() -> None:
    report = registry_pb2.RegisterHostRequest(progress=1)
    with pytest.raises(InvalidRequest, match="the first report must bring the record"):
        wire.record_from(report, "")
    assert wire.record_from(report, "cpu-0") is None

    other = registry_pb2.RegisterHostRequest(record=record_to(a_host("cpu-1")))
    with pytest.raises(InvalidRequest, match="this stream is of 'cpu-0', not of 'cpu-1'"):
        wire.record_from(other, "cpu-0")


@pytest.mark.parametrize(
    ("kind", "name", "version", "path"),
    [
        ("Secret", "x", "", "key.kind"),
        ("Model", "", "", "key.name"),
        ("ModelVersion", "x", "", "key.version"),
        ("Model", "x", "1.0.0", "key.version"),
    ],
)
def test_a_key_that_can_name_nothing_is_refused(kind: str, name: str, version: str, path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.lookup_key_from(objects_pb2.ObjectKey(kind=kind, name=name, version=version))

    assert [fault.path for fault in refused.value.faults] == [path]


def test_a_plan_must_be_there_and_fit_into_the_store() -> None:
    with pytest.raises(InvalidRequest, match="must be set"):
        wire.plan_from(registry_pb2.PublishPlanRequest())
    with pytest.raises(InvalidRequest, match="at most"):
        wire.plan_from(registry_pb2.PublishPlanRequest(plan=registry_pb2.Plan(leader_id="x" * (1 << 20))))


def test_templates_are_looked_into_and_may_be_nested_as_deep_as_messages_can() -> None:
    pool = object_to(a_pool("${nobody}"))
    pool.pool.device_kind = 77  # type: ignore[assignment]
    nested = objects_pb2.Object(template=objects_pb2.TemplateSpec(objects=[pool]))
    nested.metadata.name = "t"
    shallow = objects_pb2.Object.FromString(nested.SerializeToString())
    for _ in range(40):
        nested = objects_pb2.Object(metadata=nested.metadata, template=objects_pb2.TemplateSpec(objects=[nested]))

    faults = wire.submitted(shallow).faults
    assert [fault.path for fault in faults] == [
        "template.objects[0].pool.device_kind",
        "template.objects[0].metadata.name",
    ]
    deep = wire.submitted(objects_pb2.Object.FromString(nested.SerializeToString()))
    assert "template.objects[0]: a Template makes no Templates" in map(str, deep.faults)
