"""One watch stream of etcd, from its opening until it breaks.

Resuming it, and where, is decided in `etcd`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis.etcd_endpoint import ATTEMPT_S, METADATA, Compacted, Endpoint
from services.domain.errors import StoreUnavailable

PROBE_EVERY_S = 1.0
"""A watch that hears nothing for this long asks the member whether it is there and has a leader."""


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes in order, with whole revisions only."""

    revision: int
    """Revision of the last of them."""
    events: tuple[pb.Event, ...]
    """At least one."""


async def follow(endpoint: Endpoint, request: pb.WatchCreateRequest) -> AsyncGenerator[WatchBatch, None]:
    """Give what happens from the request's start revision on.

    Args:
        endpoint: The member to ask.
        request: What to watch; has a start revision.

    Raises:
        Compacted: Changes from that revision on are no longer kept.
        StoreUnavailable: The stream broke.
        grpc.aio.AioRpcError: The stream broke, or its member does not answer.
    """
    call = endpoint.stream("Watch/Watch", pb.WatchResponse)(metadata=METADATA)
    probe = endpoint.unary("Maintenance/Status", pb.StatusResponse)
    next_revision = request.start_revision
    events: list[pb.Event] = []
    try:
        await _while_alive(call.write(pb.WatchRequest(create_request=request)), probe)
        while True:
            response = await _while_alive(call.read(), probe)
            if not isinstance(response, pb.WatchResponse):
                raise StoreUnavailable("the watch was ended by etcd")
            if response.compact_revision:
                raise Compacted(response.compact_revision)
            if response.canceled:
                raise StoreUnavailable(f"the watch was ended by etcd: {response.cancel_reason}")
            events.extend(event for event in response.events if event.kv.mod_revision >= next_revision)
            # The rest of a revision may be in the next fragment; only what is whole may be resumed after.
            if response.fragment or not events:
                continue
            next_revision = events[-1].kv.mod_revision + 1
            yield WatchBatch(next_revision - 1, tuple(events))
            events = []
    finally:
        call.cancel()


async def _while_alive(step: Awaitable[Any], probe: Callable[..., Awaitable[pb.StatusResponse]]) -> Any:
    """Wait for a step of a stream for as long as its member answers and has a leader."""
    task = asyncio.ensure_future(step)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=PROBE_EVERY_S)
            if done:
                break
            await probe(pb.StatusRequest(), timeout=ATTEMPT_S, metadata=METADATA)
        if task.cancelled():
            raise StoreUnavailable("the watch's connection was closed")
        return task.result()
    except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
        # Other calls may have given the connection up, on which gRPC then takes no further probe.
        raise StoreUnavailable("the watch's stream is broken") from error
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
