from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import pytest

from services.chassis.channels import open_channel
from services.chassis.engines import EngineName, ServerLimits
from services.chassis.server import DeadlineRule, Server
from tests.integration.chassis.notes import POOL, SERVICE, Notes, Stub, telemetry


@dataclass
class Served:
    server: Server
    notes: Notes
    port: int
    channel: grpc.aio.Channel
    stub: Stub

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


async def serve(
    limits: ServerLimits | None = None,
    deadline: DeadlineRule = DeadlineRule.REQUIRED,
    engine: EngineName = "aio",
) -> Served:
    server = Server(address="127.0.0.1:0", telemetry=telemetry(), limits=limits or ServerLimits(), engine=engine)
    notes = Notes()
    server.add(SERVICE, notes, deadline=deadline, reflection_pool=POOL, endless=("Follow",))
    port = await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    return Served(server, notes, port, channel, Stub(channel))


async def close(served: Served) -> None:
    await served.channel.close()
    await served.server.drain(lame_duck_s=0.0, grace_s=0.0)


@pytest.fixture(params=["aio", "native"])
def engine(request: pytest.FixtureRequest) -> EngineName:
    """What is under the server."""
    name: EngineName = request.param
    return name


@pytest.fixture
async def served(engine: EngineName) -> AsyncIterator[Served]:
    """The notes service, deadlines required, and a channel to it, on either engine."""
    each = await serve(engine=engine)
    yield each
    await close(each)
