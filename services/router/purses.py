"""The purses of this process: what each tenant with a budget may spend here."""

from dataclasses import replace

from services.domain.rules import Money, Rules
from services.policy.pricing import Hold, Purse
from services.router.decision import Decision

KEPT = 65536
"""Most purses kept; beyond it the oldest is forgotten, and begins anew when its tenant calls again."""


class Purses:
    """Purses by tenant; one per router."""

    def __init__(self, *, share: float) -> None:
        """`share` is the part of each budget that this process may spend, in (0, 1]."""
        self._share = share
        self._of: dict[str, Purse] = {}

    def open(self, rules: Rules, now_s: float) -> Hold | None:
        """What a call that begins now pays from; None if no budget bounds it."""
        tenant = rules.tenant
        if tenant is None or tenant.budget is None:
            return None
        purse = self._of.get(tenant.metadata.name)
        if purse is None:
            if len(self._of) >= KEPT:
                del self._of[next(iter(self._of))]
            purse = self._of[tenant.metadata.name] = Purse(tenant.budget, now_s, share=self._share)
        elif purse.budget is not tenant.budget and purse.budget != tenant.budget:
            purse.turn_to(tenant.budget)
        price = rules.price
        return Hold(purse, None if price is None else purse.cost_weight(price, now_s))


def rules_now(decision: Decision, now_s: float) -> Rules:
    """The rules of a call for a choice that is made now, with the money that there is for it."""
    hold, rules = decision.hold, decision.rules
    if hold is None:
        return rules
    return replace(rules, money=Money(hold.left_microusd(now_s), hold.cost_weight, hold.refill_per_s))
