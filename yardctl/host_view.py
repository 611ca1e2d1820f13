"""What one host says of itself, as a table: each version, and below it each band of its calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from modelyard.host.v1 import host_pb2
from modelyard.type.v1 import resources_pb2
from yardctl import render

COLUMNS = (
    "version, band", "queue", "calls/s", "answered", "wait", "compute", "batch", "dropped", "wasted", "memory", "loads"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """Sums of one version or one band over a time."""

    answered: int
    failed: int
    dropped: int
    queue_s: float
    compute_s: float
    device_s: float
    wasted_s: float

    def less(self, before: "Rates | None") -> "Rates":
        """What came since `before`; all of it where the host was started anew in between."""
        if before is None or before.answered > self.answered or before.failed > self.failed:
            return self
        return Rates(
            self.answered - before.answered,
            self.failed - before.failed,
            self.dropped - before.dropped,
            self.queue_s - before.queue_s,
            self.compute_s - before.compute_s,
            self.device_s - before.device_s,
            self.wasted_s - before.wasted_s,
        )


def host_table(
    status: host_pb2.GetStatusResponse, before: host_pb2.GetStatusResponse | None = None, passed_s: float = 0.0
) -> Table:
    """The table.

    Args:
        status: What the host says.
        before: What it said earlier: times and counts are of what came since. None: of all since it was started.
        passed_s: Seconds between the two.
    """
    earlier = {_name(each): each for each in before.statistics} if before is not None else {}
    hosted = {f"{each.key.model}:{each.key.version}": each for each in status.record.models}
    loads = {f"{each.key.model}:{each.key.version}": each for each in status.load.models}
    rows: list[Sequence[str | Text]] = []
    for each in status.statistics:
        name = _name(each)
        rows.append(_version_row(each, earlier.get(name), hosted.get(name), loads.get(name), passed_s))
        old = {band.band: band for band in earlier[name].bands} if name in earlier else {}
        rows += [_band_row(band, old.get(band.band), passed_s) for band in each.bands]
    return render.table(COLUMNS, rows)


def headline(status: host_pb2.GetStatusResponse) -> str:
    """The host itself, in a line."""
    record, load = status.record, status.load
    device = record.device
    parts = [
        f"{record.host_id} at {record.address}, pid {record.pid}",
        f"{render.device_kind(device.kind)} computes {load.utilization:.0%} of the time",
        f"{render.size(device.used_bytes)} of {render.size(device.memory_bytes)}",
    ]
    if load.cutoff:
        parts.append(f"refuses calls from level {load.cutoff} on")
    if load.draining:
        parts.append("draining")
    return ", ".join(parts)


def _version_row(
    each: host_pb2.ModelStatistics,
    before: host_pb2.ModelStatistics | None,
    hosted: resources_pb2.HostedModel | None,
    load: resources_pb2.ModelLoad | None,
    passed_s: float,
) -> Sequence[str | Text]:
    now = _total(each)
    since = now.less(None if before is None else _total(before))
    executions = each.execution_count - (before.execution_count if before is not None and since != now else 0)
    memory = "gone"
    if hosted is not None:
        memory = render.size(hosted.memory_bytes) if hosted.memory_bytes else render.model_state(hosted)
    if load is not None and load.absent_s > 0.0:
        memory += f", away ({render.span_of_time(load.absent_s)} to come)"
    came = (
        f"{each.load_count}, {each.eviction_count} evictions, {each.cold_count} waited" if each.eviction_count else ""
    )
    return (
        Text(_name(each), style="bold"),
        str(load.queued) if load is not None else "",
        *_rates(since, passed_s),
        f"{since.answered / executions:.1f}" if executions > 0 else "",
        str(since.dropped) if since.dropped else "",
        _wasted(since),
        memory,
        came or str(each.load_count),
    )


def _band_row(
    band: host_pb2.BandStatistics, before: host_pb2.BandStatistics | None, passed_s: float
) -> Sequence[str | Text]:
    since = _of_band(band).less(None if before is None else _of_band(before))
    old = before.drop_counts if before is not None and since.dropped < _of_band(band).dropped else {}
    return (
        f"  band {band.band}",
        str(band.queued),
        *_rates(since, passed_s),
        "",
        _causes(band.drop_counts, old),
        _wasted(since),
        "",
        "",
    )


def _rates(since: Rates, passed_s: float) -> tuple[str, str, str, str]:
    count = since.answered
    return (
        f"{count / passed_s:.1f}" if passed_s > 0.0 else "",
        str(count) + (f", {since.failed} failed" if since.failed else ""),
        render.span_of_time(since.queue_s / count) if count else "",
        render.span_of_time(since.compute_s / count) if count else "",
    )


def _causes(counts: Mapping[str, int], before: Mapping[str, int]) -> str:
    new = {cause: count - before.get(cause, 0) for cause, count in sorted(counts.items())}
    return ", ".join(f"{count} {cause}" for cause, count in new.items() if count > 0)


def _wasted(since: Rates) -> str:
    return f"{since.wasted_s / since.device_s:.1%}" if since.device_s > 0.0 and since.wasted_s > 0.0 else ""


def _total(each: host_pb2.ModelStatistics) -> Rates:
    bands = [_of_band(band) for band in each.bands]
    return Rates(
        each.success_count,
        each.failure_count,
        each.dropped_count,
        render.seconds(each.queue_total),
        render.seconds(each.compute_total),
        sum(band.device_s for band in bands),
        sum(band.wasted_s for band in bands),
    )


def _of_band(band: host_pb2.BandStatistics) -> Rates:
    return Rates(
        band.success_count,
        band.failure_count,
        sum(band.drop_counts.values()),
        render.seconds(band.queue_total),
        render.seconds(band.compute_total),
        render.seconds(band.device_total),
        render.seconds(band.wasted_total),
    )


def _name(each: host_pb2.ModelStatistics) -> str:
    return f"{each.key.model}:{each.key.version}"
