"""One Infer call from the router's side: the only file that knows the order of its steps.

Profile and check, deadline, admission, snapshot, choose, host, attempt, retry, feedback. What each step
decides is a policy's; this file only brings facts to them and carries out what they say.
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import (
    Fault,
    InvalidRequest,
    NoCandidate,
    RateLimited,
    SpendingExhausted,
    TooManyInFlight,
    YardError,
)
from services.domain.model import tensor_faults
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.policy.learning import Tables
from services.router.asking import Asking
from services.router.attempting import Attempting, Hosts
from services.router.cache import AnswerCache
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.entering import NOTHING, Entrance
from services.router.host_book import HostBook
from services.router.host_picking import Fleet
from services.router.labelling import Labelling
from services.router.planning import Planner
from services.router.ports import Catalog, Counts, Feedback
from services.router.purses import Purses
from services.router.recording import Recorder
from services.router.settling import settle
from services.router.snapshot import Snapshot
from services.router.strategies.carrying_out import Strategies
from services.router.strategies.course import Composes, Course, Tally
from services.router.watching import Watch


@dataclass(frozen=True, slots=True)
class Limits:
    """What one router holds, and keeps back."""

    most_in_flight: int
    """Calls at once; more are refused."""
    reserve_s: float
    """Seconds of each deadline kept back to carry the answer home."""
    retry_share: float
    """The part of each retry budget, and of each shadow's bounds, that this process may use, in (0, 1]."""
    money_share: float
    """The part of each tenant's budget that this process may spend, in (0, 1]."""
    routers: int = 1
    """Routers, this one included, that share the limits of routes, tiers and tenants."""


ITS_OWN = (InvalidRequest, NoCandidate, RateLimited, SpendingExhausted, TooManyInFlight)
"""Refusals for what a caller asks, or how much: they say nothing of how well a route is served."""


class Answer(NamedTuple):
    """An answer and how it came about."""

    payload: object
    decision: Decision


