"""Live state in etcd: hosts under their leases, and the leader's plan.

Owns when a host is listed: for as long as its reports prove progress, and 10 s more. Knows nothing of
revisions, and takes a record as the bytes it is.
"""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.type.v1 import resources_pb2
from services.chassis.etcd import Compacted, RangeResult, WatchBatch, compare_create, put_op
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import Fault, InvalidRequest, StaleFencingToken, StoreUnavailable
from services.registry import layout, listing
from services.registry.host_orders import HostOrders
from services.registry.listing import Listing

RELIST_S = 0.5
"""Wait before the hosts are listed again after etcd did not answer."""


class Etcd(listing.Etcd, Protocol):
    """What is called of etcd's client."""

    async def range_prefix(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, timeout_s: float = ...
    ) -> RangeResult:
        """Read every key that begins with `prefix`."""
        ...

    async def txn(
        self,
        compares: Sequence[etcd.Compare],
        success: Sequence[etcd.RequestOp],
        failure: Sequence[etcd.RequestOp] = (),
        *,
        timeout_s: float = ...,
    ) -> etcd.TxnResponse:
        """Do one transaction."""
        ...

    def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Follow every key that begins with `prefix`."""
        ...


@dataclass(frozen=True, slots=True)
class HostChange:
    """What changed among the hosts, or all of them."""

    revision: int
    """Of the store."""
    reset: bool
    """True if `listed` is the whole list."""
    listed: tuple[resources_pb2.HostRecord, ...]
    gone: tuple[str, ...] = ()


class HostLeases:
    """The list of hosts."""

    def __init__(self, *, client: Etcd, clock: Clock, orders: HostOrders) -> None:
        """Store the arguments.

        Args:
            client: etcd.
            clock: Time.
            orders: What operators want of hosts.
        """
        self._client = client
        self._clock = clock
        self._orders = orders

    def open(self, record: resources_pb2.HostRecord) -> Listing:
        """List a host; `start` it, and `leave` or `end` it."""
        return Listing(self._client, self._clock, record, self._orders)

    async def hosts(self, *, timeout_s: float) -> HostChange:
        """Every host listed now, by id.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found = await self._client.range_prefix(layout.HOSTS, timeout_s=timeout_s)
        records = (_record(kv) for kv in found.kvs)
        return HostChange(found.revision, True, tuple(record for record in records if record is not None))

    async def changes(self) -> AsyncGenerator[HostChange, None]:
        """All hosts, then what changes; goes on over outages. Close it (`aclosing`)."""
        while True:
            try:
                listed = await self.hosts(timeout_s=1.0)
            except StoreUnavailable:
                await self._clock.sleep(RELIST_S)
                continue
            yield listed
            with contextlib.suppress(Compacted):
                batches = self._client.watch(layout.HOSTS, start_revision=listed.revision + 1)
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        yield _change(batch)

    async def publish(self, plan: bytes, *, election_key: str, fencing_token: int, timeout_s: float) -> None:
        """Write the plan, if its maker leads.

        Args:
            plan: Its stored form.
            election_key: The maker's key in the resource managers' election.
            fencing_token: That key's create_revision.
            timeout_s: Time it may take.

        Raises:
            InvalidRequest: The key or the token cannot be a candidate's.
            StaleFencingToken: The maker does not lead, or not any more.
            StoreUnavailable: etcd does not answer.
        """
        faults = []
        if not election_key.startswith(layout.PLANNER_ELECTION):
            # Any other key would do as a fence that never falls.
            faults.append(Fault("election_key", f"'{election_key}' must begin with {layout.PLANNER_ELECTION}"))
        if fencing_token <= 0:
            faults.append(Fault("fencing_token", f"{fencing_token} must be positive"))
        if faults:
            raise InvalidRequest.of(faults)
        candidates = await self._client.range_prefix(layout.PLANNER_ELECTION, keys_only=True, timeout_s=timeout_s)
        first = min(candidates.kvs, key=lambda kv: kv.create_revision, default=None)
        # A key created before this one can only go, never come: who is first now stays so while its key is there,
        # and that the transaction compares.
        if first is None or first.key.decode() != election_key:
            raise _stale(fencing_token)
        reply = await self._client.txn(
            [compare_create(election_key, fencing_token)], [put_op(layout.PLAN, plan)], timeout_s=timeout_s
        )
        if not reply.succeeded:
            raise _stale(fencing_token)


def _stale(token: int) -> StaleFencingToken:
    return StaleFencingToken(
        f"token {token} is not that of the resource manager that leads: campaign again before acting",
        metadata={"fencing_token": str(token)},
    )


def _record(kv: etcd.KeyValue) -> resources_pb2.HostRecord | None:
    """A host's record; None if the value is none, which concerns nobody but its writer."""
    try:
        record = resources_pb2.HostRecord.FromString(kv.value)
    except DecodeError:
        record = resources_pb2.HostRecord()
    if layout.host_key(record.host_id) != kv.key.decode():
        logger().error("not a host's record", key=kv.key.decode())
        return None
    return record


def _change(batch: WatchBatch) -> HostChange:
    """The last word on each host of a batch."""
    last = {event.kv.key.decode(): event for event in batch.events}
    listed, gone = [], []
    for key, event in last.items():
        record = _record(event.kv) if event.type == etcd.Event.PUT else None
        if record is None:
            gone.append(key.removeprefix(layout.HOSTS))
        else:
            listed.append(record)
    return HostChange(batch.revision, False, tuple(listed), tuple(gone))
