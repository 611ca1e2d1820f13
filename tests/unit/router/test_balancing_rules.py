"""What a policy says of balancing is gone by: yardsticks, sessions that stay, zones that spill over."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest

from services.domain.errors import HostUnavailable
from services.domain.host import HostRecord
from services.domain.objects import Metadata, Object, Policy, Route, RouteTarget, Single
from services.domain.request import RouteOptions
from services.domain.tenancy import Balancing, BalancingStrategy, SessionAffinity, Tier, ZoneSpill
from services.policy import scoring
from services.policy.scoring import VersionState
from services.router.host_book import HostBook
from services.router.host_picking import Fleet
from tests.fakes.objects import a_host, hosted
from tests.unit.router.yards import World, a_call, a_snapshot, digits


def by(rules: Balancing) -> list[Object]:
    """The model `digits`, and a route `read` over it whose policy says so."""
    policy = Policy(Metadata("p"), (Tier("all", 4),), balancing=rules)
    return [*digits(), policy, Route(Metadata("read"), Single(RouteTarget("digits")), policy="p")]


def some_hosts(*zones: str) -> list[HostRecord]:
    return [a_host(f"h{at}", hosted("digits"), zone=zone) for at, zone in enumerate(zones)]


def state_of(world: World, host_id: str) -> VersionState:
    snapshot = world.catalog.snapshot()
    assert snapshot is not None
    world.pipeline._book.turn_to(snapshot, world.clock.now_s())
    (option,) = snapshot.destination("digits").options
    return next(state for state in world.pipeline._book.states(option) if state.host.host_id == host_id)


async def hosts_of(world: World, calls: int, *, session: str = "") -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(calls):
        options = RouteOptions(session=session.format(number))
        decision = await world.decide(a_call("read", request_id=f"r{number}", options=options))
        assert decision.host is not None
        found[decision.host.host_id] += 1
    return found


async def test_round_robin_takes_each_in_turn_whatever_it_reported() -> None:
    world = World(by(Balancing(BalancingStrategy.ROUND_ROBIN)), some_hosts("", "", ""))
    for _ in range(5):
        scoring.sent(state_of(world, "h1"), -1.0)

    await hosts_of(world, 6)

    assert [host for host, _ in world.hosts.calls] == ["h0", "h2", "h1", "h0", "h2", "h1"]


@pytest.mark.parametrize("strategy", [each for each in BalancingStrategy if each.name != "LEAST_COMPLETION"])
async def test_yardsticks_fall_for_a_host_that_fails_fast(strategy: BalancingStrategy) -> None:
    world = World(by(Balancing(strategy)), some_hosts("", "", ""))
    world.hosts.fail("h0", HostUnavailable("gone"))

    for number in range(60):
        with suppress(HostUnavailable):  # once the retry budget is spent
            await world.decide(a_call("read", request_id=f"r{number}"))

    assert Counter(host for host, _ in world.hosts.calls)["h0"] >= 12


async def test_a_retry_by_a_yardstick_goes_elsewhere() -> None:
    world = World(by(Balancing(BalancingStrategy.ROUND_ROBIN)), some_hosts("", ""))
    world.hosts.fail("h0", HostUnavailable("gone"))

    assert await hosts_of(world, 10) == {"h1": 10}


async def test_a_session_stays_on_one_host_and_calls_without_one_do_not() -> None:
    rules = Balancing(affinity=SessionAffinity(enabled=True))
    world = World(by(rules), some_hosts("", "", "", ""))

    assert list((await hosts_of(world, 20, session="ann")).values()) == [20]
    assert len(await hosts_of(world, 40, session="")) == 4
    assert len(await hosts_of(world, 40, session="s{}")) == 4


async def test_sessions_are_not_kept_unless_the_policy_says_so() -> None:
    world = World(by(Balancing()), some_hosts("", "", "", ""))

    assert len(await hosts_of(world, 40, session="ann")) == 4


async def test_two_routers_agree_on_the_host_of_a_session() -> None:
    rules = Balancing(affinity=SessionAffinity(enabled=True))
    worlds = [World(by(rules), some_hosts("", "", "", "", "")) for _ in range(2)]

    for number in range(10):
        one, other = [await hosts_of(world, 1, session=f"s{number}") for world in worlds]
        assert one == other


async def test_a_session_leaves_its_host_when_that_fails_and_comes_back_later() -> None:
    world = World(by(Balancing(affinity=SessionAffinity(enabled=True))), some_hosts("", "", ""))
    (home,) = await hosts_of(world, 1, session="ann")
    world.hosts.fail(home, HostUnavailable("gone"))

    away = await hosts_of(world, 10, session="ann")
    world.hosts.heal(home)
    world.clock.advance(60.0)

    assert home not in away
    assert len(away) == 1
    assert list(await hosts_of(world, 5, session="ann")) == [home]


async def test_calls_stay_in_the_zone_until_it_is_overloaded() -> None:
    world = World(by(Balancing()), some_hosts("a", "a", "b"), zone="a")
    assert set(await hosts_of(world, 40)) == {"h0", "h1"}

    for host_id in ("h0", "h1"):
        for _ in range(4):
            scoring.sent(state_of(world, host_id), world.clock.now_s())

    assert (await hosts_of(world, 40))["h2"] == 40


async def test_a_margin_keeps_calls_in_the_zone_for_longer() -> None:
    world = World(by(Balancing(zones=ZoneSpill(margin_s=1.0))), some_hosts("a", "a", "b"), zone="a")
    for host_id in ("h0", "h1"):
        for _ in range(4):
            scoring.sent(state_of(world, host_id), world.clock.now_s())

    assert (await hosts_of(world, 40))["h2"] == 0


async def test_a_zone_whose_hosts_fail_is_left_and_nobody_sees_an_error() -> None:
    world = World(by(Balancing()), some_hosts("a", "a", "b"), zone="a")
    for host_id in ("h0", "h1"):
        world.hosts.fail(host_id, HostUnavailable("gone"))

    assert await hosts_of(world, 100) == {"h2": 100}
    assert len(world.hosts.calls) <= 105  # but for the first two, only those that look whether it recovered


async def test_a_zone_without_ready_hosts_is_left() -> None:
    world = World(by(Balancing()), some_hosts("b", "c"), zone="a")

    assert set(await hosts_of(world, 40)) == {"h0", "h1"}


def test_the_way_to_another_zone_is_assumed_until_it_is_known() -> None:
    book = HostBook(Fleet(routers=1, zone="a", zone_way_s=0.02))
    snapshot = a_snapshot(digits(), some_hosts("a", "b"))
    book.turn_to(snapshot, 0.0)
    near, far = book.states(snapshot.destination("digits").options[0])

    assert far.host.network_s - near.host.network_s == pytest.approx(0.02)
    scoring.answered(far, 0.005, 0.0)
    assert far.host.network_s == 0.005


async def test_residency_goes_before_everything() -> None:
    for rules in (Balancing(BalancingStrategy.RANDOM), Balancing(affinity=SessionAffinity(enabled=True))):
        world = World(by(rules), some_hosts("a", "b"), zone="a")
        options = replace(RouteOptions(session="ann"), zone="b")
        for number in range(20):
            decision = await world.decide(a_call("read", request_id=f"r{number}", options=options))
            assert decision.host is not None
            assert decision.host.zone == "b"
