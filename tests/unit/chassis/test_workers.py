"""What the parent of workers does before there are any."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.chassis.config import load
from services.chassis.server import PortInUse, UnsafeAddress
from services.chassis.workers import flags_of, reserve
from services.domain.clock import ManualClock


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def shares(address: str) -> socket.socket:
    """Bind and listen as a worker does."""
    host, _, port = address.rpartition(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, int(port)))
    made.listen()
    return made


async def test_a_free_port_is_taken_and_said() -> None:
    holder, address = await reserve("127.0.0.1:0", insecure=False, clock=ManualClock())

    with holder:
        assert address == f"127.0.0.1:{holder.getsockname()[1]}"
        assert not address.endswith(":0")


async def test_a_reserved_address_is_the_workers_and_nobody_elses() -> None:
    holder, address = await reserve("127.0.0.1:0", insecure=False, clock=ManualClock())

    with holder:
        with shares(address), shares(address):
            pass
        with pytest.raises(PortInUse, match="is in use: stop what listens there"):
            await reserve(address, insecure=False, clock=ManualClock())


async def test_what_holds_an_address_takes_no_connection() -> None:
    holder, address = await reserve("127.0.0.1:0", insecure=False, clock=ManualClock())

    with holder, shares(address) as worker:
        for _ in range(20):
            with socket.create_connection(holder.getsockname(), timeout=5):
                worker.accept()[0].close()


async def test_an_address_of_somebody_else_is_refused_after_a_while(taken_port: int) -> None:
    clock = ManualClock(0.0)

    with pytest.raises(PortInUse, match=f"127.0.0.1:{taken_port} is in use"):
        await reserve(f"127.0.0.1:{taken_port}", insecure=False, clock=clock)

    assert clock.now_s() >= 1.0


async def test_an_address_that_comes_free_meanwhile_is_taken() -> None:
    holder, address = await reserve("127.0.0.1:0", insecure=False, clock=ManualClock())

    class Freeing(ManualClock):
        async def sleep(self, duration_s: float) -> None:
            holder.close()
            await super().sleep(duration_s)

    again, _ = await reserve(address, insecure=False, clock=Freeing())
    again.close()


async def test_connections_that_linger_do_not_hold_an_address() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with closing(socket.create_connection(server.getsockname(), timeout=5)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""

    holder, _ = await reserve(address, insecure=False, clock=ManualClock())
    holder.close()


async def test_an_address_that_others_reach_is_refused() -> None:
    with pytest.raises(UnsafeAddress):
        await reserve("192.0.2.1:0", insecure=False, clock=ManualClock())


@dataclass(frozen=True, slots=True)
class Settings:
    text: str = "a=b"
    empty: str = "not empty"
    path: Path | None = Path("somewhere")
    nothing: str | None = "something"
    number: int = 1
    share: float = 0.5
    yes: bool = False
    no: bool = True
    words: tuple[str, ...] = ("x",)


def test_settings_survive_the_way_through_flags() -> None:
    settings = Settings("--x y='z'", "", Path("/a b/c"), None, -3, 1e-9, True, False, ("one", "two"))

    again = load(Settings, prog="test", argv=flags_of(settings), environ={"MODELYARD_NUMBER": "9"})

    assert again == settings
