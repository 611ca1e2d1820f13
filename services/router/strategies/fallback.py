"""Strategy `fallback`: one after the other is asked, until one answers; or there is an answer known beforehand."""

from services.domain.errors import NoReadyHost, YardError
from services.domain.request import InferCall
from services.domain.strategies import Fallback
from services.policy.falling_back import passes_on
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.strategies.course import Course

KNOWN_BEFOREHAND = "the route's static answer"

WHY_LONGEST = 200
"""Most characters of each reason in the degraded one: the steps have the whole of it."""


async def carry_out(
    course: Course, call: InferCall, destination: Destination, fallback: Fallback, decision: Decision
) -> object:
    """Ask each in turn, as long as that can help."""
    passed: list[str] = []
    failed: YardError | None = None
    behind = [*destination.callees[1:], None]
    for named, callee, after in zip(fallback.targets, destination.callees, behind, strict=True):
        leg, start_s = decision.leg(), course.clock.now_s()
        try:
            answer = await course.ask(call, callee, leg, course.cut(0.0 if after is None else after.expected_s))
        except YardError as error:
            course.note(decision, str(named), leg, start_s, error)
            tried = [attempt.error for attempt in leg.attempts if attempt.error is not None]
            begun = leg.told is not None and leg.told.begun
            if begun or not passes_on(error, tried, idempotent=call.options.idempotent):
                decision.telling.begun = begun
                raise
            passed.append(f"{named}: {error.message[:WHY_LONGEST]}")
            failed = error
            continue
        course.note(decision, str(named), leg, start_s)
        decision.adopt(leg)
        if passed:
            decision.telling.degraded_reason = "; ".join(passed)
        return answer
    if failed is not None and (answer := await _older(course, call, destination, decision, failed)) is not None:
        decision.telling.degraded_reason = f"{'; '.join(passed)}; an older answer stands in"
        return answer
    if fallback.static_answer is None:
        raise failed or NoReadyHost(f"'{destination.name}' names nobody")
    decision.reason, decision.telling.degraded_reason = KNOWN_BEFOREHAND, "; ".join(passed)
    return course.composes.static_answer(call, destination.name, destination.outputs, fallback.static_answer)


async def _older(
    course: Course, call: InferCall, destination: Destination, decision: Decision, failed: YardError
) -> object | None:
    """The kept answer of the first that has one, though it is too old; of the models that the route names itself."""
    if course.keeps is None or course.under.cache is None:
        return None
    for callee in destination.callees:
        if callee.target is not None:
            answer = await course.keeps.stand_in(call, callee, decision, under=course.under, error=failed)
            if answer is not None:
                return answer
    return None


def plan(course: Course, call: InferCall, destination: Destination, fallback: Fallback, decision: Decision) -> None:
    """Say who would be asked in which order; the first that can be asked now is the one chosen."""
    legs = []
    for named, callee in zip(fallback.targets, destination.callees, strict=True):
        leg = decision.leg()
        course.plan(call, callee, leg)
        course.note_dry(decision, str(named), leg)
        legs.append(leg)
    chosen = next((leg for leg in legs if leg.answerable), None)
    if chosen is not None:
        decision.adopt(chosen)
    elif fallback.static_answer is not None:
        decision.reason, decision.telling.answerable = KNOWN_BEFOREHAND, True
    else:
        decision.reason = legs[-1].reason
