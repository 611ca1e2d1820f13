"""How long what failed rests."""

from services.policy.restarting import HOST_HEALTHY_S, HOST_LONGEST_S, Restarts, after_end, backoff_s


def test_backoff_doubles_up_to_the_longest_and_never_overflows() -> None:
    rests = [backoff_s(n, first_s=1.0, longest_s=60.0) for n in (0, 1, 2, 3, 6, 7, 8, 100_000)]

    assert rests == [0.0, 1.0, 2.0, 4.0, 32.0, 60.0, 60.0, 60.0]


def test_the_first_restart_is_prompt_and_later_ones_rest_longer() -> None:
    restarts, rests = Restarts(), []
    for _ in range(9):
        restarts = after_end(restarts, ran_s=1.0, now_s=100.0)
        rests.append(restarts.not_before_s - 100.0)

    assert rests == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, HOST_LONGEST_S, HOST_LONGEST_S]


def test_a_host_that_ran_for_long_starts_with_a_clean_record() -> None:
    restarts = Restarts(in_a_row=8, not_before_s=50.0)

    assert after_end(restarts, ran_s=HOST_HEALTHY_S, now_s=200.0) == Restarts(1, 200.0)
