"""A router on either engine with a real registry and two real hosts, shared by tests that break nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest

from tests.integration.router.zoo import fill
from tests.support.services import Bench, bench


@pytest.fixture(scope="module", params=["aio", "native"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench, filled."""
    with asyncio.Runner() as runner:
        engine = ("--engine", request.param)
        context = bench(tmp_path_factory.mktemp("yard"), hosts=2, router_arguments=engine)
        made = runner.run(context.__aenter__())
        try:
            runner.run(fill(made))
            yield made
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def channel(yard: Bench) -> AsyncIterator[grpc.aio.Channel]:
    """A caller's channel to the router, with limits beyond the router's."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(yard.router.address, options=options) as opened:
        yield opened
