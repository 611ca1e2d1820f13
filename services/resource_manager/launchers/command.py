"""What a local model host is started with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from services.domain.objects import Pool


class ModelHostCommand:
    """The command line of a model host of this mesh."""

    def __init__(
        self, *, directory: Path, registry: str, otlp_endpoint: str | None, trace_ratio: float, log_level: str
    ) -> None:
        """Hand these on to every host.

        Args:
            directory: The mesh directory; each host gets a cache below it.
            registry: Address of the registry.
            otlp_endpoint: Address of the trace collector; None for none.
            trace_ratio: Share of traces recorded.
            log_level: Least level of log lines.
        """
        self._directory = directory
        self._registry = registry
        self._otlp_endpoint = otlp_endpoint
        self._trace_ratio = trace_ratio
        self._log_level = log_level

    def __call__(self, host_id: str, pool: Pool, *, address: str, metrics_port: int, cpus: str) -> Sequence[str]:
        """The command line of one host, on the interpreter that runs this."""
        argv = [sys.executable, "-m", "services.model_host", "--host-id", host_id, "--instance", host_id]
        argv += ["--pool", pool.metadata.name, "--zone", pool.zone, "--registry", self._registry]
        argv += ["--address", address, "--metrics-port", str(metrics_port)]
        argv += ["--cache-dir", str(self._directory / "cache" / host_id)]
        argv += ["--device", pool.device_kind.value.lower(), "--memory-bytes", str(pool.memory_bytes)]
        argv += ["--trusts-artifacts" if pool.trusts_artifacts else "--no-trusts-artifacts"]
        argv += ["--otlp-endpoint", self._otlp_endpoint or "", "--trace-ratio", str(self._trace_ratio)]
        argv += ["--cpus", cpus] if cpus else []
        return [*argv, "--log-level", self._log_level]
