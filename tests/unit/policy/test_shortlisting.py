"""Which candidates have to be looked at."""

from dataclasses import dataclass
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from services.domain.objects import Choose, ModelVersion
from services.domain.request import Preference
from services.policy.choosing import Prospect, ceiling, rank, utility
from services.policy.shortlisting import KEPT, Shortlists
from tests.unit.router.yards import rated

WEIGHTS = st.floats(0, 1e6)


@dataclass(frozen=True)
class Candidate:
    """One."""

    version: ModelVersion


def candidates(*values: tuple[float | None, int]) -> list[Candidate]:
    return [Candidate(rated(f"m{at}", quality=quality, cost=cost)) for at, (quality, cost) in enumerate(values)]


@given(
    st.builds(Choose, st.just(()), WEIGHTS, WEIGHTS, WEIGHTS),
    st.builds(partial(rated, "m"), quality=st.none() | st.floats(0, 1), cost=st.integers(0, 10**9)),
    st.floats(0, 1e4),
    st.floats(-1, 1e4),
    st.sampled_from(Preference),
)
def test_nothing_is_worth_more_than_its_ceiling(
    strategy: Choose, version: ModelVersion, predicted_s: float, limit_s: float, prefer: Preference
) -> None:
    prospect = Prospect(version, "", predicted_s, limit_s)

    assert rank(prefer, prospect, utility(strategy, prospect)) <= ceiling(strategy, version, prefer)


def test_the_highest_ceiling_comes_first_and_of_equal_ones_the_routes_first() -> None:
    places = Shortlists().of(Choose(()), candidates((0.5, 0), (0.9, 0), (None, 0), (0.9, 0)), Preference.BALANCED)

    assert [place.at for place in places] == [1, 3, 0, 2]


def test_weights_and_preferences_have_orders_of_their_own() -> None:
    shortlists, those = Shortlists(), candidates((0.5, 1), (0.9, 900))

    orders = [
        [place.at for place in shortlists.of(strategy, those, prefer)]
        for strategy, prefer in (
            (Choose((), cost_weight=0.0), Preference.BALANCED),
            (Choose((), cost_weight=0.001), Preference.BALANCED),
            (Choose((), cost_weight=0.001), Preference.QUALITY),
        )
    ]

    assert orders == [[1, 0], [0, 1], [1, 0]]


def test_weights_that_keep_moving_do_not_pile_up() -> None:
    shortlists, those = Shortlists(), candidates((0.5, 1))

    for step in range(3 * KEPT):
        shortlists.of(Choose((), cost_weight=step / 1000), those, Preference.BALANCED)

    assert shortlists.kept <= KEPT
