"""protobuf ⇄ domain for the object kinds.

Wire defaults become the domain's: a duration or count that is not set takes the value the
contract's comment gives. Nothing is validated here but what a value of the domain cannot
hold; that raises `InvalidRequest`. Routes are in `route_codec`, Policies and Tenants in `tenancy_codec`,
Templates in `template_codec`.
"""

from collections.abc import Iterable, Mapping

from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import device_kind_from, device_kind_to, duration_to, seconds_from, spec_from, spec_to
from services.chassis.route_codec import route_from, route_to
from services.chassis.template_codec import template_from, template_to
from services.chassis.tenancy_codec import policy_from, policy_to, tenant_from, tenant_to
from services.domain import host, objects
from services.domain.errors import Fault, InvalidRequest
from services.domain.texts import shown

_SPECS = tuple(field.name for field in objects_pb2.Object.DESCRIPTOR.oneofs_by_name["spec"].fields)
_KINDS = {spec: "".join(word.capitalize() for word in spec.split("_")) for spec in _SPECS}


def object_key_from(key: objects_pb2.ObjectKey) -> objects.ObjectKey:
    """An object's identity."""
    return objects.ObjectKey(key.kind, key.name, key.version)


def object_key_to(key: objects.ObjectKey) -> objects_pb2.ObjectKey:
    """An object's identity."""
    return objects_pb2.ObjectKey(kind=key.kind, name=key.name, version=key.version)


def message_key(message: objects_pb2.Object) -> objects.ObjectKey:
    """The identity of an object that may be unreadable; its kind is empty if this release knows none of it."""
    return objects.ObjectKey(
        _KINDS.get(message.WhichOneof("spec") or "", ""), message.metadata.name, message.model_version.version
    )


def readable(
    messages: Iterable[objects_pb2.Object],
) -> tuple[list[objects.Object], list[tuple[objects.ObjectKey, InvalidRequest]]]:
    """The objects that can be read, and those of a later release, with kinds or strategies of its own, that cannot."""
    found: list[objects.Object] = []
    others: list[tuple[objects.ObjectKey, InvalidRequest]] = []
    for message in messages:
        try:
            found.append(object_from(message))
        except InvalidRequest as error:
            others.append((message_key(message), error))
    return found, others


def object_from(message: objects_pb2.Object) -> objects.Object:
    """An object of any kind.

    Raises:
        InvalidRequest: The message says of no kind, or of no strategy.
    """
    metadata = objects.Metadata(
        message.metadata.name,
        dict(message.metadata.labels),
        dict(message.metadata.annotations),
        message.metadata.tenant,
    )
    match message.WhichOneof("spec"):
        case "model":
            return _model_from(metadata, message.model)
        case "model_version":
            return _version_from(metadata, message.model_version)
        case "route":
            return route_from(metadata, message.route)
        case "pool":
            return _pool_from(metadata, message.pool)
        case "policy":
            return policy_from(metadata, message.policy)
        case "tenant":
            return tenant_from(metadata, message.tenant)
        case "template":
            return template_from(metadata, message.template)
        case _:
            raise InvalidRequest.of(
                [Fault("spec", f"object {shown(metadata.name)} has no spec; set one of {', '.join(_SPECS)}")]
            )


def object_to(item: objects.Object) -> objects_pb2.Object:
    """An object of any kind."""
    metadata = objects_pb2.Metadata(
        name=item.metadata.name,
        labels=dict(item.metadata.labels),
        annotations=dict(item.metadata.annotations),
        tenant=item.metadata.tenant,
    )
    match item:
        case objects.Model():
            return objects_pb2.Object(metadata=metadata, model=_model_to(item))
        case objects.ModelVersion():
            return objects_pb2.Object(metadata=metadata, model_version=_version_to(item))
        case objects.Route():
            return objects_pb2.Object(metadata=metadata, route=route_to(item))
        case objects.Pool():
            return objects_pb2.Object(metadata=metadata, pool=_pool_to(item))
        case objects.Policy():
            return objects_pb2.Object(metadata=metadata, policy=policy_to(item))
        case objects.Tenant():
            return objects_pb2.Object(metadata=metadata, tenant=tenant_to(item))
        case objects.Template():
            return objects_pb2.Object(metadata=metadata, template=template_to(item))


