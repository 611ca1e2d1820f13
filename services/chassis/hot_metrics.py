"""Counters and histograms for what happens with every call: a count costs a tenth of prometheus-client's.

Theirs take a lock for each value, which a process that counts on its event loop alone does not need; what is
exported is the same. Count on one thread only: the one that runs the loop. The number of series is bounded, see
`label_sets`.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from services.chassis.label_sets import MOST, LabelSets


class CounterChild:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        """At 0."""
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class HotCounter(Collector):
    """A counter for each set of label values."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        registry: CollectorRegistry,
        kept: Collection[str] = (),
        most: int = MOST,
    ) -> None:
        """Name it without `_total`, which is added; `kept` labels have few values, `most` sets are counted apart."""
        self._name, self._documentation, self._labels = name.removesuffix("_total"), documentation, labels
        self._sets = LabelSets(labels, kept=kept, most=most)
        self._children: dict[tuple[str, ...], CounterChild] = {}
        registry.register(self)

    def labels(self, *values: str) -> CounterChild:
        """The counter of these values; keep it."""
        values = self._sets.admit(values)
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = CounterChild()
        return child

    def describe(self) -> Iterable[Metric]:
        """Its name and labels."""
        return [CounterMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Its values."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        return [family]


class HistogramChild:
    """One histogram."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Empty."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not summed up; the last one has no bound."""
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """By bucket: the last call that can be looked up."""

    def observe(self, amount: float) -> None:
        """Count `amount` in."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount

    def exemplify(self, amount: float, trace_id: str, at_s: float) -> None:
        """Let `amount`, counted before, be told by its trace; `at_s` is seconds since the Unix epoch."""
        self.exemplars[bisect_left(self._bounds, amount)] = Exemplar({"trace_id": trace_id}, amount, at_s)


class HotHistogram(Collector):
    """A histogram for each set of label values."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        kept: Collection[str] = (),
        first: Collection[str] = (),
        most: int = MOST,
    ) -> None:
        """Upper bounds are `buckets`, in order; one without a bound is added. For the others see `LabelSets`."""
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = tuple(map(float, buckets))
        self._sets = LabelSets(labels, kept=kept, first=first, most=most)
        self._children: dict[tuple[str, ...], HistogramChild] = {}
        registry.register(self)

    def labels(self, *values: str) -> HistogramChild:
        """The histogram of these values; keep it."""
        values = self._sets.admit(values)
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = HistogramChild(self._bounds)
        return child

    def describe(self) -> Iterable[Metric]:
        """Its name and labels."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Its values."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, child in list(self._children.items()):
            counts, total = list(child.counts), child.total
            exemplars = child.exemplars
            summed: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            below = 0
            for at, (name, count) in enumerate(zip(names, counts, strict=True)):
                below += count
                exemplar = exemplars.get(at)
                summed.append((name, float(below)) if exemplar is None else (name, float(below), exemplar))
            family.add_metric(values, summed, total)
        return [family]
