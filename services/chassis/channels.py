"""How one service calls another: channel options, and a unary call with errors of the domain.

Decides nothing about retries or which host: only the router retries. No channel has a retry policy, so what gRPC
sends again by itself is what surely no servicer has seen (see `RETRY_BUFFER_BYTES`).
"""

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from services.chassis.errors import from_rpc_error
from services.chassis.telemetry import outgoing_metadata
from services.domain.deadline import LONGEST_S
from services.domain.errors import BudgetExhausted

Req = TypeVar("Req")
Res = TypeVar("Res")
Req_contra = TypeVar("Req_contra", contravariant=True)
Res_co = TypeVar("Res_co", covariant=True)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message accepted and sent, on both sides."""

LARGE_FRAMES = (
    ("grpc.http2.max_frame_size", 4 << 20),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.write_buffer_size", 4 << 20),
)
"""A photo travels in one HTTP/2 frame instead of dozens: a twelfth more of them a second over loopback."""

RETRY_BUFFER_BYTES = 4 << 20
"""Most of a call that gRPC keeps until its answer begins, to send it again where its connection was going (GOAWAY) and
no servicer has seen it. Servers renew each connection every ten minutes: under load one renewal in 24 lost a call
without that, and one in 75 lost a photo with gRPC's own 256 KB. Of a stream that has had a message nothing is kept.
It costs a unary call 5 to 10 µs."""

MAX_METADATA_BYTES = 8192
"""Largest metadata of a call accepted, on both sides."""


def open_channel(address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to `address` that notices a dead or frozen peer within about two seconds.

    It connects on its first call. Keepalive alone never finds a frozen peer: gRPC also needs the
    HTTP/2 ping timeout, which is 60 s by default. Each channel has its own connection, so that the
    back-off of one does not slow another.
    """
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
            ("grpc.keepalive_time_ms", 1000),
            ("grpc.keepalive_timeout_ms", 1000),
            ("grpc.http2.ping_timeout_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 1),
            ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            *LARGE_FRAMES,
        ],
    )


class Method(Protocol[Req_contra, Res_co]):
    """A method of a generated stub that has one answer."""

    def __call__(
        self, request: Req_contra, /, *, timeout: float | None = ..., metadata: Any = ...
    ) -> Awaitable[Res_co]:
        """Begin a call."""
        ...


async def call(
    method: Method[Req, Res],
    request: Req,
    *,
    timeout_s: float,
    metadata: Sequence[tuple[str, str | bytes]] = (),
) -> Res:
    """Call `method`, carrying the current trace on.

    Args:
        method: A method of a generated stub that has one answer.
        request: Its request, or an iterator of them if it takes many.
        timeout_s: Seconds the call may take, cut to a day. gRPC keeps it: a `wait_for` around a call
            leaks about 1 KB in the client each time.
        metadata: Sent in addition to the trace headers.

    Raises:
        YardError: What the other side refused or failed with; `__cause__` is the RPC's own error.
    """
    if timeout_s <= 0.0:
        raise BudgetExhausted("nothing is left of the deadline to make the call in")
    try:
        return await method(request, timeout=min(timeout_s, LONGEST_S), metadata=(*outgoing_metadata(), *metadata))
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def read(
    method: grpc.aio.UnaryStreamMultiCallable[Req, Res], request: Req, *, timeout_s: float
) -> AsyncGenerator[Res, None]:
    """The answers of `method`, carrying the current trace on. Close it (`aclosing`) to end the call.

    Args:
        method: A method of a generated stub that answers a stream.
        request: Its request.
        timeout_s: Seconds the call may take, cut to a day.

    Raises:
        YardError: What the other side refused or failed with; `__cause__` is the RPC's own error.
    """
    answers = method(request, timeout=min(timeout_s, LONGEST_S), metadata=outgoing_metadata())
    try:
        async for answer in answers:
            yield answer
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        answers.cancel()
