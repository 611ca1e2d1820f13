"""What the router knows, in the words of the Open Inference Protocol V2."""

from collections.abc import Mapping, Sequence

from modelyard.host.v1 import host_pb2
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from modelyard.openinference.v2 import model_config_pb2 as config_pb
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import key_from, seconds_from
from services.domain.host import DeviceKind
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.objects import ModelVersion
from services.domain.semver import semver_order
from services.router.destination import Destination, Option
from services.router.snapshot import Snapshot

_PLATFORMS = {
    "identity": "identity",
    "onnxruntime": "onnxruntime_onnx",
    "sklearn": "sklearn_skops",
    "torch": "pytorch",
}

_DATA_TYPES = {
    "BOOL": config_pb.TYPE_BOOL,
    "UINT8": config_pb.TYPE_UINT8,
    "UINT16": config_pb.TYPE_UINT16,
    "UINT32": config_pb.TYPE_UINT32,
    "UINT64": config_pb.TYPE_UINT64,
    "INT8": config_pb.TYPE_INT8,
    "INT16": config_pb.TYPE_INT16,
    "INT32": config_pb.TYPE_INT32,
    "INT64": config_pb.TYPE_INT64,
    "FP16": config_pb.TYPE_FP16,
    "BF16": config_pb.TYPE_BF16,
    "FP32": config_pb.TYPE_FP32,
    "FP64": config_pb.TYPE_FP64,
    "BYTES": config_pb.TYPE_STRING,
}


def metadata_to(destination: Destination) -> v2.ModelMetadataResponse:
    """Versions, platform and schema behind a name; the batch dimension stands in the shapes."""
    response = v2.ModelMetadataResponse(
        name=destination.name,
        versions=sorted({option.version.version for option in destination.options}, key=semver_order),
        platform=_platform(destination.options),
    )
    inputs, outputs = destination.inputs, destination.outputs
    for specs, tensors in ((inputs, response.inputs), (outputs, response.outputs)):
        for spec in specs:
            tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def config_to(destination: Destination) -> config_pb.ModelConfig:
    """Configuration of what a name leads to.

    A batch dimension is split off only if every version behind the name batches: a client then adds its own.
    """
    options = destination.options
    config = config_pb.ModelConfig(name=destination.name, platform=_platform(options))
    config.model_transaction_policy.decoupled = destination.generates
    if not options:
        return config
    first = next((option for option in options if option.hosts), options[0])
    batches = all(option.version.max_batch_size > 1 for option in options) and all(
        spec.shape[:1] == (-1,) for spec in (*destination.inputs, *destination.outputs)
    )
    config.backend = first.version.backend.name
    if destination.strategy != "single":
        config.version_policy.all.SetInParent()
    else:
        config.version_policy.latest.num_versions = 1
    for spec in destination.inputs:
        config.input.add(
            name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=_dims(spec, batches), optional=spec.optional
        )
    for spec in destination.outputs:
        config.output.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=_dims(spec, batches))
    if batches:
        config.max_batch_size = min(option.version.max_batch_size for option in options)
        longest_s = max(option.version.max_wait_s for option in options)
        config.dynamic_batching.max_queue_delay_microseconds = round(longest_s * 1e6)
    for kind, count in sorted(_devices(options).items(), key=lambda item: item[0].value):
        config.instance_group.add(
            name=kind.value.lower(),
            kind=config_pb.ModelInstanceGroup.KIND_GPU
            if kind is DeviceKind.CUDA
            else config_pb.ModelInstanceGroup.KIND_CPU,
            count=count,
        )
    config.parameters["strategy"].string_value = destination.strategy
    return config


def index_to(snapshot: Snapshot, *, ready_only: bool) -> v2.RepositoryIndexResponse:
    """Every version of every model, with its state."""
    response = v2.RepositoryIndexResponse()
    for model in sorted(snapshot.objects.models):
        for version in reversed(snapshot.newest_first(model)):
            state, reason = _index_state(snapshot, version)
            if state == "READY" or not ready_only:
                response.models.add(name=model, version=version.version, state=state, reason=reason)
    return response


