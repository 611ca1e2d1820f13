from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy.batch_times import BatchTimes, ServiceTimes, bucket_of
from services.policy.batching import (
    batch_cap,
    batch_sizes,
    form_batch,
    predicted_wait_s,
    wait_for_company_s,
)


@dataclass(frozen=True)
class Call:
    deadline_at_s: float
    rows: int = 1
    group: Hashable = "g"


def line(base_s: float, per_item_s: float, upto: int = 32) -> BatchTimes:
    times = BatchTimes(0.01)
    for size in batch_sizes(upto):
        times.observe(size, base_s + per_item_s * size)
    return times


def test_sizes_are_powers_of_two_and_the_largest_itself() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(0) == (1,)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
    assert batch_sizes(16) == (1, 2, 4, 8, 16)
    assert [bucket_of(rows) for rows in (1, 2, 3, 4, 5, 8)] == [1, 2, 4, 4, 8, 8]


def test_a_line_is_learned_exactly_and_never_negative() -> None:
    base_s, per_item_s = line(0.002, 0.0005).line()
    assert base_s == pytest.approx(0.002)
    assert per_item_s == pytest.approx(0.0005)

    falling = BatchTimes(0.01)
    falling.observe(1, 0.02)
    falling.observe(8, 0.01)
    base_s, per_item_s = falling.line()
    assert base_s == pytest.approx(0.015, rel=0.1)
    assert per_item_s == 0.0


def test_the_slope_survives_a_long_time_of_batches_of_one() -> None:
    times = line(0.002, 0.001)
    for _ in range(2_000):
        times.observe(1, 0.003)
    base_s, per_item_s = times.line()
    assert per_item_s == pytest.approx(0.001, rel=0.05)
    assert base_s + per_item_s == pytest.approx(0.003, rel=0.01)


def test_before_the_first_batch_the_declared_time_counts() -> None:
    times = BatchTimes(0.010)
    assert not times.measured
    assert times.predict(3) == pytest.approx(0.030)
    assert times.line() == (0.0, 0.010)


def test_prediction_follows_the_means_where_no_line_does() -> None:
    times = BatchTimes(0.01)
    for rows, time_s in ((1, 0.010), (2, 0.020), (4, 0.200)):
        times.observe(rows, time_s)
    assert times.predict(2) == pytest.approx(0.020)
    assert times.predict(3) == pytest.approx(0.110)
    assert times.predict(4) == pytest.approx(0.200)
    assert times.predict(8) > 0.200


def test_rows_of_another_size_have_times_of_their_own() -> None:
    times = ServiceTimes(0.01)
    times.observe(1, 10, 0.001)
    times.observe(1, 1_000, 0.100)
    assert times.of_size(10).predict(1) == pytest.approx(0.001)
    assert times.of_size(1_000).predict(1) == pytest.approx(0.100)
    assert times.of_size(77_777) is times.overall


def test_cap_grows_where_batching_pays_and_stays_one_where_it_does_not() -> None:
    assert batch_cap(line(0.010, 0.0001), max_batch_size=32, slo_s=None) == 32
    assert batch_cap(line(0.0, 0.010), max_batch_size=32, slo_s=None) == 1
    worse = BatchTimes(0.01)
    for size in batch_sizes(32):
        worse.observe(size, 0.01 * size**1.3)
    assert batch_cap(worse, max_batch_size=32, slo_s=None) == 1


def test_cap_keeps_a_batch_within_half_of_the_objective() -> None:
    times = line(0.010, 0.002)
    assert batch_cap(times, max_batch_size=32, slo_s=0.060) == 8
    assert batch_cap(times, max_batch_size=32, slo_s=0.001) == 1


def test_the_batch_is_the_earliest_deadlines_of_one_group() -> None:
    calls = [Call(2.0, group="a"), Call(3.0, group="b"), Call(4.0, group="a"), Call(5.0, group="a")]
    plan = form_batch(calls, now_s=1.0, cap=2, times=line(0.01, 0.001))
    assert plan.take == (0, 2)
    assert plan.drop == ()
    assert plan.predicted_s == pytest.approx(0.012)


def test_rows_count_toward_the_cap_and_a_larger_call_goes_alone() -> None:
    assert form_batch([Call(9, rows=3), Call(9, rows=3)], now_s=1.0, cap=4, times=line(0.01, 0.001)).take == (0,)
    assert form_batch([Call(9, rows=1), Call(9, rows=3)], now_s=1.0, cap=4, times=line(0.01, 0.001)).take == (0, 1)
    assert form_batch([Call(9, rows=40)], now_s=1.0, cap=4, times=line(0.01, 0.001)).take == (0,)


