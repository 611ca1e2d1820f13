"""Which fields an object has: their paths, those of the protobuf message, and their values.

What a route's strategy has is in `strategy_fields`.
"""

from collections.abc import Iterator

from services.domain.model import TensorSpec
from services.domain.objects import (
    Artifact,
    Metadata,
    Model,
    ModelVersion,
    Object,
    Policy,
    Pool,
    Route,
    Template,
    Tenant,
)
from services.policy.strategy_fields import Leaf, or_none, seconds, strategy_fields


def fields(item: Object) -> Iterator[tuple[str, Leaf]]:
    """Path and value of every field, in the order of the message; None where it is not set."""
    yield from _metadata_fields(item.metadata)
    match item:
        case Model():
            yield from _model_fields(item)
        case ModelVersion():
            yield from _version_fields(item)
        case Route():
            yield from _route_fields(item)
        case Pool():
            yield from _pool_fields(item)
        case Policy():
            yield from _policy_fields(item)
        case Tenant():
            yield from _tenant_fields(item)
        case Template():
            yield from _template_fields(item)


def _metadata_fields(metadata: Metadata) -> Iterator[tuple[str, Leaf]]:
    for name, value in sorted(metadata.labels.items()):
        yield f"metadata.labels[{name}]", value
    for name, value in sorted(metadata.annotations.items()):
        yield f"metadata.annotations[{name}]", value
    yield "metadata.tenant", or_none(metadata.tenant)


def _spec_fields(path: str, specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, Leaf]]:
    for index, spec in enumerate(specs):
        yield f"{path}[{index}].name", spec.name
        yield f"{path}[{index}].datatype", spec.datatype
        yield f"{path}[{index}].shape", spec.shape
        yield f"{path}[{index}].optional", spec.optional
        yield f"{path}[{index}].allow_non_finite", spec.allow_non_finite


def _model_fields(model: Model) -> Iterator[tuple[str, Leaf]]:
    yield "model.description", or_none(model.description)
    yield "model.task", or_none(model.task)
    yield "model.modality", or_none(model.modality)
    yield from _spec_fields("model.inputs", model.inputs)
    yield from _spec_fields("model.outputs", model.outputs)
    yield "model.latency_slo", None if model.latency_slo_s is None else seconds(model.latency_slo_s)
    yield "model.owner", or_none(model.owner)
    yield "model.availability_slo", model.availability_slo
    yield "model.deterministic", model.deterministic
    yield "model.shareable_answers", model.shareable_answers


def _artifact_fields(path: str, artifact: Artifact) -> Iterator[tuple[str, Leaf]]:
    yield f"{path}.uri", artifact.uri
    yield f"{path}.sha256", artifact.sha256


