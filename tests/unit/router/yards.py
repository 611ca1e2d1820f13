"""Small worlds for tests of the router, and calls into them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from services.chassis.shared_counts import LocalCounts
from services.domain.caching import CacheStatus
from services.domain.clock import Clock, ManualClock
from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.model import TensorMeta
from services.domain.objects import Choose, Metadata, ModelVersion, Object, Route, RouteTarget, Single
from services.domain.request import InferCall, RouteOptions
from services.domain.rng import KeyedRng
from services.policy.ejection import Reason
from services.policy.keeping import Kept
from services.router.attempting import Hosts
from services.router.cache import AnswerCache, Entry
from services.router.canonical import Canonical
from services.router.composing import Composer
from services.router.decision import Attempt, CopyEnded, Decision
from services.router.host_picking import Fleet
from services.router.pipeline import Limits, Pipeline
from services.router.snapshot import Objects, Snapshot
from tests.fakes.hosts import FakeHosts
from tests.fakes.objects import a_model, a_version

INPUT = TensorMeta("x", "FP32", (1, 4), raw_bytes=16)


def a_call(
    name: str = "digits",
    *,
    version: str = "",
    request_id: str = "r1",
    inputs: tuple[TensorMeta, ...] = (INPUT,),
    options: RouteOptions | None = None,
    timeout_s: float | None = None,
) -> InferCall:
    """A call that fits `a_model`."""
    wishes = options or RouteOptions()
    return InferCall(name, version, request_id, inputs, wishes, timeout_s, "0" * 31 + "1", b"payload")


def rated(model: str, version: str = "1.0.0", *, quality: float | None = None, cost: int = 0) -> ModelVersion:
    """A version with a quality and a price."""
    return replace(a_version(model, version), quality=quality, cost_microusd=cost)


def a_choice(name: str, *models: str, **fields: Any) -> Route:
    """A `choose` route over models."""
    return Route(Metadata(name), Choose(tuple(RouteTarget(model) for model in models), **fields))


def a_single(name: str, model: str, version: str = "") -> Route:
    """A `single` route."""
    return Route(Metadata(name), Single(RouteTarget(model, version)))


def a_snapshot(objects: Iterable[Object], hosts: Iterable[HostRecord], *, revision: int = 1) -> Snapshot:
    """A view of these."""
    return Snapshot(Objects().changed(revision, objects), {host.host_id: host for host in hosts})


def digits(*versions: str) -> list[Object]:
    """The model `digits` with versions."""
    return [a_model("digits"), *(a_version("digits", version) for version in versions or ("1.0.0",))]


@dataclass
class FixedCatalog:
    """A catalog whose snapshot a test sets."""

    current: Snapshot | None

    def snapshot(self) -> Snapshot | None:
        """It."""
        return self.current


@dataclass
class Notes:
    """Feedback that keeps what it is told."""

    attempts: list[Attempt] = field(default_factory=list)
    answered_by: list[Decision] = field(default_factory=list)
    failures: list[YardError] = field(default_factory=list)
    cancellations: int = 0
    degradations: list[str] = field(default_factory=list)
    copies: list[CopyEnded] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    looks: list[tuple[str, CacheStatus]] = field(default_factory=list)
    probes: list[tuple[str, bool]] = field(default_factory=list)
    openings: list[tuple[str, str]] = field(default_factory=list)
    ejections: list[tuple[str, Reason]] = field(default_factory=list)
    hedges: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def chosen(self, decision: Decision, duration_s: float) -> None:
        """Keep nothing."""

    def attempted(self, attempt: Attempt) -> None:
        """Keep it."""
        self.attempts.append(attempt)

    def probed(self, host_id: str, *, answered: bool) -> None:
        """Keep it."""
        self.probes.append((host_id, answered))

    def opened(self, host_id: str, what: str) -> None:
        """Keep it."""
        self.openings.append((host_id, what))

    def ejected(self, host_id: str, reason: Reason, why: str) -> None:
        """Keep it."""
        self.ejections.append((host_id, reason))

    def hedged(self, route: str, outcome: str) -> None:
        """Keep the outcome."""
        self.hedges.append(outcome)

    def answered(self, decision: Decision) -> None:
        """Keep it."""
        self.answered_by.append(decision)

    def copied(self, copy: CopyEnded) -> None:
        """Keep it."""
        self.copies.append(copy)

    def refused(self, limit: str) -> None:
        """Keep it."""
        self.refusals.append(limit)

    def looked_up(self, route: str, status: CacheStatus) -> None:
        """Keep it."""
        self.looks.append((route, status))

    def labelled(self, outcome: str) -> None:
        """Keep it."""
        self.labels.append(outcome)

    def degraded(self, decision: Decision) -> None:
        """Keep its reason."""
        assert decision.told is not None
        self.degradations.append(decision.told.degraded_reason)

    def cancelled(self, decision: Decision | None) -> None:
        """Count it."""
        self.cancellations += 1

    def failed(self, decision: Decision | None, error: YardError, duration_s: float) -> None:
        """Keep it."""
        self.failures.append(error)


class World:
    """A pipeline over fake hosts."""

    def __init__(
        self,
        objects: Iterable[Object],
        hosts: Iterable[HostRecord],
        *,
        zone: str = "",
        most_in_flight: int = 100,
        routers: int = 1,
        clock: ManualClock | None = None,
        over: tuple[Hosts, Clock] | None = None,
    ) -> None:
        """Route over `hosts`; which are carried out by `over`, if that is given, and on its clock."""
        self.clock = clock or ManualClock()
        self.hosts = FakeHosts(self.clock)
        answering, passing = over or (self.hosts, self.clock)
        self.catalog = FixedCatalog(a_snapshot(objects, hosts))
        self.notes = Notes()
        self.kept: Kept[bytes, Entry] = Kept(1 << 20)
        self.pipeline = Pipeline(
            catalog=self.catalog,
            hosts=answering,
            feedback=self.notes,
            clock=passing,
            rng=KeyedRng(0),
            fleet=Fleet(routers=1, zone=zone, zone_way_s=0.002),
            limits=Limits(
                most_in_flight=most_in_flight, reserve_s=0.005, retry_share=1.0, money_share=1.0, routers=routers
            ),
            counts=LocalCounts(),
            composes=Composer(),
            cache=AnswerCache(
                kept=self.kept, messages=Canonical(b"secret of the test"), feedback=self.notes, clock=self.clock
            ),
        )

    async def decide(self, call: InferCall, *, remaining_s: float | None = None) -> Decision:
        """Run a call; its decision."""
        return (await self.pipeline.route(call, remaining_s=remaining_s)).decision
