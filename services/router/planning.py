"""Which version on which host, for one attempt of one call: brings the facts to the policies.

No I/O and no time of its own, so that a decision can be explained without being carried out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.model import schema_faults
from services.domain.objects import Choose, Single
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.domain.rules import NO_RULES, Rules
from services.policy import balancing, choosing, scoring
from services.policy.admission import Reject, RejectReason, admit_to_host
from services.policy.scoring import VersionState
from services.router.decision import CandidateView, Decision
from services.router.destination import Destination, Option
from services.router.host_picking import Fleet, HostPicking
from services.router.unanswerable import no_host, nothing_fits

CUT_RETRY_S = 1.0
"""When to try again while every host refuses the class: cutoffs move once a second."""


class Plan(NamedTuple):
    """One attempt to be made."""

    option: Option
    state: VersionState
    record: HostRecord
    predicted_s: float
    reason: str
    probe: bool = False
    """Whether it goes to a host that was in trouble, to see."""


@dataclass(slots=True)
class _Look:
    """One option as this call sees it."""

    option: Option
    filtered: str = ""
    pick: balancing.Pick | None = None
    rejected: Reject | None = None
    no_host: bool = False
    states: Sequence[VersionState] = ()

    @property
    def doubtful(self) -> bool:
        """Whether even its best host failed lately."""
        return self.pick is not None and self.pick.penalty_s >= scoring.DOUBT_S


class Seen:
    """What a plan came from, for those who write it down."""

    __slots__ = ("looks", "scores")

    def __init__(self) -> None:
        """Nothing yet."""
        self.looks: list[_Look] = []
        """What was looked at: of a `choose` route's options those that could be the best one."""
        self.scores: tuple[float, ...] = ()
        """Of each look; empty where nothing was scored."""


class Book(Protocol):
    """Who knows hosts."""

    def states(self, option: Option) -> Sequence[VersionState]:
        """What is known of the option's hosts, in their order."""
        ...


