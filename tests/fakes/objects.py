"""Builders of objects and hosts: what a test does not say is small and valid."""

from services.domain.host import Device, DeviceKind, HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState, TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion, Policy, Pool, Route, Tenant
from services.domain.strategies import Strategy
from services.domain.tenancy import Quotas, Tier

MIB = 1 << 20


def a_model(name: str) -> Model:
    """A model of one vector in and out."""
    spec = TensorSpec("x", "FP32", (-1, 4))
    return Model(Metadata(name), (spec,), (TensorSpec("y", "FP32", (-1, 4)),))


def a_version(
    model: str,
    version: str = "1.0.0",
    *,
    replicas: int = 1,
    mib: int = 1,
    pool: str = "",
    device_kind: DeviceKind | None = None,
    executes_code: bool = False,
) -> ModelVersion:
    """A version for the identity backend."""
    return ModelVersion(
        Metadata(model),
        version,
        Backend("identity", executes_code=executes_code),
        min_replicas=replicas,
        memory_bytes=mib * MIB,
        pool=pool,
        device_kind=device_kind,
    )


def a_host(
    host_id: str,
    *models: HostedModel,
    mib: int = 100,
    pool: str = "cpu",
    zone: str = "",
    kind: DeviceKind = DeviceKind.CPU,
    pid: int = 1,
    draining: bool = False,
    trusts_artifacts: bool = False,
    address: str = "127.0.0.1:1",
) -> HostRecord:
    """A host with these versions."""
    device = Device(kind, kind.value.lower(), mib * MIB)
    return HostRecord(host_id, address, pool, zone, device, models, draining, pid, trusts_artifacts)


def hosted(
    model: str, version: str = "1.0.0", *, state: ModelState = ModelState.READY, mib: int = 0, message: str = ""
) -> HostedModel:
    """One version on a host; unmeasured unless `mib` says otherwise."""
    return HostedModel(ModelKey(model, version), state, message, mib * MIB)


def a_pool(
    name: str = "cpu", *, hosts: int = 1, mib: int = 100, zone: str = "", trusts_artifacts: bool = False
) -> Pool:
    """A pool of CPU hosts."""
    return Pool(Metadata(name), DeviceKind.CPU, mib * MIB, hosts, hosts, zone, "", trusts_artifacts)


def a_policy(name: str = "standard", *tiers: str) -> Policy:
    """A policy of tiers, the first one in the first band."""
    made = tuple(Tier(tier, band) for band, tier in enumerate(tiers or ("gold", "bronze"), start=1))
    return Policy(Metadata(name), made)


def a_tenant(name: str, *, policy: str = "standard", tier: str = "gold", quotas: Quotas | None = None) -> Tenant:
    """A tenant without limits."""
    return Tenant(Metadata(name), policy, tier, quotas=quotas or Quotas())


def a_route(name: str, strategy: Strategy) -> Route:
    """A route that takes and gives what its models do."""
    return Route(Metadata(name), strategy)
