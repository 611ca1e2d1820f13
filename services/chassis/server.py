"""A gRPC server as every service runs it: limits, health, reflection, lame duck, a port of its own."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal import api_implementation
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from services.chassis.channels import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from services.chassis.handlers import CallRules, Streams, handler_of
from services.chassis.health import OVERALL, Health
from services.chassis.reflection import Pools
from services.chassis.telemetry import Telemetry
from services.domain.clock import Clock, SystemClock


class DeadlineRule(Enum):
    """Whether a call without a deadline is refused."""

    REQUIRED = auto()
    """Inside the mesh: INVALID_ARGUMENT, reason DEADLINE_REQUIRED."""
    OPTIONAL = auto()
    """For the public: the service applies its default."""


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


DEFAULT_LIMITS = ServerLimits()
_CLOCK = SystemClock()


class PortInUse(OSError):
    """Another process listens there already."""


class UnsafeAddress(OSError):
    """The address can be reached from other machines, and nothing protects it."""


class Server:
    """One listening address with its services, `grpc.health.v1` and reflection."""

    def __init__(
        self,
        *,
        address: str,
        telemetry: Telemetry,
        limits: ServerLimits = DEFAULT_LIMITS,
        insecure: bool = False,
        clock: Clock = _CLOCK,
    ) -> None:
        """Keep what `start` needs.

        Args:
            address: `HOST:PORT` to listen on; port 0 takes a free one.
            telemetry: Where spans of calls go.
            limits: What one caller can take.
            insecure: Allow an address that other machines reach, although nothing is encrypted.
            clock: Measures how long calls take.
        """
        self._address = address
        self._telemetry = telemetry
        self._limits = limits
        self._insecure = insecure
        self._clock = clock
        self._health = Health()
        self._endless = Streams()
        self._handlers: dict[str, dict[str, grpc.RpcMethodHandler[object, object]]] = {}
        self._pools: list[DescriptorPool] = []
        self._server: grpc.aio.Server | None = None
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining

    def add(
        self,
        service: ServiceDescriptor,
        servicer: object,
        *,
        deadline: DeadlineRule,
        name: str | None = None,
        messages: Mapping[str, type[Message]] | None = None,
        reflection_pool: DescriptorPool | None = None,
        endless: Collection[str] = (),
    ) -> None:
        """Serve every method of `service`; before `start`.

        Args:
            service: Its descriptor.
            servicer: Has a method `Name(request, context)` for each of its methods.
            deadline: Whether a call without one is refused.
            name: Full name to serve it under, if not its own.
            messages: Full message name to the class to decode it with, where it is not the descriptor's.
            reflection_pool: Pool that describes it, if not the default one.
            endless: Methods whose streams end only with the caller, such as `Watch`. `drain` ends them
                with `Draining` (the servicer sees a cancellation) instead of waiting for them.

        Raises:
            TypeError: `servicer` lacks a method, or `endless` names one that does not stream.
            RuntimeError: The server has started.
        """
        if self._server is not None:
            raise RuntimeError("services are added before the server starts")
        rules = CallRules(self._telemetry, self._clock, deadline is DeadlineRule.REQUIRED, True)
        self._add(service, servicer, rules, name=name or service.full_name, messages=messages or {}, endless=endless)
        if reflection_pool is not None:
            self._pools.append(reflection_pool)
        self._health.set(name or service.full_name, True)

    def _add(
        self,
        service: ServiceDescriptor,
        servicer: object,
        rules: CallRules,
        *,
        name: str,
        messages: Mapping[str, type[Message]],
        endless: Collection[str],
    ) -> None:
        missing = [method.name for method in service.methods if not callable(getattr(servicer, method.name, None))]
        unary = [m.name for m in service.methods if m.name in endless and not m.server_streaming]
        if missing or unary:
            raise TypeError(f"{name}: not implemented: {missing}; endless but not streaming: {unary}")
        self._handlers[name] = {
            method.name: handler_of(
                method,
                getattr(servicer, method.name),
                path=f"{name}/{method.name}",
                rules=rules,
                messages=messages,
                endless=self._endless if method.name in endless else None,
            )
            for method in service.methods
        }

    async def start(self) -> int:
        """Listen and serve.

        Returns:
            The bound port.

        Raises:
            PortInUse: Another process listens there.
            UnsafeAddress: Other machines reach the address and `insecure` was not given.
            OSError: The address cannot be bound.
            RuntimeError: Protobuf runs without its compiled backend, at a fraction of its speed.
        """
        if api_implementation.Type() != "upb":
            raise RuntimeError(
                f"protobuf runs on its {api_implementation.Type()!r} backend; unset "
                "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION or install a wheel of protobuf with upb"
            )
        _check_address(self._address, insecure=self._insecure)
        self._add_own()
        server = grpc.aio.server(options=self._options())
        for name, handlers in self._handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            server.add_registered_method_handlers(name, handlers)
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise _in_use(self._address) from error
        await server.start()
        self._server = server
        self._health.set(OVERALL, True)
        return port

    def _add_own(self) -> None:
        """Health and reflection: watched by tools that send no deadline and start no traces."""
        rules = CallRules(self._telemetry, self._clock, False, False)
        names = [*self._handlers, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        services = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
        pools = Pools((*self._pools, descriptor_pool.Default()))
        reflector = reflection.aio.ReflectionServicer((*names, services.full_name), pool=pools)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        self._add(health, self._health, rules, name=health.full_name, messages={}, endless=("Watch",))
        self._add(services, reflector, rules, name=services.full_name, messages={}, endless=("ServerReflectionInfo",))

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_metadata_size", limits.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * limits.max_metadata_bytes),
            ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
            ("grpc.max_connection_idle_ms", round(limits.max_connection_idle_s * 1e3)),
            ("grpc.max_connection_age_ms", round(limits.max_connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", round(limits.max_connection_age_grace_s * 1e3)),
            ("grpc.keepalive_time_ms", round(limits.keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", round(limits.keepalive_s * 500)),
            ("grpc.http2.ping_timeout_ms", round(limits.keepalive_s * 500)),
            ("grpc.keepalive_permit_without_calls", 1),
            # Callers ping every second, which the defaults take for abuse.
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        ]

    def set_serving(self, service: str, serving: bool) -> None:
        """Say whether a service, or a model by its name, takes calls; "" is the whole process."""
        self._health.set(service, serving)

    async def drain(self, *, lame_duck_s: float = 0.5, grace_s: float = 10.0) -> None:
        """Stop without losing a call.

        Args:
            lame_duck_s: Seconds to go on serving after health says NOT_SERVING, for callers to notice.
            grace_s: Seconds that calls in progress may take afterwards; what is left is cancelled.
        """
        self._draining = True
        self._health.stop()
        if self._server is None:
            return
        await self._clock.sleep(lame_duck_s)
        self._endless.end()
        await self._server.stop(grace_s)


def _check_address(address: str, *, insecure: bool) -> None:
    """Refuse what should or can not be bound, in words; gRPC itself only says that it failed."""
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise OSError(errno.EINVAL, f"{address!r} is not HOST:PORT; change --address")
    if not insecure and not _is_loopback(host):
        raise UnsafeAddress(
            errno.EACCES,
            f"{address} can be reached from other machines, without encryption or authentication; "
            "use 127.0.0.1, or say --insecure",
        )
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(address) from None
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}; change --address") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_use(address: str) -> PortInUse:
    return PortInUse(
        errno.EADDRINUSE,
        f"{address} is in use: stop what listens there, or choose another --address (a whole mesh: --base-port)",
    )
