"""Which of an option's hosts gets a call: brings what a policy says of it, zones and sessions to `balancing`."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.domain.rules import Rules
from services.domain.tenancy import BalancingStrategy
from services.policy import balancing, balancing_baselines
from services.policy.scoring import VersionState
from services.router.destination import Option

LEAST_COMPLETION = BalancingStrategy.LEAST_COMPLETION


@dataclass(frozen=True, slots=True)
class Fleet:
    """What this router is told of its surroundings."""

    routers: int
    """Routers that send to the same hosts, this one included."""
    zone: str
    """The zone it stands in; empty: all hosts are equally near."""
    zone_way_s: float
    """Added to the prediction of hosts of another zone."""


def compares_all(rules: Rules) -> bool:
    """Whether all hosts that have a version are compared for a call, and not a sample of them."""
    return rules.balancing.strategy is not LEAST_COMPLETION


class HostPicking:
    """Picks hosts; one per router."""

    def __init__(self, fleet: Fleet) -> None:
        """Stand where `fleet` says."""
        self._fleet = fleet

    def pick(
        self,
        option: Option,
        known: Sequence[VersionState],
        states: Sequence[VersionState],
        *,
        now_s: float,
        draw: balancing.Draw,
        rules: Rules,
    ) -> balancing.Pick:
        """One of `states`.

        Args:
            option: The version.
            known: The states of all its hosts, in their order.
            states: Those that the call may go to; at least one.
            now_s: Monotonic seconds.
            draw: The chance of this attempt.
            rules: What the call lives by.
        """
        routers, zone = self._fleet.routers, self._fleet.zone
        strategy, band = rules.balancing.strategy, rules.service_class.band
        if strategy is not LEAST_COMPLETION:
            return balancing_baselines.pick(strategy, states, now_s=now_s, routers=routers, draw=draw, band=band)
        if not zone:
            return balancing.pick(states, now_s=now_s, routers=routers, draw=draw, band=band)
        zones = {state: record.zone for state, record in zip(known, option.hosts, strict=True)}
        near = [state for state in states if zones[state] == zone]
        far = [state for state in states if zones[state] != zone]
        if not near or not far:
            return balancing.pick(near or far, now_s=now_s, routers=routers, draw=draw, band=band)
        local = balancing.pick(near, now_s=now_s, routers=routers, draw=draw, band=band)
        remote = balancing.pick(far, now_s=now_s, routers=routers, draw=draw, band=band)
        return balancing.nearest(local, remote, way_s=self._fleet.zone_way_s)