def _version_fields(version: ModelVersion) -> Iterator[tuple[str, Leaf]]:
    at = "model_version"
    if version.artifact is not None:
        yield from _artifact_fields(f"{at}.artifact", version.artifact)
    for name, artifact in sorted(version.files.items()):
        yield from _artifact_fields(f"{at}.files[{name}]", artifact)
    yield f"{at}.backend.name", version.backend.name
    yield f"{at}.backend.architecture", or_none(version.backend.architecture)
    for name, value in sorted(version.backend.options.items()):
        yield f"{at}.backend.options[{name}]", value
    yield f"{at}.backend.executes_code", version.backend.executes_code
    yield f"{at}.resources.device_kind", None if version.device_kind is None else version.device_kind.value
    yield f"{at}.resources.memory_bytes", version.memory_bytes
    yield f"{at}.batching.max_batch_size", version.max_batch_size
    yield f"{at}.batching.max_wait", seconds(version.max_wait_s)
    for index, padding in enumerate(version.padding):
        yield f"{at}.batching.padding[{index}].input", padding.input
        yield f"{at}.batching.padding[{index}].dimension", padding.dimension
        yield f"{at}.batching.padding[{index}].value", padding.value
        for name, dimension in sorted(padding.outputs.items()):
            yield f"{at}.batching.padding[{index}].outputs[{name}]", dimension
    yield f"{at}.min_replicas", version.min_replicas
    yield f"{at}.pool", or_none(version.pool)
    yield f"{at}.cost_microusd", version.cost_microusd
    yield f"{at}.quality", version.quality
    yield f"{at}.quality_metric", or_none(version.quality_metric)
    yield f"{at}.service_time", seconds(version.service_time_s)
    yield f"{at}.lineage.code_commit", or_none(version.lineage.code_commit)
    yield f"{at}.lineage.data", or_none(version.lineage.data)
    yield f"{at}.lineage.parent", or_none(version.lineage.parent)
    yield f"{at}.lineage.license", or_none(version.lineage.license)
    for name, needed in sorted(version.lineage.dependencies.items()):
        yield f"{at}.lineage.dependencies[{name}]", needed
    yield f"{at}.lineage.training_run", or_none(version.lineage.training_run)
    yield f"{at}.warmup", f"{len(version.warmup)} samples" if version.warmup else None
    for index, sample in enumerate(version.warmup):
        for name, tensor in sorted(sample.items()):
            yield f"{at}.warmup[{index}].inputs[{name}].shape", tensor.shape
            yield f"{at}.warmup[{index}].inputs[{name}].raw", tensor.raw
    if version.smoke is not None:
        for side, tensors in (("inputs", version.smoke.inputs), ("outputs", version.smoke.outputs)):
            for name, tensor in sorted(tensors.items()):
                yield f"{at}.smoke.{side}[{name}].shape", tensor.shape
                yield f"{at}.smoke.{side}[{name}].raw", tensor.raw
        yield f"{at}.smoke.tolerance", version.smoke.tolerance
        limit_s = version.smoke.max_latency_s
        yield f"{at}.smoke.max_latency", None if limit_s is None else seconds(limit_s)
    yield f"{at}.on_demand", version.on_demand
    if version.generation is not None:
        yield f"{at}.generation.sequences", version.generation.sequences
        yield f"{at}.generation.max_tokens", version.generation.max_tokens
        yield f"{at}.generation.prefill_tokens", version.generation.prefill_tokens
        yield f"{at}.generation.max_waiting", version.generation.max_waiting
    for index, place in enumerate(version.segment_qualities):
        yield f"{at}.segment_qualities[{index}].task", or_none(place.task)
        yield f"{at}.segment_qualities[{index}].segment", or_none(place.segment)
        yield f"{at}.segment_qualities[{index}].quality", place.quality
        yield f"{at}.segment_qualities[{index}].metric", or_none(place.metric)
    for index, text in enumerate(version.failure_modes):
        yield f"{at}.failure_modes[{index}]", text
    yield f"{at}.owner", or_none(version.owner)


def _route_fields(route: Route) -> Iterator[tuple[str, Leaf]]:
    yield "route.description", or_none(route.description)
    yield from strategy_fields(route.strategy)
    yield "route.default_timeout", seconds(route.default_timeout_s)
    yield "route.max_timeout", seconds(route.max_timeout_s)
    yield "route.max_attempts", route.max_attempts
    yield "route.max_in_flight", route.max_in_flight
    yield "route.policy", or_none(route.policy)
    yield "route.owner", or_none(route.owner)
    yield "route.protected", route.protected
    yield from _spec_fields("route.inputs", route.inputs)
    yield from _spec_fields("route.outputs", route.outputs)
    if route.cache is not None:
        yield "route.cache.ttl", seconds(route.cache.ttl_s)
        yield "route.cache.coalesce", route.cache.coalesce
        yield "route.cache.stale", seconds(route.cache.stale_s)


def _pool_fields(pool: Pool) -> Iterator[tuple[str, Leaf]]:
    yield "pool.description", or_none(pool.description)
    yield "pool.device_kind", pool.device_kind.value
    yield "pool.zone", or_none(pool.zone)
    yield "pool.memory_bytes", pool.memory_bytes
    yield "pool.min_hosts", pool.min_hosts
    yield "pool.max_hosts", pool.max_hosts
    yield "pool.trusts_artifacts", pool.trusts_artifacts
    yield "pool.staging", pool.staging
    yield "pool.max_version_bytes", pool.max_version_bytes
    yield "pool.min_latency_slo", seconds(pool.min_latency_slo_s) if pool.min_latency_slo_s else None


