"""What Triton calls its metrics, for dashboards and autoscalers that read those names.

Worked out from the host's own statistics when somebody asks; the hot path knows nothing of it. Names and meanings are
those of Triton's metrics guide; times are sums of microseconds, a version is told by `model` and `version`.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from services.domain.model import ModelKey
from services.model_host.lane import Lane
from services.model_host.statistics import BandStatistics, LaneStatistics

LABELS = ("model", "version")

_COUNTERS: tuple[tuple[str, str, Callable[[LaneStatistics, BandStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered.", lambda _, total: total.success),
    (
        "nv_inference_request_failure",
        "Requests that failed or were refused.",
        lambda _, total: total.failure + total.dropped,
    ),
    ("nv_inference_count", "Inferences, one for each request that was answered.", lambda _, total: total.success),
    ("nv_inference_exec_count", "Batches computed.", lambda lane, _: lane.executions),
    (
        "nv_inference_request_duration_us",
        "Time of the requests that were answered, waiting and computing.",
        lambda _, total: 1e6 * (total.queue_s + total.compute_s),
    ),
    ("nv_inference_queue_duration_us", "Time that they waited.", lambda _, total: 1e6 * total.queue_s),
    (
        "nv_inference_compute_infer_duration_us",
        "Time of their batches, each counted once for each request in it.",
        lambda _, total: 1e6 * total.compute_s,
    ),
)


class TritonMetrics(Collector):
    """The metrics of one host, made when they are read."""

    def __init__(self, statistics: Mapping[ModelKey, LaneStatistics], lanes: Callable[[], list[Lane]]) -> None:
        """Tell of `statistics`, and of what waits in `lanes`."""
        self._statistics = statistics
        self._lanes = lanes

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what is told depends on the versions."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every metric, with a sample for each version."""
        # Read on the thread of whoever asks: copied first, for versions come and go meanwhile.
        known = sorted((key, lane, lane.total()) for key, lane in list(self._statistics.items()))
        for name, text, value in _COUNTERS:
            # Counters, but this library's are called "..._total", and those names are not.
            family = UnknownMetricFamily(name, text, labels=LABELS)
            for key, lane, total in known:
                family.add_metric((key.model, key.version), value(lane, total))
            yield family
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait.", labels=LABELS)
        for each in self._lanes():
            pending.add_metric((each.key.model, each.key.version), each.queued)
        yield pending
