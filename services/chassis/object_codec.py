"""protobuf ⇄ domain for the object kinds.

Wire defaults become the domain's: a duration or count that is not set takes the value the
contract's comment gives. Nothing is validated here but what a value of the domain cannot
hold; that raises `InvalidRequest`.
"""

from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis.codec import device_kind_from, device_kind_to, duration_to, seconds_from, spec_from, spec_to
from services.domain import host, objects
from services.domain.errors import Fault, InvalidRequest


def object_key_from(key: objects_pb2.ObjectKey) -> objects.ObjectKey:
    """An object's identity."""
    return objects.ObjectKey(key.kind, key.name, key.version)


def object_key_to(key: objects.ObjectKey) -> objects_pb2.ObjectKey:
    """An object's identity."""
    return objects_pb2.ObjectKey(kind=key.kind, name=key.name, version=key.version)


def object_from(message: objects_pb2.Object) -> objects.Object:
    """An object of any kind.

    Raises:
        InvalidRequest: The message says of no kind, or of no strategy.
    """
    metadata = objects.Metadata(
        message.metadata.name, dict(message.metadata.labels), dict(message.metadata.annotations)
    )
    match message.WhichOneof("spec"):
        case "model":
            return _model_from(metadata, message.model)
        case "model_version":
            return _version_from(metadata, message.model_version)
        case "route":
            return _route_from(metadata, message.route)
        case "pool":
            return _pool_from(metadata, message.pool)
        case _:
            raise InvalidRequest.of(
                [Fault("spec", f"object '{metadata.name}' has no spec; set one of model, model_version, route, pool")]
            )


def object_to(item: objects.Object) -> objects_pb2.Object:
    """An object of any kind."""
    metadata = objects_pb2.Metadata(
        name=item.metadata.name, labels=dict(item.metadata.labels), annotations=dict(item.metadata.annotations)
    )
    match item:
        case objects.Model():
            return objects_pb2.Object(metadata=metadata, model=_model_to(item))
        case objects.ModelVersion():
            return objects_pb2.Object(metadata=metadata, model_version=_version_to(item))
        case objects.Route():
            return objects_pb2.Object(metadata=metadata, route=_route_to(item))
        case objects.Pool():
            return objects_pb2.Object(metadata=metadata, pool=_pool_to(item))


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
        min_replicas=spec.min_replicas,
        pool=spec.pool,
        cost_microusd=spec.cost_microusd,
        quality=spec.quality if spec.HasField("quality") else None,
        quality_metric=spec.quality_metric,
        service_time_s=seconds_from(spec.service_time) if spec.HasField("service_time") else 0.010,
        lineage=objects.Lineage(spec.lineage.code_commit, spec.lineage.data, spec.lineage.parent, spec.lineage.license),
        warmup=tuple(
            {
                name: objects.WarmupTensor(tuple(tensor.shape), tensor.raw)
                for name, tensor in sorted(sample.inputs.items())
            }
            for sample in spec.warmup
        ),
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
        batching=objects_pb2.Batching(max_batch_size=version.max_batch_size, max_wait=duration_to(version.max_wait_s)),
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
        ),
        warmup=[
            objects_pb2.WarmupSample(
                inputs={
                    name: objects_pb2.WarmupTensor(shape=tensor.shape, raw=tensor.raw)
                    for name, tensor in sample.items()
                }
            )
            for sample in version.warmup
        ],
    )


def _target_from(target: objects_pb2.RouteTarget) -> objects.RouteTarget:
    return objects.RouteTarget(target.model, target.version)


def _target_to(target: objects.RouteTarget) -> objects_pb2.RouteTarget:
    return objects_pb2.RouteTarget(model=target.model, version=target.version)


def _route_from(metadata: objects.Metadata, spec: objects_pb2.RouteSpec) -> objects.Route:
    strategy: objects.Single | objects.Choose
    match spec.WhichOneof("strategy"):
        case "single":
            strategy = objects.Single(_target_from(spec.single.target))
        case "choose":
            strategy = objects.Choose(
                candidates=tuple(_target_from(target) for target in spec.choose.candidates),
                quality_weight=spec.choose.quality_weight or 1.0,
                cost_weight=spec.choose.cost_weight or 0.001,
                latency_weight=spec.choose.latency_weight or 1.0,
            )
        case _:
            raise InvalidRequest.of(
                [Fault("route.strategy", f"route '{metadata.name}' has no strategy; set one of single, choose")]
            )
    default_timeout_s = (
        seconds_from(spec.default_timeout) if spec.HasField("default_timeout") else objects.DEFAULT_TIMEOUT_S
    )
    return objects.Route(
        metadata=metadata,
        strategy=strategy,
        description=spec.description,
        default_timeout_s=default_timeout_s,
        max_timeout_s=(
            seconds_from(spec.max_timeout)
            if spec.HasField("max_timeout")
            else max(objects.MAX_TIMEOUT_S, default_timeout_s)
        ),
        max_attempts=spec.max_attempts or objects.DEFAULT_ATTEMPTS,
    )


def _route_to(route: objects.Route) -> objects_pb2.RouteSpec:
    spec = objects_pb2.RouteSpec(
        description=route.description,
        default_timeout=duration_to(route.default_timeout_s),
        max_timeout=duration_to(route.max_timeout_s),
        max_attempts=route.max_attempts,
    )
    match route.strategy:
        case objects.Single(target):
            spec.single.target.CopyFrom(_target_to(target))
        case objects.Choose(candidates, quality_weight, cost_weight, latency_weight):
            spec.choose.CopyFrom(
                objects_pb2.Choose(
                    candidates=[_target_to(target) for target in candidates],
                    quality_weight=quality_weight,
                    cost_weight=cost_weight,
                    latency_weight=latency_weight,
                )
            )
    return spec


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
    )
