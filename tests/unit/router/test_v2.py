"""What the router knows, in the words of the V2 protocol."""

from dataclasses import replace

from modelyard.host.v1 import host_pb2
from modelyard.openinference.v2 import model_config_pb2 as config_pb
from services.chassis.codec import duration_to, key_to, record_to
from services.domain.host import DeviceKind
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.objects import Backend, Object
from services.router import v2_wire
from tests.fakes.objects import MIB, a_host, a_model, a_version, hosted
from tests.unit.router.yards import a_choice, a_snapshot, digits

KEY = ModelKey("digits", "1.0.0")


def batching(model: str, size: int, backend: str = "identity") -> Object:
    return replace(a_version(model), max_batch_size=size, backend=Backend(backend), max_wait_s=0.002)


def test_a_model_that_does_not_batch_keeps_its_first_dimension() -> None:
    config = v2_wire.config_to(a_snapshot(digits(), []).destination("digits"))

    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 4]
    assert not config.HasField("dynamic_batching")


def test_a_model_that_batches_leaves_its_first_dimension_to_the_caller() -> None:
    snapshot = a_snapshot([a_model("digits"), batching("digits", 16)], [])

    config = v2_wire.config_to(snapshot.destination("digits"))

    assert config.max_batch_size == 16
    assert list(config.input[0].dims) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000


def test_a_route_batches_only_as_far_as_all_of_its_versions() -> None:
    one = a_snapshot([a_model("a"), a_model("b"), batching("a", 16), batching("b", 8), a_choice("r", "a", "b")], [])
    other = a_snapshot([a_model("a"), a_model("b"), batching("a", 16), a_version("b"), a_choice("r", "a", "b")], [])

    assert v2_wire.config_to(one.destination("r")).max_batch_size == 8
    assert v2_wire.config_to(other.destination("r")).max_batch_size == 0


def test_text_and_optional_inputs_keep_their_kind() -> None:
    model = replace(a_model("digits"), inputs=(TensorSpec("t", "BYTES", (-1,), optional=True),))

    (tensor,) = v2_wire.config_to(a_snapshot([model, a_version("digits")], []).destination("digits")).input

    assert (tensor.data_type, tensor.optional) == (config_pb.TYPE_STRING, True)


def test_instances_are_the_hosts_by_device() -> None:
    hosts = [a_host("h0", hosted("digits")), a_host("h1", hosted("digits"), kind=DeviceKind.CUDA)]

    groups = v2_wire.config_to(a_snapshot(digits(), hosts).destination("digits")).instance_group

    assert [(group.kind, group.count) for group in groups] == [
        (config_pb.ModelInstanceGroup.KIND_CPU, 1),
        (config_pb.ModelInstanceGroup.KIND_GPU, 1),
    ]


def test_platforms_of_a_mixed_route_are_all_named() -> None:
    objects = [
        a_model("a"),
        a_model("b"),
        batching("a", 2, "torch"),
        batching("b", 2, "sklearn"),
        a_choice("r", "a", "b"),
    ]

    assert v2_wire.metadata_to(a_snapshot(objects, []).destination("r")).platform == "pytorch+sklearn_skops"


def test_the_index_says_why_a_version_is_not_ready() -> None:
    hosts = [
        a_host("h0", hosted("a"), hosted("b", state=ModelState.LOADING)),
        a_host("h1", hosted("c", state=ModelState.FAILED, message="digest differs")),
    ]
    objects: list[Object] = [a_model(name) for name in "abcde"]
    objects += [a_version(name) for name in "abcd"] + [a_version("e", replicas=0)]
    snapshot = a_snapshot(objects, hosts)

    index = {entry.name: (entry.state, entry.reason) for entry in v2_wire.index_to(snapshot, ready_only=False).models}

    assert index == {
        "a": ("READY", ""),
        "b": ("LOADING", "on h0"),
        "c": ("UNAVAILABLE", "h1: digest differs"),
        "d": ("UNAVAILABLE", "not placed yet"),
        "e": ("UNAVAILABLE", "no replicas are asked for"),
    }
    assert [entry.name for entry in v2_wire.index_to(snapshot, ready_only=True).models] == ["a"]


def a_status(host_id: str, *, done: int, kind: DeviceKind = DeviceKind.CPU) -> host_pb2.GetStatusResponse:
    return host_pb2.GetStatusResponse(
        record=record_to(a_host(host_id, hosted("digits", mib=3), kind=kind)),
        statistics=[
            host_pb2.ModelStatistics(
                key=key_to(KEY),
                success_count=done,
                failure_count=1,
                execution_count=2,
                queue_total=duration_to(0.5),
                compute_total=duration_to(1.5),
                batch_counts={1: 1, done - 1: 1},
            )
        ],
    )


def test_statistics_add_up_over_hosts() -> None:
    statuses = [a_status("h0", done=3), a_status("h1", done=5, kind=DeviceKind.CUDA)]

    (stats,) = v2_wire.statistics_to({KEY: "digits"}, statuses, with_majors=False).model_stats

    assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("digits", "1.0.0", 8, 4)
    times = stats.inference_stats
    assert (times.success.count, times.success.ns) == (8, 4_000_000_000)
    assert times.compute_input.count == times.compute_infer.count == times.compute_output.count == 8
    assert (times.fail.count, times.queue.ns, times.compute_infer.ns) == (2, 1_000_000_000, 3_000_000_000)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in stats.batch_stats] == [(1, 2), (2, 1), (4, 1)]
    assert [(memory.type, memory.byte_size) for memory in stats.memory_usage] == [("CPU", 3 * MIB), ("GPU", 3 * MIB)]


def test_a_version_that_did_nothing_has_statistics_of_zero() -> None:
    (stats,) = v2_wire.statistics_to({KEY: "digits"}, [], with_majors=False).model_stats

    assert (stats.version, stats.inference_count) == ("1.0.0", 0)


def test_clients_that_know_whole_numbers_only_find_the_sum_of_a_major_version() -> None:
    newer = ModelKey("digits", "1.1.0")
    status = a_status("h0", done=3)
    status.statistics.add(key=key_to(newer), success_count=4)
    names = {KEY: "digits", newer: "digits", ModelKey("digits", "2.0.0"): "digits"}

    found = v2_wire.statistics_to(names, [status], with_majors=True).model_stats

    assert [(stats.version, stats.inference_count) for stats in found] == [
        ("1.0.0", 3),
        ("1.1.0", 4),
        ("2.0.0", 0),
        ("1", 7),
        ("2", 0),
    ]
