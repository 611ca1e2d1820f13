"""One member of etcd: the connection to it, and what its refusals mean.

Which member is asked, and whether again, is decided in `etcd`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from services.domain.errors import Internal, StoreUnavailable

Reply = TypeVar("Reply", bound=Message)

ATTEMPT_S = 1.0
"""Most time for one attempt: a write sent just after a leader died hangs for as long as it is let."""

STALE_TIMEOUTS = 2
"""Timeouts in a row after which a connection is given up: it may lead into a black hole."""

GIVE_UP_S = 4.0
"""How long a connection that was given up stays: calls on it end by their own timeouts and probes first."""

# An isolated member refuses at once instead of staying silent.
METADATA = (("hasleader", "true"),)
_OPTIONS: tuple[tuple[str, int], ...] = (
    # etcd counts a ping more often than every 5 s, or one without an open call, as an attack.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # A connection of its own, so that giving it up really makes a new one.
    ("grpc.use_local_subchannel_pool", 1),
)


class Compacted(Exception):
    """The revision asked for is no longer kept: list again and go on from there."""

    def __init__(self, compact_revision: int) -> None:
        """Say the oldest revision there is; 0 if it is not known."""
        super().__init__(f"etcd keeps no revision before {compact_revision or 'a later one'}")
        self.compact_revision = compact_revision


class LeaseGone(Exception):
    """The lease has expired or was revoked, and its keys are gone with it."""


class Endpoint:
    """One member and the connection to it."""

    def __init__(self, address: str) -> None:
        """Store the `host:port`; the connection opens with the first call."""
        self.address = address
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._timeouts = 0
        self._closing: set[asyncio.Task[None]] = set()

    def unary(self, method: str, reply: type[Reply]) -> Callable[..., Awaitable[Reply]]:
        """The method, as a call with one message each way."""
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = self._open().unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=_serialize,
                response_deserializer=reply.FromString,
            )
        return cast("Callable[..., Awaitable[Reply]]", found)

    def stream(self, method: str, reply: type[Reply]) -> Callable[..., Any]:
        """The method, as a stream each way."""
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = self._open().stream_stream(
                f"/etcdserverpb.{method}",
                request_serializer=_serialize,
                response_deserializer=reply.FromString,
            )
        return cast("Callable[..., Any]", found)

    def answered(self) -> None:
        """Note that the connection works."""
        self._timeouts = 0

    def failed(self, code: grpc.StatusCode) -> None:
        """Note a failure; after several timeouts in a row the next call opens a new connection."""
        self._timeouts = self._timeouts + 1 if code is grpc.StatusCode.DEADLINE_EXCEEDED else 0
        if self._timeouts >= STALE_TIMEOUTS and self._channel is not None:
            self._timeouts = 0
            # Calls still on it end by their own timeouts and probes first.
            task = asyncio.get_running_loop().create_task(self._channel.close(grace=GIVE_UP_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._channel = None
            self._methods = {}

    async def close(self) -> None:
        """Close the connection, and those that were given up."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
        self._channel = None
        self._methods = {}

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        return self._channel


def raise_if_final(error: grpc.aio.AioRpcError) -> None:
    """Raise for an answer that no other attempt would change."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        raise Compacted(0) from error
    if code is grpc.StatusCode.NOT_FOUND and "lease not found" in details:
        raise LeaseGone(details) from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        raise Internal(f"a message to or from etcd is too large: {details}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # NOSPACE or too many requests: refused before anything was done.
        full = "; it is full: docs/operations.md says what to do" if "space exceeded" in details else ""
        raise StoreUnavailable(f"etcd refuses: {details}{full}", metadata={"outcome": "none"}) from error
    if code in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }:
        raise Internal(f"etcd refuses the request: {details}") from error


def surely_not_done(error: grpc.aio.AioRpcError) -> bool:
    """Whether the request never reached a member that could act on it.

    Goes by the text, as the status is the same for both; a text that is not known counts as unknown.
    """
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (
        details.startswith("failed to connect") or details == "etcdserver: no leader"
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
