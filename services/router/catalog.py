"""Keeps the snapshot that calls are routed by, from the registry's watch; serves on without it.

The registry away: the last snapshot stands, and a router that starts meanwhile has it from disk.
The registry back with fewer hosts than before: those stay for a grace time, since their leases may have
lapsed only because the registry or its store was away. The registry back with an older revision:
it has lost something, and its objects are not believed.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc.aio

from modelyard.registry.v1 import objects_pb2, registry_pb2_grpc
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis import instruments
from services.chassis.codec import record_from
from services.chassis.errors import from_rpc_error
from services.chassis.object_codec import object_key_from, readable
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.host import HostRecord
from services.domain.objects import Object, ObjectKey
from services.router.snapshot import Objects, Snapshot
from services.router.snapshot_file import Heard, SnapshotFile, UnusableSnapshot

GRACE_S = 15.0
"""How long a host that left the list and still answers is kept."""

QUIET_S = 6.0
"""A watch that is silent for this long, three heartbeats, is dead."""

WATCH_S = 3600.0
"""Deadline of one watch; it is resumed without a gap."""

RECONNECT_FIRST_S = 0.1
RECONNECT_LONGEST_S = 1.0

HOUSEKEEPING_S = 1.0
"""How often hosts past their grace are dropped, and at most how often the disk is written."""


class OutOfStep(Exception):
    """The watch cannot be followed from where it stands; a whole snapshot is needed."""


class Mirror:
    """The registry's state as a watch's messages make it."""

    def __init__(self, *, keeps_parts: bool = False) -> None:
        """Nothing is known yet.

        Args:
            keeps_parts: Whether the messages that bring a whole state are kept, in `heard`.
        """
        self.snapshot: Snapshot | None = None
        """The view now; None before there is any."""
        self.heard: Heard | None = None
        """The last whole state that came, until somebody takes it from here."""
        self._keeps_parts = keeps_parts
        self._parts: list[bytes] = []
        self._objects: Objects | None = None
        self._hosts: dict[str, HostRecord] | None = None
        self._left_at_s: dict[str, float] = {}
        self._staged: list[Object] = []
        self._heard = False
        self._behind = False

    @property
    def resume_from(self) -> int:
        """Revision to resume the watch from; 0 asks for everything."""
        return self._objects.revision if self._heard and self._objects is not None else 0

    @property
    def behind(self) -> bool:
        """Whether the registry's last word was older than one already seen."""
        return self._behind

    def start_from(self, snapshot: Snapshot) -> None:
        """Take over a snapshot from before this process; the registry's first word replaces it, whatever it is."""
        self._objects, self._hosts = snapshot.objects, dict(snapshot.hosts)
        self._publish()

    def take(self, response: pb.WatchResponse, now_s: float) -> None:
        """Follow one message.

        Raises:
            OutOfStep: It does not follow on what is known.
        """
        match response.WhichOneof("event"):
            case "snapshot":
                self._take_snapshot(response)
            case "delta":
                self._take_delta(response.delta)
            case "hosts":
                self._take_hosts(response.hosts, now_s)
            case "heartbeat":
                self._take_heartbeat(response.heartbeat.revision)

    def expire(self, now_s: float) -> None:
        """Drop the hosts whose grace has ended."""
        for host_id in [host_id for host_id, at_s in self._left_at_s.items() if now_s - at_s >= GRACE_S]:
            self.lost(host_id)

    def lost(self, host_id: str) -> None:
        """Drop a host that does not answer, if it is there by grace only."""
        if self._left_at_s.pop(host_id, None) is not None and self._hosts is not None:
            self._hosts.pop(host_id, None)
            self._publish()

    def _take_snapshot(self, response: pb.WatchResponse) -> None:
        snapshot = response.snapshot
        if snapshot.first:
            self._staged, self._parts = [], []
        self._staged += _readable(snapshot.objects)[0]
        if self._keeps_parts:
            self._parts.append(response.SerializeToString())
        if not snapshot.last:
            return
        (staged, self._staged), (parts, self._parts) = (self._staged, []), (self._parts, [])
        self._behind = self._heard and self._objects is not None and snapshot.revision < self._objects.revision
        if not self._behind:
            self._objects, self._heard = Objects().changed(snapshot.revision, staged), True
            self.heard = Heard(self._objects, parts) if self._keeps_parts else None
            self._publish()

    def _take_delta(self, delta: pb.WatchDelta) -> None:
        known = self._objects.revision if self._heard and self._objects is not None else -1
        if self._objects is None or known < 0 or self._behind or delta.revision > known + 1:
            raise OutOfStep(f"a change to revision {delta.revision} does not follow on revision {known}")
        if delta.revision == known + 1:
            upserts, unreadable = _readable(delta.upserts)
            deletes = [*map(object_key_from, delta.deletes), *unreadable]
            self._objects = self._objects.changed(delta.revision, upserts, deletes)
            if self.snapshot is not None:
                touched = [*(item.key for item in upserts), *deletes]
                self.snapshot = self.snapshot.followed_by(self._objects, touched)

    def _take_hosts(self, hosts: pb.WatchHosts, now_s: float) -> None:
        known = {} if self._hosts is None else self._hosts
        changed = self._hosts is None
        for message in hosts.listed:
            record = record_from(message)
            self._left_at_s.pop(record.host_id, None)
            if known.get(record.host_id) != record:
                known[record.host_id] = record
                changed = True
        gone = set(hosts.gone)
        if hosts.reset:
            gone |= set(known) - {message.host_id for message in hosts.listed}
        for host_id in gone & set(known):
            if known[host_id].draining:
                del known[host_id]
                self._left_at_s.pop(host_id, None)
                changed = True
            else:
                self._left_at_s.setdefault(host_id, now_s)
        self._hosts = known
        if changed:
            self._publish()

    def _take_heartbeat(self, revision: int) -> None:
        if self._objects is None or not self._heard:
            return
        if self._behind and revision >= self._objects.revision:
            raise OutOfStep(f"the registry is at revision {revision} again")
        self._behind = revision < self._objects.revision

    def _publish(self) -> None:
        """A new view, once objects and hosts are both known."""
        if self._objects is not None and self._hosts is not None:
            self.snapshot = Snapshot(self._objects, dict(self._hosts))