class Planner:
    """Makes plans from what the book knows."""

    def __init__(self, book: Book, fleet: Fleet, rng: KeyedRng) -> None:
        """Plan with the states of `book`; sessions find their hosts by `rng`."""
        self._book = book
        self._fleet = fleet
        self._picking = HostPicking(fleet, rng)

    def plan(
        self,
        call: InferCall,
        destination: Destination,
        *,
        now_s: float,
        remaining_s: float,
        draw: balancing.Draw,
        excluded: Collection[str] = (),
        rules: Rules = NO_RULES,
        seen: Seen | None = None,
    ) -> Plan | YardError:
        """Choose version and host.

        Args:
            call: The call, which fits the schema of at least one option.
            destination: What its name leads to, which has a choice.
            now_s: Monotonic seconds.
            remaining_s: Seconds until the deadline.
            draw: The chance of this attempt.
            excluded: Ids of hosts not to use.
            rules: What the call lives by.
            seen: Told what was looked at.

        Returns:
            The plan, or why there is none.
        """
        looks: list[_Look] = []
        strategy = destination.choice
        assert strategy is not None
        only = len(destination.options) == 1
        stops_early = isinstance(strategy, Single)
        if isinstance(strategy, Choose) and not only:
            return self._best(
                call,
                destination,
                strategy,
                now_s=now_s,
                remaining_s=remaining_s,
                draw=draw,
                excluded=excluded,
                rules=rules,
                seen=seen,
            )
        for option in destination.options:
            look = self._look(
                call,
                destination,
                option,
                now_s=now_s,
                remaining_s=remaining_s,
                draw=draw,
                excluded=excluded,
                rules=rules,
            )
            if seen is not None:
                seen.looks.append(look)
            sound = not look.filtered and not look.doubtful
            if not looks and ((stops_early and sound) or (only and not look.filtered)):
                return self._planned(look, choosing.sole_reason(strategy))
            looks.append(look)
            if stops_early and sound:
                break
        _put_off_doubtful(looks)
        choice = choosing.choose(strategy, [_prospect(look, remaining_s) for look in looks], call.options.prefer)
        if isinstance(choice, choosing.NothingFits):
            return nothing_fits(destination, looks)
        if seen is not None:
            seen.scores = choice.scores
        return self._planned(looks[choice.index], choice.reason)

    def _best(
        self,
        call: InferCall,
        destination: Destination,
        strategy: Choose,
        *,
        now_s: float,
        remaining_s: float,
        draw: balancing.Draw,
        excluded: Collection[str],
        rules: Rules,
        seen: Seen | None,
    ) -> Plan | YardError:
        """The plan with the best of many options; only those are looked at that may be it, all if none is sound."""
        prefer, options = call.options.prefer, destination.options
        looked: list[tuple[int, _Look]] = []
        best, sound = choosing.WORST, False
        for most, at in destination.shortlists.of(strategy, options, prefer):
            if sound and most < best:
                break
            look = self._look(
                call,
                destination,
                options[at],
                now_s=now_s,
                remaining_s=remaining_s,
                draw=draw,
                excluded=excluded,
                rules=rules,
            )
            looked.append((at, look))
            if not look.filtered and not look.doubtful:
                prospect = _prospect(look, remaining_s)
                own = choosing.rank(prefer, prospect, choosing.utility(strategy, prospect))
                if own > best:
                    best, sound = own, True
        if sound and len(looked) == 1:
            looks, prospects = [look], [prospect]
        else:
            looked.sort()  # by the route's order, in which the first of several equal ones wins
            looks = [look for _, look in looked]
            _put_off_doubtful(looks)
            prospects = [_prospect(look, remaining_s) for look in looks]
        choice = choosing.choose(strategy, prospects, prefer, beaten=len(options) - len(looks))
        if seen is not None:
            seen.looks = looks
        if isinstance(choice, choosing.NothingFits):
            return nothing_fits(destination, looks)
        if seen is not None:
            seen.scores = choice.scores
        return self._planned(looks[choice.index], choice.reason)

    def _planned(self, look: "_Look", reason: str) -> Plan:
        assert look.pick is not None
        state = look.pick.state
        record = look.option.hosts[look.states.index(state)]
        return Plan(look.option, state, record, look.pick.predicted_s, reason, look.pick.probe)

    def candidates(
        self,
        call: InferCall,
        destination: Destination,
        *,
        now_s: float,
        remaining_s: float,
        draw: balancing.Draw,
        rules: Rules = NO_RULES,
    ) -> tuple[CandidateView, ...]:
        """Every option and all of its hosts, as `plan` would see them."""
        looks = [
            self._look(
                call,
                destination,
                option,
                now_s=now_s,
                remaining_s=remaining_s,
                draw=draw,
                excluded=(),
                rules=rules,
            )
            for option in destination.options
        ]
        _put_off_doubtful(looks)
        prospects = [_prospect(look, remaining_s) for look in looks]
        assert destination.choice is not None
        choice = choosing.choose(destination.choice, prospects, call.options.prefer)
        scores = (0.0,) * len(looks) if isinstance(choice, choosing.NothingFits) else choice.scores
        return tuple(
            CandidateView(
                look.option.version,
                look.filtered,
                score,
                None if look.pick is None else look.pick.predicted_s,
                self._host_scores(look, now_s, rules),
            )
            for look, score in zip(looks, scores, strict=True)
        )

    def _look(
        self,
        call: InferCall,
        destination: Destination,
        option: Option,
        *,
        now_s: float,
        remaining_s: float,
        draw: balancing.Draw,
        excluded: Collection[str],
        rules: Rules,
    ) -> _Look:
        look = _Look(option, states=self._book.states(option))
        if call.inputs and not destination.one_schema and (faults := schema_faults(call.inputs, option.model.inputs)):
            look.filtered = "; ".join(map(str, faults))
            return look
        look.filtered = choosing.wish_unmet(option.version, call.options)
        states = look.states
        zone = call.options.zone
        if zone or excluded:
            states = [
                state
                for state, record in zip(states, option.hosts, strict=True)
                if zone in ("", record.zone) and record.host_id not in excluded
            ]
        if states:
            service_class = rules.service_class
            # A probe may fail: it is a call's first attempt, and of a call that may have another.
            may_probe = call.options.idempotent and draw.number == 1
            session = call.options.session
            look.pick = self._picking.pick(
                option, look.states, states, now_s=now_s, draw=draw, rules=rules, session=session, may_probe=may_probe
            )
            if look.pick.state.host.cuts(service_class.level, now_s) and rules.protection.shedding:
                look.pick = self._pick_uncut(
                    look, states, now_s=now_s, draw=draw, rules=rules, session=session, may_probe=may_probe
                )
            if look.pick is not None and look.pick.predicted_s > remaining_s and not look.filtered:
                self._admit(look, look.pick, now_s, remaining_s)
        elif not look.filtered:
            look.no_host = True
            look.filtered = no_host(option, zone, excluded)
        return look

    def _pick_uncut(
        self,
        look: _Look,
        states: Sequence[VersionState],
        *,
        now_s: float,
        draw: balancing.Draw,
        rules: Rules,
        session: str,
        may_probe: bool,
    ) -> balancing.Pick | None:
        """The pick among hosts that do not refuse the class now; None if all do, and `look` then says so."""
        service_class = rules.service_class
        uncut = [state for state in states if not state.host.cuts(service_class.level, now_s)]
        if uncut:
            return self._picking.pick(
                look.option,
                look.states,
                uncut,
                now_s=now_s,
                draw=draw,
                rules=rules,
                session=session,
                may_probe=may_probe,
            )
        look.rejected = Reject(RejectReason.QUEUE_TOO_LONG, CUT_RETRY_S)
        look.filtered = look.filtered or f"every host that has it refuses calls of band {service_class.band} now"
        return None

    def _admit(self, look: _Look, pick: balancing.Pick, now_s: float, remaining_s: float) -> None:
        verdict = admit_to_host(
            predicted_s=pick.predicted_s,
            idle_s=scoring.idle_s(pick.state, now_s),
            remaining_s=remaining_s,
            measured=pick.state.measured(now_s),
        )
        if isinstance(verdict, Reject):
            look.rejected = verdict
            look.filtered = (
                f"predicted {pick.predicted_s * 1e3:.3g} ms, over the {max(0.0, remaining_s) * 1e3:.3g} ms left"
            )

    def _host_scores(self, look: _Look, now_s: float, rules: Rules) -> tuple[scoring.HostScore, ...]:
        routers, band, protection = self._fleet.routers, rules.service_class.band, rules.protection
        return tuple(
            scoring.score(state, now_s, zone=record.zone, routers=routers, band=band, protection=protection)
            for state, record in zip(look.states, look.option.hosts, strict=True)
        )


def _put_off_doubtful(looks: Sequence[_Look]) -> None:
    """Leave out what only failing hosts can answer, if anything else can: each try there may cost a retry."""
    if len(looks) > 1 and any(not look.filtered and not look.doubtful for look in looks):
        for look in looks:
            if not look.filtered and look.doubtful and look.pick is not None:
                look.filtered = f"{look.pick.state.host.host_id}, its best host, failed lately"


def _prospect(look: _Look, remaining_s: float) -> choosing.Prospect:
    if look.filtered or look.pick is None:
        return choosing.Prospect(look.option.version, look.filtered)
    slo_s = look.option.model.latency_slo_s
    limit_s = remaining_s if slo_s is None else min(remaining_s, slo_s)
    # A penalty is part of what a call may suffer: it counts here, as it does between hosts.
    return choosing.Prospect(look.option.version, "", look.pick.cost_s, limit_s)


def take(decision: Decision, plan: Plan) -> None:
    """Go by `plan` from now on."""
    decision.version = plan.option.version
    decision.host = plan.record
    decision.reason = plan.reason
    decision.probe = plan.probe
