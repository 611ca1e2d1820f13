"""What hosts of which nothing is known are taken for."""

from services.policy.prior import WINDOW_S, Prior


def test_the_first_report_goes_before_what_was_declared() -> None:
    prior = Prior(0.010)
    prior.heard(0.050, 0.001, 0.0)
    assert (prior.base_s, prior.per_item_s) == (0.050, 0.001)


def test_a_host_that_is_slow_does_not_make_others_look_as_it_is() -> None:
    prior = Prior(0.010)
    for step in range(100):
        now_s = step * 0.7
        prior.heard(0.020, 0.0, now_s)
        prior.heard(0.200, 0.0, now_s + 0.1)
        assert prior.base_s == 0.020


def test_the_slow_one_counts_once_nobody_else_was_heard_for_two_windows() -> None:
    prior = Prior(0.010)
    prior.heard(0.020, 0.0, 0.0)
    prior.heard(0.200, 0.0, WINDOW_S - 0.1)
    prior.heard(0.200, 0.0, WINDOW_S + 0.1)
    assert prior.base_s == 0.020
    prior.heard(0.200, 0.0, 2 * WINDOW_S + 0.2)
    assert prior.base_s == 0.200


def test_what_was_heard_long_ago_counts_for_nothing() -> None:
    prior = Prior(0.010)
    prior.heard(0.020, 0.0, 0.0)
    prior.heard(0.200, 0.0, 3 * WINDOW_S)
    assert prior.base_s == 0.200


def test_a_faster_one_counts_at_once() -> None:
    prior = Prior(0.010)
    prior.heard(0.200, 0.0, 0.0)
    prior.heard(0.020, 0.0, 0.1)
    assert prior.base_s == 0.020
