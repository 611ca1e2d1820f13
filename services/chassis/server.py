"""A gRPC server as every service runs it: limits, health, reflection, lame duck, a port of its own."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping
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

from services.chassis import engines
from services.chassis.engines import DEFAULT_LIMITS, Engine, EngineName, ServerLimits
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
        reuse_port: bool = False,
        engine: EngineName = "aio",
        clock: Clock = _CLOCK,
    ) -> None:
        """Keep what `start` needs.

        Args:
            address: `HOST:PORT` to listen on; port 0 takes a free one.
            telemetry: Where spans of calls go.
            limits: What one caller can take.
            insecure: Allow an address that other machines reach, although nothing is encrypted.
            reuse_port: Share the address with other workers of this service (`chassis.workers`).
            engine: What speaks HTTP/2 under it.
            clock: Measures how long calls take.
        """
        self._engine_name = engine
        self._address = address
        self._telemetry = telemetry
        self._limits = limits
        self._insecure = insecure
        self._reuse_port = reuse_port
        self._clock = clock
        self._health = Health()
        self._endless = Streams()
        self._handlers: dict[str, dict[str, grpc.RpcMethodHandler[object, object]]] = {}
        self._pools: list[DescriptorPool] = []
        self._engine: Engine | None = None
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
        if self._engine is not None:
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
        check_address(self._address, insecure=self._insecure, shared=self._reuse_port)
        self._add_own()
        engine = engines.make(
            self._engine_name,
            self._address,
            self._limits,
            loopback=is_loopback(self._address),
            reuse_port=self._reuse_port,
        )
        try:
            port = await engine.start(self._handlers)
        except RuntimeError as error:
            raise port_in_use(self._address) from error
        self._engine = engine
        self._health.set(OVERALL, True)
        return port

    @property
    def engine(self) -> str:
        """Name of the engine that serves; empty before the start."""
        return "" if self._engine is None else self._engine.name

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

    def set_serving(self, service: str, serving: bool) -> None:
        """Say whether a service, or a model by its name, takes calls; "" is the whole process."""
        self._health.set(service, serving)

    async def drain(
        self, *, lame_duck_s: float = 0.5, grace_s: float = 10.0, wind_down: Callable[[], None] | None = None
    ) -> None:
        """Stop without losing a call.

        Args:
            lame_duck_s: Seconds to go on serving after health says NOT_SERVING, for callers to notice.
            grace_s: Seconds that calls in progress may take afterwards; what is left is cancelled.
            wind_down: Called between the two: for streams that end by themselves once their own calls have.
        """
        self._draining = True
        self._health.stop()
        if self._engine is None:
            return
        await self._clock.sleep(lame_duck_s)
        self._endless.end()
        if wind_down is not None:
            wind_down()
        await self._engine.stop(grace_s)


def check_address(address: str, *, insecure: bool, shared: bool = False) -> None:
    """Refuse what should or can not be bound, in words; gRPC itself only says that it failed.

    Args:
        address: `HOST:PORT`, or `unix:PATH`.
        insecure: Allow an address that other machines reach.
        shared: Others may listen there already: its port need not be free.

    Raises:
        PortInUse: Another process listens there.
        UnsafeAddress: Other machines reach it, and `insecure` was not given.
        OSError: It cannot be bound.
    """
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise OSError(errno.EINVAL, f"{address!r} is not HOST:PORT; change --address")
    if not insecure and not is_loopback(address):
        raise UnsafeAddress(
            errno.EACCES,
            f"{address} can be reached from other machines, without encryption or authentication; "
            "use 127.0.0.1, or say --insecure",
        )
    if shared:
        return
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(address) from None
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}; change --address") from None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `HOST:PORT` or `unix:PATH`."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_in_use(address: str) -> PortInUse:
    """The error for an address that is taken, with what to do about it."""
    return PortInUse(
        errno.EADDRINUSE,
        f"{address} is in use: stop what listens there, or choose another --address (a whole mesh: --base-port)",
    )
