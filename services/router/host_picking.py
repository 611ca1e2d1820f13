"""Which of an option's hosts gets a call: brings what a policy says of it, zones and sessions to `balancing`."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.domain.rng import KeyedRng
from services.domain.rules import Rules
from services.domain.tenancy import BalancingStrategy
from services.policy import affinity, balancing, balancing_baselines
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
    """The way to a host of another zone and back, until one has answered: then it is known."""


def compares_all(rules: Rules, session: str) -> bool:
    """Whether all hosts that have a version are compared for a call of a session, and not a sample of them."""
    balanced = rules.balancing
    return balanced.strategy is not LEAST_COMPLETION or (balanced.affinity.enabled and bool(session))


class HostPicking:
    """Picks hosts; one per router."""

    def __init__(self, fleet: Fleet, rng: KeyedRng) -> None:
        """Stand where `fleet` says; sessions find their hosts by `rng`."""
        self._fleet = fleet
        self._rng = rng

    def pick(
        self,
        option: Option,
        known: Sequence[VersionState],
        states: Sequence[VersionState],
        *,
        now_s: float,
        draw: balancing.Draw,
        rules: Rules,
        session: str,
        may_probe: bool = False,
    ) -> balancing.Pick:
        """One of `states`.

        Args:
            option: The version.
            known: The states of all its hosts, in their order.
            states: Those that the call may go to; at least one.
            now_s: Monotonic seconds.
            draw: The chance of this attempt.
            rules: What the call lives by.
            session: The call's session; empty if it has none.
            may_probe: Whether the call may be the one that sees whether a host is well again.
        """
        routers, zone = self._fleet.routers, self._fleet.zone
        balanced, band = rules.balancing, rules.service_class.band
        if balanced.strategy is not LEAST_COMPLETION:
            strategy = balanced.strategy
            return balancing_baselines.pick(strategy, states, now_s=now_s, routers=routers, draw=draw, band=band)
        keeps = balanced.affinity.enabled and bool(session)
        if not zone and not keeps:
            return self._soonest(states, now_s, draw, rules, may_probe=may_probe)
        bits = affinity.session_bits(self._rng, session, str(option.key)) if keeps else None
        zones = {state: record.zone for state, record in zip(known, option.hosts, strict=True)} if zone else {}
        near = [state for state in states if zones[state] == zone] if zone else states
        far = [state for state in states if zones[state] != zone] if zone else ()
        if not near or not far:
            return self._among(near or far, bits, now_s, draw, rules, may_probe=may_probe)
        local = self._among(near, bits, now_s, draw, rules, may_probe=may_probe)
        remote = self._among(far, bits, now_s, draw, rules, may_probe=may_probe)
        spill = balanced.zones
        return balancing.nearest(local, remote, hysteresis=spill.hysteresis, margin_s=spill.margin_s)

    def _among(
        self,
        states: Sequence[VersionState],
        session: int | None,
        now_s: float,
        draw: balancing.Draw,
        rules: Rules,
        *,
        may_probe: bool,
    ) -> balancing.Pick:
        """One of `states`, which are equally near: the session's, if it is to be kept on one and any is sound."""
        routers, band = self._fleet.routers, rules.service_class.band
        if session is not None:
            factor = rules.balancing.affinity.load_factor
            kept = affinity.keep(
                states,
                session,
                load_factor=factor,
                now_s=now_s,
                routers=routers,
                band=band,
                protection=rules.protection,
                may_probe=may_probe,
            )
            if kept is not None:
                return kept
        return self._soonest(states, now_s, draw, rules, may_probe=may_probe)

    def _soonest(
        self, states: Sequence[VersionState], now_s: float, draw: balancing.Draw, rules: Rules, *, may_probe: bool
    ) -> balancing.Pick:
        return balancing.pick(
            states,
            now_s=now_s,
            routers=self._fleet.routers,
            draw=draw,
            band=rules.service_class.band,
            protection=rules.protection,
            may_probe=may_probe,
        )
