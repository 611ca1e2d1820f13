"""Which host gets the call."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.domain.rng import KeyedRng
from services.domain.tenancy import PROTECTED, Protection
from services.policy import balancing, scoring
from services.policy.balancing import Draw
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState

RNG = KeyedRng(7)


def bits(number: int) -> int:
    return RNG.bits(f"call-{number}", "host/1")


def some_states(count: int, *, base_s: float = 0.010) -> list[VersionState]:
    return [
        VersionState(HostState(f"h{index}"), Prior(base_s), known_since_s=0.0, ramps=False) for index in range(count)
    ]


def drawn(bits: int) -> Draw:
    return Draw(lambda _: bits)


def picks(
    states: list[VersionState],
    *,
    now_s: float = 100.0,
    calls: int = 4000,
    protection: Protection = PROTECTED,
    may_probe: bool = True,
) -> Counter[str]:
    return Counter(
        balancing.pick(
            states, now_s=now_s, routers=1, draw=drawn(bits(number)), protection=protection, may_probe=may_probe
        ).state.host.host_id
        for number in range(calls)
    )


def test_equal_hosts_share_the_calls() -> None:
    shares = picks(some_states(3))

    assert all(1200 < count < 1470 for count in shares.values()), shares


def test_the_host_with_less_ahead_wins() -> None:
    states = some_states(2)
    for _ in range(3):
        scoring.sent(states[0], 0.0)

    assert picks(states, now_s=0.0)["h0"] == 0


def test_a_host_that_just_failed_gets_nothing() -> None:
    states = some_states(2)
    states[0].host.circuit.open(100.0, why="failed")

    assert picks(states)["h0"] == 0
    assert picks(states, protection=Protection(penalties=False))["h0"] > 1900


def test_once_its_time_is_over_a_host_that_failed_gets_one_call_at_a_time() -> None:
    states = some_states(2)
    states[0].host.circuit.open(95.0, why="failed")

    assert 1900 < picks(states)["h0"] < 2100
    assert picks(states, may_probe=False)["h0"] == 0

    scoring.begin_probe(states[0])
    assert picks(states)["h0"] == 0

    scoring.end_probe(states[0], 100.0, answered=False)
    assert picks(states)["h0"] > 1900

    scoring.begin_probe(states[0])
    scoring.end_probe(states[0], 100.0, answered=True)
    assert picks(states, now_s=111.0, may_probe=False)["h0"] > 1900


def test_among_many_hosts_each_is_drawn() -> None:
    shares = picks(some_states(20))

    assert len(shares) == 20
    assert max(shares.values()) < 3 * min(shares.values()), shares


def test_a_sample_has_no_host_twice() -> None:
    states = some_states(5)

    for number in range(500):
        drawn = balancing.sample(states, bits(number))
        assert len(drawn) == len({state.host.host_id for state in drawn}) == balancing.SAMPLE


def newcomer(name: str = "new") -> VersionState:
    return VersionState(HostState(name), Prior(0.010), known_since_s=100.0, ramps=True)


def test_a_newcomer_gets_a_call_only_if_the_others_are_that_much_slower() -> None:
    old, new = some_states(1)[0], newcomer()
    for _ in range(5):
        scoring.sent(old, 100.0)

    assert picks([old, new], now_s=100.0, calls=100)["new"] == 0
    assert picks([old, new], now_s=105.0, calls=100)["new"] == 100


def test_a_newcomer_is_an_equal_once_its_ramp_is_over() -> None:
    share = picks([*some_states(1), newcomer()], now_s=110.0)["new"] / 4000

    assert 0.45 < share < 0.55


def test_a_remote_zone_wins_only_if_it_is_clearly_sooner() -> None:
    near, far = some_states(2)
    local = balancing.Pick(near, 0.012, 0.0)

    near_enough, sooner = balancing.Pick(far, 0.0115, 0.0), balancing.Pick(far, 0.007, 0.0)
    assert balancing.nearest(local, near_enough, hysteresis=0.1, margin_s=0.0) is local
    assert balancing.nearest(local, sooner, hysteresis=0.1, margin_s=0.0) is sooner
    assert balancing.nearest(local, sooner, hysteresis=0.1, margin_s=0.005) is local


@given(st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_the_same_bits_pick_the_same_host(count: int, number: int) -> None:
    states = some_states(count)

    first = balancing.pick(states, now_s=1.0, routers=1, draw=drawn(number))
    again = balancing.pick(states, now_s=1.0, routers=1, draw=drawn(number))

    assert first.state is again.state


def test_a_newcomer_is_not_left_out_for_a_host_that_just_failed() -> None:
    states = some_states(2)
    for state in states:
        state.host.circuit.open(100.0, why="failed")
    states.append(VersionState(HostState("new"), Prior(0.010), known_since_s=100.0, ramps=True))

    shares = picks(states)

    assert shares["new"] == 4000, shares
