import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.service_class import ServiceClass
from services.policy.fairness import Shares, TenantShare, in_turn

GOLD = ServiceClass("g", "gold", band=1)
SILVER = ServiceClass("s", "silver", band=4)
BRONZE = ServiceClass("b", "bronze", band=8)


class Call:
    """A call of one row."""

    rows = 1

    def __init__(self, name: str) -> None:
        self.name = name


class Line:
    """Calls of one tenant."""

    def __init__(self, share: TenantShare, *names: str) -> None:
        self.share = share
        self.waiting = [Call(name) for name in names]


def serve(shares: Shares, seconds: float, cost_s: dict[TenantShare, float], had_s: dict[TenantShare, float]) -> None:
    """Everybody in `cost_s` always has a call waiting, which takes that long."""
    for share, each_s in cost_s.items():
        shares.entered(share, each_s)
    left_s = seconds
    while left_s > 0.0:
        share = shares.next()
        shares.left(share, cost_s[share])
        shares.charge(share, cost_s[share])
        had_s[share] = had_s.get(share, 0.0) + cost_s[share]
        left_s -= cost_s[share]
        shares.entered(share, cost_s[share])
    for share, each_s in cost_s.items():
        shares.left(share, each_s)


def test_an_earlier_band_goes_first_whatever_it_had() -> None:
    shares = Shares()
    gold, bronze = shares.of(GOLD), shares.of(BRONZE)
    had_s: dict[TenantShare, float] = {}
    serve(shares, 10.0, {gold: 0.1, bronze: 0.1}, had_s)
    assert bronze not in had_s


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.001, 0.2), min_size=2, max_size=8))
def test_tenants_of_a_tier_have_the_same_device_time_to_within_one_call(costs: list[float]) -> None:
    shares = Shares()
    cost_s = {shares.of(ServiceClass(f"t{index}", "silver")): cost for index, cost in enumerate(costs)}
    had_s = dict.fromkeys(cost_s, 0.0)
    serve(shares, 20.0, cost_s, had_s)
    assert max(had_s.values()) - min(had_s.values()) <= 2 * max(costs) + 1e-9


def test_tiers_of_a_band_share_by_weight() -> None:
    shares = Shares()
    heavy = shares.of(ServiceClass("h", "heavy", weight=3.0))
    light = shares.of(ServiceClass("l", "light"))
    had_s: dict[TenantShare, float] = {}
    serve(shares, 40.0, {heavy: 0.01, light: 0.02}, had_s)
    assert had_s[heavy] / had_s[light] == pytest.approx(3.0, rel=0.01)


def test_a_tenant_that_was_away_has_no_credit_for_that() -> None:
    shares = Shares()
    stays, comes = shares.of(ServiceClass("stays")), shares.of(ServiceClass("comes"))
    serve(shares, 100.0, {stays: 0.1}, {})
    had_s: dict[TenantShare, float] = {}
    serve(shares, 2.0, {stays: 0.1, comes: 0.1}, had_s)
    assert had_s[comes] == pytest.approx(had_s[stays], abs=0.2)


def test_a_reserved_share_is_kept_against_earlier_bands_and_not_exceeded() -> None:
    shares = Shares()
    gold = shares.of(GOLD)
    bronze = shares.of(ServiceClass("b", "bronze", band=8, reserved_share=0.2))
    had_s: dict[TenantShare, float] = {}
    serve(shares, 50.0, {gold: 0.05, bronze: 0.05}, had_s)
    assert had_s[bronze] / 50.0 == pytest.approx(0.2, abs=0.01)


def test_a_reserved_share_that_was_not_asked_for_is_not_saved_up() -> None:
    shares = Shares()
    gold = shares.of(GOLD)
    bronze = shares.of(ServiceClass("b", "bronze", band=8, reserved_share=0.5))
    serve(shares, 50.0, {gold: 0.05}, {})
    had_s: dict[TenantShare, float] = {}
    serve(shares, 4.0, {gold: 0.05, bronze: 0.05}, had_s)
    assert had_s[bronze] <= 0.5 * 4.0 + 0.1


def test_a_batch_is_filled_by_band_and_then_evenly_over_tenants() -> None:
    shares = Shares()
    one, two = shares.of(ServiceClass("one")), shares.of(ServiceClass("two"))
    lines = [Line(one, "a", "b", "c"), Line(two, "x", "y"), Line(shares.of(GOLD), "first")]
    assert [call.name for call in in_turn(lines, row_s=0.01)] == ["first", "a", "x", "b", "y", "c"]


def test_who_has_had_more_fills_a_batch_after_the_others() -> None:
    shares = Shares()
    one, two = shares.of(ServiceClass("one")), shares.of(ServiceClass("two"))
    shares.charge(one, 0.015)
    lines = [Line(one, "a", "b"), Line(two, "x", "y", "z")]
    assert [call.name for call in in_turn(lines, row_s=0.01)] == ["x", "y", "a", "z", "b"]


def test_what_goes_before_a_call_are_earlier_bands_and_as_much_of_each_other_tenant_as_of_its_own() -> None:
    shares = Shares()
    mine, flood, small = (shares.of(ServiceClass(name)) for name in ("mine", "flood", "small"))
    gold, bronze = shares.of(GOLD), shares.of(BRONZE)
    for share, count in ((flood, 100), (small, 1), (gold, 2), (bronze, 50)):
        for _ in range(count):
            shares.entered(share, 0.1)
    assert shares.ahead_s(mine, 0.3) == pytest.approx(0.2 + 0.3 * 2)
    assert shares.ahead_s(gold, 0.3) == 0.0
    assert shares.ahead_s(bronze, 0.3) == pytest.approx(0.2 + 10.1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_counts_of_what_waits_come_back_to_nothing(seed: int) -> None:
    rng = random.Random(seed)
    shares = Shares()
    everybody = [shares.of(each) for each in (GOLD, SILVER, BRONZE)]
    waiting: list[tuple[TenantShare, float]] = []
    for _ in range(300):
        if waiting and rng.random() < 0.5:
            share, cost_s = waiting.pop(rng.randrange(len(waiting)))
            shares.left(share, cost_s)
        else:
            share, cost_s = rng.choice(everybody), rng.random()
            shares.entered(share, cost_s)
            waiting.append((share, cost_s))
        assert {share for share, _ in waiting} == set(shares.active)
    while waiting:
        shares.left(*waiting.pop())
    assert not shares.active
    assert all(share.waiting == 0 and share.waiting_s == 0.0 for share in everybody)
