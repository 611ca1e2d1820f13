"""One Infer call from the router's side: the only file that knows the order of its steps.

Profile and check, deadline, admission, snapshot, choose, host, attempt, retry, feedback. What each step
decides is a policy's; this file only brings facts to them and carries out what they say.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import (
    Fault,
    InvalidRequest,
    ModelNotFound,
    NoReadyHost,
    Overloaded,
    VersionNotFound,
    YardError,
)
from services.domain.model import tensor_faults
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.policy import retrying
from services.policy.admission import Reject, admit_to_router, allowance
from services.policy.balancing import Draw
from services.router.attempting import AttemptFailed, Attempting, HostAnswer, Hosts, final
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.host_book import HostBook, take_standing
from services.router.planning import NO_HOST_RETRY_S, Fleet, Plan, Planner, take
from services.router.ports import Catalog, Counts, Feedback
from services.router.recording import Plans, Recorder
from services.router.snapshot import Snapshot
from services.router.strategies.carrying_out import Strategies
from services.router.strategies.course import Composes, Course, Tally, draw_key


@dataclass(frozen=True, slots=True)
class Limits:
    """What one router holds, and keeps back."""

    most_in_flight: int
    """Calls at once; more are refused."""
    reserve_s: float
    """Seconds of each deadline kept back to carry the answer home."""
    retry_share: float
    """The part of each retry budget, and of each shadow's bounds, that this process may use, in (0, 1]."""


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
    ) -> None:
        """Route by `catalog`, over `hosts`; have decisions written down by `recorder`."""
        self._catalog = catalog
        self._feedback = feedback
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._book = HostBook()
        self._planner = Planner(self._book, fleet)
        self._attempting = Attempting(hosts=hosts, feedback=feedback, clock=clock, reserve_s=limits.reserve_s)
        self._budgets: dict[str, retrying.RetryBudget] = {}
        self._counts = counts
        self._composes = composes
        self._recorder = recorder
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
        in_flight = self._counts.enter()
        try:
            admitted = admit_to_router(in_flight=in_flight, most=self._limits.most_in_flight)
            if isinstance(admitted, Reject):
                raise Overloaded(
                    f"this router has {self._limits.most_in_flight} calls, the most it holds",
                    retry_after_s=admitted.retry_after_s,
                )
            snapshot, destination = self._find(call, start_s, runs=True)
            decision = _begin(call, snapshot, destination, remaining_s)
            if (log := self._recorder) is not None:
                decision.record = log.begin(call, snapshot, decision, self._planner, at_s=start_s, left_s=remaining_s)
            deadline = Deadline(start_s + decision.deadline_s, self._clock)
            self._budget(decision.route, start_s).earn()
            if destination.choice is None:
                course = self._course(destination, deadline)
                payload = await self._strategies.carry_out(course, call, destination, decision)
                if decision.told is not None and decision.told.degraded_reason:
                    self._feedback.degraded(decision)
            else:
                payload = await self.run_one(call, destination, decision, deadline, start_s)
            decision.stages.total_s = self._clock.now_s() - start_s
            self._feedback.answered(decision)
            return Answer(payload, decision)
        except YardError as error:
            self._feedback.failed(decision, error, self._clock.now_s() - start_s)
            raise
        except asyncio.CancelledError:
            self._feedback.cancelled(decision)
            raise
        finally:
            self._counts.leave()

    async def close(self) -> None:
        """End what goes on after answers."""
        await self._strategies.close()

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
        if destination.choice is None:
            course = self._course(destination, Deadline(now_s + decision.deadline_s, self._clock))
            self._strategies.plan(course, call, destination, decision)
        else:
            self.plan_one(call, destination, decision, decision.deadline_s)
        return decision

    def plan_one(self, call: InferCall, destination: Destination, decision: Decision, remaining_s: float) -> None:
        """Decide one call to one candidate set and run nothing."""
        now_s, draw, service_class = self._clock.now_s(), self._draw(call, 1), decision.service_class
        plan = self._planner.plan(
            call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, service_class=service_class
        )
        if isinstance(plan, Plan):
            take(decision, plan)
        else:
            decision.reason = plan.message
        decision.candidates = self._planner.candidates(
            call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, service_class=service_class
        )

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
        snapshot = self._turn(now_s)
        destination = snapshot.destination(call.name, call.version)
        faults = destination.misfits(call.inputs) if runs or call.inputs else []
        if faults:
            raise InvalidRequest.of(faults)
        if runs:
            destination.remember(call.inputs)
        return snapshot, destination

    def _turn(self, now_s: float) -> Snapshot:
        snapshot = self._catalog.snapshot()
        if snapshot is None:
            raise NoReadyHost("this router has not heard from the registry yet", retry_after_s=NO_HOST_RETRY_S)
        self._book.turn_to(snapshot, now_s)
        return snapshot

    async def run_one(
        self,
        call: InferCall,
        destination: Destination,
        decision: Decision,
        deadline: Deadline,
        start_s: float,
        *,
        most: int = 0,
    ) -> object:
        """Run a call on one candidate set.

        Args:
            call: The call.
            destination: The candidates, which have a choice.
            decision: Told what was chosen and tried.
            deadline: Of the call.
            start_s: When it began.
            most: Attempts allowed to one of those that a route leads over, the first included. 0: it is the call's own
                route, and as many as that says.

        Returns:
            The host's message.

        Raises:
            YardError: It cannot be answered; says why.
        """
        draw, service_class, remaining_s = self._draw(call, 1), decision.service_class, deadline.at_s - start_s
        plans: Plans = decision.record or self._planner
        if most:  # the call began a while ago, and the world may be another one
            snapshot, destination = self._resolved(call, destination, start_s)
            plans = self._planner if decision.record is None else decision.record.at(snapshot)
        plan = plans.plan(
            call, destination, now_s=start_s, remaining_s=remaining_s, draw=draw, service_class=service_class
        )
        if call.options.explain:
            decision.candidates = self._planner.candidates(
                call, destination, now_s=start_s, remaining_s=remaining_s, draw=draw, service_class=service_class
            )
        if isinstance(plan, YardError):
            raise plan
        decision.stages.choose_s = self._clock.now_s() - start_s
        self._feedback.chosen(decision, decision.stages.choose_s)
        tried: list[str] = []
        while True:
            take(decision, plan)
            standing = take_standing(plan.state)
            answer = await self._attempting.run(call, plan, decision, deadline)
            if isinstance(answer, HostAnswer):
                return answer.payload
            tried.append(plan.record.host_id)
            if answer.begun:
                decision.telling.begun = True
                raise final(answer.error, tried, "a part of the answer had been sent")
            plan = await self._again(
                call,
                destination,
                deadline,
                tried,
                answer,
                in_good_standing=standing.forgives(answer.error),
                decision=decision,
                most=most or destination.route.max_attempts,
            )

    async def _again(
        self,
        call: InferCall,
        destination: Destination,
        deadline: Deadline,
        tried: Sequence[str],
        failed: AttemptFailed,
        *,
        in_good_standing: bool,
        decision: Decision,
        most: int,
    ) -> Plan:
        """The plan of the next attempt, after the backoff that it needs.

        Raises:
            YardError: What it failed with, if there is to be none.
        """
        error, number = failed.error, len(tried) + 1
        plan = self._replan(call, destination, deadline, number=number, excluded=tried, decision=decision)
        now_s = self._clock.now_s()
        verdict = retrying.decide(
            retrying.Attempted(
                error=error,
                never_sent=failed.never_sent,
                number=len(tried),
                most=most,
                idempotent=call.options.idempotent,
                in_good_standing=in_good_standing,
                remaining_s=deadline.at_s - now_s,
                others=isinstance(plan, Plan),
            ),
            self._budget(decision.route, now_s),
            now_s=now_s,
            chance=self._rng.unit(draw_key(call), f"backoff/{len(tried)}"),
        )
        if isinstance(verdict, retrying.GiveUp):
            raise final(error, tried, verdict.reason)
        if verdict.backoff_s > 0.0:
            await self._clock.sleep(verdict.backoff_s)
        if isinstance(plan, YardError):
            plan = self._replan(call, destination, deadline, number=number, excluded=(), decision=decision)
        if isinstance(plan, YardError):
            raise final(error, tried, plan.message)
        return plan

    def _replan(
        self,
        call: InferCall,
        destination: Destination,
        deadline: Deadline,
        *,
        number: int,
        excluded: Sequence[str],
        decision: Decision,
    ) -> Plan | YardError:
        """Decide anew, by what is known by now."""
        now_s = self._clock.now_s()
        try:
            snapshot, destination = self._resolved(call, destination, now_s)
        except (ModelNotFound, VersionNotFound) as error:
            return error
        return (self._planner if decision.record is None else decision.record.at(snapshot)).plan(
            call,
            destination,
            now_s=now_s,
            remaining_s=deadline.at_s - now_s,
            draw=self._draw(call, number),
            excluded=excluded,
            service_class=decision.service_class,
        )

    def _resolved(self, call: InferCall, destination: Destination, now_s: float) -> tuple[Snapshot, Destination]:
        """What `destination` is by now; raises if it was taken away while the call was under way."""
        snapshot, target = self._turn(now_s), destination.target
        if target is not None:
            return snapshot, snapshot.target(target)
        destination = snapshot.destination(call.name, call.version)
        if destination.choice is None:
            raise ModelNotFound(f"'{call.name}' does not choose any more: its strategy is another one")
        return snapshot, destination

    def _course(self, destination: Destination, deadline: Deadline) -> Course:
        return Course(
            legs=self,
            strategies=self._strategies,
            composes=self._composes,
            clock=self._clock,
            rng=self._rng,
            deadline=deadline,
            most_attempts=destination.route.max_attempts,
            tally=Tally(),
        )

    def _budget(self, name: str, now_s: float) -> retrying.RetryBudget:
        budget = self._budgets.get(name)
        if budget is None:
            budget = self._budgets[name] = retrying.RetryBudget(now_s, share=self._limits.retry_share)
        return budget

    def _draw(self, call: InferCall, number: int) -> Draw:
        return Draw(lambda: self._rng.bits(draw_key(call), f"host/{number}"), number)


def _begin(call: InferCall, snapshot: Snapshot, destination: Destination, remaining_s: float | None) -> Decision:
    allowed = allowance(
        caller_s=remaining_s,
        parameter_s=call.timeout_s,
        default_s=destination.route.default_timeout_s,
        longest_s=destination.route.max_timeout_s,
    )
    return Decision(
        route=destination.name,
        request_id=call.request_id,
        trace_id=call.trace_id,
        deadline_s=allowed.duration_s,
        deadline_source=allowed.source,
        strategy=destination.strategy,
        registry_revision=snapshot.revision,
        service_class=snapshot.service_class(call.options),
    )
