"""What one replica does for all while it leads: it collects garbage, compacts etcd's own history, looks after its size.

Everything else, reading and applying, any replica does at any time.
"""

import asyncio
import contextlib
from typing import Protocol

from modelyard.etcd.v3 import rpc_pb2 as etcd
from services.chassis.election import Leadership
from services.chassis.instruments import (
    REGISTRY_COLLECT_SECONDS,
    REGISTRY_COLLECTED,
    STORE_BYTES,
    STORE_REVISION,
)
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import StaleFencingToken, StoreUnavailable, YardError
from services.registry.attempt_log import AttemptLog
from services.registry.chain import Broken
from services.registry.collecting import Collector
from services.registry.host_memory import HostMemory

STATUS_S = 10.0
"""Time between two looks at etcd's size."""

LOOK_S = 5.0
"""Time between two looks for hosts that have vanished."""

COMPACT_S = 300.0
"""Time between two compactions. What is compacted was current at the one before, so that a watch that was away for
less resumes without a new listing."""

RETRY_S = 5.0
"""Wait after something failed."""


class Campaigns(Protocol):
    """Who leads; `election.Election` is one."""

    async def campaign(self) -> Leadership:
        """Wait until this replica leads."""
        ...


class Etcd(Protocol):
    """What is called of etcd's client."""

    async def compact(self, revision: int, *, timeout_s: float = ...) -> None:
        """Forget all revisions before one."""
        ...

    async def status(self, *, timeout_s: float = ...) -> etcd.StatusResponse:
        """The state of the member that is asked."""
        ...


class Upkeep:
    """One replica's part in the registry's election."""

    def __init__(
        self,
        *,
        election: Campaigns,
        collector: Collector,
        memory: HostMemory,
        attempts: AttemptLog,
        client: Etcd,
        clock: Clock,
        collect_every_s: float,
    ) -> None:
        """Store the arguments.

        Args:
            election: Who leads.
            collector: Collects garbage.
            memory: Notes which hosts have vanished.
            attempts: Forgets old ones.
            client: etcd.
            clock: Time.
            collect_every_s: Seconds between two collections.
        """
        self._election = election
        self._collector = collector
        self._memory = memory
        self._attempts = attempts
        self._client = client
        self._clock = clock
        self._collect_every_s = collect_every_s

    async def run(self) -> None:
        """Lead whenever it is this replica's turn, until cancelled."""
        while True:
            leadership = await self._election.campaign()
            work = asyncio.ensure_future(self._lead(leadership))
            lost = asyncio.ensure_future(leadership.lost.wait())
            try:
                await asyncio.wait([work, lost], return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                lost.cancel()
                await asyncio.gather(work, lost, return_exceptions=True)

    async def follow_store(self) -> None:
        """Keep the metrics of etcd's size, until cancelled; every replica does, of the member that it asks."""
        while True:
            with contextlib.suppress(StoreUnavailable):
                status = await self._client.status()
                STORE_BYTES.set(status.db_size)
                STORE_REVISION.set(status.header.revision)
            await self._clock.sleep(STATUS_S)

    async def _lead(self, leadership: Leadership) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect(leadership))
            group.create_task(self._compact(leadership))
            group.create_task(self._remember(leadership))

    async def _collect(self, leadership: Leadership) -> None:
        while leadership.holds():
            start_s = self._clock.now_s()
            wait_s = self._collect_every_s
            try:
                done = await self._collector.collect(leadership)
                await self._attempts.forget(leadership)
            except StaleFencingToken:
                return
            except YardError as error:
                logger().warning("garbage is left for later", cause=error.message)
                wait_s = min(RETRY_S, wait_s)
            except Broken as error:
                logger().error("nothing is collected while the history is damaged: yardctl verify", cause=str(error))
            else:
                REGISTRY_COLLECT_SECONDS.observe(self._clock.now_s() - start_s)
                for what, count in (("revision", done.revisions), ("value", done.values), ("request", done.requests)):
                    REGISTRY_COLLECTED.labels(what).inc(count)
                if done.revisions or done.values or done.requests:
                    logger().info("collected", revisions=done.revisions, values=done.values, requests=done.requests)
            await self._clock.sleep(wait_s)

    async def _remember(self, leadership: Leadership) -> None:
        while leadership.holds():
            try:
                await self._memory.look(leadership)
            except StaleFencingToken:
                return
            except YardError as error:
                logger().warning("hosts are looked after later", cause=error.message)
            await self._clock.sleep(LOOK_S)

    async def _compact(self, leadership: Leadership) -> None:
        before = 0
        while leadership.holds():
            wait_s = COMPACT_S
            try:
                now = (await self._client.status()).header.revision
                if before:
                    await self._client.compact(before)
                before = now
            except YardError as error:
                logger().warning("etcd is compacted later", cause=error.message)
                wait_s = RETRY_S
            await self._clock.sleep(wait_s)
