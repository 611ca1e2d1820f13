"""How long answers take."""

from hypothesis import given
from hypothesis import strategies as st

from services.policy.quantiles import FIRST_S, GROWTH, KEPT, LEAST, Times


@given(st.lists(st.floats(FIRST_S, 300.0), min_size=LEAST, max_size=int(KEPT) - 1), st.floats(0.5, 0.99))
def test_a_quantile_is_right_to_within_a_tenth(times_s: list[float], share: float) -> None:
    times = Times()
    for each in times_s:
        times.add(each)

    found = times.quantile_s(share)

    exact = sorted(times_s)[max(0, -int(-share * len(times_s) // 1) - 1)]
    assert found is not None
    assert exact / 1.0001 <= found <= exact * GROWTH * 1.0001


def test_a_few_times_say_nothing() -> None:
    times = Times()
    for _ in range(LEAST - 1):
        times.add(0.1)

    assert times.quantile_s(0.95) is None


def test_what_was_long_ago_counts_less() -> None:
    times = Times()
    for _ in range(2000):
        times.add(1.0)
    for _ in range(3000):
        times.add(0.01)

    assert (times.quantile_s(0.9) or 1.0) < 0.02


def test_no_time_is_too_short_or_too_long() -> None:
    times = Times()
    for each in (0.0, 1e9):
        for _ in range(LEAST):
            times.add(each)

    assert times.quantile_s(0.4) == FIRST_S
    assert (times.quantile_s(0.9) or 0.0) > 300.0
