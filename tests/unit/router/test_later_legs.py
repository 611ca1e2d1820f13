"""Those that a route asks later than it began are found in the world as it is by then."""

import asyncio

from services.domain.errors import ModelFailed
from services.domain.objects import Metadata, Object, Route, RouteTarget
from services.domain.strategies import Fallback
from tests.fakes.objects import a_host, a_model, a_version, hosted
from tests.unit.router.yards import World, a_call, a_snapshot


async def test_a_fallback_that_begins_after_its_hosts_were_replaced_goes_to_the_new_ones() -> None:
    objects: list[Object] = [
        *(a_model(name) for name in "ab"),
        *(a_version(name) for name in "ab"),
        Route(Metadata("route"), Fallback((RouteTarget("a"), RouteTarget("b")))),
    ]
    world = World(objects, [a_host("h1", hosted("a")), a_host("h2", hosted("b"))])
    world.hosts.fail("h1", ModelFailed("it broke"))
    held = world.hosts.held["a"] = asyncio.Event()
    call = asyncio.ensure_future(world.decide(a_call("route")))
    await asyncio.sleep(0)
    # Another call turns the router to hosts of another process, while the first one waits for its first host.
    world.catalog.current = a_snapshot(objects, [a_host("h1", hosted("a")), a_host("h3", hosted("b"))], revision=2)
    other = await world.decide(a_call("b"))
    held.set()

    decision = await call

    assert other.host is not None
    assert decision.host is not None
    assert (other.host.host_id, decision.host.host_id) == ("h3", "h3")
