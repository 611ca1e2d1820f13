"""One candidate set asked for one call: plan, attempt, and attempt again.

A call whose route chooses among its models has one of these legs; one whose strategy leads over others has
several. What each step decides is a policy's.
"""

from collections.abc import Sequence

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import ModelNotFound, NoReadyHost, VersionNotFound, YardError
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.policy import retrying
from services.policy.balancing import Draw
from services.policy.learning import Tables
from services.router.attempting import AttemptFailed, Attempting, HostAnswer, final
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.hedging import Hedging
from services.router.host_book import HostBook, take_standing
from services.router.planning import Plan, Planner, take
from services.router.ports import Catalog, Feedback
from services.router.purses import rules_now
from services.router.recording import Plans
from services.router.snapshot import Snapshot
from services.router.strategies.course import draw_key
from services.router.unanswerable import NO_HOST_RETRY_S


class Asking:
    """Asks candidate sets; one per router."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        book: HostBook,
        planner: Planner,
        tables: Tables,
        attempting: Attempting,
        feedback: Feedback,
        clock: Clock,
        rng: KeyedRng,
        share: float,
    ) -> None:
        """Plan by `planner`, attempt by `attempting`, teach `tables`; `share` is this process's part of each budget."""
        self._catalog = catalog
        self._book = book
        self._planner = planner
        self._tables = tables
        self._attempting = attempting
        self._hedging = Hedging(attempting, feedback, clock)
        self._feedback = feedback
        self._clock = clock
        self._rng = rng
        self._share = share
        self._budgets: dict[str, retrying.RetryBudget] = {}

    def turn(self, now_s: float) -> Snapshot:
        """The current view, which the book goes by from now on.

        Raises:
            NoReadyHost: There is none yet.
        """
        snapshot = self._catalog.snapshot()
        if snapshot is None:
            raise NoReadyHost("this router has not heard from the registry yet", retry_after_s=NO_HOST_RETRY_S)
        self._book.turn_to(snapshot, now_s)
        return snapshot

    def plan_one(self, call: InferCall, destination: Destination, decision: Decision, remaining_s: float) -> None:
        """Decide one call to one candidate set and run nothing."""
        now_s, draw = self._clock.now_s(), self._draw(call, 1)
        rules = rules_now(decision, now_s)
        plan = self._planner.plan(call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, rules=rules)
        if isinstance(plan, Plan):
            take(decision, plan)
        else:
            decision.reason = plan.message
        decision.candidates = self._planner.candidates(
            call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, rules=rules
        )

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
        draw, remaining_s, hold = self._draw(call, 1), deadline.at_s - start_s, decision.hold
        rules = decision.rules if hold is None else rules_now(decision, start_s)
        plans: Plans = decision.record or self._planner
        if most:  # the call began a while ago, and the world may be another one
            snapshot, destination = self._resolved(call, destination, start_s)
            plans = self._planner if decision.record is None else decision.record.at(snapshot)
        plan = plans.plan(call, destination, now_s=start_s, remaining_s=remaining_s, draw=draw, rules=rules)
        if call.options.explain:
            decision.candidates = self._planner.candidates(
                call, destination, now_s=start_s, remaining_s=remaining_s, draw=draw, rules=rules
            )
        if isinstance(plan, YardError):
            raise plan
        decision.stages.choose_s = self._clock.now_s() - start_s
        self._feedback.chosen(decision, decision.stages.choose_s)
        tried: list[str] = []
        allowed = most or decision.rules.most_attempts(destination.route.max_attempts)
        while True:
            take(decision, plan)
            if hold is not None:
                hold.hold(plan.option.version.cost_microusd)
            standing = take_standing(plan.state)
            more = call.options.idempotent and len(tried) + 1 < allowed
            elsewhere = len(plan.option.hosts) > 1 or len(destination.options) > 1
            if rules.policy is not None and rules.hedge.enabled and more and elsewhere and call.options.hedge:
                answer = await self._hedged(call, destination, plan, decision, deadline, tried=tried)
            else:
                answer = await self._attempting.run(call, plan, decision, deadline, elsewhere=elsewhere, more=more)
            if isinstance(answer, HostAnswer):
                if plan.expected is not None:
                    self._tables.answered(plan.option.key, plan.expected.kind, answer.compute_s)
                if hold is not None:
                    hold.pay()
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
                in_good_standing=plan.probe or standing.forgives(answer.error),
                decision=decision,
                most=allowed,
            )

    async def _hedged(
        self,
        call: InferCall,
        destination: Destination,
        plan: Plan,
        decision: Decision,
        deadline: Deadline,
        *,
        tried: list[str],
    ) -> HostAnswer | AttemptFailed:
        """An attempt that another one may race."""

        def replan(excluded: Sequence[str], number: int) -> Plan | YardError:
            return self._replan(call, destination, deadline, number=number, excluded=excluded, decision=decision)

        return await self._hedging.run(
            call,
            plan,
            decision,
            deadline,
            tried=tried,
            budget=self.budget(decision.route, self._clock.now_s()),
            replan=replan,
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
                pays=decision.rules.retry.budget_share > 0.0,
                remaining_s=deadline.at_s - now_s,
                others=isinstance(plan, Plan),
            ),
            self.budget(decision.route, now_s),
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
            rules=rules_now(decision, now_s),
        )

    def _resolved(self, call: InferCall, destination: Destination, now_s: float) -> tuple[Snapshot, Destination]:
        """What `destination` is by now; raises if it was taken away while the call was under way."""
        snapshot, target = self.turn(now_s), destination.target
        if target is not None:
            return snapshot, snapshot.target(target)
        destination = snapshot.destination(call.name, call.version)
        if destination.choice is None:
            raise ModelNotFound(f"'{call.name}' does not choose any more: its strategy is another one")
        return snapshot, destination

    def budget(self, name: str, now_s: float) -> retrying.RetryBudget:
        """What retries of a route's calls are paid from."""
        budget = self._budgets.get(name)
        if budget is None:
            budget = self._budgets[name] = retrying.RetryBudget(now_s, share=self._share)
        return budget

    def _draw(self, call: InferCall, number: int) -> Draw:
        return Draw(lambda purpose: self._rng.bits(draw_key(call), f"{purpose}/{number}"), number)
