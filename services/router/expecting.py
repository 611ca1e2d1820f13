"""What versions are expected to do for a call, where they have to be compared, and which of them is chosen by it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.domain.model import ModelKey
from services.domain.objects import Choose, ModelVersion
from services.domain.request import InferCall, Preference
from services.domain.rules import Rules
from services.policy import balancing, choosing, exploring
from services.policy.complexity import Kind
from services.policy.learning import Expected
from services.router.destination import Destination, Option

OBJECTIVE = 0.99
"""Share of calls that is to be answered, where no candidate's model says."""


class Expects(Protocol):
    """Who has learned what versions and routes are like."""

    @property
    def labels(self) -> int:
        """Another number whenever what is expected of quality and price may have changed."""
        ...

    def expected(self, key: ModelKey, version: ModelVersion, kind: Kind) -> Expected:
        """What is expected of `version`, whose key is `key`, for calls of `kind`."""
        ...

    def error_budget_left(self, route: str, objective: float) -> float:
        """What is left of the errors that the route's calls may have, of 1; none or less: it is spent."""
        ...


def kinds_of(call: InferCall, destination: Destination) -> Sequence[Kind]:
    """What kind of call it is for each option; empty where nothing depends on it."""
    options = call.options
    alone = len(destination.options) == 1 or not isinstance(destination.choice, Choose)
    if alone and options.min_quality is None and options.max_cost_microusd is None:
        return ()
    return destination.kinds(call.inputs, options)


def unfit_of(call: InferCall, destination: Destination) -> Sequence[str]:
    """Why the call does not go to each option, by what it is about; empty if nothing is said of that."""
    choice = destination.choice
    if call.options.labels or (isinstance(choice, Choose) and choice.rules):
        return destination.unfit(call.inputs, call.options)
    return ()


def prospect_of(
    option: Option, pick: balancing.Pick, expected: Expected | None, *, now_s: float, remaining_s: float
) -> choosing.Prospect:
    """How an option would do on the host that was picked for it."""
    slo_s = option.model.latency_slo_s
    limit_s = remaining_s if slo_s is None else min(remaining_s, slo_s)
    # A penalty is part of what a call may suffer: it counts here, as it does between hosts.
    cost_s = pick.cost_s
    if expected is not None and expected.ratio != 1.0:  # it is the call's own computing that takes longer, no other's
        cost_s += (expected.ratio - 1.0) * pick.state.batch_s(1, now_s)
    return choosing.Prospect(option.version, "", cost_s, limit_s, expected)


class Compared(NamedTuple):
    """What came out of a comparison."""

    choice: choosing.Choice | choosing.NothingFits
    budget_left: float | None
    """What was left of the route's error budget; None where it was not asked for."""


def may_explore(call: InferCall, destination: Destination, *, draw: balancing.Draw, rules: Rules) -> bool:
    """Whether the call may try another candidate than the best."""
    tier = rules.tier
    return (
        tier is not None
        and tier.exploration > 0.0
        and draw.number == 1  # a call that failed once is no call to try things with
        and call.options.prefer is Preference.BALANCED
        and isinstance(destination.choice, Choose)
    )


def compare(
    prospects: Sequence[choosing.Prospect],
    call: InferCall,
    destination: Destination,
    *,
    tables: Expects,
    draw: balancing.Draw,
    rules: Rules,
) -> Compared:
    """Choose one of the prospects of a destination that has a choice; now and then another than the best, to learn.

    Options that are not among them count as open, and as no better.
    """
    assert destination.choice is not None
    beaten = len(destination.options) - len(prospects)
    choice = choosing.choose(destination.choice, prospects, call.options.prefer, rules, beaten=beaten)
    tier = rules.tier
    if (
        tier is None
        or isinstance(choice, choosing.NothingFits)
        or not may_explore(call, destination, draw=draw, rules=rules)
    ):
        return Compared(choice, None)
    said = [option.model.availability_slo for option in destination.options]
    objective = max((each for each in said if each is not None), default=OBJECTIVE)
    left = tables.error_budget_left(destination.name, objective)
    tried = exploring.explore(choice, prospects, share=tier.exploration, budget_left=left, chance=lambda: draw.chance)
    return Compared(tried, left)
