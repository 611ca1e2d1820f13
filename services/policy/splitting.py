"""Which part of a split a call falls into: weighted rendezvous hashing.

Every part draws a number from the call's key and its own name, and the part with the largest `-weight / ln(number)`
wins: `P(part) = weight / sum of weights` (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005,
the logarithmic method). A key's numbers do not depend on weights or on other parts. So a key never moves to a part that
does not grow against its own, and as long as the others keep their proportions no more keys move than must.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from services.domain.strategies import HashKey, Split

WHOLE = 100.0
"""Per cent of all parts."""


class Arm(NamedTuple):
    """The part that a call falls into."""

    at: int
    """Its place among the targets."""
    name: str
    propensity: float
    """Its chance, in (0, 1]."""


def hash_key(split: Split, *, session: str, tenant: str, request_id: str) -> str:
    """What keeps a call with others; its request id where the call does not say what it is asked for."""
    match split.hash_key:
        case HashKey.SESSION:
            return f"session/{session}" if session else f"request/{request_id}"
        case HashKey.TENANT:
            return f"tenant/{tenant}" if tenant else f"request/{request_id}"
        case HashKey.REQUEST:
            return f"request/{request_id}"


def arm_of(split: Split, unit: Callable[[str], float]) -> Arm:
    """The part for a key.

    Args:
        split: The strategy; its per cent are 100 in all.
        unit: A number in [0, 1) for the name of a part, the same for the same key and name.
    """
    best, highest = 0, -1.0
    for index, part in enumerate(split.targets):
        if part.percent > 0.0:
            drawn = -math.log(max(unit(str(part.target)), 2.0**-53))
            score = part.percent / drawn if drawn > 0.0 else math.inf
            if score > highest:
                best, highest = index, score
    part = split.targets[best]
    return Arm(best, str(part.target), part.percent / WHOLE)
