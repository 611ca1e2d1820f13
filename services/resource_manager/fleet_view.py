"""Knows the fleet from the registry's watch, and how far that can be relied on.

It keeps the last state while the registry is away. It never goes back: a registry that answers
with a lower revision than one already seen has lost something, and is not believed. A host that
leaves the list is kept for a grace time, unless it said that it was draining.
"""

import asyncio

import grpc.aio

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.registry.v1 import registry_pb2_grpc
from services.chassis.codec import record_from
from services.chassis.errors import from_rpc_error
from services.chassis.instruments import MANAGER_REGISTRY_TRUSTED
from services.chassis.object_codec import object_key_from, readable
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.host import HostRecord
from services.domain.objects import Model, ModelVersion, Object, ObjectKey, Pool
from services.policy.restarting import backoff_s
from services.resource_manager.reconciler import Fleet

GRACE_S = 15.0
"""How long a host that left the list still counts: its lease may have lapsed only because the
registry or its store was away."""

QUIET_S = 6.0
"""A watch that is silent for this long, three heartbeats, is dead."""

WATCH_S = 3600.0
"""Deadline of one watch; it is resumed without a gap."""

RECONNECT_FIRST_S = 0.1
RECONNECT_LONGEST_S = 2.0


class OutOfStep(Exception):
    """The watch cannot be followed from where it stands; a snapshot is needed."""


class FleetMirror:
    """The fleet as a watch's messages make it."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.revision = 0
        """Highest revision seen; what to resume from."""
        self._objects: dict[ObjectKey, Object] = {}
        self._hosts: dict[str, HostRecord] = {}
        self._gone_since: dict[str, float] = {}
        self._staged: dict[ObjectKey, Object] = {}
        self._objects_known = False
        self._hosts_known = False
        self._hosts_fresh = False
        self._behind = False
        self._heard_s: float | None = None

    def take(self, response: pb.WatchResponse, now_s: float) -> bool:
        """Follow one message.

        Returns:
            Whether anything changed.

        Raises:
            OutOfStep: It does not follow on what is known.
        """
        self._heard_s = now_s
        match response.WhichOneof("event"):
            case "snapshot":
                return self._snapshot(response.snapshot)
            case "delta":
                return self._delta(response.delta)
            case "hosts":
                return self._listing(response.hosts, now_s)
            case "heartbeat":
                return self._heartbeat(response.heartbeat.revision)
        return False

    def lost(self) -> None:
        """The watch broke off; the hosts are old news until they are listed again."""
        self._heard_s = None
        self._hosts_fresh = False

    @property
    def behind(self) -> bool:
        """Whether the registry's last word was older than one already seen."""
        return self._behind

    def fleet(self, now_s: float) -> Fleet | None:
        """The fleet now; None before both objects and hosts were heard."""
        if not (self._objects_known and self._hosts_known):
            return None
        for host_id, since_s in list(self._gone_since.items()):
            if now_s - since_s >= GRACE_S:
                self._drop(host_id)
        quiet = self._heard_s is None or now_s - self._heard_s > QUIET_S
        return Fleet(
            revision=self.revision,
            hosts=dict(self._hosts),
            absent=frozenset(self._gone_since),
            models={key.name: item for key, item in self._objects.items() if isinstance(item, Model)},
            versions={item.model_key: item for item in self._objects.values() if isinstance(item, ModelVersion)},
            pools={key.name: item for key, item in self._objects.items() if isinstance(item, Pool)},
            trusted=self._hosts_fresh and not quiet and not self._behind,
        )

    def _snapshot(self, snapshot: pb.WatchSnapshot) -> bool:
        if snapshot.first:
            self._staged = {}
        # What cannot be read, objects of a later release, is no model, version or pool: nothing is placed by it.
        self._staged |= {item.key: item for item in readable(snapshot.objects)[0]}
        if not snapshot.last:
            return False
        staged, self._staged = self._staged, {}
        self._behind = snapshot.revision < self.revision
        if self._behind:
            return False
        self._objects, self.revision, self._objects_known = staged, snapshot.revision, True
        return True

    def _delta(self, delta: pb.WatchDelta) -> bool:
        if self._behind or not self._objects_known:
            if delta.revision >= self.revision:
                raise OutOfStep(f"a change to revision {delta.revision} without the state it changes")
            return False
        if delta.revision <= self.revision:
            return False
        if delta.revision != self.revision + 1:
            raise OutOfStep(f"revision {delta.revision} follows {self.revision}")
        self._objects |= {item.key: item for item in readable(delta.upserts)[0]}
        for key in delta.deletes:
            self._objects.pop(object_key_from(key), None)
        self.revision = delta.revision
        return True

    def _listing(self, hosts: pb.WatchHosts, now_s: float) -> bool:
        for message in hosts.listed:
            record = record_from(message)
            self._hosts[record.host_id] = record
            self._gone_since.pop(record.host_id, None)
        listed = {message.host_id for message in hosts.listed}
        gone = set(self._hosts) - listed if hosts.reset else set(hosts.gone) & set(self._hosts)
        for host_id in gone:
            if self._hosts[host_id].draining:
                self._drop(host_id)
            else:
                self._gone_since.setdefault(host_id, now_s)
        self._hosts_known = self._hosts_known or hosts.reset
        self._hosts_fresh = self._hosts_fresh or hosts.reset
        return bool(hosts.reset or listed or gone)

    def _heartbeat(self, revision: int) -> bool:
        if self._behind and revision >= self.revision:
            raise OutOfStep(f"the registry is at revision {revision} again")
        was, self._behind = self._behind, revision < self.revision
        return was != self._behind

    def _drop(self, host_id: str) -> None:
        self._hosts.pop(host_id, None)
        self._gone_since.pop(host_id, None)


