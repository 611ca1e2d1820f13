"""Which model and version."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.objects import Choose, ModelVersion, RouteTarget, Single
from services.domain.request import Preference, RouteOptions
from services.policy.choosing import Choice, NothingFits, Prospect, choose, late_probability, utility, wish_unmet
from tests.fakes.objects import a_version

CHOOSE = Choose((RouteTarget("small"), RouteTarget("large")))


def version(name: str, *, quality: float | None = None, cost: int = 0) -> ModelVersion:
    return replace(a_version(name), quality=quality, cost_microusd=cost)


SMALL = version("small", quality=0.80, cost=10)
LARGE = version("large", quality=0.92, cost=60)


def chosen(result: Choice | NothingFits) -> Choice:
    assert isinstance(result, Choice)
    return result


def test_balanced_takes_the_highest_utility_and_says_why() -> None:
    result = chosen(
        choose(CHOOSE, [Prospect(SMALL, "", 0.006, 1.0), Prospect(LARGE, "", 0.011, 1.0)], Preference.BALANCED)
    )

    assert result.at == 1
    assert list(result.scores) == pytest.approx([0.79, 0.86])
    assert result.reason == "highest utility of 2, 0.86: quality 0.92, 60 µUSD, 0% too late"


def test_a_better_model_that_would_be_late_loses() -> None:
    result = chosen(
        choose(CHOOSE, [Prospect(SMALL, "", 0.006, 0.050), Prospect(LARGE, "", 0.048, 0.050)], Preference.BALANCED)
    )

    assert result.at == 0


@pytest.mark.parametrize(
    ("prefer", "index", "reason"),
    [
        (Preference.LATENCY, 0, "soonest of 2: 6 ms predicted"),
        (Preference.COST, 0, "cheapest of 2: 10 µUSD"),
        (Preference.QUALITY, 1, "best of 2: quality 0.92"),
    ],
)
def test_a_preference_is_followed(prefer: Preference, index: int, reason: str) -> None:
    result = chosen(choose(CHOOSE, [Prospect(SMALL, "", 0.006, 1.0), Prospect(LARGE, "", 0.011, 1.0)], prefer))

    assert (result.at, result.reason) == (index, reason)


def test_a_filtered_candidate_is_never_chosen() -> None:
    result = chosen(choose(CHOOSE, [Prospect(SMALL, "", 0.006, 1.0), Prospect(LARGE, "too dear")], Preference.QUALITY))

    assert result.at == 0
    assert result.reason == "the only one of 2 candidates that can answer"


def test_nothing_left_is_a_value() -> None:
    assert isinstance(choose(CHOOSE, [Prospect(SMALL, "no"), Prospect(LARGE, "no")], Preference.BALANCED), NothingFits)
    assert isinstance(choose(Single(RouteTarget("small")), [], Preference.BALANCED), NothingFits)


def test_single_takes_the_newest_that_can_answer_and_says_why_not_a_newer_one() -> None:
    newer = replace(SMALL, version="2.0.0")

    result = chosen(
        choose(
            Single(RouteTarget("small")),
            [Prospect(newer, "no host has it ready"), Prospect(SMALL, "", 0.006, 1.0)],
            Preference.BALANCED,
        )
    )

    assert result.at == 1
    assert result.reason == "newest version that can answer; 2.0.0: no host has it ready"


def test_equal_utility_goes_to_the_sooner_one() -> None:
    twin = version("twin", quality=0.80, cost=10)

    result = chosen(
        choose(CHOOSE, [Prospect(SMALL, "", 0.02, 9.0), Prospect(twin, "", 0.01, 9.0)], Preference.BALANCED)
    )

    assert result.at == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (RouteOptions(), ""),
        (RouteOptions(max_cost_microusd=60), ""),
        (RouteOptions(max_cost_microusd=59), "costs 60 µUSD, over the 59 allowed"),
        (RouteOptions(min_quality=0.92), ""),
        (RouteOptions(min_quality=0.95), "quality 0.92 is below the 0.95 asked for"),
    ],
)
def test_wishes_filter_with_their_reason(options: RouteOptions, why: str) -> None:
    assert wish_unmet(LARGE, options) == why


def test_a_wish_for_quality_leaves_out_what_nobody_measured() -> None:
    assert "was not measured" in wish_unmet(version("new"), RouteOptions(min_quality=0.1))


def test_lateness_is_even_odds_at_the_limit() -> None:
    assert late_probability(0.1, 0.1) == pytest.approx(0.5)
    assert late_probability(0.1, 0.0) == 1.0
    assert late_probability(0.1, 1e9) == 0.0


@given(st.floats(1e-4, 10.0), st.floats(1e-4, 10.0), st.floats(1.0, 10.0))
def test_more_time_never_makes_lateness_likelier(predicted_s: float, limit_s: float, factor: float) -> None:
    less, more = late_probability(predicted_s, limit_s), late_probability(predicted_s, limit_s * factor)

    assert 0.0 <= more <= less <= 1.0


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 2000), st.floats(1e-4, 5.0), st.booleans()), min_size=1, max_size=8
    )
)
def test_no_open_candidate_has_a_higher_utility_than_the_chosen_one(
    facts: list[tuple[float, int, float, bool]],
) -> None:
    prospects = [
        Prospect(version(f"m{index}", quality=quality, cost=cost), "closed" if closed else "", predicted_s, 1.0)
        for index, (quality, cost, predicted_s, closed) in enumerate(facts)
    ]

    result = choose(CHOOSE, prospects, Preference.BALANCED)

    open_ones = [prospect for prospect in prospects if not prospect.filtered]
    if not open_ones:
        assert isinstance(result, NothingFits)
    else:
        best = max(utility(CHOOSE, prospect) for prospect in open_ones)
        assert math.isclose(utility(CHOOSE, prospects[chosen(result).at]), best)
