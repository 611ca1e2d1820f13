"""protobuf ⇄ domain for what every service exchanges: keys, schemas, hosts and loads. Objects are in `object_codec`.

Nothing is validated here; a value of a later contract becomes the safest one known.
"""

import math

from google.protobuf.duration_pb2 import Duration

from modelyard.type.v1 import model_pb2, resources_pb2, service_class_pb2
from services.domain import host
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.service_class import DEFAULT_BAND, LAST_BAND, OPEN, ServiceClass

_STATES = {
    model_pb2.MODEL_STATE_LOADING: ModelState.LOADING,
    model_pb2.MODEL_STATE_READY: ModelState.READY,
    model_pb2.MODEL_STATE_UNLOADING: ModelState.UNLOADING,
    model_pb2.MODEL_STATE_FAILED: ModelState.FAILED,
}
_STATES_TO = {state: number for number, state in _STATES.items()}
_DEVICES = {
    resources_pb2.DEVICE_KIND_CPU: host.DeviceKind.CPU,
    resources_pb2.DEVICE_KIND_CUDA: host.DeviceKind.CUDA,
}
_DEVICES_TO = {kind: number for number, kind in _DEVICES.items()}

CONTENTS: dict[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of InferTensorContents by datatype; FP16 and BF16 have none."""

LOAD_KEY = "x-modelyard-load-bin"
"""Trailing metadata of an Execute that failed: a serialized HostLoad."""


def duration_to(seconds: float) -> Duration:
    """A Duration of `seconds`, to the nanosecond."""
    nanos = round(seconds * 1e9)
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    sign = -1 if nanos < 0 else 1
    return Duration(seconds=sign * whole, nanos=sign * rest)


def seconds_from(duration: Duration) -> float:
    """Seconds of a Duration."""
    # One division, so that what duration_to took comes back the same float.
    return (duration.seconds * 1_000_000_000 + duration.nanos) / 1e9


def key_from(key: model_pb2.ModelKey) -> ModelKey:
    """A model version's identity."""
    return ModelKey(key.model, key.version)


def key_to(key: ModelKey) -> model_pb2.ModelKey:
    """A model version's identity."""
    return model_pb2.ModelKey(model=key.model, version=key.version)


def state_from(state: model_pb2.ModelState.ValueType) -> ModelState:
    """Where a version stands; a state of a later contract counts as LOADING: not to be used, not to be given up."""
    return _STATES.get(state, ModelState.LOADING)


def state_to(state: ModelState) -> model_pb2.ModelState.ValueType:
    """Where a version stands."""
    return _STATES_TO[state]


def spec_from(spec: model_pb2.TensorSpec) -> TensorSpec:
    """One input or output of a schema."""
    return TensorSpec(spec.name, spec.datatype, tuple(spec.shape), spec.optional, spec.allow_non_finite)


def spec_to(spec: TensorSpec) -> model_pb2.TensorSpec:
    """One input or output of a schema."""
    return model_pb2.TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=spec.shape,
        optional=spec.optional,
        allow_non_finite=spec.allow_non_finite,
    )


def device_kind_from(kind: resources_pb2.DeviceKind.ValueType) -> host.DeviceKind | None:
    """A device kind; None if unspecified."""
    return _DEVICES.get(kind)


def device_kind_to(kind: host.DeviceKind | None) -> resources_pb2.DeviceKind.ValueType:
    """A device kind."""
    return resources_pb2.DEVICE_KIND_UNSPECIFIED if kind is None else _DEVICES_TO[kind]


