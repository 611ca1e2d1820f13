"""How long answers take: quantiles of a stream of times, of which the older ones count less.

Counts in buckets whose borders grow by a constant factor, as DDSketch has them (Masson, Rim and Lee, VLDB 2019, section
2.2), so that every quantile is right to within that factor. Once there are enough, all counts are halved: what was
counted n halvings ago weighs 2^-n.
"""

import math

FIRST_S = 0.0001
"""Upper border of the first bucket: whatever is quicker needs no telling apart."""

GROWTH = 1.1
"""From one border to the next: a quantile is at most so many times too long."""

BUCKETS = 160
"""The last border is at 380 s, longer than the longest default deadline."""

KEPT = 1000.0
"""Times counted before all are halved: of a 95th percentile at least 25 lie behind it."""

LEAST = 20
"""Times before there is a quantile at all: one of twenty is the 95th percentile."""

_LOG_GROWTH = math.log(GROWTH)


class Times:
    """Times of one kind of answer."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        """None yet."""
        self._counts = [0.0] * BUCKETS
        self._total = 0.0

    def add(self, duration_s: float) -> None:
        """Count one more."""
        at = 0 if duration_s <= FIRST_S else math.ceil(math.log(duration_s / FIRST_S) / _LOG_GROWTH)
        self._counts[min(at, BUCKETS - 1)] += 1.0
        self._total += 1.0
        if self._total >= KEPT:
            self._counts = [count / 2.0 for count in self._counts]
            self._total /= 2.0

    def quantile_s(self, share: float) -> float | None:
        """The time that `share` of answers are within, in (0, 1); None if there are too few to say."""
        if self._total < LEAST:
            return None
        left = share * self._total
        for at, count in enumerate(self._counts):
            left -= count
            if left <= 0.0:
                return FIRST_S * float(GROWTH**at)
        return FIRST_S * float(GROWTH ** (BUCKETS - 1))
