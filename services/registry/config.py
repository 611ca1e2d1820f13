"""Settings of the registry."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Config:
    """Keeps what the mesh should be, as numbered revisions, and lists the hosts that live."""

    etcd: tuple[str, ...] = ("127.0.0.1:7679",)
    """HOST:PORT of etcd's members."""
    address: str = "127.0.0.1:7601"
    """HOST:PORT to serve on."""
    metrics_port: int = 8601
    """Port that metrics are read from over HTTP; 0 serves none."""
    keep_revisions: int = 1000
    """Revisions that are kept, the newest included; older ones are collected."""
    collect_every_s: float = 600.0
    """Seconds between two collections of garbage."""
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP collector. Empty sends no traces."""
    trace_ratio: float = 0.01
    """Share of traces recorded, in [0, 1]."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of log lines."""
    instance: str | None = None
    """Name among its replicas. Default: registry@ADDRESS."""

    @property
    def name(self) -> str:
        """Its name among its replicas."""
        return self.instance or f"registry@{self.address}"

    def faults(self) -> list[str]:
        """What is wrong with the values together."""
        found = []
        if not self.etcd:
            found.append("etcd: at least one member is needed")
        if self.keep_revisions < 1:
            found.append(f"keep_revisions: {self.keep_revisions} must be at least 1")
        if not self.collect_every_s > 0.0:
            found.append(f"collect_every_s: {self.collect_every_s} must be positive")
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(f"trace_ratio: {self.trace_ratio} must be in [0, 1]")
        if not 0 <= self.metrics_port <= 65535:
            found.append(f"metrics_port: {self.metrics_port} must be in 0 to 65535")
        return found
