"""A session's calls stay on one host, as long as that is sound and has not much more to do than others."""

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.host import ModelLoad
from services.domain.model import ModelKey
from services.domain.rng import KeyedRng
from services.policy import affinity, scoring
from services.policy.circuit import HOLD_S
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState

RNG = KeyedRng(7)
KEY = ModelKey("m", "1.0.0")


def some_states(*names: str) -> list[VersionState]:
    return [VersionState(HostState(name), Prior(0.010), known_since_s=0.0, ramps=False) for name in names]


def kept(
    states: list[VersionState], session: str, *, factor: float = 1.25, now_s: float = 0.0, may_probe: bool = False
) -> str | None:
    bits = affinity.session_bits(RNG, session, "m:1.0.0")
    pick = affinity.keep(states, bits, load_factor=factor, now_s=now_s, routers=1, may_probe=may_probe)
    return None if pick is None else pick.state.host.host_id


hosts = st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=2, max_size=30, unique=True)


@settings(max_examples=50, deadline=None)
@given(hosts, st.data())
def test_when_a_host_goes_no_session_moves_but_its_own(names: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(names))
    before = {f"s{number}": kept(some_states(*names), f"s{number}") for number in range(60)}

    left = some_states(*(name for name in names if name != gone))

    for session, host in before.items():
        assert kept(left, session) == host or host == gone


@settings(max_examples=50, deadline=None)
@given(hosts, st.data())
def test_when_a_host_comes_sessions_move_to_it_alone(names: list[str], data: st.DataObject) -> None:
    new = data.draw(st.sampled_from(names))
    old = some_states(*(name for name in names if name != new))
    for number in range(60):
        session = f"s{number}"
        assert kept(some_states(*names), session) in (kept(old, session), new)


def test_a_host_that_comes_takes_over_an_even_share() -> None:
    names = [f"h{number}" for number in range(10)]
    sessions = [f"s{number}" for number in range(2000)]
    old, new = some_states(*names[:-1]), some_states(*names)

    moved = sum(kept(old, session) != kept(new, session) for session in sessions) / len(sessions)

    assert 0.08 < moved < 0.12, moved
    shares = Counter(kept(new, session) for session in sessions)
    assert all(150 < count < 250 for count in shares.values()), shares


def test_the_order_of_hosts_does_not_matter() -> None:
    names = [f"h{number}" for number in range(8)]

    for number in range(50):
        assert kept(some_states(*names), f"s{number}") == kept(some_states(*reversed(names)), f"s{number}")


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.floats(1.0, 3.0), st.integers(1, 40), st.integers(1, 5))
def test_no_host_has_more_than_the_bound(count: int, factor: float, calls: int, sessions: int) -> None:
    states = some_states(*(f"h{number}" for number in range(count)))

    for number in range(calls):
        name = kept(states, f"s{number % sessions}", factor=factor)
        scoring.sent(next(state for state in states if state.host.host_id == name), 0.0)

        assert max(state.in_flight for state in states) <= math.ceil(factor * (number + 1) / count)


def test_the_bound_of_a_slow_host_is_its_share() -> None:
    states = some_states("slow", "quick-1", "quick-2")
    for state in states:
        service_s = 0.08 if state.host.host_id == "slow" else 0.02
        scoring.reported(state, ModelLoad(KEY, 0, 0, 1, service_s, 0.0), 0.0)

    for number in range(36):
        name = kept(states, f"s{number}", factor=1.0)
        scoring.sent(next(state for state in states if state.host.host_id == name), 0.0)

    assert [state.in_flight for state in states] == [4, 16, 16]


def test_a_session_comes_back_once_its_host_has_room() -> None:
    states = some_states("a", "b", "c")
    home = kept(states, "s")
    state = next(each for each in states if each.host.host_id == home)

    work_s = [scoring.sent(state, 0.0) for _ in range(3)]
    assert kept(states, "s") != home
    for each in work_s:
        scoring.ended(state, each)
    scoring.reported(state, ModelLoad(KEY, 0, 0, 1, 0.01, 0.0), 0.0)

    assert kept(states, "s") == home


def test_a_host_that_failed_or_lacks_the_version_is_passed_over_for_the_next_in_order() -> None:
    states = some_states("a", "b", "c")
    home = next(state for state in states if state.host.host_id == kept(states, "s"))
    others = [state for state in states if state is not home]

    home.host.circuit.open(0.0, why="of the test")
    assert kept(states, "s") == kept(others, "s")
    assert kept(states, "s", now_s=HOLD_S) == kept(others, "s")
    assert kept(states, "s", now_s=HOLD_S, may_probe=True) == home.host.host_id  # to see whether it is well again
    home.host.circuit.close(0.0)
    home.absent_s = 0.5
    assert kept(states, "s") == kept(others, "s")
    for state in states:
        state.absent_s = 0.5
    assert kept(states, "s") is None
