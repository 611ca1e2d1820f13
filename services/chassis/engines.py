"""What listens and speaks HTTP/2 under a `Server`: one switch, two engines.

`aio` is grpcio's asyncio server and can do everything. `native` (the optional package `pygrpc-native`, see
`native`) answers unary methods several times faster and leaves streams and reflection to an `aio` server
behind it. Handlers are the same for both.
"""

import asyncio
import importlib.util
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc
import grpc.aio

from services.chassis.channels import LARGE_FRAMES, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from services.chassis.intake import Handlers, Intake
from services.chassis.logs import logger

EngineName = Literal["auto", "aio", "native"]
"""`auto` is `native` where it can be had and the listener is one it is good for, else `aio`."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one caller can take of a server."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message, in and out; over it, RESOURCE_EXHAUSTED."""
    max_metadata_bytes: int = MAX_METADATA_BYTES
    """Largest metadata of one call."""
    max_concurrent_streams: int = 256
    """Calls at once on one connection; further ones wait at the caller."""
    max_connection_idle_s: float = 300.0
    """A connection without calls is closed after this long."""
    max_connection_age_s: float = 600.0
    """A connection is told to go after this long, give or take a tenth (gRPC spreads it); it bounds
    how long a revoked caller stays, and levels load over new replicas."""
    max_connection_age_grace_s: float = 60.0
    """Calls on such a connection may take this much longer. Streams are cut, and resume."""
    keepalive_s: float = 10.0
    """How often a silent caller is pinged; one that does not answer for half of it is dropped."""

    def options(self) -> list[tuple[str, int]]:
        """The same as gRPC's channel arguments, but for the life of connections."""
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.max_metadata_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_s * 500)),
            ("grpc.http2.ping_timeout_ms", round(self.keepalive_s * 500)),
            ("grpc.keepalive_permit_without_calls", 1),
            # Callers ping every second, which the defaults take for abuse.
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
            *LARGE_FRAMES,
        ]

    def lifetimes(self) -> list[tuple[str, int]]:
        """When connections end, as gRPC's channel arguments."""
        return [
            ("grpc.max_connection_idle_ms", round(self.max_connection_idle_s * 1e3)),
            ("grpc.max_connection_age_ms", round(self.max_connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", round(self.max_connection_age_grace_s * 1e3)),
        ]


DEFAULT_LIMITS = ServerLimits()

AGAIN_S = 0.05
"""Pause between two tries to listen again after a server broke down."""


class EngineUnavailable(OSError):
    """The engine asked for cannot serve this listener; says why and what to do."""


class Engine(Protocol):
    """Something that serves handlers on an address."""

    name: str
    """`aio` or `native`."""

    async def start(self, handlers: Handlers) -> int:
        """Listen and serve.

        Returns:
            The bound port.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those in progress go on for `grace_s`, and close."""
        ...


def serving(handlers: Handlers, options: list[tuple[str, int]]) -> grpc.aio.Server:
    """A grpc.aio server with `handlers`, not started."""
    server = grpc.aio.server(options=options)
    for name, methods in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, dict(methods)),))
        server.add_registered_method_handlers(name, dict(methods))
    return server


class AioEngine:
    """grpcio's asyncio server.

    One call whose path is not UTF-8 ends grpcio 1.85.1's server for good, with the process alive. So it is watched,
    and begun anew: callers lose their connection, and no more.
    """

    name = "aio"

    def __init__(self, address: str, limits: ServerLimits, *, reuse_port: bool) -> None:
        """Serve on `address`."""
        self._address = address
        self._options = [("grpc.so_reuseport", int(reuse_port)), *limits.options(), *limits.lifetimes()]
        self._server: grpc.aio.Server | None = None
        self._intake = Intake()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self, handlers: Handlers) -> int:
        """Listen and serve."""
        handlers = self._intake.over(handlers)
        port = await self._begin(handlers)
        if not self._address.startswith("unix:"):
            self._address = f"{self._address.rpartition(':')[0]}:{port}"
        self._watching = asyncio.get_running_loop().create_task(self._watch(handlers))
        return port

    async def stop(self, grace_s: float) -> None:
        """Stop."""
        self._stopping = True
        if self._server is not None:
            await self._intake.stop(self._server, grace_s)
        if self._watching is not None:
            await self._watching

    async def _begin(self, handlers: Handlers) -> int:
        server = serving(handlers, self._options)
        port = server.add_insecure_port(self._address)
        await server.start()
        self._server = server
        return port

    async def _watch(self, handlers: Handlers) -> None:
        while not self._stopping:
            assert self._server is not None
            try:
                # Never cancelled: that would cancel what the server itself waits for.
                await self._server.wait_for_termination()
            except Exception as error:
                logger().error("the server broke down and is begun anew", address=self._address, exc_info=error)
                await self._begin_again(handlers)

    async def _begin_again(self, handlers: Handlers) -> None:
        while not self._stopping:
            try:
                await self._begin(handlers)
            except RuntimeError:  # the port is not free yet
                await asyncio.sleep(AGAIN_S)
            else:
                return


def make(name: EngineName, address: str, limits: ServerLimits, *, loopback: bool, reuse_port: bool) -> Engine:
    """The engine for a listener.

    Args:
        name: What was asked for.
        address: `HOST:PORT` or `unix:PATH`.
        limits: What one caller can take.
        loopback: Whether only this machine reaches the address.
        reuse_port: Share the address with other processes.

    Raises:
        EngineUnavailable: `native` was asked for and cannot serve this.
    """
    if name == "aio":
        return AioEngine(address, limits, reuse_port=reuse_port)
    obstacle = _obstacle(limits)
    if not obstacle:
        if name == "native" or loopback:
            from services.chassis.native import NativeEngine  # noqa: PLC0415 - an optional dependency

            return NativeEngine(address, limits, reuse_port=reuse_port)
    elif name == "native":
        raise EngineUnavailable(None, f"the native engine cannot serve {address}: {obstacle}")
    return AioEngine(address, limits, reuse_port=reuse_port)


def _obstacle(limits: ServerLimits) -> str:
    """Why the native engine cannot be used; empty if it can."""
    if importlib.util.find_spec("pygrpc_native") is None:
        return "the package pygrpc-native is not installed: pip install 'modelyard[native]', or use --engine aio"
    if limits.lifetimes() != DEFAULT_LIMITS.lifetimes():
        return "it does not close connections by age or idleness: leave those limits alone, or use --engine aio"
    return ""
