"""Tables of quality, time and price: what they say without data, with little, and with much."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.model import ModelKey
from services.domain.objects import ModelVersion, SegmentQuality
from services.policy.complexity import Kind
from services.policy.learning import (
    LATE_SPREAD,
    NO_EVIDENCE,
    Moments,
    Tables,
    expectation,
    observed,
    registered_quality,
)
from tests.fakes.objects import a_version

EASY, HARD = Kind("law", "64x1"), Kind("law", "4096x1")
UNITS = st.floats(0.0, 1.0)


def version(quality: float | None = 0.8, *, cost: int = 10, service_time_s: float = 0.010) -> ModelVersion:
    return replace(a_version("m"), quality=quality, cost_microusd=cost, service_time_s=service_time_s)


KEY = ModelKey("m", "1.0.0")


def told(tables: Tables, kind: Kind, quality: float, times: int) -> None:
    for _ in range(times):
        tables.labelled(KEY, kind, quality=quality, cost_microusd=None)


@settings(max_examples=25, deadline=None)
@given(UNITS, st.integers(0, 10_000), st.floats(1e-4, 100.0))
def test_without_data_the_registry_is_believed(quality: float, cost: int, service_time_s: float) -> None:
    found = Tables().expected(KEY, version(quality, cost=cost, service_time_s=service_time_s), EASY)

    assert found.quality == quality
    assert found.cost_microusd == cost
    assert found.service_s == pytest.approx(service_time_s)
    assert found.spread == LATE_SPREAD
    assert found.ratio == 1.0
    assert (found.labels, found.answers) == (0.0, 0.0)


@settings(max_examples=25, deadline=None)
@given(UNITS, UNITS)
def test_twenty_labels_of_a_domain_weigh_about_as_much_as_the_registry(prior: float, truth: float) -> None:
    tables = Tables()
    told(tables, Kind("law"), truth, 20)

    found = tables.expected(KEY, version(prior), EASY).quality

    assert found == pytest.approx((prior + truth) / 2, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(UNITS, UNITS)
def test_many_labels_outweigh_the_registry(prior: float, truth: float) -> None:
    tables = Tables()
    told(tables, EASY, truth, 1500)

    assert tables.expected(KEY, version(prior), EASY).quality == pytest.approx(truth, abs=0.03)


def test_a_cell_with_little_data_is_pulled_to_its_domain() -> None:
    tables = Tables()
    told(tables, EASY, 0.9, 1000)
    told(tables, HARD, 0.1, 2)

    easy, hard = (tables.expected(KEY, version(), kind).quality for kind in (EASY, HARD))

    assert easy is not None
    assert hard is not None
    assert 0.75 < hard < easy  # two bad answers of a kind are no verdict on it
    told(tables, HARD, 0.1, 500)
    assert (tables.expected(KEY, version(), HARD).quality or 0.0) < 0.2


def test_another_domain_learns_nothing_of_a_label() -> None:
    tables = Tables()
    told(tables, EASY, 0.1, 1000)

    assert tables.expected(KEY, version(0.8), Kind("medicine", "64x1")).quality == 0.8


def test_what_nobody_measured_earns_its_place_by_labels() -> None:
    tables = Tables()
    assert tables.expected(KEY, version(None), EASY).quality is None

    told(tables, EASY, 1.0, 1)
    first = tables.expected(KEY, version(None), EASY).quality
    told(tables, EASY, 1.0, 999)

    assert first is not None
    assert first < 0.1
    assert (tables.expected(KEY, version(None), EASY).quality or 0.0) > 0.95


def test_half_of_an_observation_is_forgotten_after_693() -> None:
    moments = Moments()
    for _ in range(20_000):
        moments = observed(moments, 0.0)
    assert moments.weight == pytest.approx(1000.0, rel=0.01)

    for _ in range(693):
        moments = observed(moments, 1.0)

    assert moments.mean == pytest.approx(0.5, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=60))
def test_moments_are_those_of_the_weighted_observations(values: list[float]) -> None:
    moments = Moments()
    for value in values:
        moments = observed(moments, value)

    weights = [0.999 ** (len(values) - 1 - at) for at in range(len(values))]
    mean = sum(map(float.__mul__, weights, values)) / sum(weights)
    variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True)) / sum(weights)
    assert moments.weight == pytest.approx(sum(weights))
    assert moments.mean == pytest.approx(mean, abs=1e-9)
    assert moments.variance == pytest.approx(variance, abs=1e-9)


def test_times_converge_to_the_mean_and_the_95th_percentile_of_what_was_seen() -> None:
    tables = Tables()
    for step in range(4000):  # a lognormal sample by its quantiles, in an order that is not theirs
        part = (step * 1597 % 4000 + 0.5) / 4000
        tables.answered(KEY, EASY, 0.020 * math.exp(0.3 * _normal(part)))

    found = tables.expected(KEY, version(), EASY)

    assert found.service_s == pytest.approx(0.020 * math.exp(0.045), rel=0.03)
    assert found.p95_s == pytest.approx(0.020 * math.exp(0.3 * 1.645), rel=0.05)
    assert found.spread == pytest.approx(0.3, abs=0.02)
    assert found.ratio == pytest.approx(1.0, abs=0.01)


def _normal(part: float) -> float:
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2.0)) < part else (low, middle)
    return low


def test_a_kind_that_takes_longer_than_the_versions_usual_calls_is_expected_to() -> None:
    tables = Tables()
    for _ in range(1000):
        tables.answered(KEY, EASY, 0.010)
        tables.answered(KEY, HARD, 0.090)

    easy, hard = (tables.expected(KEY, version(), kind) for kind in (EASY, HARD))

    assert easy.ratio == pytest.approx(1 / 3, rel=0.1)
    assert hard.ratio == pytest.approx(3.0, rel=0.1)
    assert hard.service_s == pytest.approx(9 * easy.service_s, rel=0.2)


def test_prices_are_learned_where_somebody_says_what_was_paid() -> None:
    tables = Tables()
    for _ in range(500):
        tables.labelled(KEY, EASY, quality=None, cost_microusd=50.0)

    found = tables.expected(KEY, version(cost=10), EASY)

    assert found.cost_microusd == pytest.approx(50.0, abs=1.0)
    assert found.quality == 0.8


def test_memory_is_bounded_and_what_learned_last_is_kept() -> None:
    tables = Tables(most_cells=10, most_domains=5, most_versions=3)
    for number in range(1000):
        tables.labelled(KEY, Kind(f"domain-{number}", "1x1"), quality=0.0, cost_microusd=None)

    assert len(tables) <= 18
    assert (tables.expected(KEY, version(0.8), Kind("domain-999", "1x1")).quality or 0.0) < 0.8
    assert tables.expected(KEY, version(0.8), Kind("domain-0", "1x1")).quality == 0.8


@pytest.mark.parametrize(
    ("kind", "quality"),
    [
        (Kind(), 0.5),
        (Kind(labels=(("language", "de"),)), 0.6),
        (Kind(domain="triage"), 0.7),
        (Kind(labels=(("task", "triage"),)), 0.7),
        (Kind(domain="triage", labels=(("language", "de"),)), 0.9),
        (Kind(labels=(("language", "fr"),)), 0.5),
        (Kind(labels=(("vip", ""),)), 0.4),
    ],
)
def test_the_most_specific_place_of_the_registry_holds(kind: Kind, quality: float) -> None:
    places = (
        SegmentQuality("", "language=de", 0.6),
        SegmentQuality("triage", "", 0.7),
        SegmentQuality("triage", "language=de", 0.9),
        SegmentQuality("", "vip", 0.4),
    )

    assert registered_quality(replace(version(0.5), segment_qualities=places), kind) == quality


def test_another_revision_of_a_version_is_expected_anew() -> None:
    tables = Tables()
    assert tables.expected(KEY, version(0.5), EASY).quality == 0.5

    assert tables.expected(KEY, version(0.6), EASY).quality == 0.6
    assert expectation(NO_EVIDENCE, version(0.7), EASY).quality == 0.7


def test_an_error_budget_is_spent_by_failures_and_comes_back_by_answers() -> None:
    tables = Tables()
    assert tables.error_budget_left("r", 0.99) == 1.0

    for _ in range(5):
        tables.ended("r", failed=True)
    assert tables.error_budget_left("r", 0.99) == pytest.approx(0.5, abs=0.01)
    assert tables.error_budget_left("other", 0.99) == 1.0
    assert tables.error_budget_left("r", 1.0) < 0.0

    for _ in range(693):
        tables.ended("r", failed=False)
    assert tables.error_budget_left("r", 0.99) == pytest.approx(0.75, abs=0.01)
