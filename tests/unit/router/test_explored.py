"""A tier's calls try other candidates as often as its policy says; the Decision says when, and with which chance."""

import pytest

from services.domain.errors import ModelFailed
from services.domain.objects import Metadata, Policy
from services.domain.request import Preference, RouteOptions
from services.domain.tenancy import Tier
from services.router import decision_wire
from services.router.decision import Decision
from tests.unit.router.test_learned_choice import a_world
from tests.unit.router.yards import World, a_call

POLICY = Policy(Metadata("default"), (Tier("gold", 1), Tier("bronze", 5, exploration=0.1)), default_tier="bronze")


async def run(world: World, count: int, options: RouteOptions | None = None) -> list[Decision]:
    """Decisions of calls with different ids."""
    return [
        await world.decide(a_call("best", request_id=f"r{number}", options=options), remaining_s=5.0)
        for number in range(count)
    ]


async def test_one_call_in_ten_tries_the_other_model_and_says_so() -> None:
    found = await run(a_world(POLICY), 400)

    tried = [each for each in found if each.told is not None and each.told.explored]
    assert 20 <= len(tried) <= 65
    assert {each.version.metadata.name for each in tried if each.version is not None} == {"small"}
    message = decision_wire.decision_to(tried[0])
    assert message.explored
    assert message.propensity == pytest.approx(0.1)
    assert message.reason.startswith("explored, ")
    other = decision_wire.decision_to(next(each for each in found if each not in tried))
    assert not other.explored
    assert other.propensity == pytest.approx(0.9)


@pytest.mark.parametrize("options", [RouteOptions(tier="gold"), RouteOptions(prefer=Preference.QUALITY)])
async def test_calls_of_the_first_band_and_with_a_preference_get_the_best(options: RouteOptions) -> None:
    found = await run(a_world(POLICY), 200, options)

    assert {each.version.metadata.name for each in found if each.version is not None} == {"large"}
    assert all(each.told is None for each in found)


async def test_explain_says_the_chance_of_each() -> None:
    world = a_world(POLICY)

    found = decision_wire.decision_to(world.pipeline.explain(a_call("best"), remaining_s=5.0))

    assert {each.model: each.propensity for each in found.candidates} == {
        "small": pytest.approx(0.1), "large": pytest.approx(0.9)
    }  # fmt: skip


async def test_failures_end_the_trials() -> None:
    world = a_world(POLICY)
    for host in ("host-small", "host-large"):
        world.hosts.fail(host, ModelFailed("by chance"))
    for number in range(8):
        with pytest.raises(ModelFailed):
            await world.decide(a_call("best", request_id=f"f{number}"), remaining_s=5.0)
    for host in ("host-small", "host-large"):
        world.hosts.heal(host)
    world.clock.advance(60.0)

    found = await run(world, 200)

    assert not any(each.told is not None and each.told.explored for each in found)
    assert {each.told.propensity for each in found if each.told is not None} == {1.0}


async def test_a_retry_on_another_model_was_not_drawn() -> None:
    world = a_world(POLICY)
    world.hosts.fail("host-small", ModelFailed("by chance"))
    explored = None
    for number in range(100):
        decision = await world.decide(a_call("best", request_id=f"r{number}"), remaining_s=5.0)
        if len(decision.attempts) > 1:
            explored = decision
            break

    assert explored is not None
    assert explored.version is not None
    assert explored.version.metadata.name == "large"
    assert explored.told is not None
    assert (explored.told.propensity, explored.told.explored) == (None, False)
