"""Those that read while others apply: watches of the registries, and the product's own watch of etcd."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import grpc
import grpc.aio

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.etcd import EtcdClient
from tests.chaos.registry import events
from tests.chaos.registry.appliers import Stub, digests_of, key_of
from tests.chaos.registry.asked import Content, Followed, Heard
from tests.chaos.registry.truth import PREFIX

SILENCE_S = 5.0
"""A stream without even a heartbeat for this long is given up; they come every 2 s."""

RETRY_S = 0.2
STREAM_S = 3600.0


class Reader:
    """Follows desired state as a router does, from replica to replica, resuming where it was."""

    def __init__(self, number: int, stubs: Sequence[Stub]) -> None:
        """Begin with replica `number`."""
        self.heard = Heard(f"reader {number}")
        self._number = number
        self._stubs = stubs
        self._content = Content()
        self._arriving: Content | None = None

    async def run(self) -> None:
        """Read until cancelled."""
        for place in itertools.count(self._number):
            request = pb.WatchRequest(from_revision=self.heard.revision)
            stream = self._stubs[place % len(self._stubs)].Watch(request, timeout=STREAM_S)
            self._arriving = None
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        response = await stream.read()
                    if not isinstance(response, pb.WatchResponse):
                        break
                    self._take(response)
            except (grpc.aio.AioRpcError, TimeoutError):
                pass
            finally:
                stream.cancel()
            self.heard.resumes += 1
            await asyncio.sleep(RETRY_S)

    def _take(self, response: pb.WatchResponse) -> None:
        match response.WhichOneof("event"):
            case "snapshot":
                self._snapshot(response.snapshot)
            case "delta":
                self._delta(response.delta)
            case "heartbeat":
                if response.heartbeat.revision != self.heard.revision:
                    self._fault(f"a heartbeat at {response.heartbeat.revision}")

    def _snapshot(self, part: pb.WatchSnapshot) -> None:
        if part.first:
            self._arriving = Content()
            if part.revision < self.heard.revision:
                self._fault(f"a snapshot of {part.revision}")
        if self._arriving is None:
            self._fault("a snapshot without its first part")
            return
        for key, digest in digests_of(part.objects).items():
            self._arriving.put(key, digest)
        if part.last:
            self._content, self._arriving = self._arriving, None
            self.heard.states.append((part.revision, self._content.sum))

    def _delta(self, delta: pb.WatchDelta) -> None:
        if delta.revision != self.heard.revision + 1:
            self._fault(f"a delta of {delta.revision}")
        for key, digest in digests_of(delta.upserts).items():
            self._content.put(key, digest)
        for gone in delta.deletes:
            self._content.drop(key_of(gone))
        self.heard.states.append((delta.revision, self._content.sum))

    def _fault(self, text: str) -> None:
        self.heard.faults.append(f"{text} after revision {self.heard.revision}")


class Follower:
    """Watches etcd from revision 1 on with the product's client, over connections that are cut again and again."""

    def __init__(self, name: str, endpoints: Sequence[str]) -> None:
        """Ask `endpoints`, relays to etcd's members."""
        self.followed = Followed(name)
        self._client = EtcdClient(endpoints)

    @property
    def revision(self) -> int:
        """etcd's, of the last batch."""
        return self.followed.batches[-1][0] if self.followed.batches else 0

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            async with contextlib.aclosing(self._client.watch(PREFIX, start_revision=1)) as batches:
                async for batch in batches:
                    found = [
                        events.Event(
                            event.kv.mod_revision,
                            event.kv.key.decode(),
                            None if event.type == event.DELETE else event.kv.value,
                            event.kv.create_revision,
                        )
                        for event in batch.events
                    ]
                    for revision, group in events.transactions(found):
                        self.followed.batches.append((revision, events.digest(group)))
        finally:
            await self._client.close()


class Worker(Protocol):
    """What runs beside the rounds."""

    async def run(self) -> None:
        """Go on until cancelled."""
        ...


@contextlib.asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    """Run workers meanwhile; one that fails fails the run."""
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
                raise AssertionError("a worker ended by itself")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
