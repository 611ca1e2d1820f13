"""What breaks the parts of a run does break them: a cut is silent, one way if asked, and heals; answers are lost."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.netns import HERE, Network
from tests.support.relay import Relay

PORT = 7000
SILENCE_S = 0.3
ECHO = f"""
import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind((sys.argv[1], {PORT}))
print("ready", flush=True)
while True:
    data, sender = server.recvfrom(100)
    print(data.decode(), flush=True)
    server.sendto(data, sender)
"""


class Echo:
    """A node that sends back what arrives, and says what did."""

    def __init__(self, network: Network, node: str) -> None:
        self._address = (network.address(node), PORT)
        self._process = subprocess.Popen(
            [*network.inside(node), sys.executable, "-c", ECHO, self._address[0]], stdout=subprocess.PIPE, text=True
        )
        assert self._heard() == "ready"

    def _heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def answers(self, text: str) -> bool:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(SILENCE_S)
            client.sendto(text.encode(), self._address)
            try:
                return client.recvfrom(100)[0] == text.encode()
            except TimeoutError:
                return False

    def heard_until(self, text: str) -> list[str]:
        heard = [self._heard()]
        while heard[-1] != text:
            heard.append(self._heard())
        return heard

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def echo() -> Iterator[tuple[Network, Echo]]:
    why_not = netns.why_not()
    if why_not is not None:
        pytest.skip(f"no partitions here: {why_not}")
    with netns.network(["a", "b"]) as network:
        echo = Echo(network, "a")
        yield network, echo
        echo.end()


def test_a_cut_goes_one_way_is_silent_and_heals(echo: tuple[Network, Echo]) -> None:
    network, node = echo
    assert node.answers("whole")

    network.cut(HERE, "a")
    assert not node.answers("unheard")
    network.join(HERE, "a")
    network.cut("a", HERE)
    assert not node.answers("unanswered")
    network.cut("a", "b")
    network.join_all()

    assert node.answers("healed")
    assert node.heard_until("healed") == ["whole", "unanswered", "healed"]


def test_a_network_leaves_nothing_behind() -> None:
    if (why_not := netns.why_not()) is not None:
        pytest.skip(f"no partitions here: {why_not}")

    def links() -> str:
        return subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout

    before = links()
    with netns.network(["a"]):
        assert links() != before

    assert links() == before


async def test_a_relay_loses_answers_but_not_what_is_asked_until_it_is_healed(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "server")
    relay = Relay(f"unix:{tmp_path}/server")
    address = await relay.listen("127.0.0.1:0")
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"one\n")
    assert await reader.readline() == b"one\n"

    relay.lose_answers()
    writer.write(b"two\n")
    async with asyncio.timeout(10.0):
        while not relay.lost_bytes:  # noqa: ASYNC110 - the relay is told by a stream
            await asyncio.sleep(0.01)
    relay.heal()

    assert asked == [b"one\n", b"two\n"]
    assert await reader.read() == b"", "a connection that has lost something goes on"
    writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"three\n")
    assert await reader.readline() == b"three\n"
    writer.close()
    await relay.close()
    server.close()
