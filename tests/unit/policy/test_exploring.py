"""Another candidate is tried as often as is said, never where it could hurt."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.objects import Choose, RouteTarget
from services.domain.request import Preference
from services.policy.choosing import Choice, Prospect, choose
from services.policy.complexity import Kind
from services.policy.exploring import FLOOR, LEAST_BUDGET, explore
from services.policy.learning import NO_EVIDENCE, expectation
from tests.fakes.objects import a_version

CHOOSE = Choose((RouteTarget("m0"),))


def prospect(number: int, *, filtered: str = "", limit_s: float = 1.0, service_time_s: float = 0.010) -> Prospect:
    version = replace(a_version(f"m{number}"), quality=0.9 - number / 100, service_time_s=service_time_s)
    return Prospect(version, filtered, service_time_s, limit_s, expectation(NO_EVIDENCE, version, Kind()))


def best(prospects: list[Prospect]) -> Choice:
    choice = choose(CHOOSE, prospects, Preference.BALANCED)
    assert isinstance(choice, Choice)
    return choice


def explored(prospects: list[Prospect], *, chance: float, share: float = 0.02, budget_left: float = 1.0) -> Choice:
    return explore(best(prospects), prospects, share=share, budget_left=budget_left, chance=lambda: chance)


def test_the_share_is_divided_evenly_and_the_best_gets_the_rest() -> None:
    prospects = [prospect(number) for number in range(3)]

    drawn = [explored(prospects, chance=at / 1000) for at in range(1000)]

    assert [sum(choice.at == at for choice in drawn) for at in range(3)] == [980, 10, 10]
    assert {choice.propensities for choice in drawn} == {(0.98, 0.01, 0.01)}
    assert drawn[0].explored
    assert drawn[0].reason.startswith("explored, 1.00% of the calls; best: highest utility of 3")
    assert drawn[20].reason == best(prospects).reason


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0.001, 0.1), st.floats(0.0, 1.0, exclude_max=True))
def test_no_chance_is_below_the_floor_and_all_are_one(count: int, share: float, chance: float) -> None:
    choice = explored([prospect(number) for number in range(count)], chance=chance, share=share)

    assert sum(choice.propensities) == pytest.approx(1.0)
    assert all(each == 0.0 or each >= FLOOR for each in choice.propensities)
    assert choice.propensities[0] >= 0.9 - 1e-9
    assert choice.propensities[choice.at] > 0.0


@pytest.mark.parametrize(
    "other", [prospect(1, filtered="too dear"), prospect(1, limit_s=0.030), prospect(1)._replace(predicted_s=0.6)]
)
def test_what_could_be_late_is_never_tried(other: Prospect) -> None:
    choice = explored([prospect(0), other], chance=0.0)

    assert (choice.at, choice.propensities) == (0, (1.0, 0.0))


@pytest.mark.parametrize("budget_left", [LEAST_BUDGET, 0.0, -3.0])
def test_nothing_is_tried_once_half_of_the_error_budget_is_spent(budget_left: float) -> None:
    choice = explored([prospect(0), prospect(1)], chance=0.0, budget_left=budget_left)

    assert (choice.at, choice.propensities) == (0, (1.0, 0.0))
