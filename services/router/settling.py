"""What is settled for all of a call as it begins: the rules that it lives by, and how long it may take."""

from typing import NamedTuple

from services.domain.request import InferCall
from services.domain.rules import Rules
from services.policy.admission import Allowance, allowance
from services.router.destination import Destination
from services.router.snapshot import Snapshot


class Settled(NamedTuple):
    """It."""

    rules: Rules
    allowed: Allowance


def settle(call: InferCall, snapshot: Snapshot, destination: Destination, remaining_s: float | None) -> Settled:
    """Settle a call.

    Args:
        call: The call.
        snapshot: What it is decided by.
        destination: What its name leads to.
        remaining_s: What is left of the caller's deadline; None if it set none.

    Raises:
        InvalidRequest: Its tenant or its tier is none, or not for it.
    """
    route = destination.route
    rules = snapshot.rules(call.options, route.policy)
    default_s, longest_s = route.default_timeout_s, route.max_timeout_s
    if (tier := rules.tier) is not None:
        if tier.max_timeout_s is not None:
            longest_s = min(longest_s, tier.max_timeout_s)
        if tier.default_timeout_s is not None:
            default_s = tier.default_timeout_s
    allowed = allowance(
        caller_s=remaining_s, parameter_s=call.timeout_s, default_s=min(default_s, longest_s), longest_s=longest_s
    )
    return Settled(rules, allowed)
