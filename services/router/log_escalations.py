"""What cascades decide and learn, as entries of a decision log; and whether they decide the same again."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from modelyard.inference.v1 import decision_log_pb2 as pb
from services.domain.objects import Route
from services.domain.rules import Money, Rules
from services.domain.strategies import Cascade
from services.policy.choosing import worth_to
from services.policy.escalating import Enough, Escalate, Facts, escalate
from services.policy.pricing import ANY

if TYPE_CHECKING:
    from services.router.log_entries import Begun


class Weighed(NamedTuple):
    """What a cascade decided about its next step."""

    begun: "Begun"
    route: str
    step: int
    facts: Facts
    verdict: Enough | Escalate
    money: Money | None


class Audited(NamedTuple):
    """What an audit of a cascade's answer said."""

    begun: "Begun"
    route: str
    step: int
    confidence: float
    agreed: bool


def escalation_of(item: Weighed | Audited, call: int) -> pb.LogEscalation:
    """It as it is logged, of the call with that sequence."""
    if isinstance(item, Audited):
        return pb.LogEscalation(
            call=call, route=item.route, step=item.step, confidence=item.confidence, agreed=item.agreed
        )
    facts = item.facts
    return pb.LogEscalation(
        call=call,
        route=item.route,
        step=item.step,
        confidence=facts.confidence,
        remaining_s=facts.remaining_s,
        next_s=facts.next_s,
        next_quality=facts.next_quality,
        spent_microusd=facts.spent_microusd,
        next_microusd=facts.next_microusd,
        most_microusd=facts.most_microusd,
        cost_weight=None if item.money is None else item.money.cost_weight,
        escalated=isinstance(item.verdict, Escalate),
        reason=item.verdict.reason,
    )


@dataclass(frozen=True, slots=True)
class Field:
    """A field that came out otherwise."""

    path: str
    logged: str
    now: str


def escalation_differing(logged: pb.LogEscalation, route: Route | None, rules: Rules) -> list[Field]:
    """What comes out otherwise by the route of that revision, and by the rules that the call lived by."""
    steps = route.strategy.steps if route is not None and isinstance(route.strategy, Cascade) else ()
    escalation = steps[logged.step].escalate if logged.step < len(steps) else None
    if escalation is None:
        return [Field("step", str(logged.step), f"route '{logged.route}' has no step there that escalates")]
    if logged.HasField("cost_weight"):
        rules = replace(rules, money=Money(ANY, logged.cost_weight))
    facts = Facts(
        confidence=logged.confidence,
        remaining_s=logged.remaining_s,
        next_s=logged.next_s,
        next_quality=logged.next_quality if logged.HasField("next_quality") else None,
        spent_microusd=logged.spent_microusd,
        next_microusd=logged.next_microusd,
        most_microusd=logged.most_microusd if logged.HasField("most_microusd") else None,
        worth=worth_to(rules),
    )
    verdict = escalate(escalation, facts)
    found = []
    if isinstance(verdict, Escalate) != logged.escalated:
        found.append(Field("escalated", str(logged.escalated), str(not logged.escalated)))
    if verdict.reason != logged.reason:
        found.append(Field("reason", logged.reason, verdict.reason))
    return found
