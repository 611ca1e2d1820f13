"""Predictions of when a host would answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.host import ModelLoad
from services.domain.model import ModelKey
from services.policy import scoring
from services.policy.prior import Prior
from services.policy.scoring import HostState, VersionState

KEY = ModelKey("m", "1.0.0")


def a_state(*, base_s: float = 0.010, per_item_s: float = 0.0, host: HostState | None = None) -> VersionState:
    state = VersionState(host or HostState("h"), Prior(base_s, per_item_s), known_since_s=0.0, ramps=False)
    state.host.network_s = 0.0
    return state


def a_load(
    *, queued: int = 0, running: int = 0, cap: int = 1, base_s: float = 0.010, per_item_s: float = 0.0
) -> ModelLoad:
    return ModelLoad(KEY, queued, running, cap, base_s, per_item_s)


def test_idle_host_answers_after_one_batch_of_one() -> None:
    assert scoring.completion_s(a_state(), 0.0, routers=1) == pytest.approx(0.010)


def test_own_calls_in_flight_stand_ahead() -> None:
    state = a_state()

    for _ in range(3):
        scoring.sent(state, 0.0)

    assert scoring.completion_s(state, 0.0, routers=1) == pytest.approx(0.040)


def test_calls_of_other_routers_are_guessed_from_the_own() -> None:
    state = a_state()

    scoring.sent(state, 0.0)

    assert scoring.backlog(state, 0.0, routers=3) == 3


def test_a_whole_batch_takes_the_time_of_a_batch() -> None:
    state = a_state()
    scoring.reported(state, a_load(queued=8, cap=8, base_s=0.002, per_item_s=0.001), 0.0)

    # One full batch of eight, then the call alone.
    assert scoring.completion_s(state, 0.0, routers=1) == pytest.approx(0.010 + 0.003)


def test_reported_queue_is_worked_off_as_time_passes() -> None:
    state = a_state()
    scoring.reported(state, a_load(queued=10), 0.0)

    assert scoring.backlog(state, 0.050, routers=1) == 5
    assert scoring.backlog(state, 9.0, routers=1) == 0


def test_calls_sent_to_a_host_that_fell_silent_do_not_count_for_ever() -> None:
    state = a_state()
    for _ in range(64):
        scoring.ended(state, scoring.sent(state, 0.0))

    assert scoring.backlog(state, 0.0, routers=1) == 64
    assert scoring.backlog(state, 1.0, routers=1) == 0


def test_a_report_replaces_the_count_of_calls_sent() -> None:
    state = a_state()
    for _ in range(5):
        scoring.ended(state, scoring.sent(state, 0.0))

    scoring.reported(state, a_load(queued=1), 0.0)

    assert scoring.backlog(state, 0.0, routers=1) == 1


def test_a_report_without_a_batch_time_keeps_the_prior() -> None:
    state = a_state(base_s=0.5)

    scoring.reported(state, a_load(base_s=0.0), 1.0)

    assert state.batch_s(1, 1.0) == 0.5
    assert not state.measured(1.0)


def test_a_host_not_heard_yet_counts_as_its_peers_measure() -> None:
    prior = Prior(0.5)
    heard = VersionState(HostState("h0"), prior, known_since_s=0.0, ramps=False)
    unheard = VersionState(HostState("h1"), prior, known_since_s=0.0, ramps=False)

    scoring.reported(heard, a_load(base_s=0.001), 1.0)

    assert unheard.batch_s(1, 1.0) == 0.001
    assert not unheard.measured(1.0)


def test_a_slow_start_is_forgotten_once_nothing_confirms_it() -> None:
    prior = Prior(0.5)
    slow = VersionState(HostState("h0"), prior, known_since_s=0.0, ramps=False)
    quick = VersionState(HostState("h1"), prior, known_since_s=0.0, ramps=False)
    scoring.reported(slow, a_load(base_s=0.2), 1.0)
    scoring.reported(quick, a_load(base_s=0.001), 2.0)

    assert slow.batch_s(1, 5.0) == 0.2
    assert slow.batch_s(1, 12.0) == 0.001


def test_work_for_other_versions_on_the_device_stands_ahead() -> None:
    host = HostState("h")
    slow, quick = a_state(base_s=0.100, host=host), a_state(base_s=0.010, host=host)

    scoring.sent(slow, 0.0)

    assert scoring.completion_s(quick, 0.0, routers=1) == pytest.approx(0.110)


def test_an_idle_host_has_no_work_left_over_from_rounding() -> None:
    state = a_state(base_s=0.1)

    taken = [scoring.sent(state, 0.0) for _ in range(1000)]
    for work_s in taken:
        scoring.ended(state, work_s)

    assert state.host.work_s == 0.0
    assert state.host.in_flight == 0


def test_a_failure_adds_five_seconds_that_fade_by_time_and_not_by_success() -> None:
    state = a_state()
    state.host.circuit.open(0.0, why="failed")

    for _ in range(100):
        scoring.answered(state, 0.0, 0.0)

    assert scoring.penalty_s(state, 0.0) == pytest.approx(5.0)
    assert scoring.penalty_s(state, 10.0) == pytest.approx(5.0 / math.e)
    assert scoring.penalty_s(state, 200.0) == 0.0


def test_a_host_that_names_a_time_is_penalised_by_that_time() -> None:
    state = a_state()

    state.circuit.push_back(0.0, 0.25)

    assert scoring.penalty_s(state, 0.0) == pytest.approx(0.25)


def test_a_failing_version_leaves_the_others_on_its_host_alone() -> None:
    host = HostState("h")
    failing, sound = a_state(host=host), a_state(host=host)

    failing.circuit.open(0.0, why="failed")

    assert scoring.penalty_s(failing, 0.0) > 0.0
    assert scoring.penalty_s(sound, 0.0) == 0.0


def test_an_answer_clears_the_suspicion() -> None:
    state = a_state()
    state.host.suspect = True

    scoring.answered(state, 0.020, 0.0)

    assert not state.host.suspect


def test_the_way_is_the_least_time_seen_and_not_what_a_burst_waited() -> None:
    state = a_state()
    state.host.network_s = 0.010
    scoring.answered(state, 0.002, 10.0)

    scoring.answered(state, 0.500, 10.1)
    assert state.host.network_s == pytest.approx(0.002)
    scoring.answered(state, 0.001, 10.2)
    assert state.host.network_s == pytest.approx(0.001)


def test_a_way_that_became_longer_is_learned_window_by_window() -> None:
    state = a_state()
    state.host.network_s = 0.010
    scoring.answered(state, 0.001, 10.0)

    seen = []
    for second in range(12, 20, 2):
        scoring.answered(state, 0.005, float(second))
        seen.append(state.host.network_s)

    assert seen == pytest.approx([0.0015, 0.00225, 0.003375, 0.005])


@given(
    st.lists(st.sampled_from(["send", "end", "report"]), max_size=60),
    st.floats(0.0, 100.0),
    st.integers(1, 4),
    st.integers(1, 16),
)
def test_predictions_are_finite_and_never_below_the_idle_time(
    steps: list[str], later_s: float, routers: int, cap: int
) -> None:
    state = a_state(base_s=0.001, per_item_s=0.0005)
    taken: list[float] = []
    for step in steps:
        if step == "send":
            taken.append(scoring.sent(state, 0.0))
        elif step == "end" and taken:
            scoring.ended(state, taken.pop())
        elif step == "report":
            scoring.reported(state, a_load(queued=3, cap=cap, base_s=0.001, per_item_s=0.0005), 0.0)

    predicted_s = scoring.completion_s(state, later_s, routers=routers)

    assert math.isfinite(predicted_s)
    assert predicted_s >= scoring.idle_s(state, later_s) - 1e-12
    assert scoring.backlog(state, later_s, routers=routers) >= state.in_flight == len(taken)


def test_calls_of_later_bands_do_not_go_before_one() -> None:
    state = a_state()
    load = ModelLoad(KEY, 30, 1, 1, 0.010, 0.0, queued_up_to=(1, 1, 1, 11, 11, 11, 11, 31))
    scoring.reported(state, load, 0.0)

    assert [scoring.backlog(state, 0.0, routers=1, band=band) for band in (1, 4, 8)] == [1, 11, 31]
    assert scoring.completion_s(state, 0.0, routers=1, band=1) == pytest.approx(0.020)


def test_own_calls_of_the_band_and_earlier_ones_stand_ahead_whatever_was_reported() -> None:
    state = a_state()
    scoring.reported(state, ModelLoad(KEY, 1, 0, 1, 0.010, 0.0, queued_up_to=(0, 0, 0, 0, 0, 0, 0, 1)), 0.0)
    for band in (1, 4, 4, 8):
        scoring.sent(state, 0.0, band)

    assert [scoring.backlog(state, 0.0, routers=1, band=band) for band in (1, 4, 8)] == [1, 3, 4]


def test_a_cutoff_is_gone_by_as_long_as_it_is_fresh() -> None:
    host = HostState("h")
    host.cutoff, host.cutoff_at_s = 500, 1.0

    assert host.cuts(500, 1.1)
    assert not host.cuts(499, 1.1)
    assert not host.cuts(500, 1.0 + scoring.CUTOFF_BELIEVED_S + 0.01)
