"""A replica in this process and what tests ask of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from modelyard.registry.v1 import objects_pb2, registry_pb2_grpc
from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.type.v1 import resources_pb2
from services.chassis.channels import call, open_channel
from services.chassis.codec import record_to, seconds_from
from services.chassis.object_codec import object_from, object_key_from, object_to
from services.chassis.process import Process
from services.domain.objects import Object, ObjectKey
from services.registry import tree
from services.registry.app import start
from services.registry.config import Config
from services.registry.layout import digest_of, raw_of
from tests.fakes.objects import a_host


class Replica:
    """The registry's own wiring, on a port of its own."""

    def __init__(self, etcd: str, port: int, *, keep_revisions: int = 1000, collect_every_s: float = 600.0) -> None:
        self.address = f"127.0.0.1:{port}"
        self._config = Config(
            etcd=(etcd,),
            address=self.address,
            metrics_port=0,
            keep_revisions=keep_revisions,
            collect_every_s=collect_every_s,
        )
        self._process = Process()
        self.channel = open_channel(self.address)
        self.stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(self.channel)

    async def start(self) -> None:
        await start(self._config, self._process)

    async def stop(self) -> None:
        await self.channel.close()
        await self.drain()

    async def drain(self) -> None:
        await self._process.drain()

    async def apply(
        self,
        objects: Iterable[Object] = (),
        deletes: Iterable[str] = (),
        *,
        expected: int = 0,
        request_id: str = "",
        dry_run: bool = False,
        reason: str = "",
        timeout_s: float = 10.0,
    ) -> pb.ApplyResponse:
        request = pb.ApplyRequest(
            objects=[object_to(item) for item in objects],
            deletes=[key_of(text) for text in deletes],
            expected_revision=expected,
            request_id=request_id,
            dry_run=dry_run,
            reason=reason,
            author="ann",
        )
        return await call(self.stub.Apply, request, timeout_s=timeout_s)

    async def get(self, key: str, *, revision: int = 0, timeout_s: float = 5.0) -> pb.GetResponse:
        request = pb.GetRequest(key=key_of(key), revision=revision)
        return await call(self.stub.Get, request, timeout_s=timeout_s)

    async def list_all(self, request: pb.ListRequest) -> list[objects_pb2.Object]:
        found: list[objects_pb2.Object] = []
        while True:
            page = await call(self.stub.List, request, timeout_s=5.0)
            found += page.objects
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def history(self) -> list[pb.Revision]:
        found: list[pb.Revision] = []
        request = pb.ListRevisionsRequest(page_size=20)
        while True:
            page = await call(self.stub.ListRevisions, request, timeout_s=5.0)
            found += page.revisions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def hosts(self) -> list[str]:
        answer = await call(self.stub.ListHosts, pb.ListHostsRequest(), timeout_s=5.0)
        return [record.host_id for record in answer.hosts]

    def watch(self, from_revision: int = 0, *, include_hosts: bool = False) -> "Watcher":
        return Watcher(
            self.stub.Watch(pb.WatchRequest(from_revision=from_revision, include_hosts=include_hosts), timeout=3600.0)
        )

    def register(self, record: resources_pb2.HostRecord | None = None) -> "HostStream":
        return HostStream(self.stub.RegisterHost(timeout=3600.0), record or record_to(a_host("cpu-0")))


def key_of(text: str) -> objects_pb2.ObjectKey:
    key = ObjectKey.parse(text)
    return objects_pb2.ObjectKey(kind=key.kind, name=key.name, version=key.version)


