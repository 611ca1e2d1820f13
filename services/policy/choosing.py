"""Which model and version: filters with their reasons, then the strategy of the route.

Facts in, decision out; when a host would answer was predicted before, by `scoring`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.objects import Choose, ModelVersion, Single
from services.domain.request import Preference, RouteOptions
from services.domain.rules import NO_RULES, Rules
from services.policy.learning import LATE_SPREAD, Expected

LEAST_SPREAD = 0.05
"""However even the times of a version were: predictions are no better than that."""


_ROOT_TWO = math.sqrt(2.0)


class Worth(NamedTuple):
    """What quality, money and lateness are worth to one call: v, lambda and mu."""

    quality_weight: float = 1.0
    cost_weight: float = 0.001
    latency_weight: float = 1.0


USUAL = Worth()
"""Where nobody says anything else."""


def worth_to(rules: Rules, own: Worth | Choose = USUAL) -> Worth | Choose:
    """What they are worth to a call that lives by `rules`, whose route says `own`.

    Quality: what its tier says, if it says so. Money and lateness: what its policy says, if it has prices; money as it
    has become for its tenant. The rest is the route's.
    """
    if rules is NO_RULES:
        return own
    tier, price = rules.tier, rules.price
    quality = own.quality_weight if tier is None or tier.quality_weight is None else tier.quality_weight
    if price is None:
        return Worth(quality, own.cost_weight, own.latency_weight)
    money = rules.cost_weight
    return Worth(quality, price.cost_weight if money is None else money, price.latency_weight)


class Prospect(NamedTuple):
    """One version, and how it would do for this call."""

    version: ModelVersion
    filtered: str = ""
    """Why it cannot be chosen; empty if it can."""
    predicted_s: float = math.inf
    """Seconds to the answer on its best host."""
    limit_s: float = math.inf
    """Seconds after which the answer is too late: what is left of the deadline, or the model's own promise."""
    expected: Expected | None = None
    """What was learned of it for calls like this one; None leaves what the registry says."""

    @property
    def quality(self) -> float | None:
        """Expected, in [0, 1]; None if nothing is known of it."""
        return self.version.quality if self.expected is None else self.expected.quality

    @property
    def cost_microusd(self) -> float:
        """Expected price."""
        return self.version.cost_microusd if self.expected is None else self.expected.cost_microusd

    @property
    def late(self) -> float:
        """Chance that its answer comes too late."""
        spread = LATE_SPREAD if self.expected is None else self.expected.spread
        return late_probability(self.predicted_s, self.limit_s, spread)


Rank = tuple[float, float, float]
"""What is compared between prospects, the higher the better: by preference, then utility, then time."""


class Choice(NamedTuple):
    """What was chosen."""

    at: int
    """Its place among the prospects."""
    reason: str
    scores: tuple[float, ...]
    """Utility of each prospect; 0 for the filtered ones, and for all of them where nothing was scored."""
    propensities: tuple[float, ...] = ()
    """Chance of each prospect; empty where there was none but the best."""
    explored: bool = False
    """It is another one than the best, by chance."""


@dataclass(frozen=True, slots=True)
class NothingFits:
    """Every prospect was filtered out, each for its own reason."""


def wish_unmet(version: ModelVersion, options: RouteOptions, expected: Expected | None = None) -> str:
    """Why the caller's wishes leave `version` out, by what is expected of it; empty if they do not."""
    most = options.max_cost_microusd
    if most is not None:
        cost = version.cost_microusd if expected is None else expected.cost_microusd
        if cost > most:
            return f"costs {_price(cost)}, over the {most} allowed"
    least = options.min_quality
    if least is not None:
        quality = version.quality if expected is None else expected.quality
        if quality is None:
            return f"its quality was not measured, and at least {least:g} is asked for"
        if quality < least:
            return f"quality {quality:.4g} is below the {least:g} asked for"
    return ""


