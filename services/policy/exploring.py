"""When a call tries another candidate than the best one, so that the tables learn of those too.

Every candidate that may be tried gets the same chance, and all chances are said, so that what was learned this way can
be weighed by them (inverse propensity: Horvitz and Thompson, 1952).
"""

from collections.abc import Callable, Sequence

from services.policy.choosing import Choice, Prospect

FLOOR = 0.01
"""Least chance of a candidate that may be tried: smaller ones would let a single call weigh more than a hundred."""

MOST_SHARE = 0.1
"""Most calls that try another candidate."""

SLACK = 2.0
"""How many times the candidate's P95, and the prediction of this call, the time left has to be."""

LEAST_BUDGET = 0.5
"""Nothing is tried unless more of the error budget is left."""


def explore(
    choice: Choice,
    prospects: Sequence[Prospect],
    *,
    share: float,
    budget_left: float,
    chance: Callable[[], float],
) -> Choice:
    """Keep `choice`, or take another candidate by chance.

    Args:
        choice: The best of `prospects`.
        prospects: As it was chosen from.
        share: Of calls that are to try another candidate, in (0, 0.1]; with more than `share / FLOOR` of them it is as
            many times `FLOOR`.
        budget_left: What is left of the route's error budget, of 1.
        chance: Draws from [0, 1).

    Returns:
        The choice with the chance of every prospect.
    """
    others: list[int] = []
    if budget_left > LEAST_BUDGET:
        others = [at for at, each in enumerate(prospects) if at != choice.at and _has_time(each)]
        others = sorted(others, key=lambda at: (-choice.scores[at], at))[: round(MOST_SHARE / FLOOR)]
    chances = [0.0] * len(prospects)
    chances[choice.at] = 1.0
    if not others:
        return choice._replace(propensities=tuple(chances))
    each = max(share / len(others), FLOOR)
    for at in others:
        chances[at] = each
    chances[choice.at] = 1.0 - each * len(others)
    drawn = int(chance() / each)
    if drawn >= len(others):
        return choice._replace(propensities=tuple(chances))
    reason = f"explored, {each:.2%} of the calls; best: {choice.reason}"
    return Choice(others[drawn], reason, choice.scores, tuple(chances), explored=True)


def _has_time(prospect: Prospect) -> bool:
    if prospect.filtered or prospect.expected is None:
        return False
    return prospect.limit_s >= SLACK * max(prospect.expected.p95_s, prospect.predicted_s)
