"""The processes of a mesh: what each is called, how it is started, where it serves.

Hosts are not among them: the resource manager starts those.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from yardctl.etcd_binary import etcd_argv
from yardctl.layout import METRICS_OFFSET, Addresses, Layout


class Probe(Enum):
    """How a part says that it is healthy."""

    GRPC_HEALTH = "grpc.health.v1"
    ETCD_HEALTH = "etcd's /health"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a mesh."""

    name: str
    argv: tuple[str, ...]
    address: str
    probe: Probe = Probe.GRPC_HEALTH
    stop_timeout_s: float = 20.0
    """Time it has to end by itself before it is killed: its own drain, and some."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Every port it binds, by what it is for."""


ETCD = "etcd"
COLLECTOR = "collector"
REGISTRY = "registry"
RESOURCE_MANAGER = "resource-manager"
ROUTER = "router"
SUPERVISOR = "supervisor"

STAGES: tuple[tuple[str, ...], ...] = ((ETCD, COLLECTOR), (REGISTRY,), (RESOURCE_MANAGER, ROUTER))
"""Parts in the order of their start; those of one stage start together, once the stage before is healthy."""

STOP_BEFORE_HOSTS = (ROUTER, RESOURCE_MANAGER)
"""Ended first and in this order: no new calls, then nobody who would restart a host."""

STOP_AFTER_HOSTS = (REGISTRY, COLLECTOR, ETCD)
"""Ended last and in this order."""


def port_of(address: str) -> int:
    """The port of `host:port`."""
    return int(address.rpartition(":")[2])


def parts_of(
    layout: Layout,
    addresses: Addresses,
    *,
    etcd: Path,
    trace_ratio: float,
    router_flags: Sequence[str] = (),
    share_cpus: bool = False,
    python: str = sys.executable,
) -> dict[str, Part]:
    """Every part by name, in the order of their start.

    Args:
        layout: The mesh directory.
        addresses: Where each serves.
        etcd: Path of the etcd binary.
        trace_ratio: Share of calls without a trace of their own that begin one.
        router_flags: Further settings of the router.
        share_cpus: Whether each host gets its own part of the processors.
        python: The interpreter that runs the services.
    """

    def service(name: str, module: str, address: str, *flags: str) -> Part:
        port = port_of(address)
        metrics = port + METRICS_OFFSET
        argv = (
            *(python, "-m", module),
            *("--address", address),
            *("--instance", name),
            *("--metrics-port", str(metrics)),
            *("--otlp-endpoint", addresses.collector),
            *("--trace-ratio", str(trace_ratio)),
            *flags,
        )
        return Part(name, argv, address, ports={name: port, f"metrics of {name}": metrics})

    etcd_part = Part(
        ETCD,
        etcd_argv(etcd, layout, addresses),
        addresses.etcd,
        probe=Probe.ETCD_HEALTH,
        ports={"etcd": port_of(addresses.etcd), "etcd peers": port_of(addresses.etcd_peer)},
    )
    collector = Part(
        COLLECTOR,
        (
            *(python, "-m", "yardctl.collector"),
            *("--address", addresses.collector),
            *("--dir", str(layout.traces)),
        ),
        addresses.collector,
        ports={COLLECTOR: port_of(addresses.collector)},
    )
    registry = service(REGISTRY, "services.registry", addresses.registry, "--etcd", addresses.etcd)
    resource_manager = service(
        RESOURCE_MANAGER,
        "services.resource_manager",
        addresses.resource_manager,
        *("--registry", addresses.registry),
        *("--etcd", addresses.etcd),
        "--launch",
        *("--dir", str(layout.directory)),
        *("--host-base-port", str(addresses.host_base_port)),
        *(("--share-cpus",) if share_cpus else ()),
    )
    router = service(
        ROUTER,
        "services.router",
        addresses.router,
        *("--registry", addresses.registry),
        *("--snapshot", str(layout.router_snapshot)),
        *router_flags,
    )
    return {part.name: part for part in (etcd_part, collector, registry, resource_manager, router)}


def ports_of(parts: Mapping[str, Part], addresses: Addresses, hosts: int) -> dict[str, int]:
    """Every port that must be free for a start, by what it is for; those of the first hosts included."""
    ports = {name: port for part in parts.values() for name, port in part.ports.items()}
    for index in range(hosts):
        ports[f"host {index}"] = addresses.host_base_port + index
        ports[f"metrics of host {index}"] = addresses.host_base_port + METRICS_OFFSET + index
    return ports
