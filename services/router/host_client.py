"""The single hop: one channel per host process, bytes in and out.

Calls travel many to a message over a stream; a large one goes by itself, so that the others need not wait
behind it. A lost connection fails its calls at once; a caller that goes away takes its call on the host
with it. Retries are none of its business.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from modelyard.host.v1 import host_pb2, opaque_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import call, open_channel, read
from services.chassis.codec import LOAD_KEY, key_to, load_from, seconds_from, service_class_to
from services.chassis.errors import status_of
from services.chassis.telemetry import Telemetry, current
from services.domain.clock import Clock
from services.domain.errors import HostUnavailable, Internal, YardError
from services.domain.host import HostLoad, HostRecord
from services.domain.model import ModelKey
from services.domain.service_class import ORDINARY, ServiceClass
from services.router.attempting import LARGE_BYTES, AttemptFailed, HostAnswer
from services.router.dispatch_line import DispatchLine, Streams
from services.router.frames import Payload, execute_request, open_response
from services.router.streaming import Finished, Streamed

CLOSE_GRACE_S = 300.0
"""How long calls to a host that is not listed any more may still take; the longest default of a route."""

_SERVICE = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"].full_name
_Bytes = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
_ByteStream = grpc.aio.UnaryStreamMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Line:
    """The connection to one host process."""

    channel: grpc.aio.Channel
    dispatch: DispatchLine
    execute: _Bytes
    stream: _ByteStream
    status: _Bytes

    async def finish(self) -> None:
        """Close the channel once the calls on it have ended."""
        self.dispatch.finish()
        await asyncio.wait([asyncio.ensure_future(self.dispatch.ended())], timeout=CLOSE_GRACE_S)
        await self.channel.close(CLOSE_GRACE_S)

    async def close(self) -> None:
        """Close the channel now."""
        await self.dispatch.close()
        await self.channel.close()


class HostClient:
    """Calls hosts."""

    def __init__(
        self,
        *,
        telemetry: Telemetry,
        clock: Clock,
        on_lost: Callable[[str], None],
        on_heard: Callable[[HostRecord, HostLoad], None] = lambda _host, _load: None,
    ) -> None:
        """Call hosts.

        Args:
            telemetry: Where traces go.
            clock: Time.
            on_lost: Told the id of a host whose connection broke.
            on_heard: Told the load of a host that lives, and answers nothing yet.
        """
        self._on_heard = on_heard
        self._telemetry = telemetry
        self._clock = clock
        self._on_lost = on_lost
        self._lines: dict[tuple[str, str, int], _Line] = {}
        self._keys: dict[ModelKey, model_pb2.ModelKey] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Run a call on one host.

        Args:
            host: The host.
            key: The version that is to answer.
            payload: A `Payload`; or one that is `Streamed`, and is answered by what is `Finished`.
            service_class: Whom it is for.
            timeout_s: Seconds it may take.

        Raises:
            AttemptFailed: It failed or was refused.
        """
        assert isinstance(payload, Payload | Streamed)
        context = current()
        if context is None or not context.sampled:
            return await self._execute(host, key, payload, service_class, timeout_s)
        attributes = {"host": host.host_id, "model": key.model, "version": key.version}
        with self._telemetry.span("attempt", kind="client", attributes=attributes) as span:
            try:
                answer = await self._execute(host, key, payload, service_class, timeout_s)
                span.set("queue_s", answer.queue_s)
                span.set("compute_s", answer.compute_s)
                span.set("batch_size", answer.batch_size)
                return answer
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
            closing = asyncio.get_running_loop().create_task(self._lines.pop(process).finish())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls on them end."""
        lines = list(self._lines.values())
        self._lines.clear()
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*(line.close() for line in lines), *self._closing, return_exceptions=True)

    async def _execute(
        self,
        host: HostRecord,
        key: ModelKey,
        payload: Payload | Streamed,
        service_class: ServiceClass,
        timeout_s: float,
    ) -> HostAnswer:
        encoded_key = self._keys.get(key)
        if encoded_key is None:
            encoded_key = self._keys[key] = key_to(key)
        if isinstance(payload, Streamed):
            return await self._in_pieces(host, encoded_key, payload, service_class, timeout_s)
        if len(payload.raw) >= LARGE_BYTES:
            return await self._alone(host, encoded_key, payload, service_class, timeout_s)
        sent = self._line(host).dispatch.send(
            encoded_key, payload, service_class=service_class, timeout_s=timeout_s, trace=current()
        )
        try:
            return await sent.answer
        except asyncio.CancelledError:
            sent.cancel()
            raise
        except AttemptFailed as failure:
            told = self._told(host, failure.error)
            raise AttemptFailed(told, failure.load, never_sent=failure.never_sent) from None

    async def _alone(
        self,
        host: HostRecord,
        key: model_pb2.ModelKey,
        payload: Payload,
        service_class: ServiceClass,
        timeout_s: float,
    ) -> HostAnswer:
        declared = None if service_class is ORDINARY else service_class_to(service_class)
        request = execute_request(key, payload, declared)
        try:
            raw = await call(self._line(host).execute, request, timeout_s=timeout_s)
            response, rest = open_response(raw, host_pb2.ExecuteResponse)
        except YardError as error:
            raise AttemptFailed(self._told(host, error), _load_of(error.__cause__)) from error
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

    async def _in_pieces(
        self,
        host: HostRecord,
        key: model_pb2.ModelKey,
        streamed: Streamed,
        service_class: ServiceClass,
        timeout_s: float,
    ) -> HostAnswer:
        declared = None if service_class is ORDINARY else service_class_to(service_class)
        request = execute_request(key, streamed.payload, declared)
        begun = False
        try:
            async with aclosing(read(self._line(host).stream, request, timeout_s=timeout_s)) as answers:
                async for raw in answers:
                    response, rest = open_response(raw, host_pb2.ExecuteStreamResponse)
                    if rest.HasField("totals"):
                        return HostAnswer(
                            payload=Finished(response, rest.totals),
                            queue_s=seconds_from(rest.totals.queue),
                            compute_s=seconds_from(rest.totals.compute),
                            batch_size=rest.totals.beside,
                            load=load_from(rest.load) if rest.HasField("load") else None,
                        )
                    begun = True
                    await streamed.piece(response)
        except YardError as error:
            raise AttemptFailed(self._told(host, error), _load_of(error.__cause__), begun=begun) from error
        except asyncio.CancelledError as error:
            raise AttemptFailed(self._broken_off(host, error), None, begun=begun) from None
        except DecodeError:
            pass
        raise AttemptFailed(Internal(f"host {host.host_id} answered with something else"), None, begun=begun)

    def _told(self, host: HostRecord, error: YardError) -> YardError:
        """`error` as callers are told; a host that is out of reach is reported."""
        if isinstance(error, HostUnavailable):
            self._on_lost(host.host_id)
            error.message = f"host {host.host_id} is out of reach: {error.message}"
        return error

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
            streams: Streams = channel.stream_stream(
                f"/{_SERVICE}/Dispatch",
                request_serializer=opaque_pb2.OpaqueDispatchRequest.SerializeToString,
                response_deserializer=opaque_pb2.OpaqueDispatchResponse.FromString,
            )
            dispatch = DispatchLine(
                streams,
                connected=lambda: channel.get_state() is grpc.ChannelConnectivity.READY,
                clock=self._clock,
                heard=lambda load: self._on_heard(host, load),
            )
            execute: _Bytes = channel.unary_unary(f"/{_SERVICE}/Execute")
            stream: _ByteStream = channel.unary_stream(f"/{_SERVICE}/ExecuteStream")
            status: _Bytes = channel.unary_unary(f"/{_SERVICE}/GetStatus")
            line = self._lines[process] = _Line(channel, dispatch, execute, stream, status)
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
