"""Which model and version: filters with their reasons, then the strategy of the route.

Facts in, decision out; when a host would answer was predicted before, by `scoring`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.objects import Choose, ModelVersion, Single
from services.domain.request import Preference, RouteOptions

LATE_SPREAD = 0.5
"""Standard deviation of the logarithm of (time taken / time predicted): one call in six takes 1.65 times the
prediction or more. A wide guess; it decides only between candidates that are both close to the limit."""


class Prospect(NamedTuple):
    """One version, and how it would do for this call."""

    version: ModelVersion
    filtered: str = ""
    """Why it cannot be chosen; empty if it can."""
    predicted_s: float = math.inf
    """Seconds to the answer on its best host."""
    limit_s: float = math.inf
    """Seconds after which the answer is too late: what is left of the deadline, or the model's own promise."""


Rank = tuple[float, float, float]
"""What is compared between prospects, the higher the better: by preference, then utility, then time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen."""

    index: int
    reason: str
    scores: tuple[float, ...]
    """Utility of each prospect; 0 for the filtered ones, and for all of them where nothing was scored."""


@dataclass(frozen=True, slots=True)
class NothingFits:
    """Every prospect was filtered out, each for its own reason."""


def wish_unmet(version: ModelVersion, options: RouteOptions) -> str:
    """Why the caller's wishes leave `version` out; empty if they do not."""
    most = options.max_cost_microusd
    if most is not None and version.cost_microusd > most:
        return f"costs {version.cost_microusd} µUSD, over the {most} allowed"
    least = options.min_quality
    if least is not None:
        if version.quality is None:
            return f"its quality was not measured, and at least {least:g} is asked for"
        if version.quality < least:
            return f"quality {version.quality:g} is below the {least:g} asked for"
    return ""


def late_probability(predicted_s: float, limit_s: float) -> float:
    """Chance that an answer predicted for `predicted_s` comes after `limit_s`."""
    if limit_s <= 0.0:
        return 1.0
    if predicted_s <= 0.0 or limit_s > 100.0 * predicted_s:
        return 0.0
    return 0.5 * math.erfc(math.log(limit_s / predicted_s) / (LATE_SPREAD * math.sqrt(2.0)))


def utility(strategy: Choose, prospect: Prospect) -> float:
    """Worth of a prospect: `v * quality - lambda * cost - mu * P(too late)`; an unmeasured quality is worth nothing."""
    version = prospect.version
    return (
        strategy.quality_weight * (version.quality or 0.0)
        - strategy.cost_weight * version.cost_microusd
        - strategy.latency_weight * late_probability(prospect.predicted_s, prospect.limit_s)
    )


SOLE = "the only candidate"


def sole_reason(strategy: Single | Choose) -> str:
    """The reason where the first prospect is the only one that has to be looked at; what `choose` would say."""
    if isinstance(strategy, Choose):
        return SOLE
    return "the route's one version" if strategy.target.version else "newest version"


def choose(
    strategy: Single | Choose, prospects: Sequence[Prospect], prefer: Preference, *, beaten: int = 0
) -> Choice | NothingFits:
    """Choose one of `prospects`.

    Args:
        strategy: The route's.
        prospects: For `Single` the newest version first; for `Choose` in the route's order.
        prefer: What the caller values most; only `Choose` asks.
        beaten: Further candidates, none of which could be better than the best of these. They count as open.
    """
    if isinstance(strategy, Single):
        return _first(strategy, prospects)
    scores = [0.0] * len(prospects)
    best, best_rank, open_count = -1, WORST, beaten
    for index, prospect in enumerate(prospects):
        if not prospect.filtered:
            open_count += 1
            score = scores[index] = utility(strategy, prospect)
            if (own := rank(prefer, prospect, score)) > best_rank:
                best, best_rank = index, own
    if best < 0:
        return NothingFits()
    reason = _reason(prefer, prospects[best], scores[best], open_count, len(prospects) + beaten)
    return Choice(best, reason, tuple(scores))


def _first(strategy: Single, prospects: Sequence[Prospect]) -> Choice | NothingFits:
    for index, prospect in enumerate(prospects):
        if not prospect.filtered:
            if strategy.target.version or index == 0:
                reason = sole_reason(strategy)
            else:
                newer = prospects[0]
                reason = f"newest version that can answer; {newer.version.version}: {newer.filtered}"
            return Choice(index, reason, (0.0,) * len(prospects))
    return NothingFits()


WORST: Rank = (-math.inf, -math.inf, -math.inf)
"""Of nothing at all."""


def rank(prefer: Preference, prospect: Prospect, score: float) -> Rank:
    """What is compared, of an open prospect with that utility."""
    if prefer is Preference.BALANCED:
        return (score, -prospect.predicted_s, 0.0)
    if prefer is Preference.LATENCY:
        return (-prospect.predicted_s, score, 0.0)
    if prefer is Preference.COST:
        return (-float(prospect.version.cost_microusd), score, -prospect.predicted_s)
    return (prospect.version.quality or 0.0, score, -prospect.predicted_s)


def ceiling(strategy: Choose, version: ModelVersion, prefer: Preference) -> Rank:
    """The rank of `version` if it answered at once; no prospect of it ranks higher, rounding included."""
    best = Prospect(version, predicted_s=0.0)
    return rank(prefer, best, utility(strategy, best))


def _reason(prefer: Preference, chosen: Prospect, score: float, open_count: int, of: int) -> str:
    if open_count == 1:
        return SOLE if of == 1 else f"the only one of {of} candidates that can answer"
    match prefer:
        case Preference.LATENCY:
            return f"soonest of {open_count}: {chosen.predicted_s * 1e3:.3g} ms predicted"
        case Preference.COST:
            return f"cheapest of {open_count}: {chosen.version.cost_microusd} µUSD"
        case Preference.QUALITY:
            return f"best of {open_count}: quality {chosen.version.quality or 0.0:g}"
        case Preference.BALANCED:
            late = late_probability(chosen.predicted_s, chosen.limit_s)
            return (
                f"highest utility of {open_count}, {score:.4g}: quality {chosen.version.quality or 0.0:g}, "
                f"{chosen.version.cost_microusd} µUSD, {late:.0%} too late"
            )