def _model_from(metadata: objects.Metadata, spec: objects_pb2.ModelSpec) -> objects.Model:
    return objects.Model(
        metadata=metadata,
        inputs=tuple(spec_from(tensor) for tensor in spec.inputs),
        outputs=tuple(spec_from(tensor) for tensor in spec.outputs),
        task=spec.task,
        modality=spec.modality,
        description=spec.description,
        latency_slo_s=seconds_from(spec.latency_slo) if spec.HasField("latency_slo") else None,
        owner=spec.owner,
        availability_slo=spec.availability_slo if spec.HasField("availability_slo") else None,
        deterministic=spec.deterministic,
        shareable_answers=spec.shareable_answers,
    )


def _model_to(model: objects.Model) -> objects_pb2.ModelSpec:
    return objects_pb2.ModelSpec(
        description=model.description,
        task=model.task,
        modality=model.modality,
        inputs=[spec_to(tensor) for tensor in model.inputs],
        outputs=[spec_to(tensor) for tensor in model.outputs],
        latency_slo=None if model.latency_slo_s is None else duration_to(model.latency_slo_s),
        owner=model.owner,
        availability_slo=model.availability_slo,
        deterministic=model.deterministic,
        shareable_answers=model.shareable_answers,
    )


def _artifact_from(artifact: objects_pb2.Artifact) -> objects.Artifact:
    return objects.Artifact(artifact.uri, artifact.sha256)


def _artifact_to(artifact: objects.Artifact) -> objects_pb2.Artifact:
    return objects_pb2.Artifact(uri=artifact.uri, sha256=artifact.sha256)


def _version_from(metadata: objects.Metadata, spec: objects_pb2.ModelVersionSpec) -> objects.ModelVersion:
    return objects.ModelVersion(
        metadata=metadata,
        version=spec.version,
        backend=objects.Backend(
            name=spec.backend.name,
            architecture=spec.backend.architecture,
            options=dict(spec.backend.options),
            executes_code=spec.backend.executes_code,
        ),
        artifact=_artifact_from(spec.artifact) if spec.HasField("artifact") else None,
        files={name: _artifact_from(artifact) for name, artifact in spec.files.items()},
        device_kind=device_kind_from(spec.resources.device_kind),
        memory_bytes=spec.resources.memory_bytes,
        max_batch_size=spec.batching.max_batch_size,
        max_wait_s=seconds_from(spec.batching.max_wait),
        padding=tuple(
            objects.Padding(each.input, each.dimension, each.value, dict(each.outputs))
            for each in spec.batching.padding
        ),
        min_replicas=spec.min_replicas,
        pool=spec.pool,
        cost_microusd=spec.cost_microusd,
        quality=spec.quality if spec.HasField("quality") else None,
        quality_metric=spec.quality_metric,
        service_time_s=seconds_from(spec.service_time) if spec.HasField("service_time") else 0.010,
        lineage=objects.Lineage(
            code_commit=spec.lineage.code_commit,
            data=spec.lineage.data,
            parent=spec.lineage.parent,
            license=spec.lineage.license,
            dependencies=dict(spec.lineage.dependencies),
            training_run=spec.lineage.training_run,
        ),
        warmup=tuple(_tensors_from(sample.inputs) for sample in spec.warmup),
        segment_qualities=tuple(
            objects.SegmentQuality(place.task, place.segment, place.quality, place.metric)
            for place in spec.segment_qualities
        ),
        failure_modes=tuple(spec.failure_modes),
        owner=spec.owner,
        smoke=_smoke_from(spec.smoke) if spec.HasField("smoke") else None,
        generation=_generation_from(spec.generation) if spec.HasField("generation") else None,
        on_demand=spec.on_demand,
    )


def _tensors_from(tensors: Mapping[str, objects_pb2.WarmupTensor]) -> dict[str, objects.WarmupTensor]:
    return {name: objects.WarmupTensor(tuple(tensor.shape), tensor.raw) for name, tensor in sorted(tensors.items())}


def _tensors_to(tensors: Mapping[str, objects.WarmupTensor]) -> dict[str, objects_pb2.WarmupTensor]:
    return {name: objects_pb2.WarmupTensor(shape=tensor.shape, raw=tensor.raw) for name, tensor in tensors.items()}


def _smoke_from(test: objects_pb2.SmokeTest) -> objects.SmokeTest:
    return objects.SmokeTest(
        inputs=_tensors_from(test.inputs),
        outputs=_tensors_from(test.outputs),
        tolerance=test.tolerance,
        max_latency_s=seconds_from(test.max_latency) if test.HasField("max_latency") else None,
    )


