"""Brings what runs to what the registry says; the only file that knows the order of events.

    fleet → what became of earlier orders → placement → plan → orders and hosts to keep → publish

It acts only for as long as it leads, and takes nothing away on a view that is stale, empty or
older than one already seen. Where versions go is `policy.placement`'s decision; how orders
travel, where decisions are kept and how host processes run is behind the ports below.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Protocol

from services.domain.clock import Clock
from services.domain.errors import StaleFencingToken, YardError
from services.domain.host import HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion, Pool
from services.policy.fitting import Standing, memory_need
from services.policy.placement import Assignment, Load, Placed, Unload, Unplaced, place
from services.resource_manager.order_book import OrderBook, Outcome

RELEASE_AFTER_S = 30.0
"""A host that is too many is ended after this even where its versions have found no other place."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the registry says, and how far it can be relied on."""

    revision: int
    hosts: Mapping[str, HostRecord]
    """Listed, or gone for less than the grace time; by id."""
    absent: frozenset[str] = frozenset()
    """Those of `hosts` that are not listed just now."""
    models: Mapping[str, Model] = field(default_factory=dict)
    versions: Mapping[ModelKey, ModelVersion] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    trusted: bool = True
    """False while the registry is away, or says less than it said before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where versions should be."""

    revision: int
    leader_id: str
    wall_s: float
    placements: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...]

    def same_as(self, other: "Plan | None") -> bool:
        """Whether it says the same, whenever it was made."""
        return other is not None and (self.revision, self.leader_id, self.placements, self.unplaced) == (
            other.revision,
            other.leader_id,
            other.placements,
            other.unplaced,
        )


