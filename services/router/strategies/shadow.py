"""Strategy `shadow`: the primary answers; after that a copy goes to the shadow, and what it answers is compared.

A copy is a task of its own that begins after the answer was handed over. It is bounded in number, bytes and price, is
the last in every queue, is not tried again, and ends with the router. Nothing that happens to it reaches a caller.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from services.domain.deadline import Deadline
from services.domain.errors import YardError
from services.domain.request import InferCall
from services.domain.service_class import LAST_BAND, ServiceClass
from services.domain.strategies import Shadow
from services.domain.tenancy import Budget
from services.policy.comparing import compare
from services.policy.spending import Spending
from services.router.decision import CopyEnded, Decision
from services.router.destination import Destination
from services.router.strategies.course import Course, draw_key
from services.router.strategies.off_loop import computed

COPIES = ServiceClass(tier="shadow", band=LAST_BAND, sheddable=True, preempts=False)
"""Of copies: behind everybody else's calls, and the first to be dropped."""

COPIED_BYTES = 64 << 20
"""Most bytes of requests whose copies are under way, over all routes of a process."""


class CopyFeedback(Protocol):
    """Who is told how copies go."""

    def copied(self, copy: CopyEnded) -> None:
        """A copy ended, or was not made."""
        ...


class Answered(NamedTuple):
    """What the primary gave."""

    decision: Decision
    payload: object


@dataclass(slots=True)
class _Route:
    """The copies of one route."""

    in_flight: int = 0
    budget: Budget | None = None
    spending: Spending | None = None


class Copies:
    """Copies of all routes of one process."""

    def __init__(self, feedback: CopyFeedback, *, share: float) -> None:
        """Tell `feedback`; `share` is the part of each route's bounds that this process may use, in (0, 1]."""
        self._feedback = feedback
        self._share = share
        self._routes: dict[str, _Route] = {}
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def carry_out(
        self, course: Course, call: InferCall, destination: Destination, shadow: Shadow, decision: Decision
    ) -> object:
        """Ask the primary; see to a copy."""
        answer = await course.ask(call, destination.callees[0], decision)
        drawn = course.rng.unit(draw_key(call), f"shadow/{destination.name}")
        # What must not run twice is not copied; nor what was answered in pieces, which are gone.
        # What was computed for another call was copied, or was not, with that one.
        known = decision.cached is not None and decision.cached.known
        wanted = drawn < shadow.percent / 100.0 and call.options.idempotent and not course.composes.in_pieces(call)
        if wanted and not known:
            self._begin(course, call, destination, shadow, Answered(decision, answer))
        return answer

    def plan(
        self, course: Course, call: InferCall, destination: Destination, shadow: Shadow, decision: Decision
    ) -> None:
        """Say whom a call and its copy would go to."""
        for named, callee in zip((shadow.primary, shadow.shadow), destination.callees, strict=True):
            leg = decision.leg()
            course.plan(call, callee, leg)
            course.note_dry(decision, str(named), leg)
            if callee is destination.callees[0]:
                decision.adopt(leg)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(
        self, course: Course, call: InferCall, destination: Destination, shadow: Shadow, answered: Answered
    ) -> None:
        route = self._routes.setdefault(destination.name, _Route())
        size = course.composes.size(call)
        if why := self._over(course, destination, shadow, route, size):
            self._feedback.copied(CopyEnded(destination.name, call.request_id, why))
            return
        route.in_flight += 1
        self._bytes += size
        task = asyncio.get_running_loop().create_task(self._copy(course, call, destination, answered))

        def ended(_: asyncio.Task[None]) -> None:
            route.in_flight -= 1
            self._bytes -= size
            self._tasks.discard(task)

        self._tasks.add(task)
        task.add_done_callback(ended)

    def _over(self, course: Course, destination: Destination, shadow: Shadow, route: _Route, size: int) -> str:
        """Which bound keeps a copy from being made; empty if none does. Its price is spent here."""
        if route.in_flight >= max(1, int(shadow.max_in_flight * self._share)):
            return "over_in_flight"
        if self._bytes + size > COPIED_BYTES:
            return "over_bytes"
        if shadow.budget is None:
            return ""
        now_s = course.clock.now_s()
        if route.spending is None or route.budget != shadow.budget:
            route.budget, route.spending = shadow.budget, Spending(shadow.budget, now_s, share=self._share)
        cost = destination.callees[1].cost_microusd
        return "" if route.spending.spend(cost, now_s) else "over_budget"

    async def _copy(self, course: Course, call: InferCall, destination: Destination, answered: Answered) -> None:
        await course.clock.sleep(0.0)  # a turn of the loop, in which the answer goes out
        leg = answered.decision.leg()
        leg.rules, leg.telling.copy = replace(leg.rules, service_class=COPIES), True
        leg.hold = None  # not for its caller, who does not pay
        deadline = Deadline.after(destination.route.default_timeout_s, course.clock)
        callee = destination.callees[1]
        copy = course.composes.asking(call)._replace(name=callee.name, version="")
        try:
            other = await course.legs.run_one(copy, callee, leg, deadline, course.clock.now_s(), most=1)
            one, another = course.composes.outputs(answered.payload), course.composes.outputs(other)
            found = await computed((one, another), lambda: compare(one, another))
        except YardError as error:
            self._feedback.copied(CopyEnded(destination.name, call.request_id, "failed", why=error.message))
            return
        self._feedback.copied(
            CopyEnded(destination.name, call.request_id, found.verdict.value, found.largest, found.output)
        )
