"""Differences between what should be and what is, each told with what is known of why."""

from dataclasses import replace

from services.domain.model import ModelState
from services.domain.objects import Metadata, Route, RouteTarget, Single
from tests.fakes.objects import a_host, a_model, a_pool, a_version, hosted
from yardctl.drift import Drift, drift

POOL = a_pool(hosts=1)
ECHO = (a_model("echo"), a_version("echo", replicas=2, pool="cpu"))
ROUTE = Route(Metadata("read"), Single(RouteTarget("echo", "1.0.0")))


def told(found: list[Drift]) -> list[tuple[str, str, str, str]]:
    return [(str(each.key), each.desired, each.live, each.why) for each in found]


def test_nothing_differs_where_all_is_as_it_should_be() -> None:
    hosts = [a_host(f"cpu-{index}", hosted("echo")) for index in range(2)]

    assert drift([replace(POOL, max_hosts=2), *ECHO, ROUTE], hosts) == []


def test_missing_replicas_are_told_with_what_hosts_say() -> None:
    failed = hosted("echo", state=ModelState.FAILED, message="no such file")

    found = drift(
        [replace(POOL, max_hosts=2), *ECHO, ROUTE], [a_host("cpu-0", hosted("echo")), a_host("cpu-1", failed)]
    )

    assert told(found) == [("ModelVersion/echo/1.0.0", "2 ready", "1 ready, 1 failed", "cpu-1: no such file")]


def test_an_empty_pool_leaves_its_versions_and_their_routes_without_any() -> None:
    assert told(drift([POOL, *ECHO, ROUTE], [])) == [
        ("Pool/cpu", "at least 1 hosts", "0 listed", ""),
        ("ModelVersion/echo/1.0.0", "2 ready", "on no host", "no host of pool 'cpu' is listed"),
        ("Route/read", "1 targets ready", "nothing is ready", "lacks echo:1.0.0"),
    ]


def test_what_nobody_asked_for_differs_too() -> None:
    found = drift([POOL], [a_host("cpu-0", hosted("old")), a_host("x", pool="other"), a_host("cpu-1")])

    assert told(found) == [
        ("Pool/cpu", "at most 1 hosts", "2 listed", ""),
        ("Pool/other", "no such pool", "1 hosts listed", ""),
        ("ModelVersion/old/1.0.0", "not there", "ready on cpu-0", ""),
    ]


def test_draining_hosts_do_not_count_and_staging_hosts_only_for_their_pool() -> None:
    staging = replace(a_pool("staging"), staging=True)
    hosts = [a_host("cpu-0", draining=True), a_host("test-0", hosted("tried"), pool="staging")]

    assert told(drift([POOL, staging], hosts)) == [("Pool/cpu", "at least 1 hosts", "0 listed", "1 drain")]