class FleetView:
    """Follows the registry for as long as `run` runs."""

    def __init__(self, *, registry: grpc.aio.Channel, clock: Clock, changed: asyncio.Event) -> None:
        """Follow over `registry`, which the caller closes, and set `changed` on every change."""
        self._stub = registry_pb2_grpc.RegistryServiceStub(registry)
        self._clock = clock
        self._changed = changed
        self._mirror = FleetMirror()
        self._resync = False

    def fleet(self, now_s: float) -> Fleet | None:
        """The fleet now; None before the registry was heard."""
        fleet = self._mirror.fleet(now_s)
        MANAGER_REGISTRY_TRUSTED.set(fleet is not None and fleet.trusted)
        return fleet

    async def run(self) -> None:
        """Watch, and resume for ever."""
        failures = 0
        while True:
            before = self._clock.now_s()
            try:
                await self._follow()
                why = "it ended"
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error).message
            except TimeoutError:
                why = f"it was silent for {QUIET_S:g} s"
            except OutOfStep as error:
                why, self._resync = str(error), True
            self._mirror.lost()
            self._changed.set()
            lived = self._clock.now_s() - before > QUIET_S
            failures = 1 if lived else failures + 1
            rest_s = backoff_s(failures, first_s=RECONNECT_FIRST_S, longest_s=RECONNECT_LONGEST_S)
            logger().info("the registry's watch broke off", why=why, resume=self._mirror.revision, rest_s=rest_s)
            await self._clock.sleep(rest_s)

    async def _follow(self) -> None:
        resume = 0 if self._resync else self._mirror.revision
        self._resync = False
        stream = self._stub.Watch(pb.WatchRequest(from_revision=resume, include_hosts=True), timeout=WATCH_S)
        try:
            while True:
                async with asyncio.timeout(QUIET_S):
                    response = await stream.read()
                if not isinstance(response, pb.WatchResponse):
                    return
                was_behind = self._mirror.behind
                if self._mirror.take(response, self._clock.now_s()):
                    self._changed.set()
                if self._mirror.behind and not was_behind:
                    logger().error(
                        "the registry is behind what it said before: nothing is placed or taken away until it "
                        "has caught up; if its state was lost for good, restart the resource manager",
                        seen_revision=self._mirror.revision,
                    )
        finally:
            stream.cancel()
