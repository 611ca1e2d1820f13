"""What balancing comes to in a simulated mesh: the order of POLICIES' table, whatever the number of routers."""

from collections.abc import Sequence

import pytest

from services.domain.tenancy import BalancingStrategy
from services.policy import balancing, balancing_baselines
from services.policy.balancing import RAMP_S, Draw, Pick
from services.policy.scoring import VersionState
from tests.unit.policy.simulated_mesh import Call, Chooser, Host, Mesh

UNEQUAL_S = [0.02] * 4 + [0.04] * 6 + [0.08] * 6


def ours(routers: int) -> Chooser:
    def choose(call: Call, states: Sequence[VersionState], now_s: float, draw: Draw) -> Pick:
        return balancing.pick(states, now_s=now_s, routers=routers, draw=draw)

    return choose


def baseline(strategy: BalancingStrategy, routers: int) -> Chooser:
    def choose(call: Call, states: Sequence[VersionState], now_s: float, draw: Draw) -> Pick:
        return balancing_baselines.pick(strategy, states, now_s=now_s, routers=routers, draw=draw)

    return choose


def a_run(
    service_s: Sequence[float],
    choose: Chooser,
    *,
    load: float,
    routers: int,
    seconds: float = 12.0,
    spread: float = 0.0,
) -> Mesh:
    mesh = Mesh([Host(each, spread=spread) for each in service_s], choose, routers=routers)
    mesh.run(load * sum(1.0 / each for each in service_s), seconds)
    return mesh


@pytest.mark.parametrize("load", [0.7, 0.85])
@pytest.mark.parametrize("routers", [2, 4])
def test_on_unequal_hosts_several_routers_do_better_than_any_yardstick(routers: int, load: float) -> None:
    found = a_run(UNEQUAL_S, ours(routers), load=load, routers=routers)

    fewest = a_run(UNEQUAL_S, baseline(BalancingStrategy.LEAST_LOADED, routers), load=load, routers=routers)
    assert found.mean_ms(2.0) < 0.95 * fewest.mean_ms(2.0)
    assert found.p99_ms(2.0) < 0.85 * fewest.p99_ms(2.0)
    for strategy in (BalancingStrategy.ROUND_ROBIN, BalancingStrategy.RANDOM):
        blind = a_run(UNEQUAL_S, baseline(strategy, routers), load=load, routers=routers, seconds=5.0)
        assert found.p99_ms(2.0) < 0.25 * blind.p99_ms(2.0)


def test_a_router_that_knows_all_calls_has_a_shorter_tail_than_by_their_number() -> None:
    found = a_run(UNEQUAL_S, ours(1), load=0.7, routers=1)
    fewest = a_run(UNEQUAL_S, baseline(BalancingStrategy.LEAST_LOADED, 1), load=0.7, routers=1)

    assert found.mean_ms(2.0) < 1.02 * fewest.mean_ms(2.0)
    assert found.p99_ms(2.0) < 0.7 * fewest.p99_ms(2.0)


@pytest.mark.parametrize("routers", [1, 2, 4])
def test_routers_that_do_not_know_of_each_other_do_not_flock(routers: int) -> None:
    equal = [0.03] * 16
    alone = a_run(equal, ours(1), load=0.7, routers=1, spread=1.0)

    found = a_run(equal, ours(routers), load=0.7, routers=routers, spread=1.0)

    assert found.p99_ms(2.0) < 1.5 * alone.p99_ms(2.0)
    assert max(found.shares(2.0).values()) < 1.2 / 16


def test_a_newcomer_among_established_hosts_takes_its_share_step_by_step() -> None:
    hosts = [*(Host(0.03) for _ in range(7)), Host(0.03, since_s=20.0)]
    mesh = Mesh(hosts, ours(2), routers=2)

    mesh.run(0.7 * 7 / 0.03, 40.0)

    early, ramped = mesh.shares(20.0, 22.0)[7], mesh.shares(20.0 + RAMP_S, 40.0)[7]
    assert 0.0 < mesh.shares(20.0, 20.0 + RAMP_S)[7] < 0.9 * ramped
    assert early < 0.6 / 8  # it is not flooded, though it is idle
    assert 0.9 / 8 < ramped < 1.1 / 8  # nor starved
    newcomers = [call.took_s for call in mesh.of(20.0) if call.host == 7]
    assert max(newcomers) <= max(call.took_s for call in mesh.of(20.0) if call.host != 7)
