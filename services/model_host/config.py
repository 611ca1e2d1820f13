"""Settings of a model host."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Config:
    """Computes with one device: loads model versions as ordered, batches calls, reports its load."""

    host_id: str
    """Unique in the mesh and the same after a restart, such as cpu-0."""
    pool: str
    """Pool it belongs to."""
    zone: str = ""
    """Zone it stands in; may be empty."""
    registry: str = "127.0.0.1:7601"
    """HOST:PORT of the registry, which may come and go. Empty: it is not reported to any."""
    address: str = "127.0.0.1:7610"
    """HOST:PORT to serve on, as routers reach it."""
    cache_dir: Path = Path(".modelyard/cache/host")
    """Where copies of artifacts are kept. Not to be shared between hosts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What computes: CUDA if a device is there, else the CPU."""
    memory_bytes: int = 0
    """Memory that models may take in all. 0: half of the machine's, or 0.9 of the CUDA device's."""
    trusts_artifacts: bool = False
    """Load artifacts that can run code of their own."""
    max_artifact_bytes: int = 64 << 30
    """Largest artifact that is fetched."""
    max_queued: int = 1024
    """Calls that may wait for one version; more are refused, for they would only wait to be too late."""
    max_queued_bytes: int = 1 << 30
    """Bytes of inputs that may wait in all."""
    reserve_s: float = 0.005
    """Seconds kept back from each deadline to carry the answer home, a tenth of the deadline at most.
    Without it a batch that just makes its deadline is computed for nothing."""
    torch_threads: int = 1
    """Threads of one torch computation. One per host process: hosts share a machine's cores by running
    several processes, and threads within one only wait for each other."""
    metrics_port: int = 8610
    """Port that metrics are read from over HTTP; 0 serves none."""
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP collector. Empty sends no traces."""
    trace_ratio: float = 0.01
    """Share of traces begun here that are recorded, in [0, 1]; a caller's choice goes before it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of log lines."""
    instance: str | None = None
    """Name in logs and traces. Default: the host id."""
    insecure: bool = False
    """Allow an address that other machines reach, although nothing is encrypted."""

    @property
    def name(self) -> str:
        """Its name in logs and traces."""
        return self.instance or self.host_id

    def faults(self) -> list[str]:
        """What is wrong with the values together."""
        found = [f"{name}: must not be empty" for name in ("host_id", "pool") if not getattr(self, name)]
        for name, least in (
            ("memory_bytes", 0),
            ("max_artifact_bytes", 1),
            ("max_queued", 1),
            ("max_queued_bytes", 1),
            ("torch_threads", 1),
        ):
            if getattr(self, name) < least:
                found.append(f"{name}: {getattr(self, name)} must be at least {least}")
        if not 0.0 <= self.reserve_s < 10.0:
            found.append(f"reserve_s: {self.reserve_s} must be in [0, 10)")
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(f"trace_ratio: {self.trace_ratio} must be in [0, 1]")
        if not 0 <= self.metrics_port <= 65535:
            found.append(f"metrics_port: {self.metrics_port} must be in 0 to 65535")
        return found
