from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import pytest

from services.chassis.channels import open_channel
from services.chassis.server import DeadlineRule, Server, ServerLimits
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


async def serve(limits: ServerLimits | None = None, deadline: DeadlineRule = DeadlineRule.REQUIRED) -> Served:
    server = Server(address="127.0.0.1:0", telemetry=telemetry(), limits=limits or ServerLimits())
    notes = Notes()
    server.add(SERVICE, notes, deadline=deadline, reflection_pool=POOL, endless=("Follow",))
    port = await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    return Served(server, notes, port, channel, Stub(channel))


async def close(served: Served) -> None:
    await served.channel.close()
    await served.server.drain(lame_duck_s=0.0, grace_s=0.0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """The notes service, deadlines required, and a channel to it."""
    each = await serve()
    yield each
    await close(each)
