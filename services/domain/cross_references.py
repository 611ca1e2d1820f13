"""Whether what objects refer to exists, fits and may be referred to, over a whole state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.domain.errors import Fault
from services.domain.objects import Model, ModelVersion, Object, ObjectKey, Policy, Pool, Route, Tenant
from services.domain.route_graph import Known, foreign, route_reference_faults
from services.domain.texts import shown


@dataclass(frozen=True, slots=True)
class _State:
    """The objects of a state by name."""

    models: Mapping[str, Model]
    versions: Mapping[str, set[str]]
    pools: Mapping[str, Pool]
    routes: Mapping[str, Route]
    policies: Mapping[str, Policy]
    tenants: Mapping[str, Tenant]

    @classmethod
    def of(cls, objects: Mapping[ObjectKey, Object]) -> "_State":
        """Sort objects by kind."""
        models: dict[str, Model] = {}
        versions: dict[str, set[str]] = {}
        pools: dict[str, Pool] = {}
        routes: dict[str, Route] = {}
        policies: dict[str, Policy] = {}
        tenants: dict[str, Tenant] = {}
        for key, item in objects.items():
            match item:
                case Model():
                    models[key.name] = item
                case ModelVersion():
                    versions.setdefault(key.name, set()).add(item.version)
                case Pool():
                    pools[key.name] = item
                case Route():
                    routes[key.name] = item
                case Policy():
                    policies[key.name] = item
                case Tenant():
                    tenants[key.name] = item
        return cls(models, versions, pools, routes, policies, tenants)


def reference_faults(objects: Mapping[ObjectKey, Object]) -> dict[ObjectKey, list[Fault]]:
    """Faults of references, by the object that has them."""
    state = _State.of(objects)
    routes = route_reference_faults(Known(state.models, state.versions, state.routes))
    faults: dict[ObjectKey, list[Fault]] = {}
    for key, item in objects.items():
        found = list(_own_faults(item, state))
        if isinstance(item, Route):
            found += routes.get(key.name, ())
        if found:
            faults[key] = found
    for name, broken in _quota_faults(objects, state.tenants).items():
        faults.setdefault(ObjectKey("Tenant", name), []).extend(broken)
    return faults


def _own_faults(item: Object, state: _State) -> Iterator[Fault]:
    tenant = item.metadata.tenant
    if tenant and tenant not in state.tenants:
        yield Fault("metadata.tenant", f"there is no Tenant {shown(tenant)}")
    match item:
        case ModelVersion():
            yield from _version_faults(item, state)
        case Route():
            if item.policy and item.policy not in state.policies:
                yield Fault("route.policy", f"there is no Policy {shown(item.policy)}")
            if item.cache is not None:
                yield from _cache_faults(item, state)
        case Tenant():
            yield from _tenant_faults(item, state)
        case _:
            pass


def _cache_faults(route: Route, state: _State) -> Iterator[Fault]:
    for name in dict.fromkeys(target.model for target in route.targets):
        model = state.models.get(name)
        if model is not None and not model.deterministic:
            text = f"Model '{name}' is not declared `deterministic`: its answers must not be kept"
            yield Fault("route.cache", text)


def _version_faults(version: ModelVersion, state: _State) -> Iterator[Fault]:
    name, tenant = version.metadata.name, version.metadata.tenant
    model = state.models.get(name)
    if model is None:
        yield Fault("metadata.name", f"there is no Model {shown(name)} for this version")
    elif model.metadata.tenant != tenant:
        whose = f"belongs to tenant '{model.metadata.tenant}'" if model.metadata.tenant else "is shared"
        yield Fault("metadata.tenant", f"Model '{name}' {whose}: a version belongs where its model does")
    if not version.pool:
        return
    pool = state.pools.get(version.pool)
    if pool is None:
        yield Fault("model_version.pool", f"there is no Pool {shown(version.pool)}")
    elif pool.metadata.tenant not in ("", tenant):
        yield Fault("model_version.pool", foreign(f"Pool '{version.pool}'", pool.metadata.tenant))
    elif version.device_kind not in (None, pool.device_kind):
        yield Fault("model_version.pool", f"Pool '{version.pool}' has {pool.device_kind.value} devices")
    elif version.backend.executes_code and not pool.trusts_artifacts:
        text = f"Pool '{version.pool}' does not trust artifacts that execute code"
        yield Fault("model_version.pool", text)


def _tenant_faults(tenant: Tenant, state: _State) -> Iterator[Fault]:
    policy = state.policies.get(tenant.policy)
    if policy is None:
        if tenant.policy:  # an empty one is a fault of the tenant by itself
            yield Fault("tenant.policy", f"there is no Policy {shown(tenant.policy)}")
    elif tenant.tier not in {tier.name for tier in policy.tiers}:
        known = ", ".join(tier.name for tier in policy.tiers)
        yield Fault("tenant.tier", f"Policy '{tenant.policy}' has no tier {shown(tenant.tier)}; it has {known}")


def _quota_faults(objects: Mapping[ObjectKey, Object], tenants: Mapping[str, Tenant]) -> dict[str, list[Fault]]:
    """Faults of tenants that have more than their quotas, by tenant."""
    used: dict[str, dict[str, int]] = {}
    for item in objects.values():
        tenant = item.metadata.tenant
        if not tenant or tenant not in tenants:
            continue
        counts = used.setdefault(tenant, {})
        match item:
            case Model():
                more = {"max_models": 1}
            case Route():
                more = {"max_routes": 1}
            case ModelVersion(min_replicas=replicas, memory_bytes=memory_bytes):
                more = {"max_versions": 1, "max_replicas": replicas, "max_memory_bytes": replicas * memory_bytes}
            case _:
                more = {}
        for quota, amount in more.items():
            counts[quota] = counts.get(quota, 0) + amount
    faults: dict[str, list[Fault]] = {}
    for name, counts in used.items():
        for quota, count in sorted(counts.items()):
            most = getattr(tenants[name].quotas, quota)
            if 0 < most < count:
                fault = Fault(f"tenant.quotas.{quota}", f"{count} would belong to it, at most {most} may")
                faults.setdefault(name, []).append(fault)
    return faults
