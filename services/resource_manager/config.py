"""Settings of the resource manager."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Config:
    """Brings every model version to its replicas, and each pool to its hosts."""

    registry: str = "127.0.0.1:7601"
    """HOST:PORT of the registry."""
    etcd: tuple[str, ...] = ("127.0.0.1:7679",)
    """HOST:PORT of etcd's members, for the election."""
    address: str = "127.0.0.1:7602"
    """HOST:PORT to serve on."""
    metrics_port: int = 8602
    """Port that metrics are read from over HTTP; 0 serves none, and hosts serve none either."""
    launch: bool = True
    """Keep host processes running on this machine. Off where something else runs the hosts."""
    dir: Path = Path(".modelyard")
    """Mesh directory: logs, run files and caches of the hosts are below it. Every resource manager of a
    machine that launches hosts of one mesh must have the same."""
    host_base_port: int = 7610
    """First port of launched hosts; each takes the next free one."""
    share_cpus: bool = False
    """Give each launched host its own part of the machine's processors, where it may run and nowhere else. Worth it
    where hosts compute with several threads; with one each, the operating system spreads them as well."""
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP collector; launched hosts get it too. Empty sends no traces."""
    trace_ratio: float = 0.01
    """Share of traces recorded, in [0, 1]."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of log lines."""
    instance: str | None = None
    """Name among its replicas, and in the election. Default: resource-manager@ADDRESS."""

    @property
    def candidate(self) -> str:
        """Its name among its replicas."""
        return self.instance or f"resource-manager@{self.address}"

    def faults(self) -> list[str]:
        """What is wrong with the values together."""
        found = []
        if not self.etcd:
            found.append("etcd: at least one member is needed")
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(f"trace_ratio: {self.trace_ratio} must be in [0, 1]")
        for name, port, least in (("metrics_port", self.metrics_port, 0), ("host_base_port", self.host_base_port, 1)):
            if not least <= port <= 65535:
                found.append(f"{name}: {port} must be in {least} to 65535")
        return found