def _policy_fields(policy: Policy) -> Iterator[tuple[str, Leaf]]:
    yield "policy.description", or_none(policy.description)
    for index, tier in enumerate(policy.tiers):
        at = f"policy.tiers[{index}]"
        yield f"{at}.name", tier.name
        yield f"{at}.priority_band", tier.priority_band
        yield f"{at}.default_timeout", None if tier.default_timeout_s is None else seconds(tier.default_timeout_s)
        yield f"{at}.max_timeout", None if tier.max_timeout_s is None else seconds(tier.max_timeout_s)
        yield f"{at}.reserved_share", tier.reserved_share
        yield f"{at}.weight", tier.weight
        yield f"{at}.max_in_flight", tier.max_in_flight
        yield f"{at}.sheddable", tier.sheddable
        yield f"{at}.preemption", tier.preemption.value
        yield f"{at}.quality_weight", tier.quality_weight
        yield f"{at}.exploration", tier.exploration
    yield "policy.default_tier", or_none(policy.default_tier)
    yield "policy.retry.max_attempts", policy.retry.max_attempts
    yield "policy.retry.budget_share", policy.retry.budget_share
    yield "policy.hedge.enabled", policy.hedge.enabled
    yield "policy.hedge.after_quantile", policy.hedge.after_quantile
    if policy.price is not None:
        yield "policy.price.cost_weight", policy.price.cost_weight
        yield "policy.price.max_cost_weight", policy.price.max_cost_weight
        yield "policy.price.step", policy.price.step
        yield "policy.price.interval", seconds(policy.price.interval_s)
        yield "policy.price.latency_weight", policy.price.latency_weight
    yield "policy.balancing.strategy", policy.balancing.strategy.value
    yield "policy.balancing.affinity.enabled", policy.balancing.affinity.enabled
    yield "policy.balancing.affinity.load_factor", policy.balancing.affinity.load_factor
    yield "policy.balancing.zones.hysteresis", policy.balancing.zones.hysteresis
    yield "policy.balancing.zones.margin", seconds(policy.balancing.zones.margin_s)
    yield "policy.protection.penalties", policy.protection.penalties
    yield "policy.protection.ejection", policy.protection.ejection
    yield "policy.protection.circuits", policy.protection.circuits
    yield "policy.protection.shedding", policy.protection.shedding


def _tenant_fields(tenant: Tenant) -> Iterator[tuple[str, Leaf]]:
    yield "tenant.description", or_none(tenant.description)
    yield "tenant.policy", tenant.policy
    yield "tenant.tier", tenant.tier
    yield "tenant.owner", or_none(tenant.owner)
    yield "tenant.quotas.max_models", tenant.quotas.max_models
    yield "tenant.quotas.max_versions", tenant.quotas.max_versions
    yield "tenant.quotas.max_routes", tenant.quotas.max_routes
    yield "tenant.quotas.max_replicas", tenant.quotas.max_replicas
    yield "tenant.quotas.max_memory_bytes", tenant.quotas.max_memory_bytes
    if tenant.rate_limit is not None:
        yield "tenant.rate_limit.requests_per_s", tenant.rate_limit.requests_per_s
        yield "tenant.rate_limit.burst", tenant.rate_limit.burst
    yield "tenant.max_in_flight", tenant.max_in_flight
    if tenant.budget is not None:
        yield "tenant.budget.amount_microusd", tenant.budget.amount_microusd
        yield "tenant.budget.period", seconds(tenant.budget.period_s)


def _template_fields(template: Template) -> Iterator[tuple[str, Leaf]]:
    yield "template.description", or_none(template.description)
    yield "template.owner", or_none(template.owner)
    for index, parameter in enumerate(template.parameters):
        at = f"template.parameters[{index}]"
        yield f"{at}.name", parameter.name
        yield f"{at}.description", or_none(parameter.description)
        yield f"{at}.type", parameter.type.value
        yield f"{at}.default", parameter.default
        for place, value in enumerate(parameter.allowed):
            yield f"{at}.allowed[{place}]", value
    for index, raw in enumerate(template.body):
        yield f"template.objects[{index}]", raw
    for index, binding in enumerate(template.bindings):
        at = f"template.bindings[{index}]"
        yield f"{at}.object", binding.object
        yield f"{at}.path", binding.path
        yield f"{at}.parameter", binding.parameter
    yield "template.requires_approval", template.requires_approval
    yield "template.requires_smoke", template.requires_smoke
