"""Resource managers in miniature: they campaign, publish plans through every replica, and resign again and again.

A plan is under way at nearly every resignation, so that only the fence keeps it from coming too late.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.election import Election, Leadership
from services.domain.clock import SystemClock
from services.domain.errors import YardError
from tests.chaos.registry.appliers import Stub

ELECTION = "resource-manager"
TTL_S = 2
LEADS_S = (0.2, 0.8)
PUBLISH_S = 2.0
PAUSE_S = 0.02


class Planner:
    """One candidate, and what it publishes while it leads and a little longer."""

    def __init__(
        self, number: int, *, seed: int, endpoints: Sequence[str], stubs: Sequence[Stub], pause_s: float
    ) -> None:
        """Store the arguments.

        Args:
            number: Of this planner.
            seed: Of how long it leads.
            endpoints: etcd's members.
            stubs: One for each replica.
            pause_s: Between two plans through one replica.
        """
        self._rng = random.Random(f"{seed}/planner {number}")
        self._stubs = stubs
        self._pause_s = pause_s
        self._election = Election(
            endpoints=endpoints, name=ELECTION, candidate=f"planner {number}", ttl_s=TTL_S, clock=SystemClock()
        )
        self.published = 0

    async def run(self) -> None:
        """Lead and resign until cancelled."""
        publishing: list[asyncio.Task[None]] = []
        try:
            while True:
                leadership = await self._election.campaign()
                # Those of the place before go on until now: it was given up by campaigning anew.
                await _end(publishing)
                publishing = [asyncio.create_task(self._publish(stub, leadership)) for stub in self._stubs]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rng.uniform(*LEADS_S)):
                        await leadership.lost.wait()
        finally:
            await _end(publishing)
            await self._election.close()

    async def _publish(self, stub: Stub, leadership: Leadership) -> None:
        request = pb.PublishPlanRequest(
            plan=pb.Plan(leader_id=str(leadership.fencing_token)),
            election_key=leadership.key,
            fencing_token=leadership.fencing_token,
        )
        while True:
            try:
                await call(stub.PublishPlan, request, timeout_s=PUBLISH_S)
                self.published += 1
            except YardError:
                # It leads no longer, or the replica is away; only what was accepted is judged.
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(self._pause_s)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