class Action(Enum):
    """What was done."""

    LOAD = "LOAD"
    UNLOAD = "UNLOAD"
    START_HOST = "START_HOST"
    STOP_HOST = "STOP_HOST"


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing done, and why."""

    decision_id: str
    wall_s: float
    action: Action
    key: ModelKey | None
    host_id: str
    reason: str
    revision: int


class Authority(Protocol):
    """A term of leadership."""

    @property
    def key(self) -> str:
        """The election key it stands for."""
        ...

    @property
    def fencing_token(self) -> int:
        """Orders carry it; it grows from term to term."""
        ...

    def holds(self) -> bool:
        """Whether nobody else can lead yet."""
        ...


class FleetSource(Protocol):
    """Where the fleet is known from."""

    def fleet(self, now_s: float) -> Fleet | None:
        """The fleet now; None before the registry was heard."""
        ...


class Orders(Protocol):
    """How orders reach hosts, and plans the registry. Every call has a deadline and raises YardError."""

    async def load(
        self, host: HostRecord, version: ModelVersion, model: Model, *, decision_id: str, fencing_token: int
    ) -> None:
        """Order a version onto a host."""
        ...

    async def unload(self, host: HostRecord, key: ModelKey, *, decision_id: str, fencing_token: int) -> None:
        """Order a version off a host."""
        ...

    async def publish(self, plan: Plan, *, election_key: str, fencing_token: int) -> None:
        """Let the registry show the plan."""
        ...


class Launcher(Protocol):
    """What keeps host processes running."""

    def surplus(self, pools: Mapping[str, Pool]) -> frozenset[str]:
        """Hosts it runs that the pools do not ask for."""
        ...

    def keep(self, pools: Mapping[str, Pool], *, release: frozenset[str], revision: int) -> None:
        """Say what should run from now on.

        Args:
            pools: Each is kept at its number of hosts.
            release: Hosts that may be ended.
            revision: Registry revision this follows from.
        """
        ...


class Journal(Protocol):
    """Where decisions are kept and counted."""

    def open(
        self, action: Action, *, key: ModelKey | None, host_id: str, reason: str, revision: int, fencing_token: int
    ) -> str:
        """Keep a decision that is about to be carried out.

        Returns:
            Its id.
        """
        ...

    def close(self, decision_id: str, outcome: str) -> None:
        """Say how it went: `OK`, or the error in one line."""
        ...

    def note(self, message: str, **facts: str | int | float) -> None:
        """Write down something for people."""
        ...

    def reconciled(self, plan: Plan, duration_s: float) -> None:
        """Count one reconciliation."""
        ...


class Reconciler:
    """One replica's reconciliation; it orders only while handed an authority that holds."""

    def __init__(
        self,
        *,
        source: FleetSource,
        orders: Orders,
        launcher: Launcher,
        journal: Journal,
        clock: Clock,
        candidate: str,
        wake: asyncio.Event,
    ) -> None:
        """Work through these ports.

        Args:
            source: Where the fleet is known from.
            orders: Carries orders out.
            launcher: Keeps host processes running.
            journal: Keeps decisions.
            clock: Time.
            candidate: This replica's name.
            wake: Set when an order was answered, so that the next reconciliation need not wait.
        """
        self._source = source
        self._orders = orders
        self._launcher = launcher
        self._journal = journal
        self._clock = clock
        self._candidate = candidate
        self._book = OrderBook()
        self._tasks: set[asyncio.Task[None]] = set()
        self._surplus_since: dict[str, float] = {}
        self._plan: Plan | None = None
        self._published: Plan | None = None
        self._wake = wake

    @property
    def plan(self) -> Plan | None:
        """The plan this replica works from; None before the first reconciliation."""
        return self._plan

    def next_retry_s(self, now_s: float) -> float | None:
        """When a failed load may be tried again; None if none rests."""
        return self._book.next_retry_s(now_s)

    async def reconcile(self, authority: Authority | None) -> None:
        """Once through. Without an authority that holds, only the plan is made.

        Orders are sent by tasks of their own: a host that does not answer delays nobody.
        """
        now_s = self._clock.now_s()
        fleet = self._source.fleet(now_s)
        if fleet is None:
            return
        if not fleet.trusted:
            # What runs is kept running; where versions go is not thought over on old news.
            self._launcher.keep(fleet.pools, release=frozenset(), revision=fleet.revision)
            return
        self._end(self._book.settle(fleet.hosts, fleet.versions, now_s))
        surplus = self._launcher.surplus(fleet.pools)
        sites = [
            self._book.site(host, _standing(host, fleet, surplus), now_s)
            for host in sorted(fleet.hosts.values(), key=lambda host: host.host_id)
            if not _stages(host, fleet)
        ]
        assignment = place(fleet.versions.values(), sites, self._book.measured)
        wall_s = self._clock.wall_s()
        self._plan = Plan(fleet.revision, self._candidate, wall_s, assignment.placements, assignment.unplaced)
        if authority is not None and authority.holds():
            self._act(assignment, fleet, authority, now_s)
            release = self._releasable(surplus, assignment, fleet, now_s)
            self._launcher.keep(fleet.pools, release=release, revision=fleet.revision)
            await self._publish(self._plan, authority)
        self._journal.reconciled(self._plan, self._clock.now_s() - now_s)

    async def stand_down(self, why: str) -> None:
        """Stop acting: orders not answered yet are called off, and the plan is published anew by the next term."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end(self._book.forget_orders(why))
        self._published = None
        self._surplus_since.clear()

    async def settled(self) -> None:
        """Wait until every order sent so far was answered."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _act(self, assignment: Assignment, fleet: Fleet, authority: Authority, now_s: float) -> None:
        for load in assignment.loads:
            version = fleet.versions[load.key]
            model = fleet.models.get(load.key.model)
            if model is not None and not self._book.busy(load.key, load.host_id):
                host = fleet.hosts[load.host_id]
                # A host that has not measured the version goes by what it is told that it takes.
                need = memory_need(version, host, self._book.measured)
                decision_id = self._open(load, host, fleet, authority, now_s)
                order = partial(
                    self._orders.load,
                    host,
                    replace(version, memory_bytes=need),
                    model,
                    decision_id=decision_id,
                    fencing_token=authority.fencing_token,
                )
                self._send(order, load.key, load.host_id, authority)
        # A registry that knows of no revision at all has lost them, or was never asked for anything.
        for unload in assignment.unloads if fleet.revision > 0 else ():
            if not self._book.busy(unload.key, unload.host_id):
                host = fleet.hosts[unload.host_id]
                decision_id = self._open(unload, host, fleet, authority, now_s)
                token = authority.fencing_token
                gone = partial(self._orders.unload, host, unload.key, decision_id=decision_id, fencing_token=token)
                self._send(gone, unload.key, unload.host_id, authority)

    def _open(self, order: Load | Unload, host: HostRecord, fleet: Fleet, authority: Authority, now_s: float) -> str:
        is_load = isinstance(order, Load)
        decision_id = self._journal.open(
            Action.LOAD if is_load else Action.UNLOAD,
            key=order.key,
            host_id=order.host_id,
            reason=order.reason,
            revision=fleet.revision,
            fencing_token=authority.fencing_token,
        )
        self._book.open(order.key, host, load=is_load, decision_id=decision_id, now_s=now_s)
        return decision_id

    def _send(self, order: Callable[[], Awaitable[None]], key: ModelKey, host_id: str, authority: Authority) -> None:
        task = asyncio.create_task(self._carry_out(order, key, host_id, authority))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(
        self, order: Callable[[], Awaitable[None]], key: ModelKey, host_id: str, authority: Authority
    ) -> None:
        try:
            if not authority.holds():
                raise StaleFencingToken("leadership was lost before the order was sent")
            await order()
        except YardError as error:
            self._refused(key, host_id, error.message)
        except Exception as error:  # a version that cannot even be sent must not keep the others from their hosts
            self._journal.note("an order broke off", key=str(key), host=host_id, error=repr(error))
            self._refused(key, host_id, f"the order broke off: {type(error).__name__}")
        else:
            self._book.taken(key, host_id, self._clock.now_s())
        self._wake.set()

    def _refused(self, key: ModelKey, host_id: str, message: str) -> None:
        if outcome := self._book.refused(key, host_id, message, self._clock.now_s()):
            self._end([outcome])

    def _end(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self._journal.close(outcome.decision_id, outcome.outcome)

    def _releasable(
        self, surplus: frozenset[str], assignment: Assignment, fleet: Fleet, now_s: float
    ) -> frozenset[str]:
        """Hosts too many that nobody waits for: their versions answer elsewhere, or had their time to."""
        self._surplus_since = {host_id: self._surplus_since.get(host_id, now_s) for host_id in surplus}
        if fleet.revision <= 0:
            return frozenset()
        placed: dict[ModelKey, list[str]] = {}
        for placement in assignment.placements:
            placed.setdefault(placement.key, []).append(placement.host_id)

        def ready(key: ModelKey) -> int:
            hosted = (fleet.hosts[host_id].hosted(key) for host_id in placed.get(key, ()))
            return sum(one is not None and one.state is ModelState.READY for one in hosted)

        def free(host_id: str) -> bool:
            host = fleet.hosts.get(host_id)
            wanted = [fleet.versions[one.key] for one in host.models if one.key in fleet.versions] if host else []
            return all(ready(version.model_key) >= version.min_replicas for version in wanted)

        return frozenset(
            host_id
            for host_id, since_s in self._surplus_since.items()
            if free(host_id) or now_s - since_s >= RELEASE_AFTER_S
        )

    async def _publish(self, plan: Plan, authority: Authority) -> None:
        if plan.same_as(self._published) or not authority.holds():
            return
        try:
            await self._orders.publish(plan, election_key=authority.key, fencing_token=authority.fencing_token)
        except YardError as error:
            self._journal.note("the plan could not be published", reason=error.reason, error=error.message)
        else:
            self._published = plan


def _stages(host: HostRecord, fleet: Fleet) -> bool:
    """Whether the registry alone loads anything there, to test it."""
    pool = fleet.pools.get(host.pool)
    return pool is not None and pool.staging


def _standing(host: HostRecord, fleet: Fleet, surplus: frozenset[str]) -> Standing:
    if host.draining or host.host_id in surplus:
        return Standing.LEAVING
    if host.host_id in fleet.absent:
        return Standing.ABSENT
    return Standing.CORDONED if host.cordoned else Standing.LISTED
