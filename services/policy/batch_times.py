"""How long a batch takes: a line through what was seen, and a mean per power-of-two size.

The line `t(b) = base + per_item * b` is what travels to routers. The means say what the line
cannot: batching pays unevenly (one CPU thread, 1 to 32: a small MLP x 14, a CNN on images x 0.3).
Least squares with exponential forgetting, kept as decayed sums; that is recursive least squares
in closed form, without its wind-up while every batch has one size.
"""

from dataclasses import dataclass

FORGETTING = 0.98
"""Weight of the past in the line, per batch: a change is learned in about 50 batches."""

BUCKET_WEIGHT = 0.2
"""Weight of a new batch in the mean of its size."""

SPREADS = 1.5
"""Mean deviations above the mean that a batch seldom exceeds."""

SHORTEST_S = 1e-7
"""No batch is predicted to take less; keeps rates finite."""


def bucket_of(rows: int) -> int:
    """The least power of two that is not below `rows`; 1 for none."""
    return 1 << (rows - 1).bit_length() if rows > 1 else 1


@dataclass(slots=True)
class _Mean:
    rows: float
    time_s: float
    spread_s: float = 0.0
    """Mean deviation of the time from its mean."""


class BatchTimes:
    """Batch time of one model on one device, learned batch by batch.

    Until the first batch it is `prior_s` per row.
    """

    __slots__ = ("_means", "_per_item_s", "_predicted", "_prior_s", "_sum_b", "_sum_bb", "_sum_bt", "_sum_n", "_sum_t")

    def __init__(self, prior_s: float) -> None:
        """Start from the declared time of a batch of one."""
        self._prior_s = prior_s
        self._means: dict[int, _Mean] = {}
        self._predicted: dict[int, float] = {}
        self._per_item_s: float | None = None
        self._sum_n = self._sum_b = self._sum_bb = self._sum_t = self._sum_bt = 0.0

    def copy(self) -> "BatchTimes":
        """One that knows the same and learns by itself."""
        twin = BatchTimes(self._prior_s)
        twin._means = {bucket: _Mean(mean.rows, mean.time_s, mean.spread_s) for bucket, mean in self._means.items()}
        twin._per_item_s = self._per_item_s
        twin._sum_n, twin._sum_b, twin._sum_bb = self._sum_n, self._sum_b, self._sum_bb
        twin._sum_t, twin._sum_bt = self._sum_t, self._sum_bt
        return twin

    @property
    def measured(self) -> bool:
        """Whether a batch was seen."""
        return bool(self._means)

    def observe(self, rows: int, time_s: float) -> None:
        """Learn that a batch of `rows` rows took `time_s` seconds."""
        bucket = bucket_of(rows)
        mean = self._means.get(bucket)
        if mean is None:
            self._means[bucket] = _Mean(float(rows), time_s)
        else:
            mean.rows += BUCKET_WEIGHT * (rows - mean.rows)
            mean.spread_s += BUCKET_WEIGHT * (abs(time_s - mean.time_s) - mean.spread_s)
            mean.time_s += BUCKET_WEIGHT * (time_s - mean.time_s)
        self._sum_n = FORGETTING * self._sum_n + 1.0
        self._sum_b = FORGETTING * self._sum_b + rows
        self._sum_bb = FORGETTING * self._sum_bb + rows * rows
        self._sum_t = FORGETTING * self._sum_t + time_s
        self._sum_bt = FORGETTING * self._sum_bt + rows * time_s
        self._learn_slope()
        self._predicted.clear()

    def line(self) -> tuple[float, float]:
        """`(base_s, per_item_s)`, neither negative."""
        if not self._means:
            return 0.0, self._prior_s
        mean_b = self._sum_b / self._sum_n
        mean_t = self._sum_t / self._sum_n
        rate_s = mean_t / mean_b
        per_item_s = rate_s if self._per_item_s is None else min(self._per_item_s, rate_s)
        return mean_t - per_item_s * mean_b, per_item_s

    def _learn_slope(self) -> None:
        mean_b = self._sum_b / self._sum_n
        variance = self._sum_bb / self._sum_n - mean_b * mean_b
        # With sizes all alike only the sum is known: the slope stays as it was last seen.
        if variance > 1e-3 * mean_b * mean_b:
            self._per_item_s = max(0.0, (self._sum_bt - mean_b * self._sum_t) / self._sum_n / variance)

    def predict(self, rows: int) -> float:
        """Seconds that a batch of `rows` rows should take."""
        known = self._predicted.get(rows)
        if known is None:
            known = self._predicted[rows] = max(SHORTEST_S, self._interpolate(rows))
        return known

    def at_most(self, rows: int) -> float:
        """Seconds that a batch of `rows` rows seldom exceeds."""
        mean = self._means.get(bucket_of(rows))
        return self.predict(rows) + (SPREADS * mean.spread_s if mean is not None else 0.0)

    def _interpolate(self, rows: int) -> float:
        if not self._means:
            return self._prior_s * rows
        same = self._means.get(bucket_of(rows))
        if same is not None and same.rows == rows:
            return same.time_s
        below = above = None
        for _, mean in sorted(self._means.items()):
            if mean.rows <= rows:
                below = mean
            else:
                above = mean
                break
        if below is not None and above is not None:
            share = (rows - below.rows) / (above.rows - below.rows)
            return below.time_s + share * (above.time_s - below.time_s)
        nearest = below or above
        assert nearest is not None
        return nearest.time_s + self.line()[1] * (rows - nearest.rows)


class ServiceTimes:
    """Batch times of one model: over all calls, and per power-of-two size of a row.

    A row's size is the number of its elements; models with free dimensions (text, audio)
    take longer for longer rows. While only one size was seen, the two are the same.
    """

    __slots__ = ("_by_size", "_only_size", "_prior_s", "overall")

    def __init__(self, prior_s: float) -> None:
        """Start from the declared time of a batch of one."""
        self._prior_s = prior_s
        self._only_size: int | None = None
        self._by_size: dict[int, BatchTimes] = {}
        self.overall = BatchTimes(prior_s)

    def of_size(self, elements: int) -> BatchTimes:
        """Times of rows of about `elements` elements; of all rows while none such was seen."""
        return self._by_size.get(bucket_of(elements), self.overall) if self._by_size else self.overall

    def observe(self, rows: int, elements: int, time_s: float) -> None:
        """Learn that a batch of `rows` rows of `elements` elements each took `time_s` seconds."""
        bucket = bucket_of(elements)
        if bucket != self._only_size or self._by_size:
            self._learn_sizes(bucket)
        if self._by_size:
            self._by_size[bucket].observe(rows, time_s)
        self.overall.observe(rows, time_s)

    def _learn_sizes(self, bucket: int) -> None:
        """Begin to tell sizes apart at the second one; the first takes over what all were."""
        if self._only_size is None:
            self._only_size = bucket
        elif bucket != self._only_size and not self._by_size:
            self._by_size[self._only_size] = self.overall.copy()
            self._by_size[bucket] = BatchTimes(self._prior_s)
        elif self._by_size and bucket not in self._by_size:
            self._by_size[bucket] = BatchTimes(self._prior_s)
