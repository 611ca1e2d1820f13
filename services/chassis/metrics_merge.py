"""Several processes' metrics as one: what workers of one service count, added up.

Counters and histograms add, and those of a process that ended stay in the sum for ever, so that none of them
goes backwards. Of exemplars the latest stays. Gauges merge by the rule declared beside them,
`instruments.GAUGE_MERGE`; one without a rule, and what describes a process rather than its work, gets a label
`worker` instead of being merged.

Lost is what a process counted after its last word and before an end that let it say no other, as by SIGKILL:
at most what happened between two rounds of asking.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import Exemplar

from services.chassis.instruments import GaugeMerge

WORKER = "worker"
"""Label of what is not merged."""

OF_A_PROCESS = ("process_", "python_")
"""Metrics that describe a process begin so."""

_KEPT = ("counter", "histogram", "summary")

_Labels: TypeAlias = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number."""

    name: str
    labels: _Labels
    value: float
    exemplar: tuple[dict[str, str], float, float] | None = None
    """Labels, value, and seconds since the Unix epoch."""


class Family(NamedTuple):
    """One metric with everything below it."""

    name: str
    kind: str
    text: str
    samples: list[Sample]


_decoder = msgspec.msgpack.Decoder(list[Family])


def encode(registry: CollectorRegistry) -> bytes:
    """All metrics of a process, for another process of the same version; a third of the text form's time."""
    return msgspec.msgpack.encode(_families(registry.collect()))


def _families(metrics: Iterable[Metric]) -> list[Family]:
    return [
        Family(
            m.name,
            m.type,
            m.documentation,
            [Sample(s.name, tuple(s.labels.items()), s.value, _plain(s.exemplar)) for s in m.samples],
        )
        for m in metrics
    ]


def _plain(exemplar: Exemplar | None) -> tuple[dict[str, str], float, float] | None:
    if exemplar is None:
        return None
    return dict(exemplar.labels), exemplar.value, float(exemplar.timestamp or 0.0)


class _Sum:
    """Families that others are added to."""

    def __init__(self, rules: Mapping[str, GaugeMerge]) -> None:
        self._rules = rules
        self._heads: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[tuple[str, _Labels], float]] = {}
        self._exemplars: dict[tuple[str, _Labels], tuple[dict[str, str], float, float]] = {}

    def copy(self) -> "_Sum":
        other = _Sum(self._rules)
        other._heads = dict(self._heads)
        other._values = {name: dict(values) for name, values in self._values.items()}
        other._exemplars = dict(self._exemplars)
        return other

    def add(self, source: str, families: Iterable[Family]) -> None:
        for name, kind, text, samples in families:
            self._heads.setdefault(name, (kind, text))
            values = self._values.setdefault(name, {})
            rule = self._rule(name, kind)
            own: _Labels = () if rule is not None else ((WORKER, source),)
            for sample in samples:
                key = (sample.name, sample.labels + own)
                known = values.get(key)
                if sample.exemplar is not None:
                    before = self._exemplars.get(key)
                    if before is None or before[2] < sample.exemplar[2]:
                        self._exemplars[key] = sample.exemplar
                if known is None:
                    values[key] = sample.value
                elif sample.name.endswith("_created"):
                    values[key] = min(known, sample.value)
                elif kind in _KEPT or rule is GaugeMerge.SUM:
                    values[key] = known + sample.value
                elif rule is not None:
                    values[key] = (max if rule is GaugeMerge.MAX else min)(known, sample.value)

    def _rule(self, name: str, kind: str) -> GaugeMerge | None:
        """How values of different processes become one; None: not at all."""
        if name.startswith(OF_A_PROCESS):
            return None
        return GaugeMerge.SUM if kind in _KEPT else self._rules.get(name)

    def metrics(self) -> Iterator[Metric]:
        for name, (kind, text) in self._heads.items():
            metric = Metric(name, text, kind)
            for (sample, labels), value in self._values[name].items():
                found = self._exemplars.get((sample, labels))
                metric.add_sample(sample, dict(labels), value, exemplar=None if found is None else Exemplar(*found))
            yield metric


class Merge:
    """The metrics of processes that come and go. Not for several threads."""

    def __init__(self, rules: Mapping[str, GaugeMerge]) -> None:
        """Merge gauges by `rules`, metric name to rule."""
        self._rules = rules
        self._live: dict[str, bytes] = {}
        self._ended = _Sum(rules)

    def heard(self, source: str, encoded: bytes) -> None:
        """A process said all of its metrics anew."""
        self._live[source] = encoded

    def ended(self, source: str) -> None:
        """A process ended: its gauges go, its counts stay. The next of that name starts from nothing."""
        encoded = self._live.pop(source, None)
        if encoded is not None:
            self._ended.add(source, (family for family in _decoder.decode(encoded) if family.kind in _KEPT))

    def metrics(self, own: Iterable[Metric] = (), *, name: str = "") -> list[Metric]:
        """Everything as one.

        Args:
            own: Metrics of this very process, to be merged in.
            name: What to call it.
        """
        total = self._ended.copy()
        for source, encoded in sorted(self._live.items()):
            total.add(source, _decoder.decode(encoded))
        total.add(name, _families(own))
        return list(total.metrics())
