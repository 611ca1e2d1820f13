"""A relay of bytes between a client and a server that loses what it is told to lose.

A connection that has lost something is of no use to either side: it is closed when the loss ends.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


class Relay:
    """Listens on one address, passes on to another; each is `HOST:PORT` or `unix:PATH`."""

    def __init__(self, target: str, *, age_s: Callable[[], float] | None = None) -> None:
        """Pass on to `target`.

        Args:
            target: Where the server is.
            age_s: Seconds after which the next connection is cut; None never cuts.
        """
        self._target = target
        self._age_s = age_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._losing = False
        self._spoilt: set[asyncio.Task[None]] = set()
        self.cuts = 0
        """Connections that were cut."""
        self.lost_bytes = 0
        """Of answers."""

    async def listen(self, address: str) -> str:
        """Begin to listen; returns the address, with its port if that was 0."""
        if address.startswith("unix:"):
            self._server = await asyncio.start_unix_server(self._accept, address.removeprefix("unix:"))
            return address
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host, int(port))
        bound = self._server.sockets[0].getsockname()
        return f"{bound[0]}:{bound[1]}"

    def lose_answers(self) -> None:
        """From now on nothing that the server says arrives; what is asked of it does."""
        self._losing = True

    def cut_no_more(self) -> None:
        """Let connections live from now on."""
        self._age_s = None

    def heal(self) -> None:
        """Lose nothing any more; connections that have lost something end."""
        self._losing = False
        for task in self._spoilt:
            task.cancel()
        self._spoilt = set()

    async def close(self) -> None:
        """End every connection, and listen no more."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        age_s = None if self._age_s is None else self._age_s()
        far: asyncio.StreamWriter | None = None
        me = asyncio.current_task()
        assert me is not None
        try:
            async with asyncio.timeout(age_s):
                far_reader, far = await self._connect()
                asking = asyncio.create_task(self._pass(reader, far, None))
                answering = asyncio.create_task(self._pass(far_reader, writer, me))
                try:
                    # An end of either direction ends the connection: gRPC has no half of one.
                    await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    asking.cancel()
                    answering.cancel()
                    await asyncio.gather(asking, answering, return_exceptions=True)
        except TimeoutError:
            self.cuts += 1
        except OSError:
            pass  # the server is not there
        finally:
            self._spoilt.discard(me)
            for each in (writer, far):
                if each is not None:
                    each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("unix:"):
            return await asyncio.open_unix_connection(self._target.removeprefix("unix:"))
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: asyncio.Task[None] | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if answers is not None and self._losing:
                    self._spoilt.add(answers)
                    self.lost_bytes += len(data)
                    continue
                sink.write(data)
                await sink.drain()


@contextlib.asynccontextmanager
async def relay(target: str, address: str, *, age_s: Callable[[], float] | None = None) -> AsyncIterator[Relay]:
    """A relay that is gone afterwards."""
    made = Relay(target, age_s=age_s)
    await made.listen(address)
    try:
        yield made
    finally:
        await made.close()
