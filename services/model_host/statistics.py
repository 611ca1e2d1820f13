"""What one version has done on this host, in all and by band."""

from dataclasses import dataclass, field

CAUSES = ("cancelled", "cutoff", "deadline", "full", "preempted")
"""Why a call ends before it was computed: nobody waits for it any more; the host takes no calls of its class now; it
would be or is too late; the queue is full; a call of an earlier band needed its place."""


@dataclass(slots=True)
class BandStatistics:
    """Calls of one band."""

    success: int = 0
    failure: int = 0
    queue_s: float = 0.0
    """Waiting of the calls that were answered."""
    compute_s: float = 0.0
    """Batch times of those, each call counted with all of its batch."""
    device_s: float = 0.0
    """Device time of the calls that were computed, each counted with its part of the batch."""
    wasted_s: float = 0.0
    """The part of it that went into answers which came too late, or which nobody waited for."""
    drops: dict[str, int] = field(default_factory=dict)
    """Calls that were not computed, by cause."""

    @property
    def dropped(self) -> int:
        """Calls that were not computed."""
        return sum(self.drops.values())


@dataclass(slots=True)
class LaneStatistics:
    """One version, since the process started."""

    executions: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    """Batches by the number of calls in them."""
    bands: dict[int, BandStatistics] = field(default_factory=dict)
    cold: int = 0
    """Calls that found it not in memory."""
    loads: int = 0
    evictions: int = 0

    def of(self, band: int) -> BandStatistics:
        """Those of one band."""
        found = self.bands.get(band)
        if found is None:
            found = self.bands[band] = BandStatistics()
        return found

    def total(self) -> BandStatistics:
        """All bands together; also asked by other threads than the one that counts."""
        total = BandStatistics()
        for band in list(self.bands.values()):
            total.success += band.success
            total.failure += band.failure
            total.queue_s += band.queue_s
            total.compute_s += band.compute_s
            total.device_s += band.device_s
            total.wasted_s += band.wasted_s
            for cause, count in list(band.drops.items()):
                total.drops[cause] = total.drops.get(cause, 0) + count
        return total
