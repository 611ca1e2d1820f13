"""What operators want of hosts: cordons and drains, kept beside the leases and not bound to any.

Every replica follows them, so that each of its listings carries what is in force for its host.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.etcd import Compacted, RangeResult, WatchBatch, compare_mod, delete_op, get_op, put_op
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import Fault, InvalidRequest, ObjectNotFound, StoreUnavailable
from services.registry import layout
from services.registry.values import first

RELIST_S = 0.5
"""Wait before the orders are listed again after etcd did not answer."""


class Etcd(Protocol):
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


class HostOrders:
    """The orders in force, as far as this replica has heard."""

    def __init__(self, *, client: Etcd, clock: Clock) -> None:
        """Store the arguments.

        Args:
            client: etcd.
            clock: Time.
        """
        self._client = client
        self._clock = clock
        self._orders: dict[str, pb.HostOrder] = {}
        self._listeners: dict[str, set[Callable[[], None]]] = {}

    def of(self, host_id: str) -> pb.HostOrder | None:
        """What is in force for a host; None if nothing is."""
        return self._orders.get(host_id)

    @property
    def in_force(self) -> list[pb.HostOrder]:
        """All of them, by host id."""
        return [self._orders[host_id] for host_id in sorted(self._orders)]

    def listen(self, host_id: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` whenever something else is in force for a host.

        Returns:
            What ends that.
        """
        listeners = self._listeners.setdefault(host_id, set())
        listeners.add(changed)

        def end() -> None:
            listeners.discard(changed)
            if not listeners and self._listeners.get(host_id) is listeners:
                del self._listeners[host_id]

        return end

    async def give(self, request: pb.OrderHostRequest, *, timeout_s: float) -> pb.HostOrder:
        """Order a host; see `RegistryService.OrderHost`.

        Raises:
            InvalidRequest: No such action.
            ObjectNotFound: No such host was ever listed, or to be drained it must be listed now.
            StoreUnavailable: etcd does not answer.
        """
        if request.action not in (pb.HOST_ACTION_CORDON, pb.HOST_ACTION_UNCORDON, pb.HOST_ACTION_DRAIN):
            raise InvalidRequest.of([Fault("action", f"{request.action} is neither CORDON nor UNCORDON nor DRAIN")])
        if not request.host_id:
            raise InvalidRequest.of([Fault("host_id", "must name a host")])
        key = layout.host_order_key(request.host_id)
        while True:
            found = await self._client.txn(
                [], [get_op(key), get_op(layout.host_key(request.host_id))], timeout_s=timeout_s
            )
            before, live = (first(response) for response in found.responses)
            drains = request.action == pb.HOST_ACTION_DRAIN
            if live is None and (drains or (before is None and not await self._known(request.host_id, timeout_s))):
                raise await self._not_found(request, timeout_s)
            order = self._order(request, before, live)
            write = delete_op(key) if not order.cordoned else put_op(key, layout.raw_of(order))
            reply = await self._client.txn(
                [compare_mod(key, 0 if before is None else before.mod_revision)], [write], timeout_s=timeout_s
            )
            if reply.succeeded:
                return order

    def _order(
        self, request: pb.OrderHostRequest, before: etcd.KeyValue | None, live: etcd.KeyValue | None
    ) -> pb.HostOrder:
        order = pb.HostOrder(
            host_id=request.host_id,
            cordoned=request.action != pb.HOST_ACTION_UNCORDON,
            reason=request.reason,
            author=request.author,
            time=layout.timestamp(self._clock.wall_s()),
        )
        if request.action == pb.HOST_ACTION_DRAIN and live is not None:
            order.drain_pid = resources_pb2.HostRecord.FromString(live.value).pid
        elif request.action == pb.HOST_ACTION_CORDON and before is not None:
            order.drain_pid = pb.HostOrder.FromString(before.value).drain_pid
        return order

    async def _known(self, host_id: str, timeout_s: float) -> bool:
        """Whether a host of that name was ever listed, as far as that is remembered."""
        prefix = f"{layout.KNOWN_HOSTS}{host_id}/"
        return bool((await self._client.range_prefix(prefix, keys_only=True, timeout_s=timeout_s)).kvs)

    async def _not_found(self, request: pb.OrderHostRequest, timeout_s: float) -> ObjectNotFound:
        listed = await self._client.range_prefix(layout.HOSTS, keys_only=True, timeout_s=timeout_s)
        ids = [kv.key.decode().removeprefix(layout.HOSTS) for kv in listed.kvs]
        there = f"listed are {', '.join(ids[:10])}" if ids else "no host is listed"
        what = (
            "is not listed, so that nothing can be drained" if request.action == pb.HOST_ACTION_DRAIN else "never was"
        )
        return ObjectNotFound(f"host '{request.host_id}' {what}; {there}", metadata={"host_id": request.host_id})

    async def follow(self) -> None:
        """Keep up with the orders, over outages, until cancelled."""
        while True:
            try:
                listed = await self._client.range_prefix(layout.HOST_ORDERS, timeout_s=1.0)
            except StoreUnavailable:
                await self._clock.sleep(RELIST_S)
                continue
            self._replace({kv.key.decode(): kv.value for kv in listed.kvs})
            with contextlib.suppress(Compacted):
                batches = self._client.watch(layout.HOST_ORDERS, start_revision=listed.revision + 1)
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        for event in batch.events:
                            put = event.type == etcd.Event.PUT
                            self._set(event.kv.key.decode(), event.kv.value if put else None)

    def _replace(self, raws: dict[str, bytes]) -> None:
        for host_id in list(self._orders):
            if layout.host_order_key(host_id) not in raws:
                self._set(layout.host_order_key(host_id), None)
        for key, raw in raws.items():
            self._set(key, raw)

    def _set(self, key: str, raw: bytes | None) -> None:
        host_id = key.removeprefix(layout.HOST_ORDERS)
        order: pb.HostOrder | None = None
        if raw is not None:
            try:
                order = pb.HostOrder.FromString(raw)
            except DecodeError:
                logger().error("not an order for a host", key=key)
        if order == self._orders.get(host_id):
            return
        if order is None:
            self._orders.pop(host_id, None)
        else:
            self._orders[host_id] = order
        for changed in list(self._listeners.get(host_id, ())):
            changed()
