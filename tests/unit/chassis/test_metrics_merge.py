"""Several processes' metrics as one."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, generate_latest
from prometheus_client.core import Exemplar
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from services.chassis.hot_metrics import HotHistogram
from services.chassis.instruments import GAUGE_MERGE, REGISTRY, GaugeMerge
from services.chassis.metrics_merge import OF_A_PROCESS, Merge, encode

RULES = {"sum_gauge": GaugeMerge.SUM, "max_gauge": GaugeMerge.MAX, "min_gauge": GaugeMerge.MIN}


class Source:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ["outcome"], registry=self.registry)
        self.seconds = Histogram("seconds", "Time.", buckets=(1.0, 2.0), registry=self.registry)
        self.gauges = {name: Gauge(name, "A gauge.", registry=self.registry) for name in (*RULES, "other_gauge")}
        self.memory = Gauge("process_memory_bytes", "Memory.", registry=self.registry)
        self.cpu = Counter("process_cpu_seconds", "Time computed.", registry=self.registry)

    def tell(self, merge: Merge, name: str) -> None:
        merge.heard(name, encode(self.registry))


def values(metrics: Iterable[Metric]) -> dict[str, float]:
    """Every value, by its name and labels as they are written."""
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for metric in metrics
        for sample in metric.samples
    }


@pytest.fixture
def merge() -> Merge:
    return Merge(RULES)


@pytest.fixture
def sources() -> list[Source]:
    return [Source(), Source()]


def merged(merge: Merge, sources: list[Source]) -> dict[str, float]:
    for number, source in enumerate(sources):
        source.tell(merge, str(number))
    return values(merge.metrics())


def test_counters_add_by_their_labels(merge: Merge, sources: list[Source]) -> None:
    sources[0].calls.labels("OK").inc(3)
    sources[1].calls.labels("OK").inc(4)
    sources[1].calls.labels("LOST").inc()

    found = merged(merge, sources)

    assert found["calls_total outcome=OK"] == 7
    assert found["calls_total outcome=LOST"] == 1


def test_histograms_add_bucket_by_bucket(merge: Merge, sources: list[Source]) -> None:
    for source, seconds in zip(sources, (0.5, 1.5), strict=True):
        source.seconds.observe(seconds)
        source.seconds.observe(9.0)

    found = merged(merge, sources)

    assert [found[f"seconds_bucket le={le}"] for le in ("1.0", "2.0", "+Inf")] == [1, 2, 4]
    assert (found["seconds_count"], found["seconds_sum"]) == (4, 20.0)


def test_gauges_merge_by_their_rule_and_without_one_not_at_all(merge: Merge, sources: list[Source]) -> None:
    for source, value in zip(sources, (5, 3), strict=True):
        for gauge in source.gauges.values():
            gauge.set(value)

    found = merged(merge, sources)

    assert (found["sum_gauge"], found["max_gauge"], found["min_gauge"]) == (8, 5, 3)
    assert (found["other_gauge worker=0"], found["other_gauge worker=1"]) == (5, 3)
    assert "other_gauge" not in found


def test_what_describes_a_process_stays_apart(merge: Merge, sources: list[Source]) -> None:
    for source, value in zip(sources, (5, 3), strict=True):
        source.memory.set(value)
        source.cpu.inc(value)

    found = merged(merge, sources)

    assert (found["process_memory_bytes worker=0"], found["process_memory_bytes worker=1"]) == (5, 3)
    assert (found["process_cpu_seconds_total worker=0"], found["process_cpu_seconds_total worker=1"]) == (5, 3)


def test_since_when_it_is_counted_is_the_earliest(merge: Merge, sources: list[Source]) -> None:
    starts = [values(source.registry.collect())["seconds_created"] for source in sources]

    assert merged(merge, sources)["seconds_created"] == min(starts)


def test_what_a_process_counted_outlives_it_and_its_gauges_do_not(merge: Merge, sources: list[Source]) -> None:
    for source in sources:
        source.calls.labels("OK").inc(2)
        source.gauges["sum_gauge"].set(1)
        source.memory.set(10)
        source.cpu.inc(2)
    merged(merge, sources)

    merge.ended("1")
    found = values(merge.metrics())

    assert found["calls_total outcome=OK"] == 4
    assert found["sum_gauge"] == 1
    assert found["process_cpu_seconds_total worker=1"] == 2
    assert "process_memory_bytes worker=1" not in found


def test_a_process_that_follows_adds_to_what_the_one_before_counted(merge: Merge, sources: list[Source]) -> None:
    sources[0].calls.labels("OK").inc(2)
    sources[0].tell(merge, "0")
    merge.ended("0")

    sources[1].calls.labels("OK").inc()
    sources[1].tell(merge, "0")

    assert values(merge.metrics())["calls_total outcome=OK"] == 3


def test_the_end_of_a_process_that_never_spoke_changes_nothing(merge: Merge) -> None:
    merge.ended("0")

    assert merge.metrics() == []


def test_the_own_metrics_come_in_under_the_given_name(merge: Merge, sources: list[Source]) -> None:
    sources[0].calls.labels("OK").inc(2)
    sources[1].calls.labels("OK").inc()
    sources[1].memory.set(7)
    sources[0].tell(merge, "0")

    found = values(merge.metrics(sources[1].registry.collect(), name="parent"))

    assert found["calls_total outcome=OK"] == 3
    assert found["process_memory_bytes worker=parent"] == 7


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "tell", "end"])), max_size=40))
def test_no_count_goes_backwards_whatever_happens(steps: list[tuple[int, str]]) -> None:
    merge = Merge(RULES)
    live: dict[int, Source] = {}
    told, before = 0.0, 0.0
    untold = [0.0, 0.0, 0.0]
    for number, step in steps:
        if step == "count":
            live.setdefault(number, Source()).calls.labels("OK").inc()
            untold[number] += 1
        elif step == "tell" and number in live:
            live[number].tell(merge, str(number))
            told += untold[number]
            untold[number] = 0
        elif step == "end":
            merge.ended(str(number))
            live.pop(number, None)
            untold[number] = 0  # lost with it
        now = values(merge.metrics()).get("calls_total outcome=OK", 0.0)
        assert now == told
        assert now >= before
        before = now


class Merged(Collector):
    def __init__(self, merge: Merge) -> None:
        self._merge = merge

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        return self._merge.metrics()


def test_what_comes_out_is_what_a_single_process_would_write(merge: Merge) -> None:
    source = Source()
    source.calls.labels("OK").inc()
    source.seconds.observe(1.5)
    source.gauges["max_gauge"].set(-2.5)
    source.registry.unregister(source.memory)
    source.registry.unregister(source.cpu)
    source.registry.unregister(source.gauges["other_gauge"])
    Info("build", "Which it is.", registry=source.registry).info({"version": '1"\n'})
    source.tell(merge, "0")
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(Merged(merge))

    text = generate_latest(registry).decode()

    assert text.replace(',worker="0"', "") == generate_latest(source.registry).decode()
    assert list(text_string_to_metric_families(text))


def test_every_gauge_has_a_rule_and_every_rule_a_gauge() -> None:
    gauges = {m.name for m in REGISTRY.collect() if m.type == "gauge" and not m.name.startswith(OF_A_PROCESS)}

    assert gauges == set(GAUGE_MERGE)


def test_of_exemplars_the_latest_stays(merge: Merge) -> None:
    for source, trace_id, at_s in (("a", "1" * 32, 20.0), ("b", "2" * 32, 30.0), ("c", "3" * 32, 10.0)):
        registry = CollectorRegistry()
        histogram = HotHistogram("took_seconds", "Time.", buckets=(1.0,), registry=registry).labels()
        histogram.observe(0.5)
        histogram.exemplify(0.5, trace_id, at_s)
        merge.heard(source, encode(registry))

    told = [sample for metric in merge.metrics() for sample in metric.samples if sample.exemplar is not None]

    assert [(sample.labels["le"], sample.value, sample.exemplar) for sample in told] == [
        ("1.0", 3.0, Exemplar({"trace_id": "2" * 32}, 0.5, 30.0))
    ]


def test_an_exemplar_of_a_process_that_ended_is_kept(merge: Merge) -> None:
    registry = CollectorRegistry()
    histogram = HotHistogram("took_seconds", "Time.", buckets=(1.0,), registry=registry).labels()
    histogram.observe(2.0)
    histogram.exemplify(2.0, "1" * 32, 20.0)
    merge.heard("a", encode(registry))
    merge.ended("a")

    told = [sample for metric in merge.metrics() for sample in metric.samples if sample.exemplar is not None]

    assert [sample.labels["le"] for sample in told] == ["+Inf"]
