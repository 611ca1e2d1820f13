"""The history can be trusted: a short run of what `make chaos-registry` does at length."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.registry.__main__ import missing, sound
from tests.chaos.registry.cluster import scratch
from tests.chaos.registry.faulty import BUGS, Bug
from tests.chaos.registry.pauses import pause_leaders
from tests.chaos.registry.planted import EXPECTED, catch
from tests.chaos.registry.run import MIN_ACKNOWLEDGED, Plan, run

SEED = 2
ELECTIONS = 16
FAULTS = (
    "lose_answers",
    "stop_leading_registry_beyond_its_ttl",
    "kill_etcd_leader",
    "kill_registry",
    "cut_etcd_leader_from_its_peers",
    "stop_registry",
    "lose_answers",
    "cut_registry_from_etcd",
    "restart_registry",
)
"""One of each kind, in seven rounds: some rounds have two."""

ROUNDS = 7


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch() as path:
        yield path


@pytest.mark.timeout(240)
async def test_no_write_is_lost_torn_or_made_up_while_everything_fails(directory: Path) -> None:
    plan = Plan(rounds=ROUNDS, seed=SEED, directory=directory, first=FAULTS, keep_revisions=100, collect_every_s=1.0)
    report = await run(plan)

    assert sound(report), "\n".join([*report.verdict.lines(), *report.verify, *report.internal])
    assert report.rounds == ROUNDS
    assert report.least_acknowledged >= MIN_ACKNOWLEDGED
    assert report.unknown == report.resolved
    # Whether one of so few lost answers was to a write that was done is chance; at length it is demanded as well.
    assert set(missing(report)) <= {"writes that nobody answered"}, "the run proves nothing without these"
    print(f"{report.acknowledged} acknowledged, {report.unknown} unknown and resolved, {dict(report.faults)}")
    print(f"network: {report.no_network or 'partitioned'}")


@pytest.mark.timeout(120)
async def test_leaders_that_wake_after_their_time_change_nothing(directory: Path) -> None:
    paused = await pause_leaders(directory, pauses=2 * ELECTIONS, elections=ELECTIONS)

    assert paused.pauses >= 2 * ELECTIONS
    assert paused.answers == {"refused": 2 * paused.pauses}
    assert paused.held == 0
    assert paused.stale == []
    assert paused.led > 2 * paused.pauses, "leaders hardly wrote: the run proves nothing"


@pytest.mark.timeout(120)
async def test_without_the_fence_their_writes_are_accepted_and_found(directory: Path) -> None:
    paused = await pause_leaders(directory, pauses=ELECTIONS, elections=ELECTIONS, bug="no-fencing")

    assert len(paused.stale) >= ELECTIONS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(directory: Path, bug: Bug) -> None:
    assert set(EXPECTED[bug]) <= set(await catch(bug, directory, seed=SEED))
