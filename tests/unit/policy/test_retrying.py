"""Whether a failed call is tried again."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.errors import (
    TAKES_S,
    BudgetExhausted,
    Draining,
    HostUnavailable,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.policy.retrying import (
    BUDGET_BURST,
    BUDGET_FLOOR_PER_S,
    Attempted,
    Fate,
    GiveUp,
    Retry,
    RetryBudget,
    decide,
    fate_of,
)

LOST = Attempted(
    never_sent=False,
    error=HostUnavailable("gone"),
    number=1,
    most=3,
    idempotent=True,
    in_good_standing=False,
    pays=True,
    remaining_s=10.0,
    others=True,
)


def spent_budget() -> RetryBudget:
    budget = RetryBudget(0.0, share=1.0)
    while budget.spend(0.0):
        pass
    return budget


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (HostUnavailable("x"), Fate.MAY_HAVE_RUN),
        (ModelFailed("x"), Fate.MAY_HAVE_RUN),
        (ModelNotReady("x"), Fate.NEVER_RAN),
        (Draining("x"), Fate.NEVER_RAN),
        (Overloaded("x", retry_after_s=0.1), Fate.MAY_HAVE_RUN),
        (Overloaded("x"), Fate.FINAL),
        (InvalidRequest("x"), Fate.FINAL),
        (BudgetExhausted("x"), Fate.FINAL),
    ],
)
def test_errors_tell_whether_the_call_may_have_run(error: YardError, fate: Fate) -> None:
    assert fate_of(error) is fate


def test_a_lost_call_goes_elsewhere_at_once() -> None:
    assert decide(LOST, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.9) == Retry(elsewhere=True, backoff_s=0.0)


def test_what_may_have_run_is_not_repeated_unless_idempotent() -> None:
    verdict = decide(replace(LOST, idempotent=False), RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5)

    assert isinstance(verdict, GiveUp)


def test_what_never_ran_is_repeated_even_if_not_idempotent() -> None:
    refused = replace(LOST, error=ModelNotReady("loading"), idempotent=False)

    assert isinstance(decide(refused, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), Retry)


def test_attempts_have_a_limit() -> None:
    assert isinstance(decide(replace(LOST, number=3), RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), GiveUp)


def test_a_spent_budget_stops_retries() -> None:
    verdict = decide(LOST, spent_budget(), now_s=0.0, chance=0.5)

    assert verdict == GiveUp("the route's retry budget is spent")


def test_the_loss_of_a_good_host_is_free_of_the_budget() -> None:
    lost = replace(LOST, in_good_standing=True)

    assert isinstance(decide(lost, spent_budget(), now_s=0.0, chance=0.5), Retry)


def test_the_same_host_is_tried_only_after_a_pause() -> None:
    alone = replace(LOST, others=False, number=2)

    assert decide(alone, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5) == Retry(elsewhere=False, backoff_s=0.025)
    assert decide(alone, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.0) == Retry(elsewhere=False, backoff_s=0.0)


def test_the_same_host_is_not_tried_before_it_asked_to_be() -> None:
    pushed_back = replace(LOST, others=False, error=Overloaded("full", retry_after_s=0.4))

    assert decide(pushed_back, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5) == Retry(
        elsewhere=False, backoff_s=0.4
    )


def test_a_pause_that_outlasts_the_deadline_is_not_made() -> None:
    pushed_back = replace(LOST, others=False, error=Overloaded("full", retry_after_s=0.4), remaining_s=0.3)

    assert isinstance(decide(pushed_back, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), GiveUp)


@pytest.mark.parametrize("workers", [1, 2, 4, 20])
def test_workers_together_spend_what_one_would(workers: int) -> None:
    budgets = [RetryBudget(0.0, share=1.0 / workers) for _ in range(workers)]

    def spent(now_s: float) -> int:
        return sum(budget.spend(now_s) for budget in budgets for _ in range(100))

    assert spent(0.0) == BUDGET_BURST
    assert spent(20.0) == 20 * BUDGET_FLOOR_PER_S
    assert spent(1e6) == BUDGET_BURST  # full again, and no fuller


def test_a_share_below_one_retry_still_comes_to_one_in_time() -> None:
    budget = RetryBudget(0.0, share=1.0 / 40)

    assert not budget.spend(0.0)
    assert budget.spend(20.0)
    assert not budget.spend(20.0)


def test_a_quiet_route_gets_its_budget_back_by_time() -> None:
    budget = spent_budget()

    assert not budget.spend(0.5)
    assert budget.spend(1.5)


@settings(deadline=None)
@given(st.integers(100, 3000), st.floats(0.0, 5.0))
def test_when_everything_fails_a_burst_and_what_time_brings_are_all_retries(calls: int, seconds: float) -> None:
    budget = RetryBudget(0.0, share=1.0)
    retries = 0

    for number in range(calls):
        now_s = seconds * number / calls
        retries += isinstance(decide(LOST, budget, now_s=now_s, chance=0.5), Retry)

    assert retries <= BUDGET_BURST + seconds + 1


def test_a_host_that_is_too_slow_for_a_call_is_not_the_last_one_asked() -> None:
    slow = replace(LOST, error=BudgetExhausted("takes 1 s", metadata={TAKES_S: "1.0"}), idempotent=False)
    late = replace(LOST, error=BudgetExhausted("the deadline passed"))

    assert decide(slow, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5) == Retry(True, 0.0)
    assert isinstance(decide(late, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), GiveUp)


def test_a_refusal_is_no_attempt_while_another_host_can_be_asked() -> None:
    refused = replace(LOST, error=ModelNotReady("loading"), number=3)

    assert isinstance(decide(refused, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), Retry)
    alone = replace(refused, others=False)
    assert isinstance(decide(alone, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5), GiveUp)


def test_a_call_that_found_no_connection_goes_elsewhere_whatever_it_does() -> None:
    unsent = replace(LOST, never_sent=True, idempotent=False, number=3)

    assert decide(unsent, RetryBudget(0.0, share=1.0), now_s=0.0, chance=0.5) == Retry(True, 0.0)


@settings(deadline=None)
@given(st.integers(100, 3000), st.floats(0.0, 1.0))
def test_retries_stay_near_what_the_policy_lets_answered_calls_pay_for(calls: int, share: float) -> None:
    budget, retries = RetryBudget(0.0, share=1.0), 0

    for _ in range(calls):
        budget.earn(share)
        retries += isinstance(decide(LOST, budget, now_s=0.0, chance=0.5), Retry)

    assert min(calls, int(share * calls)) <= retries <= BUDGET_BURST + share * calls


def test_where_the_policy_pays_for_no_retries_only_free_ones_are_made() -> None:
    unpaid, budget = replace(LOST, pays=False), RetryBudget(0.0, share=1.0)

    assert decide(unpaid, budget, now_s=0.0, chance=0.5) == GiveUp("its policy pays for no retries")
    free = replace(unpaid, in_good_standing=True)
    assert isinstance(decide(free, budget, now_s=0.0, chance=0.5), Retry)
