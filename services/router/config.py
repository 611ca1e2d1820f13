"""Settings of the router."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WORKERS_MOST = 64
"""More workers than a machine has use for; each takes about 80 MB."""


@dataclass(frozen=True, slots=True)
class Config:
    """Routes inference calls to model hosts."""

    registry: str = "127.0.0.1:7601"
    """HOST:PORT of the registry."""
    snapshot: Path | None = Path(".modelyard/snapshots/router.binpb")
    """File with the last snapshot, to start from while the registry is away. Empty keeps none. Routers on
    one machine need a file each."""
    address: str = "127.0.0.1:7600"
    """HOST:PORT to serve on."""
    insecure: bool = False
    """Allow an address that other machines reach, although nothing is encrypted or authenticated."""
    engine: Literal["auto", "aio", "native"] = "auto"
    """What speaks HTTP/2 with callers. aio: grpcio. native: pygrpc-native, several times faster for unary calls;
    no TLS, so for loopback, Unix sockets or behind a proxy that ends TLS; connections are not closed by age.
    auto: native for loopback and Unix sockets if it is installed, else aio."""
    metrics_port: int = 8600
    """Port that metrics are read from over HTTP, those of all workers as one; 0 serves none."""
    workers: int = 1
    """Processes that serve the address together, each on a core of its own; with more than one, another process
    starts and watches them. They share `max_in_flight` and retry budgets. A connection stays with one worker:
    callers need several for all to be of use."""
    worker: int | None = None
    """Which of the workers this is, from 0. Set by their parent alone, never by hand."""
    worker_counts: int | None = None
    """Descriptor by which this worker inherited the counts that all share. Set by their parent alone."""
    seed: int = 0
    """Keys the chance in decisions, 0 to 2^64 - 1: the same seed, id and trace draw the same hosts."""
    routers: int = 1
    """Routers that send to the same hosts, this one included: what the others send is guessed to be as much, and
    this one keeps to its part of each limit of a route, a tier or a tenant."""
    zone: str = ""
    """Zone this router stands in; hosts of other zones count as further away. Empty: all are equally near."""
    zone_way_s: float = 0.002
    """Seconds that the way to a host of another zone and back adds, until it has answered once and the way is known;
    two milliseconds are usual inside a region."""
    reserve_s: float = 0.005
    """Seconds kept back from each deadline to carry the answer home, at most a tenth of it. Covers the
    99.9th percentile of one hop inside a zone."""
    max_in_flight: int = 4096
    """Calls held at once, by all workers together; more are refused. Only those of the first band get the last of
    them: each later band leaves a little more free, up to a fifth. With small tensors a call takes about 50 KB."""
    cache_bytes: int = 64 << 20
    """Bytes of answers that each worker keeps for routes with a `cache`; 0 keeps none, and computes every call. One
    answer may take an eighth of it."""
    otlp_endpoint: str | None = None
    """HOST:PORT of an OTLP collector. Empty sends no traces."""
    trace_ratio: float = 0.01
    """Share of traces recorded, in [0, 1], of those that begin here."""
    decision_log_dir: Path | None = None
    """Directory that decisions are logged into, with all that they went by, for `yardctl replay`. Empty logs none."""
    decision_log_ratio: float = 1.0
    """Share of calls whose decisions are logged, in (0, 1]; by a hash of the request id, so that all routers log the
    same calls."""
    decision_log_max_bytes: int = 64 << 20
    """A file of the decision log that is as large is closed, and another one begun; so is one that is an hour old."""
    decision_log_files: int = 16
    """Files of the decision log that each worker keeps; older ones are deleted. With the default size 1 GiB in all."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of log lines."""
    instance: str | None = None
    """Name among its replicas. Default: router@ADDRESS."""

    @property
    def name(self) -> str:
        """Its name among its replicas."""
        return self.instance or f"router@{self.address}"

    @property
    def senders(self) -> int:
        """Processes that send to the same hosts, these workers and other routers' as many."""
        return self.routers * self.workers

    @property
    def share(self) -> float:
        """The part of this router that one worker is."""
        return 1.0 / self.workers

    @property
    def writes_snapshot(self) -> bool:
        """Whether the snapshot on disk is this process's to write; all workers read it."""
        return self.worker in (None, 0)

    def faults(self) -> list[str]:
        """What is wrong with the values."""
        found = []
        if not 0 <= self.seed < 2**64:
            found.append(f"seed: {self.seed} must be in 0 to 2^64 - 1")
        if not 0.0 <= self.trace_ratio <= 1.0:
            found.append(f"trace_ratio: {self.trace_ratio} must be in [0, 1]")
        if not 0.0 < self.decision_log_ratio <= 1.0:
            found.append(
                f"decision_log_ratio: {self.decision_log_ratio} must be in (0, 1]; log none without a directory"
            )
        if self.decision_log_max_bytes < 65536:
            found.append(f"decision_log_max_bytes: {self.decision_log_max_bytes} must be 65536 or more")
        if self.cache_bytes != 0 and self.cache_bytes < 65536:
            found.append(f"cache_bytes: {self.cache_bytes} must be 65536 or more, or 0 to keep no answers")
        if not 0 <= self.metrics_port <= 65535:
            found.append(f"metrics_port: {self.metrics_port} must be in 0 to 65535")
        for name, number in (
            ("routers", self.routers),
            ("max_in_flight", self.max_in_flight),
            ("decision_log_files", self.decision_log_files),
        ):
            if number < 1:
                found.append(f"{name}: {number} must be 1 or more")
        if not 1 <= self.workers <= WORKERS_MOST:
            found.append(f"workers: {self.workers} must be in 1 to {WORKERS_MOST}")
        elif self.workers > 1 and self.address.startswith("unix:"):
            found.append(f"workers: {self.workers} cannot share a Unix socket; change address")
        if self.worker is not None and not 0 <= self.worker < self.workers:
            found.append(f"worker: {self.worker} must be in 0 to {self.workers - 1}, less than workers")
        if (self.worker is None) != (self.worker_counts is None):
            found.append("worker and worker_counts: both are set, by the parent of workers, or neither")
        for name, seconds in (("zone_way_s", self.zone_way_s), ("reserve_s", self.reserve_s)):
            if not 0.0 <= seconds < 60.0:
                found.append(f"{name}: {seconds} must be in 0 to 60")
        return found
