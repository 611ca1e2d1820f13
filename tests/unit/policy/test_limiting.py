"""Limits of calls at once, and token buckets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.admission import ADMIT, Reject, RejectReason
from services.policy.limiting import Bucket, Token, admit_at_rate, admit_one_more, part_of

RATES = st.floats(0.01, 1e4)
BURSTS = st.integers(1, 50)
PAUSES = st.lists(st.floats(0.0, 3.0), max_size=80)
LONG_UP_S = 1e6
"""A machine that has run for weeks."""


class Taker:
    """A bucket, and who asks it."""

    def __init__(self, rate_per_s: float, burst: int, now_s: float = LONG_UP_S) -> None:
        self.bucket = Bucket(rate_per_s, float(burst), 0, 0.0)
        self.now_s = now_s

    def take(self) -> float | None:
        """Take a token; else the seconds to the next one."""
        verdict = admit_at_rate(self.bucket, now_s=self.now_s)
        if isinstance(verdict, Reject):
            return verdict.retry_after_s
        self.bucket = self.bucket._replace(taken=self.bucket.taken + 1, spilled=verdict.spilled)
        return None


def test_as_many_calls_as_the_limit_says_are_in_flight_and_no_more() -> None:
    assert admit_one_more(in_flight=4, most=5) is ADMIT
    refused = admit_one_more(in_flight=5, most=5)
    assert isinstance(refused, Reject)
    assert refused.reason is RejectReason.LIMIT_MET


@pytest.mark.parametrize(
    ("most", "routers", "part"), [(100, 3, 33), (3, 3, 1), (1, 3, 1), (49, 49, 1), (98, 49, 2), (7, 1, 7)]
)
def test_routers_keep_to_their_parts_and_none_is_left_without(most: int, routers: int, part: int) -> None:
    assert part_of(most, 1.0 / routers) == part


def test_a_bucket_starts_full_and_then_fills_at_its_rate() -> None:
    taker = Taker(10.0, 3)

    assert [taker.take() for _ in range(3)] == [None] * 3
    assert taker.take() == pytest.approx(0.1)
    taker.now_s += 0.25
    assert [taker.take() for _ in range(2)] == [None] * 2
    assert taker.take() == pytest.approx(0.05)


def test_a_bucket_that_was_left_alone_for_an_hour_holds_no_more_than_its_burst() -> None:
    taker = Taker(10.0, 3)
    taker.take()

    taker.now_s += 3600.0

    assert [taker.take() for _ in range(4)] == [None, None, None, pytest.approx(0.1)]


def test_a_refusal_takes_nothing() -> None:
    taker = Taker(10.0, 1)
    taker.take()
    bucket = taker.bucket

    assert [taker.take() for _ in range(100)] == [pytest.approx(0.1)] * 100
    assert taker.bucket == bucket


@settings(deadline=None)
@given(RATES, BURSTS, PAUSES)
def test_a_caller_who_comes_back_when_told_is_let_in(rate_per_s: float, burst: int, pauses: list[float]) -> None:
    taker = Taker(rate_per_s, burst)
    for pause_s in pauses:
        taker.now_s += pause_s
        wait_s = taker.take()
        if wait_s is not None:
            assert 0.0 < wait_s <= 1.0 / rate_per_s + 1e-6
            taker.now_s += wait_s
            assert taker.take() is None


@settings(deadline=None)
@given(RATES, BURSTS, PAUSES)
def test_no_stretch_of_time_sees_more_than_the_burst_and_what_it_earned(
    rate_per_s: float, burst: int, pauses: list[float]
) -> None:
    taker = Taker(rate_per_s, burst)
    times = []
    for pause_s in pauses:
        taker.now_s += pause_s
        if taker.take() is None:
            times.append(taker.now_s)

    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + rate_per_s * (times[last] - times[first]) + 0.01


@settings(deadline=None)
@given(RATES, BURSTS, PAUSES)
def test_the_sums_let_in_what_a_bucket_of_tokens_would(rate_per_s: float, burst: int, pauses: list[float]) -> None:
    taker, tokens = Taker(rate_per_s, burst), float(burst)
    for pause_s in pauses:
        taker.now_s += pause_s
        tokens = min(float(burst), tokens + rate_per_s * pause_s)
        if abs(tokens - 1.0) < 0.01:
            return  # rounding decides
        admitted = taker.take() is None
        assert admitted == (tokens >= 1.0)
        tokens -= admitted


@settings(deadline=None)
@given(RATES, BURSTS, PAUSES, st.integers(1, 3))
def test_who_does_not_see_what_others_take_at_that_instant_leaves_them_less_afterwards(
    rate_per_s: float, burst: int, pauses: list[float], others: int
) -> None:
    seen = Bucket(rate_per_s, float(burst), 0, 0.0)
    now_s, admitted = LONG_UP_S, 0
    for pause_s in pauses:
        now_s += pause_s
        verdicts = [admit_at_rate(seen, now_s=now_s) for _ in range(others + 1)]  # each before the others write
        for verdict in verdicts:
            if isinstance(verdict, Token):
                admitted += 1
                seen = seen._replace(taken=seen.taken + 1, spilled=max(seen.spilled, verdict.spilled))

        assert admitted <= burst + rate_per_s * (now_s - LONG_UP_S) + others + 0.01
