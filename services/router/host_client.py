"""The single hop: one channel per host process, bytes in and out.

A lost connection fails its calls at once; a caller that goes away takes its call on the host with
it. Retries are none of its business.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc.aio
from google.protobuf.message import DecodeError

from modelyard.host.v1 import host_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis.channels import call, open_channel
from services.chassis.codec import LOAD_KEY, load_from, seconds_from
from services.chassis.errors import status_of
from services.chassis.telemetry import Telemetry, current
from services.domain.errors import HostUnavailable, Internal, YardError
from services.domain.host import HostLoad, HostRecord
from services.domain.model import ModelKey
from services.router.frames import Payload, execute_request, key_prefix, open_response
from services.router.pipeline import AttemptFailed, HostAnswer

CLOSE_GRACE_S = 300.0
"""How long calls to a host that is not listed any more may still take; the longest default of a route."""

_SERVICE = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"].full_name
_Bytes = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Line:
    """The connection to one host process."""

    channel: grpc.aio.Channel
    execute: _Bytes
    status: _Bytes


class HostClient:
    """Calls hosts."""

    def __init__(self, *, telemetry: Telemetry, on_lost: Callable[[str], None]) -> None:
        """Trace to `telemetry`; tell `on_lost` the id of a host whose connection broke."""
        self._telemetry = telemetry
        self._on_lost = on_lost
        self._lines: dict[tuple[str, str, int], _Line] = {}
        self._prefixes: dict[ModelKey, bytes] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def execute(self, host: HostRecord, key: ModelKey, payload: object, *, timeout_s: float) -> HostAnswer:
        """Run a call on one host.

        Args:
            host: The host.
            key: The version that is to answer.
            payload: A `Payload`.
            timeout_s: Seconds it may take.

        Raises:
            AttemptFailed: It failed or was refused.
        """
        assert isinstance(payload, Payload)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = key_prefix(key)
        request = execute_request(prefix, payload)
        context = current()
        if context is None or not context.sampled:
            return await self._execute(host, request, timeout_s)
        attributes = {"host": host.host_id, "model": key.model, "version": key.version}
        with self._telemetry.span("attempt", kind="client", attributes=attributes) as span:
            try:
                return await self._execute(host, request, timeout_s)
            except AttemptFailed as failure:
                span.set("rpc.grpc.status_code", status_of(failure.error).name)
                span.fail(failure.error)
                span.end()
                raise

    async def status(self, host: HostRecord, *, timeout_s: float) -> host_pb2.GetStatusResponse:
        """The host's record, load and statistics.

        Raises:
            YardError: It does not answer.
        """
        request = host_pb2.GetStatusRequest().SerializeToString()
        try:
            raw = await call(self._line(host).status, request, timeout_s=timeout_s)
        except asyncio.CancelledError as error:
            raise self._broken_off(host, error) from None
        return host_pb2.GetStatusResponse.FromString(raw)

    def keep(self, hosts: Iterable[HostRecord]) -> None:
        """Close the channels to all other hosts, once the calls on them have ended."""
        kept = {_process_of(host) for host in hosts}
        for process in [process for process in self._lines if process not in kept]:
            closing = asyncio.get_running_loop().create_task(self._lines.pop(process).channel.close(CLOSE_GRACE_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls on them end."""
        lines = list(self._lines.values())
        self._lines.clear()
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*(line.channel.close() for line in lines), *self._closing, return_exceptions=True)

    async def _execute(self, host: HostRecord, request: bytes, timeout_s: float) -> HostAnswer:
        try:
            raw = await call(self._line(host).execute, request, timeout_s=timeout_s)
            response, rest = open_response(raw)
        except YardError as error:
            if isinstance(error, HostUnavailable):
                self._on_lost(host.host_id)
                error.message = f"host {host.host_id} is out of reach: {error.message}"
            raise AttemptFailed(error, _load_of(error.__cause__)) from error
        except asyncio.CancelledError as error:
            raise AttemptFailed(self._broken_off(host, error), None) from None
        except DecodeError:
            raise AttemptFailed(Internal(f"host {host.host_id} answered with something else"), None) from None
        return HostAnswer(
            payload=response,
            queue_s=seconds_from(rest.queue),
            compute_s=seconds_from(rest.compute),
            batch_size=rest.batch_size,
            load=load_from(rest.load) if rest.HasField("load") else None,
        )

    def _broken_off(self, host: HostRecord, error: asyncio.CancelledError) -> HostUnavailable:
        """What a cancelled call means: if nobody cancelled this task, its channel was closed under it.

        Raises:
            CancelledError: The caller went away.
        """
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        return HostUnavailable(f"the connection to host {host.host_id} was closed")

    def _line(self, host: HostRecord) -> _Line:
        process = _process_of(host)
        line = self._lines.get(process)
        if line is None:
            channel = open_channel(host.address)
            execute: _Bytes = channel.unary_unary(f"/{_SERVICE}/Execute")
            status: _Bytes = channel.unary_unary(f"/{_SERVICE}/GetStatus")
            line = self._lines[process] = _Line(channel, execute, status)
        return line


def _process_of(host: HostRecord) -> tuple[str, str, int]:
    return (host.host_id, host.address, host.pid)


def _load_of(error: BaseException | None) -> HostLoad | None:
    if isinstance(error, grpc.aio.AioRpcError):
        for key, value in error.trailing_metadata() or ():
            if key == LOAD_KEY and isinstance(value, bytes):
                try:
                    return load_from(resources_pb2.HostLoad.FromString(value))
                except DecodeError:
                    return None
    return None
