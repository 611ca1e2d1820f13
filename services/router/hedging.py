"""A second attempt that races a first one, once that has taken longer than most answers do.

Hedged requests, as Dean and Barroso have them (The Tail at Scale, CACM 56(2), 2013). The first good answer is the
call's; the other attempt is cancelled and speaks against nobody. Hedges are paid from the route's retry budget,
so that attempts stay near one per call when everything is slow.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import YardError
from services.domain.model import ModelKey
from services.domain.request import InferCall
from services.policy.quantiles import Times
from services.policy.retrying import RetryBudget
from services.router.attempting import AttemptFailed, Attempting, HostAnswer, is_large
from services.router.decision import Decision
from services.router.planning import Plan, take

TIMES_KEPT = 4096
"""Most versions whose times are kept."""

Replan = Callable[[Sequence[str], int], Plan | YardError]
"""A plan that leaves out these hosts, for the attempt of that number."""


class HedgeFeedback(Protocol):
    """Who is told of second attempts."""

    def hedged(self, route: str, outcome: str) -> None:
        """A call was slow: its second attempt `won` or `lost`; `no_host` or `no_budget` kept it from being made."""
        ...


class Hedging:
    """Makes attempts, and second ones beside them."""

    def __init__(self, attempting: Attempting, feedback: HedgeFeedback, clock: Clock) -> None:
        """Make attempts by `attempting`."""
        self._attempting = attempting
        self._feedback = feedback
        self._clock = clock
        self._times: dict[ModelKey, Times] = {}

    async def run(
        self,
        call: InferCall,
        plan: Plan,
        decision: Decision,
        deadline: Deadline,
        *,
        tried: list[str],
        budget: RetryBudget,
        replan: Replan,
    ) -> HostAnswer | AttemptFailed:
        """As `Attempting.run`, with a second attempt if the first is slow.

        Args:
            call: The call, of which another attempt may be made, on another host.
            plan: The first attempt.
            decision: Told what was tried, and what answered.
            deadline: Of the call.
            tried: Hosts that were tried before; the second one is added if it fails as well.
            budget: Pays for the second attempt.
            replan: Plans it.
        """
        key = plan.option.key
        started_s = self._clock.now_s()
        delay_s = self._delay_s(call, plan, decision, deadline)
        if delay_s is None:
            answer = await self._attempting.run(call, plan, decision, deadline, elsewhere=True, more=True)
            if isinstance(answer, HostAnswer):
                self._learn(key, self._clock.now_s() - started_s)
            return answer
        first = asyncio.ensure_future(self._attempting.run(call, plan, decision, deadline, elsewhere=True, more=True))
        timer = asyncio.ensure_future(self._clock.sleep(delay_s))
        running: set[asyncio.Future[HostAnswer | AttemptFailed]] = {first}
        try:
            await asyncio.wait({first, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done() and (other := self._second(decision, budget, replan, [*tried, plan.record.host_id])):
                decision.racing = True
                second = asyncio.ensure_future(
                    self._attempting.run(call, other, decision, deadline, elsewhere=True, hedge=True)
                )
                running.add(second)
                return await self._race(first, second, (plan, other), decision, tried)
            answer = await first
            if isinstance(answer, HostAnswer):
                self._learn(key, self._clock.now_s() - started_s)
            return answer
        finally:
            timer.cancel()
            left = [each for each in running if not each.done()]
            for each in left:
                each.cancel()
            if left:
                await asyncio.wait(left)
            decision.racing = False

    async def _race(
        self,
        first: "asyncio.Future[HostAnswer | AttemptFailed]",
        second: "asyncio.Future[HostAnswer | AttemptFailed]",
        plans: tuple[Plan, Plan],
        decision: Decision,
        tried: list[str],
    ) -> HostAnswer | AttemptFailed:
        """The first good answer of two attempts; if neither has one, what the first failed with."""
        runs = {first: plans[0], second: plans[1]}
        waiting = set(runs)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # Of two that ended together the second one's times stand in the decision.
            for run in (second, first):
                if run in done and isinstance(answer := run.result(), HostAnswer):
                    take(decision, runs[run])
                    self._learn(plans[0].option.key, decision.attempts[-1].duration_s)
                    self._feedback.hedged(decision.route, "won" if run is second else "lost")
                    return answer
        self._feedback.hedged(decision.route, "lost")
        tried.append(plans[1].record.host_id)
        return first.result()

    def _second(self, decision: Decision, budget: RetryBudget, replan: Replan, tried: Sequence[str]) -> Plan | None:
        """The plan of the second attempt, paid for; None if there is none."""
        other = replan(tried, len(tried) + 1)
        if isinstance(other, YardError):
            self._feedback.hedged(decision.route, "no_host")
            return None
        if not budget.spend(self._clock.now_s()):
            self._feedback.hedged(decision.route, "no_budget")
            return None
        return other

    def _delay_s(self, call: InferCall, plan: Plan, decision: Decision, deadline: Deadline) -> float | None:
        """When a second attempt is due; None if never."""
        if decision.is_copy or plan.option.version.generation is not None or is_large(call):
            return None
        times = self._times.get(plan.option.key)
        delay_s = None if times is None else times.quantile_s(decision.rules.hedge.after_quantile)
        return None if delay_s is None or delay_s >= deadline.remaining_s() else delay_s

    def _learn(self, key: ModelKey, took_s: float) -> None:
        times = self._times.get(key)
        if times is None:
            if len(self._times) >= TIMES_KEPT:
                self._times.clear()
            times = self._times[key] = Times()
        times.add(took_s)
