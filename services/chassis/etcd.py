"""A thin asyncio client of etcd's v3 API: keys, transactions, leases and watches.

It owns attempts, the rotation of endpoints and the resumption of watches. It does not own the outcome
of a write that nobody answered: `StoreUnavailable` then says `outcome: unknown`, and its caller reads
back before it tries again. Only the registry's stores and `election` come through here.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis import instruments
from services.domain.clock import Clock, SystemClock
from services.domain.errors import Internal, StoreUnavailable

Reply = TypeVar("Reply", bound=Message)

ATTEMPT_S = 1.0
"""Most time for one attempt: a write sent just after a leader died hangs for as long as it is let."""

TIMEOUT_S = 3.0
"""Default time for a call with all its attempts; covers etcd's default election timeout of 1 s."""

BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Waits between attempts; the last one repeats."""

PROBE_EVERY_S = 1.0
"""A watch that hears nothing for this long asks the member whether it is there and has a leader."""

PAGE_KEYS = 1000
"""Keys read at once by `range_prefix`: at 64 KB a value this is below the message limit."""

STALE_TIMEOUTS = 2
"""Timeouts in a row after which a connection is given up: it may lead into a black hole."""

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
# An isolated member refuses at once instead of staying silent.
_METADATA = (("hasleader", "true"),)
_CLOCK = SystemClock()


class Compacted(Exception):
    """The revision asked for is no longer kept: list again and go on from there."""

    def __init__(self, compact_revision: int) -> None:
        """Say the oldest revision there is; 0 if it is not known."""
        super().__init__(f"etcd keeps no revision before {compact_revision or 'a later one'}")
        self.compact_revision = compact_revision


class LeaseGone(Exception):
    """The lease has expired or was revoked, and its keys are gone with it."""


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys as they were together at one revision."""

    revision: int
    """The store's revision they were read at; a watch from the next one misses nothing."""
    kvs: tuple[pb.KeyValue, ...]
    """By key."""


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes in order, with whole revisions only."""

    revision: int
    """Revision of the last of them."""
    events: tuple[pb.Event, ...]
    """At least one."""


def compare_mod(key: str, revision: int) -> pb.Compare:
    """Holds if `key` was last changed at `revision`; 0 is: does not exist."""
    return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key.encode(), mod_revision=revision)


def compare_create(key: str, revision: int) -> pb.Compare:
    """Holds if `key` was created at `revision`; 0 is: does not exist."""
    return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key.encode(), create_revision=revision)


def put_op(key: str, value: bytes, lease: int = 0) -> pb.RequestOp:
    """Write `key`, bound to `lease` if it is not 0."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value, lease=lease))


def delete_op(key: str) -> pb.RequestOp:
    """Delete `key` if it exists."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode()))


def get_op(key: str) -> pb.RequestOp:
    """Read `key`."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode()))


def prefix_end(prefix: str) -> bytes:
    """First key after all that begin with `prefix`, as `range_end` wants it."""
    raw = prefix.encode().rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"


