"""Strategy `cascade`: one step after the other is asked, until one is sure, or time or money are short."""

from typing import NamedTuple

from services.domain.errors import ModelFailed, NoReadyHost, YardError
from services.domain.request import InferCall
from services.domain.strategies import Cascade, CascadeStep, Escalation
from services.policy.choosing import worth_to
from services.policy.escalating import Enough, Escalate, Facts, confidence, escalate
from services.policy.falling_back import passes_on
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.purses import rules_now
from services.router.strategies.auditing import Audited, Audits, note
from services.router.strategies.course import Course

WHY_LONGEST = 200
"""Most characters of a reason in the degraded one: the steps have the whole of it."""


class _Verdict(NamedTuple):
    says: Enough | Escalate
    audited: Audited | None
    """What the next step's answer can be compared with; None if nothing is to be."""


async def carry_out(
    course: Course, call: InferCall, destination: Destination, cascade: Cascade, decision: Decision, *, audits: Audits
) -> object:
    """Ask step after step. One that fails leaves the answer of the one before; without one, the next is asked."""
    kept: object = None
    best: Decision | None = None
    degraded, failed = "", None
    before: Audited | None = None
    for at, (step, callee) in enumerate(zip(cascade.steps, destination.callees, strict=True)):
        leg, start_s = decision.leg(), course.clock.now_s()
        wanted = () if step.escalate is None else (step.escalate.output,)
        if before is not None:
            wanted = tuple(dict.fromkeys((*wanted, before.escalation.output)))
        try:
            answer = await course.ask(course.composes.asking(call, wanted=wanted), callee, leg)
            verdict = _verdict(course, call, decision, leg, at=at, step=step, answer=answer, destination=destination)
        except YardError as error:
            course.note(decision, str(step.target), leg, start_s, error)
            degraded, failed = f"{step.target}: {error.message[:WHY_LONGEST]}", error
            tried = [attempt.error for attempt in leg.attempts if attempt.error is not None]
            if best is None and not passes_on(error, tried, idempotent=call.options.idempotent):
                raise
            if best is not None:
                break
            continue
        if before is not None:
            note(course, decision, before, answer)
        before, said = verdict.audited, verdict.says
        leg.reason = f"{leg.reason}; {said.reason}" if said.reason else leg.reason
        course.note(decision, str(step.target), leg, start_s)
        kept, best = course.composes.answered(call, _model(leg), answer, wanted=wanted), leg
        if isinstance(said, Enough):
            degraded = said.reason if said.unsure else degraded
            if before is not None:
                audits.perhaps(course, call, destination.callees[at + 1], decision, before)
            break
    if best is None:
        raise failed or NoReadyHost(f"'{destination.name}' has no steps")
    decision.adopt(best)
    if degraded:
        decision.telling.degraded_reason = degraded
    return kept


def plan(course: Course, call: InferCall, destination: Destination, cascade: Cascade, decision: Decision) -> None:
    """Say who would be asked in which order; the first that can be asked now is the one chosen."""
    chosen: Decision | None = None
    for step, callee in zip(cascade.steps, destination.callees, strict=True):
        leg = decision.leg()
        course.plan(call, callee, leg)
        if step.escalate is not None:
            leg.reason += f"; the next one if '{step.escalate.output}' {_unsure(step.escalate)}"
        course.note_dry(decision, str(step.target), leg)
        chosen = leg if chosen is None and leg.answerable else chosen
        decision.reason = leg.reason
    if chosen is not None:
        decision.adopt(chosen)


def _verdict(
    course: Course,
    call: InferCall,
    decision: Decision,
    leg: Decision,
    *,
    at: int,
    step: CascadeStep,
    answer: object,
    destination: Destination,
) -> _Verdict:
    if step.escalate is None:
        return _Verdict(Enough("", unsure=False), None)
    scores = course.composes.outputs(answer).get(step.escalate.output)
    if scores is None:
        raise ModelFailed(f"{step.target} gave no output '{step.escalate.output}'")
    try:
        sure = confidence(scores)
    except ValueError as error:
        raise ModelFailed(f"output '{step.escalate.output}' of {step.target}: {error}") from None
    spent = (0 if decision.told is None else decision.told.cost_microusd or 0) + leg.cost_microusd
    after = destination.callees[at + 1]
    rules = rules_now(decision, course.clock.now_s())
    facts = Facts(
        confidence=sure,
        remaining_s=course.deadline.remaining_s(),
        next_s=after.expected_s,
        next_quality=after.quality,
        spent_microusd=spent,
        next_microusd=after.cost_microusd,
        most_microusd=call.options.max_cost_microusd,
        worth=worth_to(rules),
    )
    says = escalate(step.escalate, facts)
    if decision.record is not None:
        decision.record.escalated(destination.name, at, facts, says, rules.money)
    audited = Audited(destination.name, at, step.escalate, sure, scores) if step.escalate.audit_share else None
    return _Verdict(says, audited)


def _unsure(escalation: Escalation) -> str:
    if escalation.calibration is None:
        return f"is below {escalation.threshold:g}"
    return "makes it worth its price"


def _model(leg: Decision) -> str:
    return "" if leg.version is None else leg.version.metadata.name
