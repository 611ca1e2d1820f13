"""One host's place in the list of hosts: kept for as long as one stream's reports prove progress.

Owns the host's lease, and what is written under it: the host's own record, with what operators want of it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.etcd import LeaseGone, compare_mod, put_op
from services.chassis.instruments import REGISTRY_LEASE_EVENTS, REGISTRY_LEASES
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import StoreUnavailable
from services.registry import host_memory, layout
from services.registry.host_orders import HostOrders

TTL_S = 10
"""Time a host stays listed after its last report. It covers a registry's restart and an election in etcd;
routers do not wait for it, they see a dead host by their own calls."""

RETRY_S = 0.2
"""Wait before the store is asked again; a host must be listed again soon after an outage."""


class Etcd(Protocol):
    """What is called of etcd's client."""

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

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = ...) -> int:
        """Make a lease."""
        ...

    async def lease_keep_alive(self, lease: int, *, timeout_s: float = ...) -> int:
        """Keep a lease; 0 if it is gone."""
        ...

    async def lease_revoke(self, lease: int, *, timeout_s: float = ...) -> None:
        """End a lease."""
        ...


class Listing:
    """One host's place in the list, for as long as one stream reports."""

    def __init__(self, client: Etcd, clock: Clock, record: resources_pb2.HostRecord, orders: HostOrders) -> None:
        """Made by `HostLeases.open`."""
        self._client = client
        self._clock = clock
        self._host_id = record.host_id
        self._record = record
        self._orders = orders
        self._deaf: Callable[[], None] | None = None
        self._registered_s = clock.wall_s()
        self._written: resources_pb2.HostRecord | None = None
        self._known_mod = 0
        self._lease = 0
        self._progress: int | None = None
        self._grown_s = clock.now_s()
        self._unkept = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write the record, and keep it as reports come."""
        REGISTRY_LEASES.inc()
        self._deaf = self._orders.listen(self._host_id, self._wake.set)
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"listing {self._host_id}")

    def report(self, progress: int, record: resources_pb2.HostRecord | None) -> int:
        """Take one report; never waits for the store.

        Args:
            progress: Keeps the lease if it is higher than any before on this stream.
            record: The record, if it came along.

        Returns:
            Highest progress so far.
        """
        if self._progress is None or progress > self._progress:
            self._progress = progress
            self._grown_s = self._clock.now_s()
            self._unkept = True
            self._wake.set()
        if record is not None:
            self._record = record
            self._wake.set()
        return self._progress

    @property
    def drain(self) -> bool:
        """Whether the process that reports is to end."""
        order = self._orders.of(self._host_id)
        return order is not None and order.drain_pid == self._record.pid != 0

    async def leave(self) -> None:
        """Stop keeping it: the host may come back over another stream before its lease runs out."""
        task, self._task = self._task, None
        if task is None:
            return
        REGISTRY_LEASES.dec()
        if self._deaf is not None:
            self._deaf()
        task.cancel()
        await asyncio.wait([task])

    async def end(self) -> None:
        """Take the host off the list at once."""
        await self.leave()
        lease, self._lease = self._lease, 0
        if lease:
            REGISTRY_LEASE_EVENTS.labels("signed_off").inc()
            gone = host_memory.signed_off(self._known(self._record), self._clock.wall_s())
            try:
                await self._client.lease_revoke(lease, timeout_s=1.0)
                # Unless another stream of this process has listed it since.
                known_key = self._known_key()
                await self._client.txn(
                    [compare_mod(known_key, self._known_mod)], [put_op(known_key, gone)], timeout_s=1.0
                )
            except StoreUnavailable as error:
                logger().warning("a host stays listed until its lease ends", host=self._host_id, cause=error.message)

    async def _keep(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._sync()
            except (StoreUnavailable, LeaseGone) as error:
                if isinstance(error, LeaseGone):
                    self._lease = 0
                logger().debug("listing goes on", host=self._host_id, cause=str(error))
                self._wake.set()
                await self._clock.sleep(RETRY_S)

    async def _sync(self) -> None:
        """Bring etcd up to what was last reported."""
        if self._lease and self._unkept:
            self._unkept = False
            try:
                left_s = await self._client.lease_keep_alive(self._lease)
            except StoreUnavailable:
                self._unkept = True
                raise
            if left_s == 0:
                REGISTRY_LEASE_EVENTS.labels("ran_out").inc()
                logger().warning("a host's lease ran out and is made again", host=self._host_id)
                self._lease = 0
        if not self._lease:
            if self._clock.now_s() - self._grown_s > TTL_S:
                return  # it must prove progress first
            self._written = None
            self._unkept = False
            self._lease = await self._client.lease_grant(TTL_S)
            REGISTRY_LEASE_EVENTS.labels("granted").inc()
        record = self._standing()
        if self._written != record:
            # Together, so that a host is never listed without being remembered.
            reply = await self._client.txn(
                [],
                [
                    put_op(layout.host_key(self._host_id), layout.raw_of(record), self._lease),
                    put_op(self._known_key(), layout.raw_of(self._known(record))),
                ],
            )
            self._written, self._known_mod = record, reply.header.revision

    def _standing(self) -> resources_pb2.HostRecord:
        """The record with what only operators may say."""
        order = self._orders.of(self._host_id)
        record = resources_pb2.HostRecord()
        record.CopyFrom(self._record)
        record.cordoned = order is not None and order.cordoned
        return record

    def _known_key(self) -> str:
        return layout.known_host_key(self._host_id, self._record.pid)

    def _known(self, record: resources_pb2.HostRecord) -> pb.KnownHost:
        return host_memory.known(record, self._registered_s)