def _smoke_to(test: objects.SmokeTest) -> objects_pb2.SmokeTest:
    return objects_pb2.SmokeTest(
        inputs=_tensors_to(test.inputs),
        outputs=_tensors_to(test.outputs),
        tolerance=test.tolerance,
        max_latency=None if test.max_latency_s is None else duration_to(test.max_latency_s),
    )


def _generation_from(spec: objects_pb2.Generation) -> objects.Generation:
    usual = objects.Generation()
    return objects.Generation(
        sequences=spec.sequences or usual.sequences,
        max_tokens=spec.max_tokens or usual.max_tokens,
        prefill_tokens=spec.prefill_tokens or usual.prefill_tokens,
        max_waiting=spec.max_waiting or usual.max_waiting,
    )


def _generation_to(generation: objects.Generation) -> objects_pb2.Generation:
    return objects_pb2.Generation(
        sequences=generation.sequences,
        max_tokens=generation.max_tokens,
        prefill_tokens=generation.prefill_tokens,
        max_waiting=generation.max_waiting,
    )


def _version_to(version: objects.ModelVersion) -> objects_pb2.ModelVersionSpec:
    return objects_pb2.ModelVersionSpec(
        version=version.version,
        artifact=None if version.artifact is None else _artifact_to(version.artifact),
        files={name: _artifact_to(artifact) for name, artifact in version.files.items()},
        backend=objects_pb2.Backend(
            name=version.backend.name,
            architecture=version.backend.architecture,
            options=dict(version.backend.options),
            executes_code=version.backend.executes_code,
        ),
        resources=resources_pb2.ResourceNeed(
            device_kind=device_kind_to(version.device_kind), memory_bytes=version.memory_bytes
        ),
        batching=objects_pb2.Batching(
            max_batch_size=version.max_batch_size,
            max_wait=duration_to(version.max_wait_s),
            padding=[
                objects_pb2.Padding(input=each.input, dimension=each.dimension, value=each.value, outputs=each.outputs)
                for each in version.padding
            ],
        ),
        min_replicas=version.min_replicas,
        pool=version.pool,
        cost_microusd=version.cost_microusd,
        quality=version.quality,
        quality_metric=version.quality_metric,
        service_time=duration_to(version.service_time_s),
        lineage=objects_pb2.Lineage(
            code_commit=version.lineage.code_commit,
            data=version.lineage.data,
            parent=version.lineage.parent,
            license=version.lineage.license,
            dependencies=dict(version.lineage.dependencies),
            training_run=version.lineage.training_run,
        ),
        warmup=[objects_pb2.WarmupSample(inputs=_tensors_to(sample)) for sample in version.warmup],
        segment_qualities=[
            objects_pb2.SegmentQuality(
                task=place.task, segment=place.segment, quality=place.quality, metric=place.metric
            )
            for place in version.segment_qualities
        ],
        failure_modes=version.failure_modes,
        owner=version.owner,
        smoke=None if version.smoke is None else _smoke_to(version.smoke),
        generation=None if version.generation is None else _generation_to(version.generation),
        on_demand=version.on_demand,
    )


def _pool_from(metadata: objects.Metadata, spec: objects_pb2.PoolSpec) -> objects.Pool:
    return objects.Pool(
        metadata=metadata,
        device_kind=device_kind_from(spec.device_kind) or host.DeviceKind.CPU,
        memory_bytes=spec.memory_bytes,
        min_hosts=spec.min_hosts,
        max_hosts=spec.max_hosts or spec.min_hosts,
        zone=spec.zone,
        description=spec.description,
        trusts_artifacts=spec.trusts_artifacts,
        staging=spec.staging,
        max_version_bytes=spec.max_version_bytes,
        min_latency_slo_s=seconds_from(spec.min_latency_slo),
    )


def _pool_to(pool: objects.Pool) -> objects_pb2.PoolSpec:
    return objects_pb2.PoolSpec(
        description=pool.description,
        device_kind=device_kind_to(pool.device_kind),
        zone=pool.zone,
        memory_bytes=pool.memory_bytes,
        min_hosts=pool.min_hosts,
        max_hosts=pool.max_hosts,
        trusts_artifacts=pool.trusts_artifacts,
        staging=pool.staging,
        max_version_bytes=pool.max_version_bytes,
        min_latency_slo=duration_to(pool.min_latency_slo_s) if pool.min_latency_slo_s else None,
    )
