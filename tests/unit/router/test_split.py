"""Routes that split their calls, over hosts in memory."""

from collections import Counter

import pytest

from services.domain.errors import HostUnavailable, InvalidRequest, NoReadyHost
from services.domain.objects import Object
from services.domain.request import RouteOptions
from services.domain.strategies import HashKey, RouteTarget, Split, SplitTarget
from tests.fakes.objects import a_host, a_model, a_route, a_version, hosted
from tests.unit.router.yards import INPUT, World, a_call

STABLE, CANARY = RouteTarget("digits", "1.0.0"), RouteTarget("digits", "2.0.0")
HOSTS = [a_host(f"h{number}", hosted("digits", "1.0.0"), hosted("digits", "2.0.0")) for number in (0, 1)]


def a_yard(canary: float = 20.0, key: HashKey = HashKey.SESSION) -> list[Object]:
    split = Split((SplitTarget(STABLE, 100.0 - canary), SplitTarget(CANARY, canary)), key)
    versions = (a_version("digits", version) for version in ("1.0.0", "2.0.0"))
    return [a_model("digits"), *versions, a_route("r", split)]


async def test_a_session_stays_with_its_part() -> None:
    world = World(a_yard(), HOSTS)

    versions: dict[str, set[str]] = {}
    for number in range(200):
        session = f"s{number % 20}"
        decision = await world.decide(a_call("r", request_id=str(number), options=RouteOptions(session=session)))
        assert decision.version is not None
        versions.setdefault(session, set()).add(decision.version.version)

    assert all(len(seen) == 1 for seen in versions.values())
    assert {version for seen in versions.values() for version in seen} == {"1.0.0", "2.0.0"}


async def test_without_a_session_each_call_is_drawn_for_itself() -> None:
    world = World(a_yard(), HOSTS)

    arms: Counter[str] = Counter()
    for number in range(1000):
        told = (await world.decide(a_call("r", request_id=str(number)))).told
        assert told is not None
        arms[told.arm] += 1

    assert 140 < arms["digits:2.0.0"] < 260


async def test_the_decision_says_which_part_and_how_likely_it_was() -> None:
    world = World(a_yard(canary=100.0), HOSTS)

    decision = await world.decide(a_call("r"))

    assert decision.told is not None
    assert (decision.told.arm, decision.told.propensity, decision.strategy) == ("digits:2.0.0", 1.0, "split")
    assert decision.reason == "its part is digits:2.0.0, 100 % of the calls; the route's one version"
    assert world.notes.answered_by == [decision]


async def test_two_routers_draw_the_same() -> None:
    calls = [a_call("r", request_id=str(number)) for number in range(50)]
    one, other = World(a_yard(), HOSTS), World(a_yard(), HOSTS)

    drawn = [[(await world.decide(call)).told for call in calls] for world in (one, other)]

    assert drawn[0] == drawn[1]


async def test_a_part_without_a_host_fails_and_does_not_spill_into_another() -> None:
    world = World(a_yard(canary=100.0), [a_host("h0", hosted("digits", "1.0.0"))])

    with pytest.raises(NoReadyHost):
        await world.decide(a_call("r"))


async def test_a_failed_attempt_is_made_again_within_the_part() -> None:
    world = World(a_yard(canary=100.0), HOSTS)
    world.hosts.fail("h0", HostUnavailable("gone"))
    world.hosts.fail("h1", HostUnavailable("gone"))

    with pytest.raises(HostUnavailable) as caught:
        await world.decide(a_call("r"))

    assert caught.value.metadata["attempts"] == "3"
    assert {key.version for _, key in world.hosts.calls} == {"2.0.0"}


async def test_explain_says_the_part_and_runs_nothing() -> None:
    world = World(a_yard(), HOSTS)
    calls = [a_call("r", request_id=str(number), inputs=()) for number in range(30)]

    for call in calls:
        dry = world.pipeline.explain(call, remaining_s=None)
        ran = await world.decide(call._replace(inputs=(INPUT,)))
        assert dry.told == ran.told
        assert dry.version is ran.version
    assert len(world.hosts.calls) == 30
    assert [candidate.version.version for candidate in dry.candidates] == [ran.version.version if ran.version else ""]


async def test_a_version_cannot_be_asked_for() -> None:
    world = World(a_yard(), HOSTS)

    with pytest.raises(InvalidRequest, match="says itself which versions answer"):
        await world.decide(a_call("r", version="1.0.0"))


async def test_inputs_are_checked_before_a_part_is_drawn() -> None:
    world = World(a_yard(), HOSTS)

    with pytest.raises(InvalidRequest, match="not one of the model's"):
        await world.decide(a_call("r", inputs=(INPUT._replace(name="z"),)))
    assert not world.hosts.calls


async def test_a_part_that_is_called_like_its_route_is_the_model() -> None:
    split = Split((SplitTarget(RouteTarget("digits"), 100.0),))
    world = World([a_model("digits"), a_version("digits"), a_route("digits", split)], [a_host("h0", hosted("digits"))])
    world.hosts.fail("h0", HostUnavailable("gone"))

    with pytest.raises(HostUnavailable) as caught:
        await world.decide(a_call("digits"))

    assert caught.value.metadata["hosts"] == "h0,h0,h0"
