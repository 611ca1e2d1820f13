"""Settings of a model host."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.domain.artifact_uri import BadUri, parse_place
from services.model_host.addresses import is_address
from services.model_host.devices.affinity import processors_of


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
    """Memory that models may take in all. 0: half of the machine's, or 0.9 of what is free on the CUDA
    device. On CUDA torch refuses what goes beyond it."""
    warm_bytes: int = 0
    """Memory of the host, beside the device's, where versions that leave the device are kept so that they come back
    without being read. For a CUDA device; on a CPU it is memory of the same kind."""
    trusts_artifacts: bool = False
    """Load artifacts that can run code of their own."""
    artifact_sources: tuple[str, ...] = ("file:",)
    """Where artifacts may be fetched from: file: (any), file:/FOLDER, https://HOST[:PORT][/PATH], s3://BUCKET[/PATH],
    mlflow://HOST[:PORT][/PATH]. Nothing else: whoever may write objects must not choose whom a host asks."""
    ca_file: Path | None = None
    """PEM certificates to believe: of web servers beside those that the system believes, of remote models instead of
    those that gRPC does."""
    netrc_file: Path | None = None
    """Names and passwords for web servers, in the format of netrc; of the login 'bearer' the password is a token."""
    remote_addresses: tuple[str, ...] = ()
    """HOST:PORT of servers that versions with the backend remote may be forwarded to."""
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
    onnx_threads: int = 1
    """Threads of one onnxruntime computation. As for torch."""
    cpus: str = ""
    """Processors that the host's threads keep to, such as 0-3,8. Empty: all. Where several hosts share a machine and
    each computes with more than one thread, parts that do not overlap keep them from waiting for each other."""
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
            ("warm_bytes", 0),
            ("max_artifact_bytes", 1),
            ("max_queued", 1),
            ("max_queued_bytes", 1),
            ("torch_threads", 1),
            ("onnx_threads", 1),
        ):
            if getattr(self, name) < least:
                found.append(f"{name}: {getattr(self, name)} must be at least {least}")
        found += _address_faults(self)
        try:
            processors_of(self.cpus)
        except ValueError as error:
            found.append(f"cpus: {error}")
        if not 0.0 <= self.reserve_s < 10.0:
            found.append(f"reserve_s: {self.reserve_s} must be in [0, 10)")
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(f"trace_ratio: {self.trace_ratio} must be in [0, 1]")
        if not 0 <= self.metrics_port <= 65535:
            found.append(f"metrics_port: {self.metrics_port} must be in 0 to 65535")
        return found


def _address_faults(config: Config) -> list[str]:
    """What is wrong with where the host may fetch from and forward to."""
    found = []
    for text in config.artifact_sources:
        try:
            parse_place(text)
        except BadUri as error:
            found.append(f"artifact_sources: {error}")
    found += [
        f"remote_addresses: '{text}' must be HOST:PORT" for text in config.remote_addresses if not is_address(text)
    ]
    for name, path in (("ca_file", config.ca_file), ("netrc_file", config.netrc_file)):
        if path is not None and not path.is_file():
            found.append(f"{name}: {path} is no file")
    return found