def _readable(messages: Iterable[objects_pb2.Object]) -> tuple[list[Object], list[ObjectKey]]:
    """The objects that this release can read, and the keys of the others: callers are told that those do not exist."""
    found, others = readable(messages)
    for key, error in others:
        logger().warning("an object of a later release is not routed by", object=str(key), why=error.message)
    return found, [key for key, _ in others]


class Catalog:
    """The snapshot, kept up to date for as long as `follow` and `housekeep` run."""

    def __init__(
        self,
        *,
        registry: grpc.aio.Channel,
        path: Path | None,
        writes: bool,
        clock: Clock,
        changed: Callable[[Snapshot], None],
    ) -> None:
        """Follow the registry.

        Args:
            registry: Channel to it; the caller closes it.
            path: The snapshot on disk; None keeps none.
            writes: Whether it is this process's to write.
            clock: Time.
            changed: Told of each new snapshot.
        """
        self._stub = registry_pb2_grpc.RegistryServiceStub(registry)
        self._file = None if path is None else SnapshotFile(path)
        self._writes = writes
        self._clock = clock
        self._changed = changed
        self._mirror = Mirror(keeps_parts=writes and path is not None)
        self._told: Snapshot | None = None
        self._written: Snapshot | None = None
        self._heard_s = clock.now_s()
        self._resync = False

    def snapshot(self) -> Snapshot | None:
        """The current one; None before there is any."""
        return self._mirror.snapshot

    def silent_s(self) -> float:
        """Time since the registry was last heard, or since the start."""
        return self._clock.now_s() - self._heard_s

    def lost(self, host_id: str) -> None:
        """Learn that the connection to a host broke."""
        self._mirror.lost(host_id)
        self._tell()

    async def start(self) -> None:
        """Read the snapshot on disk, if there is one; one that cannot be used is left alone and logged."""
        if self._file is None:
            return
        try:
            found = await asyncio.to_thread(self._file.read)
        except UnusableSnapshot as error:
            logger().warning("the snapshot on disk is not used", why=str(error))
            return
        if found is not None:
            self._mirror.start_from(found)
            self._written = self._mirror.snapshot
            self._tell()
            logger().info("started from the snapshot on disk", revision=found.revision, hosts=len(found.hosts))

    async def follow(self) -> None:
        """Watch the registry, and resume for ever."""
        rest_s = RECONNECT_FIRST_S
        while True:
            began_s = self._clock.now_s()
            try:
                await self._watch()
                why = "it ended"
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error).message
            except TimeoutError:
                why = f"it was silent for {QUIET_S:g} s"
            except OutOfStep as error:
                why, self._resync = str(error), True
            if self._clock.now_s() - began_s > QUIET_S:
                rest_s = RECONNECT_FIRST_S
            logger().info("the registry's watch broke off", why=why, resume=self._mirror.resume_from, rest_s=rest_s)
            await self._clock.sleep(rest_s)
            rest_s = min(RECONNECT_LONGEST_S, 2 * rest_s)

    async def housekeep(self) -> None:
        """Drop hosts past their grace and write the disk, until cancelled."""
        while True:
            await self._clock.sleep(HOUSEKEEPING_S)
            self._mirror.expire(self._clock.now_s())
            self._tell()
            await self.save()

    async def save(self) -> None:
        """Write the snapshot to disk, if it changed; a disk that does not take it is logged, and tried again."""
        current = self._mirror.snapshot
        if self._file is None or not self._writes or current is None or current is self._written:
            return
        heard, self._mirror.heard = self._mirror.heard, None
        try:
            await asyncio.to_thread(self._file.write, current, heard)
        except OSError as error:
            logger().warning("the snapshot was not written", path=str(self._file.path), why=str(error))
            return
        self._written = current

    async def _watch(self) -> None:
        resume = 0 if self._resync else self._mirror.resume_from
        self._resync = False
        stream = self._stub.Watch(pb.WatchRequest(from_revision=resume, include_hosts=True), timeout=WATCH_S)
        try:
            while True:
                # One timer for a whole stream's reads; the leak of a timeout around a call is per call.
                async with asyncio.timeout(QUIET_S):
                    response = await stream.read()
                if not isinstance(response, pb.WatchResponse):
                    return
                self._heard_s = self._clock.now_s()
                was_behind = self._mirror.behind
                self._mirror.take(response, self._heard_s)
                if self._mirror.behind and not was_behind:
                    logger().error(
                        "the registry is behind what it said before: routing goes on by the later state until it "
                        "has caught up; if its state was lost for good, restart the router",
                        revision=self._mirror.resume_from,
                    )
                self._tell()
        finally:
            stream.cancel()

    def _tell(self) -> None:
        current = self._mirror.snapshot
        if current is not None and current is not self._told:
            self._told = current
            instruments.ROUTER_SNAPSHOT_REVISION.set(current.revision)
            self._changed(current)
