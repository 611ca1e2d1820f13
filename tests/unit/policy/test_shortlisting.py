"""Which candidates have to be looked at."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from services.domain.objects import Choose, ModelVersion
from services.domain.request import Preference
from services.policy import shortlisting
from services.policy.choosing import Prospect, ceiling, rank, utility
from services.policy.complexity import Kind
from services.policy.learning import NO_EVIDENCE, Evidence, Moments, Seen, expectation, observed
from services.policy.shortlisting import KEPT, Shortlist, Shortlists
from tests.unit.router.yards import rated

WEIGHTS = st.floats(0, 1e6)


def shortlist(strategy: Choose, prefer: Preference, *values: tuple[float | None, int]) -> Shortlist:
    versions = [rated(f"m{at}", quality=quality, cost=cost) for at, (quality, cost) in enumerate(values)]
    expected = [expectation(NO_EVIDENCE, version, Kind("", "", ())) for version in versions]
    return shortlisting.shortlist(strategy, versions, expected, prefer)


@given(
    st.builds(Choose, st.just(()), WEIGHTS, WEIGHTS, WEIGHTS),
    st.builds(partial(rated, "m"), quality=st.none() | st.floats(0, 1), cost=st.integers(0, 10**9)),
    st.tuples(st.floats(0, 1e4), st.floats(-1, 1e4)),
    st.sampled_from(Preference),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1e9)),
)
def test_nothing_is_worth_more_than_its_ceiling(
    strategy: Choose,
    version: ModelVersion,
    times_s: tuple[float, float],
    prefer: Preference,
    label: tuple[float, float] | None,
) -> None:
    evidence = NO_EVIDENCE
    if label is not None:
        evidence = Evidence(Seen(*(observed(Moments(), value) for value in label)), Seen(), Moments())
    expected = expectation(evidence, version, Kind("", "", ()))

    prospect = Prospect(version, "", *times_s, expected)

    assert rank(prefer, prospect, utility(strategy, prospect)) <= ceiling(strategy, version, expected, prefer)


def test_the_highest_ceiling_comes_first_and_of_equal_ones_the_routes_first() -> None:
    found = shortlist(Choose(()), Preference.BALANCED, (0.5, 0), (0.9, 0), (None, 0), (0.9, 0))

    assert [place.at for place in found.places] == [1, 3, 0, 2]
    assert not found.learned


def test_weights_and_preferences_have_orders_of_their_own() -> None:
    orders = [
        [place.at for place in shortlist(strategy, prefer, (0.5, 1), (0.9, 900)).places]
        for strategy, prefer in (
            (Choose((), cost_weight=0.0), Preference.BALANCED),
            (Choose((), cost_weight=0.001), Preference.BALANCED),
            (Choose((), cost_weight=0.001), Preference.QUALITY),
        )
    ]

    assert orders == [[1, 0], [0, 1], [1, 0]]


def test_weights_that_keep_moving_do_not_pile_up() -> None:
    shortlists = Shortlists()

    for step in range(3 * KEPT):
        shortlists.put(step, shortlist(Choose((), cost_weight=step / 1000), Preference.BALANCED, (0.5, 1)))

    assert shortlists.kept <= KEPT
    assert shortlists.get(3 * KEPT - 1) is not None