class Pipeline:
    """Routes calls; one per router."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        hosts: Hosts,
        feedback: Feedback,
        clock: Clock,
        rng: KeyedRng,
        fleet: Fleet,
        limits: Limits,
        counts: Counts,
        composes: Composes,
        recorder: Recorder | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        """Route by `catalog`, over `hosts`; have decisions written down by `recorder`, answers kept by `cache`."""
        self._catalog = catalog
        self._feedback = feedback
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._book = HostBook(fleet)
        self._tables = tables = Tables()
        self._planner = Planner(self._book, fleet, rng, tables)
        self._asking = Asking(
            catalog=catalog,
            book=self._book,
            planner=self._planner,
            tables=tables,
            attempting=Attempting(hosts=hosts, feedback=feedback, clock=clock, reserve_s=limits.reserve_s),
            feedback=feedback,
            clock=clock,
            rng=rng,
            share=limits.retry_share,
        )
        self.watch = Watch(self._book, feedback, clock)
        """Looks after the hosts; whoever runs the pipeline runs it too."""
        self._purses = Purses(share=limits.money_share)
        self._counts = counts
        self._entrance = Entrance(counts, most=limits.most_in_flight, routers=limits.routers, refused=feedback.refused)
        self._composes = composes
        self._recorder = recorder
        self._cache = cache
        self.labelling = Labelling(tables=tables, views=catalog, feedback=feedback, clock=clock, log=recorder)
        """Who takes what is said of answers afterwards."""
        self._strategies = Strategies(feedback, share=limits.retry_share)

    async def route(self, call: InferCall, *, remaining_s: float | None) -> Answer:
        """Run one call.

        Args:
            call: The call.
            remaining_s: What is left of the caller's deadline; None if it set none.

        Raises:
            YardError: It cannot be answered; says why.
        """
        start_s = self._clock.now_s()
        decision: Decision | None = None
        in_flight, counted = self._counts.enter(), NOTHING
        try:
            if in_flight >= self._limits.most_in_flight:
                raise self._entrance.full()
            snapshot, destination = self._find(call, start_s, runs=True)
            decision = _begin(call, snapshot, destination, remaining_s)
            counted = self._entrance.enter(decision.rules, destination.route, in_flight, start_s)
            if decision.rules.tenant is not None:
                decision.hold = self._purses.open(decision.rules, start_s)
            if (log := self._recorder) is not None:
                decision.record = log.begin(call, snapshot, decision, self._planner, at_s=start_s, left_s=remaining_s)
            deadline = Deadline(start_s + decision.deadline_s, self._clock)
            if destination.choice is None:
                course = self._course(destination, decision, deadline)
                payload = await self._strategies.carry_out(course, call, destination, decision)
            elif destination.route.cache is not None and self._cache is not None:
                payload = await self._cache.run_one(
                    call, destination, decision, deadline, start_s, legs=self._asking, under=destination.route
                )
            else:
                payload = await self._asking.run_one(call, destination, decision, deadline, start_s)
            if decision.told is not None and decision.told.degraded_reason:
                self._feedback.degraded(decision)
            if decision.attempts:
                self._asking.budget(decision.route, start_s).earn(decision.rules.retry.budget_share)
            decision.stages.total_s = self._clock.now_s() - start_s
            self._feedback.answered(decision)
            self.labelling.answered(call, decision)
            if decision.rules.tier is not None:
                self._ended(decision, failed=False)
            return Answer(payload, decision)
        except YardError as error:
            self._feedback.failed(decision, error, self._clock.now_s() - start_s)
            if decision is not None and not isinstance(error, ITS_OWN):
                self._ended(decision, failed=True)
            raise
        except asyncio.CancelledError:
            self._feedback.cancelled(decision)
            raise
        finally:
            self._counts.leave()
            if counted:
                self._entrance.leave(counted)
            if decision is not None and decision.hold is not None:
                decision.hold.end()

    async def close(self) -> None:
        """End what goes on after answers."""
        await self._strategies.close()
        if self._cache is not None:
            await self._cache.close()

    def explain(self, call: InferCall, *, remaining_s: float | None) -> Decision:
        """Decide one call and run nothing. A call without any inputs asks what its name alone leads to.

        Returns:
            The decision with every candidate; without a version if nothing can be chosen, and then `reason`
            says why.

        Raises:
            YardError: The name, the version or the tensors are wrong.
        """
        now_s = self._clock.now_s()
        snapshot, destination = self._find(call, now_s, runs=False)
        decision = _begin(call, snapshot, destination, remaining_s)
        decision.hold = self._purses.open(decision.rules, now_s)
        if destination.choice is None:
            course = self._course(destination, decision, Deadline(now_s + decision.deadline_s, self._clock))
            self._strategies.plan(course, call, destination, decision)
        else:
            self._asking.plan_one(call, destination, decision, decision.deadline_s)
        refusal = self._entrance.refusal(decision.rules, destination.route, now_s)
        decision.refusal = "" if refusal is None else refusal.message
        return decision

    def _ended(self, decision: Decision, *, failed: bool) -> None:
        """Note what the error budget lives by, of routes whose calls may try other candidates."""
        if (tier := decision.rules.tier) is not None and tier.exploration:
            self._tables.ended(decision.route, failed=failed)

    def _find(self, call: InferCall, now_s: float, *, runs: bool) -> tuple[Snapshot, Destination]:
        """The snapshot, and what the call's name leads to in it. The call fits; a dry one may lack inputs."""
        snapshot = self._catalog.snapshot()
        destination = None if snapshot is None else snapshot.fits(call.name, call.version, call.inputs)
        if snapshot is None or destination is None:
            return self._find_and_check(call, now_s, runs=runs)
        self._book.turn_to(snapshot, now_s)
        return snapshot, destination

    def _find_and_check(self, call: InferCall, now_s: float, *, runs: bool) -> tuple[Snapshot, Destination]:
        faults = [
            fault for index, tensor in enumerate(call.inputs) for fault in tensor_faults(tensor, f"inputs[{index}]")
        ]
        if not call.name:
            faults.insert(0, Fault("model_name", "must name a route or a model"))
        if faults:
            raise InvalidRequest.of(faults)
        snapshot = self._asking.turn(now_s)
        destination = snapshot.destination(call.name, call.version)
        faults = destination.misfits(call.inputs) if runs or call.inputs else []
        if faults:
            raise InvalidRequest.of(faults)
        if runs:
            destination.remember(call.inputs)
        return snapshot, destination

    def _course(self, destination: Destination, decision: Decision, deadline: Deadline) -> Course:
        return Course(
            legs=self._asking,
            strategies=self._strategies,
            composes=self._composes,
            clock=self._clock,
            rng=self._rng,
            deadline=deadline,
            most_attempts=decision.rules.most_attempts(destination.route.max_attempts),
            tally=Tally(),
            under=destination.route,
            keeps=self._cache,
        )


def _begin(call: InferCall, snapshot: Snapshot, destination: Destination, remaining_s: float | None) -> Decision:
    rules, allowed = settle(call, snapshot, destination, remaining_s)
    return Decision(
        route=destination.name,
        request_id=call.request_id,
        trace_id=call.trace_id,
        deadline_s=allowed.duration_s,
        deadline_source=allowed.source,
        strategy=destination.strategy,
        registry_revision=snapshot.revision,
        rules=rules,
    )
