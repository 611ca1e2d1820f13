"""Which hosts are outliers; and the circuits that they are put behind."""

import pytest

from services.policy import ejection
from services.policy.circuit import CLEAN_S, HOLD_S, PENALTY_S, Circuit, CircuitState
from services.policy.ejection import Reason
from services.policy.scoring import HostState


def some_hosts(*counts: tuple[int, int]) -> list[HostState]:
    """With so many answers and failures."""
    hosts = [HostState(f"h{at}") for at in range(len(counts))]
    for host, (answers, failures) in zip(hosts, counts, strict=True):
        host.answers, host.failures = answers, failures
    return hosts


def names(found: list[ejection.Ejected]) -> list[tuple[str, Reason]]:
    return [(each.host.host_id, each.reason) for each in found]


def test_a_success_rate_far_below_the_others_is_an_outlier() -> None:
    hosts = some_hosts(*[(98, 2)] * 9, (70, 30))

    assert names(ejection.by_rates(hosts, 0.0)) == [("h9", Reason.SUCCESS_RATE)]


@pytest.mark.parametrize("counts", [[(98, 2)] * 3 + [(70, 30)], [(49, 1)] * 9 + [(35, 15)], [(98, 2)] * 10])
def test_few_hosts_few_requests_or_like_rates_are_no_reason(counts: list[tuple[int, int]]) -> None:
    assert ejection.by_rates(some_hosts(*counts), 0.0) == []


def test_failing_almost_always_is_a_reason_among_two() -> None:
    assert names(ejection.by_rates(some_hosts((100, 0), (5, 45)), 0.0)) == [("h1", Reason.FAILURES)]
    assert ejection.by_rates(some_hosts((100, 0), (8, 42)), 0.0) == []
    assert ejection.by_rates(some_hosts((100, 0), (4, 45)), 0.0) == []


def test_each_interval_counts_anew() -> None:
    hosts = some_hosts((100, 0), (0, 100))
    ejection.by_rates(hosts, 0.0)

    assert ejection.by_rates(hosts, 10.0) == []


def test_a_tenth_of_the_hosts_may_be_ejected_and_never_the_last() -> None:
    assert len(ejection.by_rates(some_hosts(*[(0, 100)] * 5), 0.0)) == 1
    assert len(ejection.by_rates(some_hosts(*[(0, 100)] * 25), 0.0)) == 2
    assert ejection.by_rates(some_hosts((0, 100)), 0.0) == []


def test_those_that_are_ejected_already_count() -> None:
    hosts = some_hosts(*[(0, 100)] * 5)
    for each in ejection.by_rates(hosts, 0.0):
        ejection.eject(each, 0.0)
    for host in hosts:
        host.failures += 100

    assert ejection.by_rates(hosts, 10.0) == []


def timed(*took_s: float, foretold_s: float = 0.01) -> list[HostState]:
    hosts = some_hosts(*[(10, 0)] * len(took_s))
    for host, each in zip(hosts, took_s, strict=True):
        host.took_s, host.foretold_s = 10 * each, 10 * foretold_s
    return hosts


def test_a_host_slower_than_predicted_is_an_outlier_unless_all_are() -> None:
    assert names(ejection.by_time(timed(0.01, 0.1), 0.0)) == [("h1", Reason.SLOW)]
    assert ejection.by_time(timed(0.1, 0.1), 0.0) == []
    assert ejection.by_time(timed(0.1), 0.0) == []
    assert ejection.by_time(timed(0.01, 0.025), 0.0) == []
    assert ejection.by_time(timed(0.001, 0.009, foretold_s=0.001), 0.0) == []


def test_answers_too_few_to_say_are_kept_for_the_next_look() -> None:
    hosts = timed(0.01, 0.1)
    hosts[1].answers = 4
    assert ejection.by_time(hosts, 0.0) == []

    hosts[0].answers += 10
    hosts[0].took_s, hosts[0].foretold_s = 0.2, 0.2
    hosts[1].answers = 5

    assert names(ejection.by_time(hosts, 1.0)) == [("h1", Reason.SLOW)]


def test_a_circuit_stays_open_longer_each_time_and_forgets_by_clean_time() -> None:
    circuit = Circuit()
    holds = []
    now_s = 0.0
    for _ in range(3):
        circuit.open(now_s, why="failed")
        holds.append(circuit.hold_s)
        now_s += circuit.hold_s
        assert circuit.state(now_s - 0.1) is CircuitState.OPEN
        assert circuit.state(now_s) is CircuitState.HALF_OPEN
        circuit.close(now_s)

    assert holds == [HOLD_S, 2 * HOLD_S, 3 * HOLD_S]
    circuit.open(now_s + 2 * CLEAN_S, why="failed")
    assert circuit.hold_s == 2 * HOLD_S


def test_failures_at_the_same_time_are_one() -> None:
    circuit = Circuit()

    assert [circuit.open(at / 10, why="failed") for at in range(5)] == [True, False, False, False, False]
    assert circuit.hold_s == HOLD_S


def test_what_asks_for_a_moment_is_left_alone_for_that_and_a_failure_outweighs_it() -> None:
    circuit = Circuit()
    circuit.push_back(0.0, 0.25)
    assert (circuit.cost_s(0.0), circuit.awaits_probe(0.2), circuit.awaits_probe(0.25)) == (0.25, False, True)

    circuit.open(0.3, why="failed")
    circuit.push_back(0.3, 0.25)

    assert (circuit.cost_s(0.3), circuit.hold_s) == (PENALTY_S, HOLD_S)