class EtcdClient:
    """Calls any of several endpoints of one cluster; opens connections when first used."""

    def __init__(self, endpoints: Sequence[str], *, clock: Clock = _CLOCK) -> None:
        """Store the arguments.

        Args:
            endpoints: `host:port` of each member; at least one.
            clock: Time.
        """
        self._endpoints = [_Endpoint(address) for address in endpoints]
        self._clock = clock
        self._turn = 0
        self._closed = False

    async def get(self, key: str, *, revision: int = 0, timeout_s: float = TIMEOUT_S) -> pb.KeyValue | None:
        """Read one key.

        Args:
            key: The key.
            revision: As it was at this revision; 0 is now, agreed by a majority.
            timeout_s: Time for all attempts.

        Returns:
            None if it does not exist.

        Raises:
            Compacted: The revision is no longer kept.
            StoreUnavailable: No endpoint answered in time.
        """
        request = pb.RangeRequest(key=key.encode(), revision=revision)
        reply = await self._call("KV/Range", request, pb.RangeResponse, timeout_s=timeout_s, repeatable=True)
        return reply.kvs[0] if reply.kvs else None

    async def range_prefix(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, timeout_s: float = TIMEOUT_S
    ) -> RangeResult:
        """Read every key that begins with `prefix`, all at one revision.

        Args:
            prefix: The prefix.
            revision: As it was at this revision; 0 is now, agreed by a majority.
            keys_only: True leaves the values out.
            timeout_s: Time for each page of `PAGE_KEYS` keys.

        Raises:
            Compacted: The revision is no longer kept.
            StoreUnavailable: No endpoint answered in time.
        """
        end = prefix_end(prefix)
        key = prefix.encode()
        kvs: list[pb.KeyValue] = []
        while True:
            request = pb.RangeRequest(key=key, range_end=end, limit=PAGE_KEYS, revision=revision, keys_only=keys_only)
            page = await self._call("KV/Range", request, pb.RangeResponse, timeout_s=timeout_s, repeatable=True)
            revision = revision or page.header.revision
            kvs.extend(page.kvs)
            if not page.more:
                return RangeResult(revision, tuple(kvs))
            key = page.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout_s: float = TIMEOUT_S) -> int:
        """Write one key.

        Returns:
            The revision of the write.

        Raises:
            LeaseGone: The lease does not exist.
            StoreUnavailable: Not answered; `metadata["outcome"]` says whether it may have been done.
        """
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        reply = await self._call("KV/Put", request, pb.PutResponse, timeout_s=timeout_s, repeatable=False)
        return reply.header.revision

    async def delete(self, key: str, *, timeout_s: float = TIMEOUT_S) -> bool:
        """Delete one key.

        Returns:
            Whether it existed.

        Raises:
            StoreUnavailable: Not answered; `metadata["outcome"]` says whether it may have been done.
        """
        request = pb.DeleteRangeRequest(key=key.encode())
        reply = await self._call(
            "KV/DeleteRange", request, pb.DeleteRangeResponse, timeout_s=timeout_s, repeatable=False
        )
        return reply.deleted > 0

    async def txn(
        self,
        compares: Sequence[pb.Compare],
        success: Sequence[pb.RequestOp],
        failure: Sequence[pb.RequestOp] = (),
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> pb.TxnResponse:
        """Do `success` if all of `compares` hold, else `failure`, at one revision.

        At most 128 operations, and one write of each key.

        Raises:
            LeaseGone: A lease named by an operation does not exist.
            StoreUnavailable: Not answered; `metadata["outcome"]` says whether it may have been done.
        """
        request = pb.TxnRequest(compare=compares, success=success, failure=failure)
        return await self._call("KV/Txn", request, pb.TxnResponse, timeout_s=timeout_s, repeatable=False)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = TIMEOUT_S) -> int:
        """Make a lease.

        Args:
            ttl_s: Seconds it lives without being kept; the server may give more.
            timeout_s: Time for all attempts.

        Returns:
            Its id.

        Raises:
            StoreUnavailable: Not answered; a lease that was made without our knowing ends by itself.
        """
        request = pb.LeaseGrantRequest(ttl=ttl_s)
        # A second lease does no harm, so it is asked for until it is given.
        reply = await self._call(
            "Lease/LeaseGrant", request, pb.LeaseGrantResponse, timeout_s=timeout_s, repeatable=True
        )
        return reply.id

    async def lease_keep_alive(self, lease: int, *, timeout_s: float = ATTEMPT_S) -> int:
        """Keep a lease for another time to live.

        Returns:
            Seconds it now has; 0 if it is gone.

        Raises:
            StoreUnavailable: Not answered.
        """
        # The method is a stream of requests and replies. One message each way and the end of both is
        # the same on the wire as a unary call, and has an attempt's deadline and rotation for it.
        request = pb.LeaseKeepAliveRequest(id=lease)
        reply = await self._call(
            "Lease/LeaseKeepAlive", request, pb.LeaseKeepAliveResponse, timeout_s=timeout_s, repeatable=True
        )
        return max(0, reply.ttl)

    async def lease_revoke(self, lease: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """End a lease and delete its keys; one that is gone already is fine.

        Raises:
            StoreUnavailable: Not answered.
        """
        request = pb.LeaseRevokeRequest(id=lease)
        with contextlib.suppress(LeaseGone):
            await self._call("Lease/LeaseRevoke", request, pb.LeaseRevokeResponse, timeout_s=timeout_s, repeatable=True)

    async def lease_time_to_live(
        self, lease: int, *, keys: bool = False, timeout_s: float = TIMEOUT_S
    ) -> pb.LeaseTimeToLiveResponse:
        """Read a lease's state; its `ttl` is -1 if it is gone.

        Raises:
            StoreUnavailable: Not answered.
        """
        request = pb.LeaseTimeToLiveRequest(id=lease, keys=keys)
        return await self._call(
            "Lease/LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse, timeout_s=timeout_s, repeatable=True
        )

    async def compact(self, revision: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """Forget all revisions before `revision`; forgotten ones already are fine.

        Raises:
            StoreUnavailable: Not answered.
        """
        request = pb.CompactionRequest(revision=revision)
        with contextlib.suppress(Compacted):
            await self._call("KV/Compact", request, pb.CompactionResponse, timeout_s=timeout_s, repeatable=True)

    async def status(self, *, timeout_s: float = TIMEOUT_S) -> pb.StatusResponse:
        """Read the state of the member that is asked now.

        Raises:
            StoreUnavailable: No endpoint answered in time, or none has a leader.
        """
        return await self._call(
            "Maintenance/Status", pb.StatusRequest(), pb.StatusResponse, timeout_s=timeout_s, repeatable=True
        )

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Follow every key that begins with `prefix`.

        Goes on over outages of any length, and gives each change once. Close it (`aclosing`) to end it.

        Args:
            prefix: The prefix.
            start_revision: First revision wanted, at least 1; from a listing, its revision + 1.

        Raises:
            Compacted: Changes from that revision on are no longer kept.
        """
        if start_revision < 1:
            raise ValueError("a watch needs a start revision: list first, then watch from its revision + 1")
        next_revision = start_revision
        failures = 0
        while True:
            endpoint = self._endpoint()
            try:
                async with contextlib.aclosing(self._watch_once(endpoint, prefix, next_revision)) as batches:
                    async for batch in batches:
                        failures = 0
                        next_revision = batch.revision + 1
                        yield batch
            except (StoreUnavailable, grpc.aio.AioRpcError):
                self._rotate(endpoint)
            instruments.STORE_WATCH_RESUMES.inc()
            await self._clock.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        for endpoint in self._endpoints:
            await endpoint.close()

    async def _watch_once(
        self, endpoint: "_Endpoint", prefix: str, next_revision: int
    ) -> AsyncGenerator[WatchBatch, None]:
        """Follow until the stream breaks, from `next_revision` on."""
        create = pb.WatchCreateRequest(
            key=prefix.encode(), range_end=prefix_end(prefix), start_revision=next_revision, fragment=True
        )
        method = endpoint.stream("Watch/Watch", pb.WatchResponse)
        probe = endpoint.unary("Maintenance/Status", pb.StatusResponse)
        call = method(metadata=_METADATA)
        events: list[pb.Event] = []
        try:
            await _while_alive(call.write(pb.WatchRequest(create_request=create)), probe)
            while True:
                response = await _while_alive(call.read(), probe)
                if not isinstance(response, pb.WatchResponse):
                    raise StoreUnavailable("the watch was ended by etcd")
                if response.compact_revision:
                    raise Compacted(response.compact_revision)
                if response.canceled:
                    raise StoreUnavailable(f"the watch was ended by etcd: {response.cancel_reason}")
                events.extend(event for event in response.events if event.kv.mod_revision >= next_revision)
                if response.fragment or not events:
                    continue
                next_revision = events[-1].kv.mod_revision + 1
                yield WatchBatch(next_revision - 1, tuple(events))
                events = []
        finally:
            call.cancel()

    async def _call(
        self, method: str, request: Message, reply: type[Reply], *, timeout_s: float, repeatable: bool
    ) -> Reply:
        """Call until an endpoint answers; a write is sent again only if it surely was not done."""
        deadline_s = self._clock.now_s() + timeout_s
        failures = 0
        while True:
            if self._closed:
                raise StoreUnavailable("the etcd client is closed", metadata={"outcome": "none"})
            endpoint = self._endpoint()
            start_s = self._clock.now_s()
            attempt_s = max(0.001, min(ATTEMPT_S, deadline_s - start_s))
            try:
                answer = await endpoint.unary(method, reply)(request, timeout=attempt_s, metadata=_METADATA)
            except grpc.aio.AioRpcError as error:
                now_s = self._clock.now_s()
                _count(method, error.code().name, now_s - start_s)
                _raise_if_final(error)
                endpoint.failed(error.code())
                self._rotate(endpoint)
                again_s = now_s + BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                surely_not_done = _surely_not_done(error)
                if again_s >= deadline_s or not (repeatable or surely_not_done):
                    outcome = "none" if repeatable or surely_not_done else "unknown"
                    raise StoreUnavailable(
                        f"etcd at {endpoint.address} does not answer {method}: "
                        f"{error.code().name} {error.details() or ''}".rstrip(),
                        retry_after_s=1.0,
                        metadata={"outcome": outcome},
                    ) from error
                failures += 1
                await self._clock.sleep(again_s - now_s)
            else:
                endpoint.answered()
                _count(method, "OK", self._clock.now_s() - start_s)
                return answer

    def _endpoint(self) -> "_Endpoint":
        return self._endpoints[self._turn]

    def _rotate(self, failed: "_Endpoint") -> None:
        """Take the next endpoint, unless another call has done so."""
        if self._endpoints[self._turn] is failed:
            self._turn = (self._turn + 1) % len(self._endpoints)


class _Endpoint:
    """One member and the connection to it."""

    def __init__(self, address: str) -> None:
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
            task = asyncio.get_running_loop().create_task(self._channel.close(grace=2 * (ATTEMPT_S + PROBE_EVERY_S)))
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


async def _while_alive(step: Awaitable[Any], probe: Callable[..., Awaitable[pb.StatusResponse]]) -> Any:
    """Wait for a step of a stream for as long as its member answers and has a leader."""
    task = asyncio.ensure_future(step)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=PROBE_EVERY_S)
            if done:
                if task.cancelled():
                    raise StoreUnavailable("the watch's connection was closed")
                return task.result()
            await probe(pb.StatusRequest(), timeout=ATTEMPT_S, metadata=_METADATA)
    except asyncio.InvalidStateError as error:
        raise StoreUnavailable("the watch's stream is broken") from error
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _count(method: str, status: str, duration_s: float) -> None:
    instruments.STORE_CALL_DURATION.labels(method, status).observe(duration_s)


def _raise_if_final(error: grpc.aio.AioRpcError) -> None:
    """Raise for an answer that no other attempt would change."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        raise Compacted(0) from error
    if code is grpc.StatusCode.NOT_FOUND and "lease not found" in details:
        raise LeaseGone(details) from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # NOSPACE or too many requests: refused before anything was done.
        raise StoreUnavailable(f"etcd refuses: {details}", metadata={"outcome": "none"}) from error
    if code in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }:
        raise Internal(f"etcd refuses the request: {details}") from error


def _surely_not_done(error: grpc.aio.AioRpcError) -> bool:
    """Whether the request never reached a member that could act on it.

    Goes by the text, as the status is the same for both; a text that is not known counts as unknown.
    """
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (
        details.startswith("failed to connect") or details == "etcdserver: no leader"
    )