def test_under_backlog_a_late_head_is_dropped_and_the_batch_stays_full() -> None:
    # t(4) = 14 ms; the head has 12 ms: alone (11 ms) it would make it, at the price of the others.
    calls = [Call(1.012), *[Call(1.5 + index) for index in range(6)]]
    plan = form_batch(calls, now_s=1.0, cap=4, times=line(0.010, 0.001))
    assert plan.drop == (0,)
    assert plan.take == (1, 2, 3, 4)


def test_without_backlog_the_head_goes_first_if_all_are_then_in_time() -> None:
    plan = form_batch([Call(1.014), Call(2.0)], now_s=1.0, cap=4, times=line(0.010, 0.0025))
    assert (plan.take, plan.drop) == ((0,), ())
    assert plan.predicted_s == pytest.approx(0.0125)


def test_a_hopeless_head_does_not_take_the_next_call_with_it() -> None:
    # t(2) = 20 ms, t(1) = 15 ms: the second call has 18 ms and makes it alone.
    plan = form_batch([Call(1.001), Call(1.018)], now_s=1.0, cap=4, times=line(0.010, 0.005))
    assert (plan.take, plan.drop) == ((1,), (0,))


def test_all_late_leaves_nothing_to_compute() -> None:
    plan = form_batch([Call(0.5), Call(0.6)], now_s=1.0, cap=4, times=line(0.01, 0.001))
    assert plan.take == ()
    assert sorted(plan.drop) == [0, 1]


@given(
    st.lists(
        st.builds(Call, st.floats(0.0, 2.0), st.integers(1, 6), st.sampled_from(["a", "b"])),
        max_size=40,
    ),
    st.integers(1, 16),
)
def test_a_plan_takes_one_group_in_time_within_the_cap_and_drops_only_the_late(calls: list[Call], cap: int) -> None:
    calls = sorted(calls, key=lambda call: call.deadline_at_s)
    times = line(0.010, 0.005)
    plan = form_batch(calls, now_s=1.0, cap=cap, times=times)

    taken = [calls[index] for index in plan.take]
    assert len(set(plan.take) | set(plan.drop)) == len(plan.take) + len(plan.drop)
    assert len({call.group for call in taken}) <= 1
    assert len(taken) <= 1 or sum(call.rows for call in taken) <= cap
    assert all(call.deadline_at_s >= 1.0 + plan.predicted_s for call in taken)
    longest_s = times.predict(max(cap, 6))
    assert all(calls[index].deadline_at_s < 1.0 + longest_s for index in plan.drop)
    if not plan.take:
        assert len(plan.drop) == len(calls)


def test_company_is_waited_for_only_where_it_pays_and_where_there_is_slack() -> None:
    pays, does_not = line(0.010, 0.0001), line(0.0, 0.010)
    idle = [Call(9.0)]
    wait = wait_for_company_s(idle, first_at_s=1.0, now_s=1.0, cap=8, max_wait_s=0.5, times=pays)
    assert wait == pytest.approx(0.005)
    assert wait_for_company_s(idle, first_at_s=1.0, now_s=1.0, cap=8, max_wait_s=0.0, times=pays) == 0.0
    assert wait_for_company_s(idle, first_at_s=1.0, now_s=1.0, cap=8, max_wait_s=0.5, times=does_not) == 0.0
    assert wait_for_company_s(idle, first_at_s=1.0, now_s=1.006, cap=8, max_wait_s=0.5, times=pays) == 0.0
    assert wait_for_company_s(idle * 8, first_at_s=1.0, now_s=1.0, cap=8, max_wait_s=0.5, times=pays) == 0.0
    tight = [Call(1.011)]
    assert wait_for_company_s(tight, first_at_s=1.0, now_s=1.0, cap=8, max_wait_s=0.5, times=pays) < 0.001


def test_wait_is_the_running_batch_and_the_full_ones_before() -> None:
    times = line(0.010, 0.0)
    assert predicted_wait_s(running_s=0.004, rows_ahead=0, cap=4, times=times) == pytest.approx(0.004)
    assert predicted_wait_s(running_s=0.004, rows_ahead=3, cap=4, times=times) == pytest.approx(0.004)
    assert predicted_wait_s(running_s=0.004, rows_ahead=9, cap=4, times=times) == pytest.approx(0.024)
