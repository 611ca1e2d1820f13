"""Which host gets the call, by the yardsticks that `balancing` is measured against: each in turn, any, fewest calls.

They ship so that anybody can measure again. They go by what a plain load balancer knows: no report of a host, no
prediction, no failure and no zone.
"""

from collections.abc import Sequence
from operator import attrgetter

from services.domain.service_class import DEFAULT_BAND
from services.domain.tenancy import BalancingStrategy
from services.policy.balancing import Draw, Pick
from services.policy.scoring import VersionState, completion_s

_LAST_SENT = attrgetter("last_sent_s")


def pick(
    strategy: BalancingStrategy,
    states: Sequence[VersionState],
    *,
    now_s: float,
    routers: int,
    draw: Draw,
    band: int = DEFAULT_BAND,
) -> Pick:
    """The host that a yardstick takes.

    Args:
        strategy: Any but LEAST_COMPLETION.
        states: Hosts that have the version ready; at least one.
        now_s: Monotonic seconds.
        routers: Routers that send to these hosts, this one included; for the prediction alone.
        draw: The chance of this attempt.
        band: The call's; for the prediction alone.

    Returns:
        The pick; its prediction says whether the call can be answered in time, and is not compared.
    """
    if len(states) == 1:
        state = states[0]
    elif strategy is BalancingStrategy.ROUND_ROBIN:
        state = min(states, key=_LAST_SENT)  # the turn of a host comes when all others have had theirs
    elif strategy is BalancingStrategy.RANDOM:
        state = states[draw.bits % len(states)]
    else:
        fewest = min(state.host.in_flight for state in states)
        tied = [state for state in states if state.host.in_flight == fewest]
        state = tied[draw.bits % len(tied)]
    return Pick(state, completion_s(state, now_s, routers=routers, band=band), 0.0)