def statistics_to(
    names: Mapping[ModelKey, str], statuses: Sequence[host_pb2.GetStatusResponse], *, with_majors: bool
) -> v2.ModelStatisticsResponse:
    """What versions have done, added up over hosts.

    Args:
        names: The versions asked for, each with the name to report it under; versions of several models under one
            name and number are added up too.
        statuses: What the hosts say.
        with_majors: Whether to add an entry for each major version, with its number alone, for the sum of its
            versions: perf_analyzer reads versions as whole numbers and finds no other.
    """
    found: dict[tuple[str, str], v2.ModelStatistics] = {}
    _add_up({key: (name, key.version) for key, name in names.items()}, statuses, found)
    ordered = sorted(found, key=lambda item: (item[0], semver_order(item[1])))
    if with_majors:
        majors: dict[tuple[str, str], v2.ModelStatistics] = {}
        _add_up({key: (name, key.version.partition(".")[0]) for key, name in names.items()}, statuses, majors)
        found |= majors
        ordered += sorted(majors)
    return v2.ModelStatisticsResponse(model_stats=[found[item] for item in ordered])


def _add_up(
    entries: Mapping[ModelKey, tuple[str, str]],
    statuses: Sequence[host_pb2.GetStatusResponse],
    found: dict[tuple[str, str], v2.ModelStatistics],
) -> None:
    """Add what hosts say of each key to its entry, a name and a version."""
    for name, version in entries.values():
        found[name, version] = v2.ModelStatistics(name=name, version=version)
    for status in statuses:
        for done in status.statistics:
            entry = entries.get(key_from(done.key))
            if entry is not None:
                _add(found[entry], done)
        for hosted in status.record.models:
            entry = entries.get(key_from(hosted.key))
            if entry is not None and hosted.memory_bytes:
                kind = "GPU" if status.record.device.kind == resources_pb2.DEVICE_KIND_CUDA else "CPU"
                found[entry].memory_usage.add(type=kind, byte_size=hosted.memory_bytes)


def _platform(options: Sequence[Option]) -> str:
    platforms = {_PLATFORMS.get(option.version.backend.name, option.version.backend.name) for option in options}
    return platforms.pop() if len(platforms) == 1 else "+".join(sorted(platforms))


def _dims(spec: TensorSpec, batches: bool) -> tuple[int, ...]:
    return spec.shape[1:] if batches else spec.shape


def _devices(options: Sequence[Option]) -> dict[DeviceKind, int]:
    hosts = {host.host_id: host.device.kind for option in options for host in option.hosts}
    kinds = list(hosts.values())
    return {kind: kinds.count(kind) for kind in set(kinds)}


def _index_state(snapshot: Snapshot, version: ModelVersion) -> tuple[str, str]:
    key = version.model_key
    if snapshot.ready(key):
        return "READY", ""
    states = snapshot.states(key)
    for state in (ModelState.LOADING, ModelState.UNLOADING):
        for host, found, _ in states:
            if found is state and not host.draining:
                return state.value, f"on {host.host_id}"
    failed = [f"{host.host_id}: {message or 'failed'}" for host, found, message in states if found is ModelState.FAILED]
    if failed:
        return "UNAVAILABLE", "; ".join(failed)
    return "UNAVAILABLE", "no replicas are asked for" if version.min_replicas == 0 else "not placed yet"


def _add(total: v2.ModelStatistics, done: host_pb2.ModelStatistics) -> None:
    queue_ns = round(seconds_from(done.queue_total) * 1e9)
    compute_ns = round(seconds_from(done.compute_total) * 1e9)
    total.inference_count += done.success_count
    total.execution_count += done.execution_count
    stats = total.inference_stats
    stats.success.count += done.success_count
    stats.success.ns += queue_ns + compute_ns
    stats.fail.count += done.failure_count
    stats.queue.count += done.success_count
    stats.queue.ns += queue_ns
    stats.compute_infer.ns += compute_ns
    # What hosts measure as compute has both ends in it; perf_analyzer ends itself if the three counts differ.
    for stage in (stats.compute_input, stats.compute_infer, stats.compute_output):
        stage.count += done.success_count
    sizes = {batch.batch_size: batch for batch in total.batch_stats}
    for size, count in sorted(done.batch_counts.items()):
        batch = sizes.get(size) or total.batch_stats.add(batch_size=size)
        batch.compute_infer.count += count
