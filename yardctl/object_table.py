"""Objects for people: a line each, with what it is in a few words."""

from collections.abc import Iterable

from rich.table import Table

from modelyard.registry.v1 import objects_pb2, tenancy_pb2
from yardctl.manifest_fields import enum_names
from yardctl.manifests import key_of
from yardctl.quantities import format_duration
from yardctl.render import device_kind, size, table


def objects(found: Iterable[objects_pb2.Object]) -> Table:
    """Objects, a line each; whose they are, if any belongs to a tenant."""
    items = list(found)
    owned = any(item.metadata.tenant for item in items)
    rows = []
    for item in items:
        key = key_of(item)
        rows.append((key.kind, key.name, key.version, *((item.metadata.tenant,) if owned else ()), summary(item)))
    return table(("kind", "name", "version", *(("tenant",) if owned else ()), "what"), rows)


def summary(item: objects_pb2.Object) -> str:
    """What an object is, in a few words."""
    match item.WhichOneof("spec"):
        case "model":
            words = (item.model.modality, item.model.task, item.model.description)
            return ", ".join(word for word in words if word)
        case "model_version":
            version = item.model_version
            quality = f", quality {version.quality:.3f}" if version.HasField("quality") else ""
            return (
                f"{version.backend.architecture or version.backend.name}, at least {version.min_replicas} ready"
                f"{quality}, {version.cost_microusd} µ$"
            )
        case "route":
            return _route_summary(item.route)
        case "pool":
            pool = item.pool
            return f"{pool.min_hosts} hosts, {device_kind(pool.device_kind)}, {size(pool.memory_bytes)} each"
        case "policy":
            tiers = sorted(item.policy.tiers, key=lambda tier: tier.priority_band)
            return f"tiers {', '.join(f'{tier.name} (band {tier.priority_band})' for tier in tiers)}"
        case "tenant":
            return _tenant_summary(item.tenant)
        case "template":
            return _template_summary(item.template)
        case _:
            return ""


def _tenant_summary(tenant: tenancy_pb2.TenantSpec) -> str:
    words = [f"{tenant.tier} of {tenant.policy}"]
    if tenant.HasField("rate_limit"):
        words.append(f"{tenant.rate_limit.requests_per_s:g} calls/s")
    if tenant.max_in_flight:
        words.append(f"{tenant.max_in_flight} at once")
    if tenant.HasField("budget"):
        period = format_duration(tenant.budget.period.ToNanoseconds())
        words.append(f"{tenant.budget.amount_microusd} µ$ per {period}")
    return ", ".join(words)


def _template_summary(template: objects_pb2.TemplateSpec) -> str:
    count = len(template.objects)
    names = f" of {_list(each.name for each in template.parameters)}" if template.parameters else ""
    asks = (("approval", template.requires_approval), ("a smoke test", template.requires_smoke))
    needs = " and ".join(word for word, needed in asks if needed)
    return f"{count} object{'' if count == 1 else 's'}{names}{f', requires {needs}' if needs else ''}"


def _route_summary(route: objects_pb2.RouteSpec) -> str:
    match route.WhichOneof("strategy"):
        case "single":
            text = f"single {_target(route.single.target)}"
        case "choose":
            text = f"choose of {_list(map(_target, route.choose.candidates))}"
        case "split":
            text = f"split {_list(f'{_target(each.target)} {each.percent:g} %' for each in route.split.targets)}"
        case "shadow":
            shadow = route.shadow
            text = f"{_target(shadow.primary)}, shadow {_target(shadow.shadow)} {shadow.percent:g} %"
        case "fallback":
            static = ["a static answer"] if route.fallback.HasField("static_answer") else []
            text = f"fallback {_list([*map(_callee, route.fallback.targets), *static])}"
        case "cascade":
            text = f"cascade {_list(_target(step.target) for step in route.cascade.steps)}"
        case "ensemble":
            ensemble = route.ensemble
            names = {number: name.lower() for name, number in enum_names(objects_pb2.Combine.DESCRIPTOR).items()}
            members = _list(_target(each.target) for each in ensemble.members)
            text = f"ensemble, {names.get(ensemble.combine, 'mean')} of {members}"
        case "pipeline":
            text = f"pipeline {_list(f'{step.name} ({_callee(step.call)})' for step in route.pipeline.steps)}"
        case _:
            text = ""
    return f"{text}, protected" if route.protected else text


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _target(target: objects_pb2.RouteTarget) -> str:
    return f"{target.model}:{target.version}" if target.version else target.model


def _callee(callee: objects_pb2.Callee) -> str:
    return f"route {callee.route}" if callee.WhichOneof("callee") == "route" else _target(callee.target)
