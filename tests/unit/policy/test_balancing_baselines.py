"""The yardsticks do what their names say, and nothing better."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.rng import KeyedRng
from services.domain.tenancy import BalancingStrategy
from services.policy import balancing_baselines, scoring
from services.policy.balancing import Draw
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState

RNG = KeyedRng(7)
YARDSTICKS = tuple(each for each in BalancingStrategy if each is not BalancingStrategy.LEAST_COMPLETION)


def some_states(count: int) -> list[VersionState]:
    return [
        VersionState(HostState(f"h{index}"), Prior(0.010), known_since_s=0.0, ramps=False) for index in range(count)
    ]


def take(strategy: BalancingStrategy, states: list[VersionState], number: int) -> VersionState:
    draw = Draw(lambda _: RNG.bits(f"call-{number}", "host/1"))
    return balancing_baselines.pick(strategy, states, now_s=float(number), routers=1, draw=draw).state


def test_by_round_robin_each_has_its_turn() -> None:
    states = some_states(3)
    order = []
    for number in range(7):
        state = take(BalancingStrategy.ROUND_ROBIN, states, number)
        scoring.sent(state, float(number))
        order.append(state.host.host_id)

    assert order == ["h0", "h1", "h2", "h0", "h1", "h2", "h0"]


def test_a_newcomer_s_turn_is_next_and_then_as_often_as_that_of_others() -> None:
    states = some_states(2)
    for number in range(4):
        scoring.sent(take(BalancingStrategy.ROUND_ROBIN, states, number), float(number))
    states = [*states, *some_states(3)[2:]]

    order = []
    for number in range(4, 10):
        state = take(BalancingStrategy.ROUND_ROBIN, states, number)
        scoring.sent(state, float(number))
        order.append(state.host.host_id)

    assert order == ["h2", "h0", "h1", "h2", "h0", "h1"]


def test_by_chance_each_gets_its_share() -> None:
    states = some_states(4)

    shares = Counter(take(BalancingStrategy.RANDOM, states, number).host.host_id for number in range(4000))

    assert all(900 < count < 1100 for count in shares.values()), shares


def test_the_fewest_calls_win_and_chance_decides_between_as_many() -> None:
    states = some_states(3)
    scoring.sent(states[0], 0.0)

    shares = Counter(take(BalancingStrategy.LEAST_LOADED, states, number).host.host_id for number in range(2000))

    assert shares["h0"] == 0
    assert all(900 < shares[host] < 1100 for host in ("h1", "h2")), shares


@pytest.mark.parametrize("strategy", YARDSTICKS)
def test_a_yardstick_goes_to_a_host_that_just_failed(strategy: BalancingStrategy) -> None:
    states = some_states(2)
    states[0].host.circuit.open(0.0, why="of the test")
    taken = set()

    for number in range(50):
        draw = Draw(lambda _, number=number: RNG.bits(f"call-{number}", "host/1"))  # type: ignore[misc]
        pick = balancing_baselines.pick(strategy, states, now_s=0.001 * number, routers=1, draw=draw)
        assert pick.penalty_s == 0.0
        taken.add(pick.state.host.host_id)
        scoring.ended(pick.state, scoring.sent(pick.state, 0.001 * number))

    assert taken == {"h0", "h1"}


@given(st.sampled_from(YARDSTICKS), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_the_same_bits_pick_the_same_host(strategy: BalancingStrategy, count: int, bits: int) -> None:
    states = some_states(count)

    first, again = (
        balancing_baselines.pick(strategy, states, now_s=1.0, routers=1, draw=Draw(lambda _: bits)) for _ in range(2)
    )

    assert first.state is again.state
