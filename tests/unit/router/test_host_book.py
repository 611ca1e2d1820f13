"""What is remembered of hosts from snapshot to snapshot."""

from dataclasses import replace

import pytest

from services.domain.errors import HostUnavailable
from services.domain.host import HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState
from services.policy import circuit, scoring
from services.policy.scoring import VersionState
from services.router.host_book import HostBook, take_failure, take_report
from services.router.host_picking import Fleet
from tests.fakes.objects import a_host, hosted
from tests.unit.router.yards import a_snapshot, digits

KEY = ModelKey("digits", "1.0.0")
FLEET = Fleet(routers=1, zone="a", zone_way_s=0.02)
H0, H1 = a_host("h0", hosted("digits")), a_host("h1", hosted("digits"))


def states(book: HostBook, now_s: float, *hosts: HostRecord) -> dict[str, VersionState]:
    snapshot = a_snapshot(digits(), hosts)
    book.turn_to(snapshot, now_s)
    (option,) = snapshot.destination("digits").options
    return {state.host.host_id: state for state in book.states(option)}


def a_report(sequence: int, *, base_s: float = 0.001, draining: bool = False) -> HostLoad:
    return HostLoad("h0", sequence, (ModelLoad(KEY, 2, 1, 4, base_s, 0.0),), 0, 0.0, draining)


def test_what_was_learned_outlives_a_snapshot() -> None:
    book = HostBook(FLEET)
    before = states(book, 0.0, H0)["h0"]

    after = states(book, 1.0, H0, H1)["h0"]

    assert after is before


def test_a_host_that_comes_back_as_another_process_starts_anew() -> None:
    book = HostBook(FLEET)
    before = states(book, 0.0, H0)["h0"]
    take_failure(before, HostUnavailable("gone"), 0.0, hung=False)

    after = states(book, 1.0, replace(H0, pid=99))["h0"]

    assert not after.host.suspect
    assert scoring.penalty_s(after, 1.0) == 0.0


def test_a_version_that_was_reloaded_starts_anew() -> None:
    book = HostBook(FLEET)
    before = states(book, 0.0, H0)["h0"]
    loading = replace(H0, models=(hosted("digits", state=ModelState.LOADING),))

    assert states(book, 1.0, loading) == {}
    assert states(book, 2.0, H0)["h0"] is not before


def test_only_a_newcomer_among_established_hosts_ramps() -> None:
    book = HostBook(FLEET)

    first = states(book, 0.0, H0)["h0"]
    second = states(book, 5.0, H0, H1)["h1"]

    assert first.ramps_from_s == float("-inf")
    assert second.ramps_from_s == 5.0  # the first snapshot's hosts were there before this router


def test_hosts_that_came_together_do_not_ramp() -> None:
    book = HostBook(FLEET)
    states(book, 0.0)

    together = states(book, 1.0, H0)
    later = states(book, 3.0, H0, H1)

    assert together["h0"].ramps_from_s == float("-inf")
    assert later["h1"].ramps_from_s == float("-inf")


def test_a_newcomer_starts_from_what_its_peers_measured() -> None:
    book = HostBook(FLEET)
    take_report(states(book, 0.0, H0)["h0"], a_report(1, base_s=0.004), KEY, 0.0)

    assert states(book, 1.0, H0, H1)["h1"].batch_s(1, 1.0) == pytest.approx(0.004)


def test_a_report_that_was_overtaken_is_ignored() -> None:
    state = states(HostBook(FLEET), 0.0, H0)["h0"]

    take_report(state, a_report(5), KEY, 0.0)
    take_report(state, a_report(4, base_s=9.0), KEY, 0.0)

    assert state.batch_s(1, 0.0) == pytest.approx(0.001)
    assert (state.queued, state.batch_cap) == (3, 4)


def test_a_host_that_reports_to_be_draining_is_left_alone() -> None:
    state = states(HostBook(FLEET), 0.0, H0)["h0"]

    take_report(state, a_report(1, draining=True), KEY, 0.0)

    assert scoring.penalty_s(state, 0.0) == pytest.approx(circuit.PENALTY_S)
