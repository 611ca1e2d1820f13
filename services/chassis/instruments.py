"""Every metric of every service, declared once, and the port they are read from.

Labels have few values; no name that a caller invents becomes one. Where a call is counted often, keep
what `labels()` returns: looking it up costs eight times the count itself.
"""

import enum
import errno
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.registry import Collector

from services.chassis.hot_metrics import HotCounter, HotHistogram

REGISTRY = CollectorRegistry()
"""All metrics of this process."""

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
"""From half a millisecond, below one hop, to the default deadline."""

SLOW_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""For work done once in a while: loads, applies, reconciliations."""

STAGE_BUCKETS_S = (
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05,
)  # fmt: skip
"""For steps that compute in memory only."""

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Requests in a batch."""


class MetricsPortInUse(OSError):
    """Something else listens on the metrics port."""


def export(collector: Collector, registry: CollectorRegistry = REGISTRY) -> None:
    """Serve what `collector` makes when it is asked with every other metric, from now on."""
    registry.register(collector)


def serve_metrics(port: int, host: str = "127.0.0.1", *, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Serve every metric over HTTP, from a thread.

    Args:
        port: TCP port; 0 serves nothing.
        host: Address to bind to.
        registry: What to serve.

    Returns:
        What stops it, and waits until the port is free.

    Raises:
        MetricsPortInUse: The port is taken.
    """
    if port == 0:
        return lambda: None
    try:
        server, thread = start_http_server(port, host, registry=registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise MetricsPortInUse(
            errno.EADDRINUSE,
            f"metrics address {host}:{port} is in use: stop what listens there or choose another --metrics-port",
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


# --- every service -----------------------------------------------------------------------------

BUILD = Info("modelyard_process", "Which service this process is: service, instance, version.", registry=REGISTRY)
EVENT_LOOP_LAG = Gauge(
    "modelyard_event_loop_lag_seconds", "Worst lateness of the event loop in the last 15 to 30 s.", registry=REGISTRY
)
EVENT_LOOP_STALLS = Counter(
    "modelyard_event_loop_stalls_total", "Times the event loop was seen 50 ms late or more.", registry=REGISTRY
)
RPC_SERVER_DURATION = HotHistogram(
    "modelyard_rpc_server_duration_seconds",
    "Time from a call's arrival to its end, by its status.",
    ["service", "method", "status"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
RPC_SERVER_ACTIVE = Gauge(
    "modelyard_rpc_server_active_calls", "Calls being served now.", ["service", "method"], registry=REGISTRY
)
SPANS_EXPORTED = Counter("modelyard_spans_exported_total", "Spans the collector took.", registry=REGISTRY)
SPANS_LOST = Counter("modelyard_spans_lost_total", "Spans the collector did not take.", registry=REGISTRY)
STORE_CALL_DURATION = Histogram(
    "modelyard_store_call_duration_seconds",
    "Time of one attempt of a call to etcd, by its status.",
    ["method", "status"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
STORE_WATCH_RESUMES = Counter(
    "modelyard_store_watch_resumes_total", "Times a watch on etcd had to be opened again.", registry=REGISTRY
)
LEADING = Gauge("modelyard_leading", "1 while this process leads the election.", ["election"], registry=REGISTRY)

# --- router ------------------------------------------------------------------------------------

ROUTER_REQUESTS = HotCounter(
    "modelyard_router_requests_total",
    "Calls answered, by what served them and how they ended.",
    ["route", "model", "version", "outcome"],
    kept=["outcome"],
    registry=REGISTRY,
)
ROUTER_REQUEST_DURATION = HotHistogram(
    "modelyard_router_request_duration_seconds",
    "Time from a call's arrival to its end, by what served it, for whom, and how it ended.",
    ["route", "model", "version", "tenant", "tier", "outcome"],
    kept=["outcome"],
    first=["tenant"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
ROUTER_STAGE_SECONDS = HotHistogram(
    "modelyard_router_stage_seconds",
    "Where the time of answered calls went: queue and compute as their hosts say, network what is left of the hop.",
    ["model", "version", "stage"],
    kept=["stage"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
ROUTER_ATTEMPTS = HotCounter(
    "modelyard_router_attempts_total",
    "Tries on hosts, by how they ended.",
    ["host", "status"],
    kept=["status"],
    registry=REGISTRY,
)
ROUTER_EJECTIONS = Counter(
    "modelyard_router_ejections_total",
    "Hosts ejected: by success rate, failures, slow answers or silence.",
    ["host", "reason"],
    registry=REGISTRY,
)
ROUTER_CIRCUITS_OPENED = Counter(
    "modelyard_router_circuits_opened_total",
    "Circuits that opened, or whose probe failed: of a host, or of a version on it.",
    ["host", "of"],
    registry=REGISTRY,
)
ROUTER_PROBES = Counter(
    "modelyard_router_probes_total",
    "Calls let through to see whether a host is well again, and whether it answered.",
    ["host", "outcome"],
    registry=REGISTRY,
)
ROUTER_HEDGES = Counter(
    "modelyard_router_hedges_total",
    "Calls slow to answer: a second host was asked and won or lost, none could be, or the retry budget was spent.",
    ["route", "outcome"],
    registry=REGISTRY,
)
ROUTER_DECISION_SECONDS = HotHistogram(
    "modelyard_router_decision_seconds",
    "Time to choose model, version and host.",
    buckets=STAGE_BUCKETS_S,
    registry=REGISTRY,
).labels()
ROUTER_REFUSED = Counter(
    "modelyard_router_refused_total",
    "Calls not let in, by the limit that they met: router, band, route, tier, tenant, tenant_rate.",
    ["limit"],
    registry=REGISTRY,
)
ROUTER_DEGRADED = Counter(
    "modelyard_router_degraded_total",
    "Calls answered by another than their route would rather have: a later one of a fallback, for instance.",
    ["route"],
    registry=REGISTRY,
)
ROUTER_LABELS = Counter(
    "modelyard_router_labels_total",
    "Labels of answers: learned, kept for the decision log alone, repeated, or of a call that is unknown here.",
    ["outcome"],
    registry=REGISTRY,
)
ROUTER_COPIES = Counter(
    "modelyard_router_shadow_copies_total",
    "Copies of calls for a shadow: how its answer compares, that it failed, or the bound that kept it from being made.",
    ["route", "outcome"],
    registry=REGISTRY,
)
ROUTER_COPY_DIFFERENCE = Histogram(
    "modelyard_router_shadow_difference",
    "Largest absolute difference between a number of an answer and that of the shadow's; 0 where they are equal.",
    ["route"],
    buckets=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0),
    registry=REGISTRY,
)
ROUTER_CACHE = HotCounter(
    "modelyard_router_cache_total",
    "Calls to models of a route that keeps answers: hit, miss, coalesced (computed for another one), bypass.",
    ["route", "outcome"],
    registry=REGISTRY,
)
ROUTER_CACHE_BYTES = Gauge("modelyard_router_cache_bytes", "What kept answers take, about.", registry=REGISTRY)
ROUTER_CACHE_ENTRIES = Gauge("modelyard_router_cache_entries", "Answers kept.", registry=REGISTRY)
ROUTER_LOG_ENTRIES = Counter(
    "modelyard_router_decision_log_entries_total",
    "Entries of the decision log: written, or dropped because the disk did not keep up or refused them.",
    ["outcome"],
    registry=REGISTRY,
)
ROUTER_SNAPSHOT_REVISION = Gauge(
    "modelyard_router_snapshot_revision", "Registry revision the router routes by.", registry=REGISTRY
)
ROUTER_SNAPSHOT_AGE = Gauge(
    "modelyard_router_snapshot_age_seconds", "Time since the registry was last heard.", registry=REGISTRY
)
ROUTER_WORKERS = Gauge("modelyard_router_workers", "Worker processes that serve now.", registry=REGISTRY)
ROUTER_WORKER_RESTARTS = Counter(
    "modelyard_router_worker_restarts_total", "Worker processes that ended and were started again.", registry=REGISTRY
)

# --- registry ----------------------------------------------------------------------------------

REGISTRY_HEAD_REVISION = Gauge("modelyard_registry_head_revision", "Number of the current revision.", registry=REGISTRY)
REGISTRY_APPLY_SECONDS = Histogram(
    "modelyard_registry_apply_seconds",
    "Time of one apply, by how it ended.",
    ["outcome"],
    buckets=SLOW_BUCKETS_S,
    registry=REGISTRY,
)
REGISTRY_WATCHERS = Gauge("modelyard_registry_watchers", "Open watches.", registry=REGISTRY)
REGISTRY_WATCHERS_CUT = Counter(
    "modelyard_registry_watchers_cut_total", "Watches ended because their reader did not keep up.", registry=REGISTRY
)
REGISTRY_HEAD_AGE = Gauge(
    "modelyard_registry_head_age_seconds", "Time since etcd last said what the head is.", registry=REGISTRY
)
REGISTRY_LEASE_EVENTS = Counter(
    "modelyard_registry_lease_events_total",
    "What happened to hosts' leases: granted, ran_out, signed_off, vanished.",
    ["what"],
    registry=REGISTRY,
)
REGISTRY_COLLECTED = Counter(
    "modelyard_registry_collected_total", "Garbage deleted: revision, value, request.", ["what"], registry=REGISTRY
)
REGISTRY_COLLECT_SECONDS = Histogram(
    "modelyard_registry_collect_seconds", "Time of one collection of garbage.", buckets=SLOW_BUCKETS_S,
    registry=REGISTRY,
)  # fmt: skip
STORE_BYTES = Gauge("modelyard_store_bytes", "Size of etcd's database, of the member asked.", registry=REGISTRY)
STORE_REVISION = Gauge("modelyard_store_revision", "etcd's own revision: it grows by its writes.", registry=REGISTRY)
REGISTRY_LEASES = Gauge("modelyard_registry_leases", "Hosts whose lease this replica keeps.", registry=REGISTRY)

# --- resource manager --------------------------------------------------------------------------

MANAGER_RECONCILE_SECONDS = Histogram(
    "modelyard_manager_reconcile_seconds", "Time of one reconciliation.", buckets=SLOW_BUCKETS_S, registry=REGISTRY
)
MANAGER_ACTIONS = Counter(
    "modelyard_manager_actions_total", "Actions taken, by kind and how they ended.", ["kind", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
MANAGER_UNPLACED = Gauge(
    "modelyard_manager_unplaced_replicas", "Replicas that no host can take now.", registry=REGISTRY
)
MANAGER_REGISTRY_TRUSTED = Gauge(
    "modelyard_manager_registry_trusted", "1 while the registry is heard and not behind itself.", registry=REGISTRY
)

# --- model host --------------------------------------------------------------------------------

HOST_QUEUE_DEPTH = Gauge(
    "modelyard_host_queue_depth", "Requests that wait for a batch.", ["model", "version", "band"], registry=REGISTRY
)
HOST_BATCH_SIZE = HotHistogram(
    "modelyard_host_batch_size", "Requests in a batch.", ["model", "version"], buckets=BATCH_BUCKETS, registry=REGISTRY
)
HOST_COMPUTE_SECONDS = HotHistogram(
    "modelyard_host_compute_seconds",
    "Time the device computed one batch.",
    ["model", "version"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
HOST_QUEUE_SECONDS = HotHistogram(
    "modelyard_host_queue_seconds",
    "Time a request waited before its batch was computed.",
    ["model", "version", "band"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
HOST_MODELS = Gauge("modelyard_host_models", "Versions on this host, by state.", ["state"], registry=REGISTRY)
HOST_MEMORY_BYTES = Gauge(
    "modelyard_host_memory_bytes",
    "Device memory, by what it is: total, models, free, process.",
    ["what"],
    registry=REGISTRY,
)
HOST_LOAD_SECONDS = Histogram(
    "modelyard_host_model_load_seconds",
    "Time from the order to ready or failed.",
    ["model", "version", "outcome"],
    buckets=SLOW_BUCKETS_S,
    registry=REGISTRY,
)
HOST_DEVICE_UTILIZATION = Gauge(
    "modelyard_host_device_utilization",
    "Share of the last second in which the device computed; a card by its driver, for any process.",
    registry=REGISTRY,
)
HOST_UNRETURNED_BYTES = Counter(
    "modelyard_host_unreturned_bytes", "Memory that unloads left behind; the host restarts for it.", registry=REGISTRY
)
HOST_DROPPED = Counter(
    "modelyard_host_dropped_total",
    "Requests dropped before compute, by cause: cancelled, cutoff, deadline, full, preempted.",
    ["model", "band", "cause"],
    registry=REGISTRY,
)
HOST_WASTED_SECONDS = Counter(
    "modelyard_host_wasted_device_seconds_total",
    "Device time spent on answers that came too late or that nobody waited for.",
    ["model"],
    registry=REGISTRY,
)
HOST_CUTOFF = Gauge(
    "modelyard_host_cutoff", "Level of calls from which on they are refused; 2048 refuses none.", registry=REGISTRY
)

HOST_FIRST_TOKEN_SECONDS = HotHistogram(
    "modelyard_host_first_token_seconds",
    "Time from a request to the first token of its answer.",
    ["model", "version"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
HOST_NEXT_TOKEN_SECONDS = HotHistogram(
    "modelyard_host_next_token_seconds",
    "Time from one token of an answer to the next one.",
    ["model", "version"],
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
HOST_TOKENS = HotCounter(
    "modelyard_host_tokens_total", "Tokens of answers, also of those that were broken off.", ["model", "version"],
    registry=REGISTRY,
)  # fmt: skip
HOST_SEQUENCES = Gauge(
    "modelyard_host_sequences",
    "Sequences of versions that generate: those with a slot (active), and those that wait for one (waiting).",
    ["model", "version", "state"],
    registry=REGISTRY,
)

# --- merging -----------------------------------------------------------------------------------


class GaugeMerge(enum.Enum):
    """What several workers' values of one gauge are together."""

    SUM = enum.auto()
    MAX = enum.auto()
    MIN = enum.auto()


GAUGE_MERGE: dict[str, GaugeMerge] = {
    "modelyard_event_loop_lag_seconds": GaugeMerge.MAX,
    "modelyard_rpc_server_active_calls": GaugeMerge.SUM,
    "modelyard_leading": GaugeMerge.MAX,
    "modelyard_router_snapshot_revision": GaugeMerge.MIN,  # every worker routes by at least this one
    "modelyard_router_snapshot_age_seconds": GaugeMerge.MAX,
    "modelyard_router_workers": GaugeMerge.SUM,
    "modelyard_router_cache_bytes": GaugeMerge.SUM,
    "modelyard_router_cache_entries": GaugeMerge.SUM,
    "modelyard_registry_head_age_seconds": GaugeMerge.MAX,
    "modelyard_store_bytes": GaugeMerge.MAX,
    "modelyard_store_revision": GaugeMerge.MAX,
    "modelyard_registry_head_revision": GaugeMerge.MAX,
    "modelyard_registry_watchers": GaugeMerge.SUM,
    "modelyard_registry_leases": GaugeMerge.SUM,
    "modelyard_manager_unplaced_replicas": GaugeMerge.MAX,
    "modelyard_manager_registry_trusted": GaugeMerge.MIN,
    "modelyard_host_queue_depth": GaugeMerge.SUM,
    "modelyard_host_cutoff": GaugeMerge.MIN,
    "modelyard_host_models": GaugeMerge.SUM,
    "modelyard_host_sequences": GaugeMerge.SUM,
    "modelyard_host_memory_bytes": GaugeMerge.SUM,
    "modelyard_host_device_utilization": GaugeMerge.MAX,
}
"""How every gauge is merged over workers of one service; counters and histograms add."""
