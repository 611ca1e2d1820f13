"""Deadlines: what is left, what a hop may take, and that absurd ones do no harm."""

import pytest

from services.domain.clock import ManualClock
from services.domain.deadline import LONGEST_S, Deadline
from services.domain.errors import BudgetExhausted


def test_hop_is_refused_once_only_the_reserve_is_left() -> None:
    clock = ManualClock()
    deadline = Deadline.from_remaining(0.100, clock)

    clock.advance(0.085)

    with pytest.raises(BudgetExhausted):
        deadline.for_hop(reserve_s=0.020)


def test_hop_gets_what_is_left_less_the_reserve() -> None:
    clock = ManualClock()
    deadline = Deadline.from_remaining(1.0, clock)

    clock.advance(0.25)

    assert deadline.for_hop(reserve_s=0.05) == pytest.approx(0.70)


def test_absurd_deadline_is_cut_to_a_day() -> None:
    assert Deadline.from_remaining(1e15, ManualClock()).remaining_s() == LONGEST_S


def test_no_deadline_is_a_day() -> None:
    assert Deadline.from_remaining(None, ManualClock()).remaining_s() == LONGEST_S
