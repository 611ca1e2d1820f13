"""Hosts as they were last, kept for a while after they are gone: what there is to look at when one vanished at night.

Each listing writes its host's record here too, without a lease. A host that signs off says so itself; that one has
vanished, the leading replica notes.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.etcd import compare_mod, delete_op, put_op
from services.chassis.instruments import REGISTRY_LEASE_EVENTS
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.registry import layout
from services.registry.collecting import Place, fenced
from services.registry.values import Values

M = TypeVar("M", bound=Message)

KEPT_S = 7 * 86_400.0
"""How long a host that is gone is remembered."""

KEPT_HOSTS = 1000
"""Most hosts that are gone and remembered."""

STEP_TIMEOUT_S = 3.0
"""How long etcd may leave one step unanswered."""


def known(record: resources_pb2.HostRecord, registered_s: float) -> pb.KnownHost:
    """A host that is listed."""
    return pb.KnownHost(record=record, registered=layout.timestamp(registered_s))


def signed_off(host: pb.KnownHost, now_s: float) -> bytes:
    """The stored form of a host that said that it goes."""
    return _ended(host, pb.HOST_END_SIGNED_OFF, now_s)


def _ended(host: pb.KnownHost, end: "pb.HostEnd.ValueType", now_s: float) -> bytes:
    gone = pb.KnownHost(record=host.record, registered=host.registered, gone=layout.timestamp(now_s), end=end)
    return layout.raw_of(gone)


class HostMemory:
    """Who was here."""

    def __init__(self, *, values: Values, clock: Clock) -> None:
        """Store the arguments.

        Args:
            values: Where it is stored.
            clock: Time.
        """
        self._values = values
        self._clock = clock
        self._missing: dict[str, int] = {}
        """Hosts that were not listed at the last look, and when their memory was last written."""

    async def gone(self, *, timeout_s: float) -> list[pb.KnownHost]:
        """Hosts that are gone, last gone first.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found = await self._values.client.range_prefix(layout.KNOWN_HOSTS, timeout_s=timeout_s)
        hosts = [host for host in _parsed(pb.KnownHost, found.kvs).values() if host.HasField("gone")]
        return sorted(hosts, key=lambda host: host.gone.ToNanoseconds(), reverse=True)

    async def look(self, place: Place) -> int:
        """Note who has vanished, and forget who has been gone for long; the leader's task.

        Returns:
            Hosts found to have vanished. Only what two looks in a row find: one that signs off needs a moment.

        Raises:
            StaleFencingToken: The place was lost.
            StoreUnavailable: etcd does not answer.
        """
        memory = await self._values.client.range_prefix(layout.KNOWN_HOSTS, timeout_s=STEP_TIMEOUT_S)
        live = await self._values.client.range_prefix(layout.HOSTS, timeout_s=STEP_TIMEOUT_S)
        listed = {
            layout.known_host_key(record.host_id, record.pid)
            for record in _parsed(resources_pb2.HostRecord, live.kvs).values()
        }
        now_s = self._clock.wall_s()
        missing: dict[str, int] = {}
        gone: list[tuple[etcd.KeyValue, pb.KnownHost]] = []
        vanished = 0
        by_key = {kv.key.decode(): kv for kv in memory.kvs}
        for key, host in _parsed(pb.KnownHost, memory.kvs).items():
            kv = by_key[key]
            if host.HasField("gone"):
                gone.append((kv, host))
            elif key not in listed:
                missing[key] = kv.mod_revision
                if self._missing.get(key) == kv.mod_revision:
                    vanished += await self._write(place, kv, _ended(host, pb.HOST_END_VANISHED, now_s))
                    REGISTRY_LEASE_EVENTS.labels("vanished").inc()
                    record = host.record
                    logger().warning("a host has vanished", host=record.host_id, pid=record.pid, address=record.address)
        self._missing = missing
        gone.sort(key=lambda each: each[1].gone.ToNanoseconds(), reverse=True)
        for index, (kv, host) in enumerate(gone):
            if index >= KEPT_HOSTS or host.gone.ToNanoseconds() / 1e9 < now_s - KEPT_S:
                await self._write(place, kv, None)
        return vanished

    async def _write(self, place: Place, kv: etcd.KeyValue, raw: bytes | None) -> int:
        key = kv.key.decode()
        write = delete_op(key) if raw is None else put_op(key, raw)
        reply = await fenced(self._values, place, [compare_mod(key, kv.mod_revision)], [write])
        return int(reply.succeeded)


def _parsed(cls: type[M], kvs: Sequence[etcd.KeyValue]) -> dict[str, M]:
    """Values by key, but for those that are none."""
    found: dict[str, M] = {}
    for kv in kvs:
        try:
            found[kv.key.decode()] = cls.FromString(kv.value)
        except DecodeError:
            logger().error("a value cannot be read", key=kv.key.decode())
    return found
