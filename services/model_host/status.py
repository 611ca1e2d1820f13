"""Statistics of the batch queue as GetStatus tells them."""

from collections.abc import Mapping

from modelyard.host.v1 import host_pb2 as pb
from services.chassis.codec import duration_to, key_to
from services.domain.model import ModelKey
from services.model_host.lane import Lane
from services.model_host.statistics import BandStatistics, LaneStatistics


def statistics_to(
    by_key: Mapping[ModelKey, LaneStatistics], lanes: Mapping[ModelKey, Lane]
) -> list[pb.ModelStatistics]:
    """What every version has done.

    Args:
        by_key: Statistics, also of versions that are gone.
        lanes: Where calls wait now.
    """
    return [_version_to(key, statistics, lanes.get(key)) for key, statistics in sorted(by_key.items())]


def _version_to(key: ModelKey, statistics: LaneStatistics, lane: Lane | None) -> pb.ModelStatistics:
    total = statistics.total()
    queued = {} if lane is None else lane.queued_by_band()
    bands = {band: statistics.bands.get(band) or BandStatistics() for band in {*statistics.bands, *queued}}
    return pb.ModelStatistics(
        key=key_to(key),
        success_count=total.success,
        failure_count=total.failure,
        dropped_count=total.dropped,
        execution_count=statistics.executions,
        queue_total=duration_to(total.queue_s),
        compute_total=duration_to(total.compute_s),
        batch_counts=statistics.batches,
        bands=[_band_to(band, done, queued.get(band, 0)) for band, done in sorted(bands.items())],
        load_count=statistics.loads,
        eviction_count=statistics.evictions,
        cold_count=statistics.cold,
    )


def _band_to(band: int, done: BandStatistics, queued: int) -> pb.BandStatistics:
    return pb.BandStatistics(
        band=band,
        success_count=done.success,
        failure_count=done.failure,
        drop_counts=done.drops,
        queued=queued,
        queue_total=duration_to(done.queue_s),
        compute_total=duration_to(done.compute_s),
        device_total=duration_to(done.device_s),
        wasted_total=duration_to(done.wasted_s),
    )