@dataclass
class Watcher:
    """Follows a watch as a router would, and keeps what it heard."""

    stream: grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]
    names: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    revisions: list[int] = field(default_factory=list)
    """Revisions of snapshots (once each) and deltas, in order."""
    heartbeats: list[int] = field(default_factory=list)
    snapshots: int = 0
    gone: list[str] = field(default_factory=list)
    """Every host that was ever said to be gone."""
    objects: dict[ObjectKey, str] = field(default_factory=dict)
    """Digest of each object's stored form."""
    age_s: float = 0.0
    """How old the registry's last word on the head was."""

    async def read(self) -> pb.WatchResponse:
        response = await self.stream.read()
        assert isinstance(response, pb.WatchResponse), "the watch ended"
        match response.WhichOneof("event"):
            case "snapshot":
                self._snapshot(response.snapshot)
            case "delta":
                self.names |= {item.metadata.name for item in response.delta.upserts}
                self.names -= {key.name for key in response.delta.deletes}
                self.revisions.append(response.delta.revision)
                if self.snapshots:
                    self._upsert(response.delta.upserts)
                    for key in response.delta.deletes:
                        del self.objects[object_key_from(key)]
                    self._check(response.delta.tree_digest)
            case "hosts":
                listed = {record.host_id for record in response.hosts.listed}
                if response.hosts.reset:
                    self.gone += sorted(self.hosts - listed)
                    self.hosts = set()
                self.hosts |= listed
                self.hosts -= set(response.hosts.gone)
                self.gone += response.hosts.gone
            case "heartbeat":
                self.heartbeats.append(response.heartbeat.revision)
                self.age_s = seconds_from(response.heartbeat.age)
                if self.snapshots and self.revisions[-1] == response.heartbeat.revision:
                    self._check(response.heartbeat.tree_digest)
        return response

    def _upsert(self, items: Iterable[objects_pb2.Object]) -> None:
        self.objects.update((object_from(item).key, digest_of(raw_of(item))) for item in items)

    def _check(self, tree_digest: str) -> None:
        """What this reader has is what the registry has, to the bit."""
        assert tree.digest_of(self.objects) == tree_digest, "the reader's state is not the registry's"

    def _snapshot(self, snapshot: pb.WatchSnapshot) -> None:
        if snapshot.first:
            self.names, self.objects = set(), {}
            self.snapshots += 1
            self.revisions.append(snapshot.revision)
        self.names |= {item.metadata.name for item in snapshot.objects}
        self._upsert(snapshot.objects)
        if snapshot.last:
            self._check(snapshot.tree_digest)

    async def until(self, done: Callable[["Watcher"], bool], *, within_s: float = 15.0) -> "Watcher":
        async with asyncio.timeout(within_s):
            while not done(self):
                await self.read()
        return self

    def cancel(self) -> None:
        self.stream.cancel()


@dataclass
class HostStream:
    """Reports as a host does."""

    stream: grpc.aio.StreamStreamCall[pb.RegisterHostRequest, pb.RegisterHostResponse]
    record: resources_pb2.HostRecord
    progress: int = 0

    async def report(self, *, grown: bool = True, record: bool = False) -> pb.RegisterHostResponse:
        self.progress += grown
        request = pb.RegisterHostRequest(progress=self.progress)
        if record or self.progress == 1:
            request.record.CopyFrom(self.record)
        await self.stream.write(request)
        response = await self.stream.read()
        if not isinstance(response, pb.RegisterHostResponse):
            raise await self._error()
        return response

    async def _error(self) -> grpc.aio.AioRpcError:
        """What ended the stream."""
        return grpc.aio.AioRpcError(
            await self.stream.code(),
            await self.stream.initial_metadata(),
            await self.stream.trailing_metadata(),
            details=await self.stream.details(),
        )

    async def keep_reporting(self, *, every_s: float = 0.5) -> None:
        while True:
            await self.report()
            await asyncio.sleep(every_s)

    async def half_close(self) -> None:
        await self.stream.done_writing()

    def break_off(self) -> None:
        self.stream.cancel()


async def until(done: Callable[[], Awaitable[bool]], *, within_s: float = 15.0) -> None:
    """Ask again and again until the answer is yes."""
    async with asyncio.timeout(within_s):
        while not await done():  # noqa: ASYNC110 - what is asked is another process
            await asyncio.sleep(0.02)
