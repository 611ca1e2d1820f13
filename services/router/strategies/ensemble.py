"""Strategy `ensemble`: all members are asked at once; what enough of them answer is combined."""

import asyncio
from dataclasses import dataclass, field

from services.domain.errors import ModelFailed, YardError
from services.domain.request import InferCall
from services.domain.strategies import Ensemble, EnsembleMember
from services.domain.tensor import RawTensor
from services.policy.combining import combine, patience_s
from services.router.decision import Decision, StepView
from services.router.destination import Destination
from services.router.strategies.course import Course
from services.router.strategies.off_loop import computed

WHY_LONGEST = 200
"""Most characters of each reason in the degraded one: the steps have the whole of it."""

LATE = "it was not waited for"


@dataclass(slots=True)
class _Asking:
    """One call as its members are asked."""

    course: Course
    call: InferCall
    decision: Decision
    answers: dict[int, dict[str, RawTensor]] = field(default_factory=dict)
    """By place among the members."""
    missing: dict[int, str] = field(default_factory=dict)
    """Why some have not answered, likewise."""

    async def member(self, at: int, member: EnsembleMember, callee: Destination) -> None:
        """Ask one member."""
        course, leg, start_s = self.course, self.decision.leg(), self.course.clock.now_s()
        try:
            self.answers[at] = course.composes.outputs(await course.ask(self.call, callee, leg))
        except YardError as error:
            course.note(self.decision, str(member.target), leg, start_s, error)
            self.missing[at] = error.message
            raise
        course.note(self.decision, str(member.target), leg, start_s)


async def carry_out(
    course: Course, call: InferCall, destination: Destination, ensemble: Ensemble, decision: Decision
) -> object:
    """Ask all; combine the answers of those that are not too late."""
    asking = _Asking(course, course.composes.asking(call), decision)
    loop, start_s = asyncio.get_running_loop(), course.clock.now_s()
    members = list(enumerate(zip(ensemble.members, destination.callees, strict=True)))
    tasks = {loop.create_task(asking.member(at, member, callee)): at for at, (member, callee) in members}
    try:
        await _enough(asking, set(tasks), ensemble.quorum, start_s)
    finally:
        late = {at for task, at in tasks.items() if not task.done()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for at in sorted(late - asking.answers.keys() - asking.missing.keys()):
            asking.missing[at] = LATE
            name = str(ensemble.members[at].target)
            decision.telling.steps.append(StepView(name, None, None, LATE, dropped=True))
    return await _combined(asking, destination, ensemble, call)


def plan(course: Course, call: InferCall, destination: Destination, ensemble: Ensemble, decision: Decision) -> None:
    """Say whom each member would ask."""
    ready = 0
    for member, callee in zip(ensemble.members, destination.callees, strict=True):
        leg = decision.leg()
        course.plan(call, callee, leg)
        course.note_dry(decision, str(member.target), leg)
        ready += leg.answerable
    decision.telling.answerable = ready >= ensemble.quorum
    decision.reason = f"{ready} of {len(ensemble.members)} members can be asked, {ensemble.quorum} must answer"


async def _enough(asking: _Asking, running: set[asyncio.Task[None]], quorum: int, start_s: float) -> None:
    """Wait until all have ended, or enough have answered and the others had their time.

    Raises:
        YardError: So many failed that enough cannot answer any more: what the first of these failed with.
    """
    clock, timer, failed = asking.course.clock, None, []
    try:
        while running - {timer}:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if timer in done:
                return
            for task in done:
                error = task.exception()
                if isinstance(error, YardError):
                    failed.append(error)
                elif error is not None:
                    raise error
            if len(asking.answers) + len(running - {timer}) < quorum:
                raise failed[0]
            if timer is None and len(asking.answers) >= quorum and running:
                wait_s = patience_s(clock.now_s() - start_s, asking.course.deadline.remaining_s())
                timer = asyncio.get_running_loop().create_task(clock.sleep(wait_s))
                running.add(timer)
    finally:
        if timer is not None:
            timer.cancel()


async def _combined(asking: _Asking, destination: Destination, ensemble: Ensemble, call: InferCall) -> object:
    answered = sorted(asking.answers)
    weights = [ensemble.members[at].weight or 1.0 for at in answered]
    names = [spec.name for spec in destination.outputs]
    decision = asking.decision
    answers = [asking.answers[at] for at in answered]
    try:
        made = await computed(answers, lambda: combine(ensemble.combine, answers, weights, names))
    except ValueError as error:
        raise ModelFailed(f"the members' answers cannot be combined: {error}") from None
    share = f"{len(answered)} of {len(ensemble.members)} members"
    decision.reason = f"{ensemble.combine.value.lower()} of {share}"
    if asking.missing:
        why = (f"{ensemble.members[at].target}: {text[:WHY_LONGEST]}" for at, text in sorted(asking.missing.items()))
        decision.telling.degraded_reason = f"{share} answered; {'; '.join(why)}"
    return asking.course.composes.answer(call, destination.name, made)