def late_probability(predicted_s: float, limit_s: float, spread: float = LATE_SPREAD) -> float:
    """Chance that an answer predicted for `predicted_s` comes after `limit_s`.

    Args:
        predicted_s: Seconds, the queue included.
        limit_s: Seconds.
        spread: Standard deviation of the logarithm of (time taken / time predicted).
    """
    if limit_s <= 0.0:
        return 1.0
    if predicted_s <= 0.0 or limit_s > 100.0 * predicted_s:
        return 0.0
    ratio = math.log(limit_s / predicted_s)
    # A version that always takes the same time has no spread.
    return 0.5 * math.erfc(ratio / (max(spread, LEAST_SPREAD) * _ROOT_TWO))


def unpaid(version: ModelVersion, rules: Rules) -> str:
    """Why there is not the money for `version`; empty if there is."""
    money = rules.money
    if money is None or version.cost_microusd <= max(0, money.left_microusd):
        return ""
    tenant = "nobody" if rules.tenant is None else rules.tenant.metadata.name
    return f"costs {version.cost_microusd} µUSD, and tenant '{tenant}' has {max(0, money.left_microusd)} left"


def utility(worth: Worth | Choose, prospect: Prospect) -> float:
    """Worth of a prospect: `v * quality - lambda * cost - mu * P(too late)`; an unmeasured quality is worth nothing."""
    expected = prospect.expected
    quality, cost, spread = (
        (prospect.version.quality, prospect.version.cost_microusd, LATE_SPREAD)
        if expected is None
        else (expected.quality, expected.cost_microusd, expected.spread)
    )
    return (
        worth.quality_weight * (quality or 0.0)
        - worth.cost_weight * cost
        - worth.latency_weight * late_probability(prospect.predicted_s, prospect.limit_s, spread)
    )


SOLE = "the only candidate"


def sole_reason(strategy: Single | Choose) -> str:
    """The reason where the first prospect is the only one that has to be looked at; what `choose` would say."""
    if isinstance(strategy, Choose):
        return SOLE
    return "the route's one version" if strategy.target.version else "newest version"


def choose(
    strategy: Single | Choose,
    prospects: Sequence[Prospect],
    prefer: Preference,
    rules: Rules = NO_RULES,
    *,
    beaten: int = 0,
) -> Choice | NothingFits:
    """Choose one of `prospects`.

    Args:
        strategy: The route's.
        prospects: For `Single` the newest version first; for `Choose` in the route's order.
        prefer: What the caller values most; only `Choose` asks.
        rules: What the call lives by.
        beaten: Further candidates, none of which could be better than the best of these. They count as open.
    """
    if isinstance(strategy, Single):
        return _first(strategy, prospects)
    worth = worth_to(rules, strategy)
    scores = [0.0] * len(prospects)
    best, best_rank, open_count = -1, WORST, beaten
    for index, prospect in enumerate(prospects):
        if not prospect.filtered:
            open_count += 1
            score = scores[index] = utility(worth, prospect)
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
        return (-prospect.cost_microusd, score, -prospect.predicted_s)
    return (prospect.quality or 0.0, score, -prospect.predicted_s)


def ceiling(worth: Worth | Choose, version: ModelVersion, expected: Expected, prefer: Preference) -> Rank:
    """The rank of `version` if it answered at once; no prospect of it ranks higher, rounding included."""
    best = Prospect(version, predicted_s=0.0, expected=expected)
    return rank(prefer, best, utility(worth, best))


def _reason(prefer: Preference, chosen: Prospect, score: float, open_count: int, of: int) -> str:
    if open_count == 1:
        return SOLE if of == 1 else f"the only one of {of} candidates that can answer"
    match prefer:
        case Preference.LATENCY:
            return f"soonest of {open_count}: {chosen.predicted_s * 1e3:.3g} ms predicted"
        case Preference.COST:
            return f"cheapest of {open_count}: {_price(chosen.cost_microusd)}"
        case Preference.QUALITY:
            return f"best of {open_count}: quality {chosen.quality or 0.0:.4g}"
        case Preference.BALANCED:
            late = 100.0 * chosen.late
            return (
                f"highest utility of {open_count}, {score:.4g}: quality {chosen.quality or 0.0:.4g}, "
                f"{_price(chosen.cost_microusd)}, {late:.0f}% too late"
            )


def _price(microusd: float) -> str:
    return f"{microusd if isinstance(microusd, int) or microusd.is_integer() else round(microusd, 2):.12g} µUSD"