def record_from(record: resources_pb2.HostRecord) -> host.HostRecord:
    """A host's record."""
    return host.HostRecord(
        host_id=record.host_id,
        address=record.address,
        pool=record.pool,
        zone=record.zone,
        device=host.Device(
            kind=_DEVICES.get(record.device.kind, host.DeviceKind.CPU),
            name=record.device.name,
            memory_bytes=record.device.memory_bytes,
            used_bytes=record.device.used_bytes,
        ),
        models=tuple(
            host.HostedModel(
                key=key_from(hosted.key),
                state=state_from(hosted.state),
                message=hosted.message,
                memory_bytes=hosted.memory_bytes,
                load_time_s=seconds_from(hosted.load_time),
            )
            for hosted in record.models
        ),
        draining=record.draining,
        pid=record.pid,
        trusts_artifacts=record.trusts_artifacts,
        cordoned=record.cordoned,
    )


def record_to(record: host.HostRecord) -> resources_pb2.HostRecord:
    """A host's record."""
    return resources_pb2.HostRecord(
        host_id=record.host_id,
        address=record.address,
        pool=record.pool,
        zone=record.zone,
        device=resources_pb2.Device(
            kind=_DEVICES_TO[record.device.kind],
            name=record.device.name,
            memory_bytes=record.device.memory_bytes,
            used_bytes=record.device.used_bytes,
        ),
        models=[
            resources_pb2.HostedModel(
                key=key_to(hosted.key),
                state=state_to(hosted.state),
                message=hosted.message,
                memory_bytes=hosted.memory_bytes,
                load_time=duration_to(hosted.load_time_s),
            )
            for hosted in sorted(record.models, key=lambda hosted: hosted.key)
        ],
        draining=record.draining,
        pid=record.pid,
        trusts_artifacts=record.trusts_artifacts,
        cordoned=record.cordoned,
    )


def load_from(load: resources_pb2.HostLoad) -> host.HostLoad:
    """A host's load."""
    return host.HostLoad(
        host_id=load.host_id,
        sequence=load.sequence,
        models=tuple(
            host.ModelLoad(
                key=key_from(model.key),
                queued=model.queued,
                running=model.running,
                batch_cap=model.batch_cap,
                base_s=model.base_s,
                per_item_s=model.per_item_s,
                queued_up_to=tuple(model.queued_up_to),
                absent_s=model.absent_s,
            )
            for model in load.models
        ),
        used_bytes=load.used_bytes,
        utilization=load.utilization,
        draining=load.draining,
        cutoff=load.cutoff or OPEN,
    )


def load_to(load: host.HostLoad) -> resources_pb2.HostLoad:
    """A host's load."""
    return resources_pb2.HostLoad(
        host_id=load.host_id,
        sequence=load.sequence,
        models=[
            resources_pb2.ModelLoad(
                key=key_to(model.key),
                queued=model.queued,
                running=model.running,
                batch_cap=model.batch_cap,
                base_s=model.base_s,
                per_item_s=model.per_item_s,
                queued_up_to=model.queued_up_to,
                absent_s=model.absent_s,
            )
            for model in load.models
        ],
        used_bytes=load.used_bytes,
        utilization=load.utilization,
        draining=load.draining,
        cutoff=load.cutoff,
    )


def service_class_from(message: service_class_pb2.ServiceClass) -> ServiceClass:
    """A service class; what is out of range becomes what is nearest to it."""
    weight = message.weight if message.HasField("weight") else 1.0
    reserved = message.reserved_share
    return ServiceClass(
        tenant=message.tenant,
        tier=message.tier,
        band=min(message.band, LAST_BAND) if message.band > 0 else DEFAULT_BAND,
        reserved_share=min(1.0, reserved) if reserved > 0.0 else 0.0,
        weight=weight if 0.0 < weight < math.inf else 1.0,
        sheddable=message.sheddable,
        preempts=message.preempts,
    )


def service_class_to(service_class: ServiceClass) -> service_class_pb2.ServiceClass:
    """A service class."""
    return service_class_pb2.ServiceClass(
        tenant=service_class.tenant,
        tier=service_class.tier,
        band=service_class.band,
        reserved_share=service_class.reserved_share,
        weight=service_class.weight,
        sheddable=service_class.sheddable,
        preempts=service_class.preempts,
    )
