"""Whose turn it is, and what this replica does with it.

While it leads it reconciles and keeps hosts; while another does, it makes the plan for whoever
asks and touches nothing.
"""

import asyncio
import contextlib

from services.chassis.election import Election, Leadership
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import StoreUnavailable
from services.resource_manager.launchers.local import LocalLauncher
from services.resource_manager.reconciler import Authority, Plan, Reconciler

EVERY_S = 2.0
"""Longest time between two reconciliations."""

GATHER_S = 0.05
"""Changes that come within this time are looked at together."""


class Leading:
    """One replica's part in the election."""

    def __init__(
        self,
        *,
        election: Election,
        reconciler: Reconciler,
        launcher: LocalLauncher | None,
        clock: Clock,
        wake: asyncio.Event,
    ) -> None:
        """Work with these; `wake` asks for a reconciliation at once."""
        self._election = election
        self._reconciler = reconciler
        self._launcher = launcher
        self._clock = clock
        self._wake = wake
        self._leadership: Leadership | None = None
        self._leader_id = ""

    @property
    def authority(self) -> Authority | None:
        """The term of leadership; None while this replica does not lead."""
        leadership = self._leadership
        return leadership if leadership is not None and leadership.holds() else None

    @property
    def leader_id(self) -> str:
        """Who leads, as last heard."""
        return self._leader_id

    @property
    def plan(self) -> Plan | None:
        """The plan this replica works from."""
        return self._reconciler.plan

    async def campaign(self) -> None:
        """Lead whenever it is this replica's turn, until cancelled."""
        while True:
            leadership = await self._election.campaign()
            self._leadership, self._leader_id = leadership, leadership.candidate
            if self._launcher is not None:
                self._launcher.lead(leadership)
            self._wake.set()
            try:
                await leadership.lost.wait()
            finally:
                self._leadership = None
                if self._launcher is not None:
                    self._launcher.stand_down()
                await self._reconciler.stand_down("leadership was lost")
                self._wake.set()
            logger().warning("leadership was lost", fencing_token=leadership.fencing_token)

    async def reconcile(self) -> None:
        """Reconcile on every change, and every `EVERY_S` seconds, until cancelled."""
        while True:
            await self._reconciler.reconcile(self.authority)
            now_s = self._clock.now_s()
            retry_s = self._reconciler.next_retry_s(now_s)
            wait_s = EVERY_S if retry_s is None else min(EVERY_S, max(GATHER_S, retry_s - now_s))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            await self._clock.sleep(GATHER_S)
            self._wake.clear()

    async def follow_leader(self) -> None:
        """Keep up with who leads, until cancelled."""
        while True:
            if self.authority is None:
                with contextlib.suppress(StoreUnavailable):
                    self._leader_id = await self._election.leader() or ""
            await self._clock.sleep(EVERY_S / 2)
