"""Strategy `split`: the call's part is drawn, and asked; no other one is if that one fails, or parts would mix."""

from services.domain.request import InferCall
from services.domain.strategies import Split
from services.policy.splitting import Arm, arm_of, hash_key
from services.router.decision import Decision
from services.router.destination import Destination
from services.router.strategies.course import Course


async def carry_out(
    course: Course, call: InferCall, destination: Destination, split: Split, decision: Decision
) -> object:
    """Ask the call's part."""
    arm = _draw(course, call, destination, split, decision)
    answer = await course.ask(call, destination.callees[arm.at], decision)
    _explain(arm, decision)
    return answer


def plan(course: Course, call: InferCall, destination: Destination, split: Split, decision: Decision) -> None:
    """Say which part that would be."""
    arm = _draw(course, call, destination, split, decision)
    course.plan(call, destination.callees[arm.at], decision)
    _explain(arm, decision)


def _draw(course: Course, call: InferCall, destination: Destination, split: Split, decision: Decision) -> Arm:
    options = call.options
    key = hash_key(split, session=options.session, tenant=options.tenant, request_id=call.request_id)
    arm = arm_of(split, lambda name: course.rng.unit(key, f"split/{destination.name}/{name}"))
    decision.telling.arm, decision.telling.propensity = arm.name, arm.propensity
    return arm


def _explain(arm: Arm, decision: Decision) -> None:
    decision.reason = f"its part is {arm.name}, {100.0 * arm.propensity:g} % of the calls; {decision.reason}"
