"""A thin asyncio client of etcd's v3 API: keys, transactions, leases and watches.

It owns attempts, the rotation of endpoints and the resumption of watches. It does not own the outcome
of a write that nobody answered: `StoreUnavailable` then says `outcome: unknown`, and its caller reads
back before it tries again. Only the registry's stores and `election` come through here.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import Message

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis import instruments
from services.chassis.etcd_endpoint import (
    ATTEMPT_S,
    METADATA,
    Compacted,
    Endpoint,
    LeaseGone,
    Reply,
    raise_if_final,
    surely_not_done,
)
from services.chassis.etcd_watch import WatchBatch, follow
from services.chassis.logs import logger
from services.domain.clock import Clock, SystemClock
from services.domain.errors import StoreUnavailable

__all__ = [
    "Compacted",
    "EtcdClient",
    "LeaseGone",
    "RangeResult",
    "WatchBatch",
    "compare_create",
    "compare_mod",
    "delete_op",
    "get_op",
    "prefix_end",
    "put_op",
]

TIMEOUT_S = 3.0
"""Default time for a call with all its attempts; covers etcd's default election timeout of 1 s."""

BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Waits between attempts; the last one repeats."""

MIN_ATTEMPT_S = 0.05
"""With less time left no attempt is made: it would only leave its outcome unknown."""

PAGE_KEYS = 1000
"""Keys read at once by `range_prefix`: at 64 KB a value this is below the message limit."""

_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys as they were together at one revision."""

    revision: int
    """The store's revision they were read at; a watch from the next one misses nothing."""
    kvs: tuple[pb.KeyValue, ...]
    """By key."""


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
        self._endpoints = [Endpoint(address) for address in endpoints]
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
            StoreUnavailable: The client was closed.
        """
        if start_revision < 1:
            raise ValueError("a watch needs a start revision: list first, then watch from its revision + 1")
        request = pb.WatchCreateRequest(key=prefix.encode(), range_end=prefix_end(prefix), fragment=True)
        request.start_revision = start_revision
        failures = 0
        while not self._closed:
            endpoint = self._endpoint()
            try:
                async with contextlib.aclosing(follow(endpoint, request)) as batches:
                    async for batch in batches:
                        failures = 0
                        # The header of the answer that opens a watch is no safe point to resume from.
                        request.start_revision = batch.revision + 1
                        yield batch
            except StoreUnavailable as error:
                cause = error.message
            except grpc.aio.AioRpcError as error:
                cause = f"{error.code().name} {error.details() or ''}".rstrip()
                endpoint.failed(error.code())
            else:
                cause = "it ended"
            self._rotate(endpoint)
            instruments.STORE_WATCH_RESUMES.inc()
            if failures == 0:
                logger().info("watch is opened again", prefix=prefix, revision=request.start_revision, cause=cause)
            await self._clock.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
        raise StoreUnavailable("the etcd client is closed")

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        for endpoint in self._endpoints:
            await endpoint.close()

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
            attempt_s = min(ATTEMPT_S, max(MIN_ATTEMPT_S, deadline_s - start_s))
            try:
                answer = await endpoint.unary(method, reply)(request, timeout=attempt_s, metadata=METADATA)
            except asyncio.CancelledError:
                # Also how grpc says that the connection was closed under a call.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                raise StoreUnavailable("the etcd client is closed", metadata={"outcome": "unknown"}) from None
            except grpc.aio.AioRpcError as error:
                now_s = self._clock.now_s()
                _count(method, error.code().name, now_s - start_s)
                raise_if_final(error)
                endpoint.failed(error.code())
                self._rotate(endpoint)
                again_s = now_s + BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                not_done = surely_not_done(error)
                if again_s + MIN_ATTEMPT_S > deadline_s or not (repeatable or not_done):
                    outcome = "none" if repeatable or not_done else "unknown"
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

    def _endpoint(self) -> Endpoint:
        return self._endpoints[self._turn]

    def _rotate(self, failed: Endpoint) -> None:
        """Take the next endpoint, unless another call has done so."""
        if self._endpoints[self._turn] is failed:
            self._turn = (self._turn + 1) % len(self._endpoints)


def _count(method: str, status: str, duration_s: float) -> None:
    instruments.STORE_CALL_DURATION.labels(method, status).observe(duration_s)
