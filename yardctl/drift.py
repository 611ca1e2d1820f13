"""Where what is differs from what should be: objects of the registry beside the hosts that are listed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from services.domain.host import HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion, Object, ObjectKey, Pool, Route
from services.domain.strategies import RouteTarget, named


class Drift(NamedTuple):
    """One difference."""

    key: ObjectKey
    desired: str
    live: str
    why: str
    """As far as the hosts say; may be empty."""


def drift(objects: Iterable[Object], hosts: Sequence[HostRecord]) -> list[Drift]:
    """Every difference, pools first, then versions, then routes.

    Hosts of staging pools do not count: what is on them is being tested.
    """
    desired = {item.key: item for item in objects}
    pools = {key.name: item for key, item in desired.items() if isinstance(item, Pool)}
    serving = [host for host in hosts if not (host.pool in pools and pools[host.pool].staging)]
    where: dict[ModelKey, list[tuple[HostRecord, HostedModel]]] = {}
    for host in serving:
        for hosted in host.models:
            where.setdefault(hosted.key, []).append((host, hosted))
    versions = {item.model_key: item for item in desired.values() if isinstance(item, ModelVersion)}
    return [
        *_of_pools(pools, hosts),
        *(found for key in sorted(versions) for found in _of_version(versions[key], where.get(key, ()), serving)),
        *_of_strangers(versions, where),
        *_of_routes(desired, where),
    ]


def _of_pools(pools: Mapping[str, Pool], hosts: Sequence[HostRecord]) -> Iterator[Drift]:
    listed = Counter(host.pool for host in hosts if not host.draining)
    for name, pool in sorted(pools.items()):
        if listed[name] < pool.min_hosts:
            draining = sum(host.pool == name and host.draining for host in hosts)
            why = f"{draining} drain" if draining else ""
            yield Drift(pool.key, f"at least {pool.min_hosts} hosts", f"{listed[name]} listed", why)
        elif listed[name] > pool.max_hosts:
            yield Drift(pool.key, f"at most {pool.max_hosts} hosts", f"{listed[name]} listed", "")
    for name in sorted(listed.keys() - pools.keys()):
        yield Drift(ObjectKey("Pool", name), "no such pool", f"{listed[name]} hosts listed", "")


def _of_version(
    version: ModelVersion, having: Sequence[tuple[HostRecord, HostedModel]], hosts: Sequence[HostRecord]
) -> Iterator[Drift]:
    states = Counter(hosted.state for _, hosted in having)
    ready = states[ModelState.READY]
    if ready >= version.min_replicas:
        return
    live = ", ".join(f"{count} {state.value.lower()}" for state, count in states.items()) or "on no host"
    failures = [f"{host.host_id}: {hosted.message}" for host, hosted in having if hosted.state is ModelState.FAILED]
    if not failures and version.pool and not any(host.pool == version.pool for host in hosts):
        failures = [f"no host of pool '{version.pool}' is listed"]
    yield Drift(version.key, f"{version.min_replicas} ready", live, "; ".join(failures))


def _of_strangers(
    versions: Mapping[ModelKey, ModelVersion], where: Mapping[ModelKey, Sequence[tuple[HostRecord, HostedModel]]]
) -> Iterator[Drift]:
    for key in sorted(where.keys() - versions.keys()):
        at = ", ".join(f"{hosted.state.value.lower()} on {host.host_id}" for host, hosted in where[key])
        yield Drift(ObjectKey("ModelVersion", key.model, key.version), "not there", at, "")


def _of_routes(
    desired: Mapping[ObjectKey, Object], where: Mapping[ModelKey, Sequence[tuple[HostRecord, HostedModel]]]
) -> Iterator[Drift]:
    ready = {key for key, having in where.items() if any(each.state is ModelState.READY for _, each in having)}
    models = {key.model for key in ready}
    for key in sorted(key for key, item in desired.items() if isinstance(item, Route)):
        route = desired[key]
        assert isinstance(route, Route)
        targets = [callee for _, callee in named(route.strategy) if isinstance(callee, RouteTarget)]
        missing = [
            str(target)
            for target in targets
            if not (ModelKey(target.model, target.version) in ready if target.version else target.model in models)
        ]
        if missing:
            live = "nothing is ready" if len(missing) == len(targets) else "not all are ready"
            yield Drift(key, f"{len(targets)} targets ready", live, f"lacks {', '.join(missing)}")
