"""Audits of cascades: sure answers whose call is sent to the next step too, after the answer, to see if that agrees.

As a copy for a shadow, an audit is a task of its own that begins after the answer was handed over, is bounded in number
and bytes, the last in every queue, not tried again, and ends with the router. Nothing of it reaches a caller. What it
says goes into the decision log; a call that is not logged is not audited.
"""

import asyncio
from dataclasses import dataclass, replace

from services.domain.deadline import Deadline
from services.domain.errors import YardError
from services.domain.request import InferCall
from services.domain.strategies import Escalation
from services.domain.tensor import RawTensor
from services.policy.escalating import agree
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.strategies.course import Course, draw_key
from services.router.strategies.shadow import COPIES

MOST = 8
"""Audits at once, over all routes of a process."""

MOST_BYTES = 16 << 20
"""Most bytes of their requests."""


@dataclass(frozen=True, slots=True)
class Audited:
    """An answer that may be audited."""

    route: str
    step: int
    """Which one gave it, from 0."""
    escalation: Escalation
    confidence: float
    scores: RawTensor


class Audits:
    """Audits of all routes of one process."""

    def __init__(self) -> None:
        """None is under way."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    def perhaps(
        self, course: Course, call: InferCall, callee: Destination, decision: Decision, answer: Audited
    ) -> None:
        """Audit the answer by chance; `callee` is the step after the one that gave it."""
        share = answer.escalation.audit_share
        if not share or decision.record is None or not call.options.idempotent or course.composes.in_pieces(call):
            return
        size = course.composes.size(call)
        if course.rng.unit(draw_key(call), f"audit/{answer.route}") >= share:
            return
        if len(self._tasks) >= MOST or self._bytes + size > MOST_BYTES:
            return
        self._bytes += size
        task = asyncio.get_running_loop().create_task(self._audit(course, call, callee, decision, answer))

        def ended(_: asyncio.Task[None]) -> None:
            self._bytes -= size
            self._tasks.discard(task)

        self._tasks.add(task)
        task.add_done_callback(ended)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _audit(
        self, course: Course, call: InferCall, callee: Destination, decision: Decision, answer: Audited
    ) -> None:
        await course.clock.sleep(0.0)  # a turn of the loop, in which the answer goes out
        leg = decision.leg()
        leg.rules, leg.telling.copy, leg.hold = replace(leg.rules, service_class=COPIES), True, None
        deadline = Deadline.after(callee.route.default_timeout_s, course.clock)
        wanted = (answer.escalation.output,)
        asked = course.composes.asking(call, wanted=wanted)._replace(name=callee.name, version="")
        try:
            other = await course.legs.run_one(asked, callee, leg, deadline, course.clock.now_s(), most=1)
            note(course, decision, answer, other)
        except YardError:
            return  # no answer says nothing


def note(course: Course, decision: Decision, answer: Audited, other: object) -> None:
    """Write down whether the next step's answer says the same; where they cannot be compared, nothing."""
    if decision.record is None:
        return
    try:
        scores = course.composes.outputs(other).get(answer.escalation.output)
        agreed = None if scores is None else agree(answer.scores, scores)
    except (YardError, ValueError):
        return
    if agreed is not None:
        decision.record.audited(answer.route, answer.step, answer.confidence, agreed)
