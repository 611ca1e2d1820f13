"""A budget as one process counts it: a bucket that is hard, and a price of money that follows what is spent."""

import pytest

from services.domain.tenancy import Budget, PriceRules
from services.policy.pricing import ANY, BURST_SHARE, Hold, Price, Purse

RULES = PriceRules(cost_weight=0.001, max_cost_weight=0.01, step=0.002, interval_s=5.0)


def a_purse(amount: int = 1000, period_s: float = 10.0, *, share: float = 1.0) -> Purse:
    return Purse(Budget(amount, period_s), 0.0, share=share)


def pay(purse: Purse, cost: int) -> None:
    hold = Hold(purse, None)
    hold.hold(cost)
    hold.pay()


def test_over_any_period_no_more_is_spent_than_the_budget_and_its_burst() -> None:
    purse, spent, now_s = a_purse(), 0, 0.0

    while now_s < 10.0:
        if purse.left_microusd(now_s) >= 7:
            pay(purse, 7)
            spent += 7
        else:
            now_s += 0.01

    assert 1000 <= spent <= 1000 * (1.0 + BURST_SHARE)
    assert purse.spent_microusd == spent


def test_a_purse_as_full_as_it_should_be_pays_for_what_costs_more_than_it_holds_and_then_waits() -> None:
    purse = a_purse(amount=100, share=0.1)  # 1 a second, 0.5 at once
    assert purse.left_microusd(0.0) == ANY

    pay(purse, 30)

    assert purse.left_microusd(0.0) < 0
    assert purse.left_microusd(29.5) == -1
    assert purse.left_microusd(30.1) == ANY


def test_what_is_not_answered_is_put_back() -> None:
    purse = a_purse()
    hold = Hold(purse, None)
    hold.hold(20)
    assert (purse.left_microusd(0.0), hold.left_microusd(0.0)) == (5, 25)

    hold.hold(15)
    assert purse.left_microusd(0.0) == 10
    hold.end()

    assert purse.left_microusd(0.0) == ANY
    assert purse.spent_microusd == 0


def test_what_was_paid_is_not_put_back() -> None:
    purse = a_purse()
    hold = Hold(purse, None)
    hold.hold(20)
    hold.pay()
    hold.end()

    assert (purse.left_microusd(0.0), purse.spent_microusd) == (5, 20)


def test_the_price_rises_by_the_part_that_is_spent_too_much() -> None:
    price = Price(RULES, 0, 0.0)  # 500 an interval

    assert price.follow(1250, 100.0, 0.5, 4.9) == 0.001
    assert price.follow(1250, 100.0, 0.5, 5.0) == pytest.approx(0.001 + 0.002 * 1.5)
    assert price.follow(5000, 100.0, 0.5, 9.9) == pytest.approx(0.004)


def test_it_rises_though_no_more_than_the_budget_is_spent_if_there_is_no_more_to_spend() -> None:
    price = Price(RULES, 0, 0.0)

    assert price.follow(500, 100.0, -3.0, 5.0) == pytest.approx(0.001 + 0.002 * 0.5)
    assert price.follow(1000, 100.0, 1.0, 10.0) == pytest.approx(0.001)


def test_it_falls_with_each_interval_in_which_nothing_is_spent_and_not_below_nothing() -> None:
    price = Price(RULES, 0, 0.0)
    price.follow(2000, 100.0, 0.5, 5.0)

    assert price.follow(2000, 100.0, 0.5, 15.0) == pytest.approx(0.001 + 0.002 * (3 - 2))
    assert price.follow(2000, 100.0, 0.5, 1000.0) == 0.0


def test_it_does_not_rise_over_the_most() -> None:
    assert Price(RULES, 0, 0.0).follow(100_000, 100.0, 0.0, 5.0) == 0.01


def test_a_budget_is_held_whatever_the_price_begins_at() -> None:
    """Calls are worth between nothing and 0.4 more with the dear answer, 40 microdollars, than with the free one."""
    for first in (0.0, 0.005, 0.009):
        rules, purse = PriceRules(first, 0.02, 0.004, 1.0), a_purse(amount=100_000, period_s=40.0)
        for number in range(10_000):
            now_s = number / 250.0
            gain = 0.4 * (number * 0.618034 % 1.0)
            if gain > 40 * purse.cost_weight(rules, now_s) and purse.left_microusd(now_s) >= 40:
                pay(purse, 40)

        assert purse.spent_microusd == pytest.approx(100_000, rel=0.02)


def test_rules_are_kept_apart() -> None:
    purse, others = a_purse(), PriceRules(cost_weight=0.005, step=0.0)
    purse.cost_weight(RULES, 0.0)
    pay(purse, 1000)

    assert purse.cost_weight(others, 5.0) == 0.005
    assert purse.cost_weight(RULES, 5.0) == pytest.approx(0.001 + 0.002 * 1.5)


def test_another_budget_holds_from_now_on_and_debts_stay() -> None:
    purse = a_purse()
    pay(purse, 80)

    purse.turn_to(Budget(2000, 10.0))

    assert purse.left_microusd(0.0) == -55
    assert purse.left_microusd(0.25) == -5


def test_a_share_of_the_budget_is_spent_here() -> None:
    purse = a_purse(share=0.25)
    purse.cost_weight(RULES, 0.0)
    pay(purse, 250)

    assert purse.refill_per_s == 25.0
    assert purse.cost_weight(RULES, 5.0) == pytest.approx(0.001 + 0.002 * (1.0 + 0.5))
