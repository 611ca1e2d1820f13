"""Which version on which host, for one attempt of one call: looks at the options, and lets the policies choose.

No I/O and no time of its own, so that a decision can be explained without being carried out.
"""

from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.objects import Choose, Single
from services.domain.request import InferCall, Preference
from services.domain.rng import KeyedRng
from services.domain.rules import NO_RULES, Rules
from services.policy import balancing, choosing, shortlisting
from services.policy.learning import Expected
from services.policy.scoring import VersionState
from services.router.decision import CandidateView, Decision
from services.router.destination import Destination, Option
from services.router.expecting import Compared, Expects, compare, may_explore
from services.router.host_picking import Fleet
from services.router.looking import Asked, Book, Look, Looking, asked, prospect, put_off_doubtful
from services.router.unanswerable import nothing_fits

_PLACE = itemgetter(0)


class Plan(NamedTuple):
    """One attempt to be made."""

    option: Option
    state: VersionState
    record: HostRecord
    predicted_s: float
    reason: str
    probe: bool = False
    """Whether it goes to a host that was in trouble, to see."""
    expected: Expected | None = None
    """What is expected of the version for such a call; None where nothing had to be of any."""
    propensity: float | None = None
    """Chance of the version; None where calls of this kind never try another one than the best."""
    explored: bool = False


class Seen:
    """What a plan came from, for those who write it down."""

    __slots__ = ("budget_left", "learned_order", "looks", "propensities", "prospects", "scores")

    def __init__(self) -> None:
        """Nothing yet."""
        self.looks: list[Look] = []
        """What was looked at, in the route's order: of a `choose` route's options those that could be the best one."""
        self.scores: tuple[float, ...] = ()
        """Of each look; empty where nothing was scored."""
        self.prospects: Sequence[choosing.Prospect] = ()
        """Of each look; empty where nothing was compared."""
        self.propensities: tuple[float, ...] = ()
        """Of each look; empty where the best was to be taken in any case."""
        self.budget_left: float | None = None
        """Of the route's error budget; None where it was not asked for."""
        self.learned_order = False
        """Whether options were left out for what labels say, and not for what the registry says alone."""


class Planner:
    """Makes plans from what the book knows and the tables have learned."""

    def __init__(self, book: Book, fleet: Fleet, rng: KeyedRng, tables: Expects) -> None:
        """Plan with the states of `book`, and with what `tables` expect where versions have to be compared."""
        self._tables = tables
        self._looking = Looking(book, fleet, rng, tables)

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
        only: Sequence[int] | None = None,
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
            only: Which options are looked at, where that is known: of a choice that is made again.

        Returns:
            The plan, or why there is none.
        """
        strategy = destination.choice
        assert strategy is not None
        this = asked(call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, excluded=excluded, rules=rules)
        count = len(destination.options)
        if isinstance(strategy, Choose) and count > 1:
            if only is not None or may_explore(call, destination, draw=draw, rules=rules):
                looks = [self._looking.look(at, this) for at in (range(count) if only is None else only)]
                return self._compared(looks, this, seen)
            return self._best(this, strategy, seen)
        looks = []
        for at in range(count):
            look = self._looking.look(at, this)
            if seen is not None:
                seen.looks.append(look)
            sound = look.sound
            if at == 0 and (sound or (count == 1 and not look.filtered)):
                return _planned(look, choosing.sole_reason(strategy))
            looks.append(look)
            if sound and isinstance(strategy, Single):
                break
        return self._compared(looks, this, seen)

    def _best(self, this: Asked, strategy: Choose, seen: Seen | None) -> Plan | YardError:
        """The plan with the best of many options; only those are looked at that may be it, all if none is sound."""
        prefer, worth = this.call.options.prefer, choosing.worth_to(this.rules, strategy)
        shortlist = self._shortlist(this, worth, prefer)
        looked: list[tuple[int, Look, choosing.Prospect | None]] = []
        best, sound = choosing.WORST, False
        for most, at in shortlist.places:
            if sound and most < best:
                break
            look, each = self._looking.look(at, this), None
            if look.sound:
                each = prospect(look, this)
                own = choosing.rank(prefer, each, choosing.utility(worth, each))
                if own > best:
                    best, sound = own, True
            looked.append((at, look, each))
        if len(looked) > 1:
            looked.sort(key=_PLACE)  # by the route's order, in which the first of several equal ones wins
        if seen is not None:
            seen.learned_order = shortlist.learned and len(looked) < len(shortlist.places)
        return self._compared([look for _, look, _ in looked], this, seen, [each for _, _, each in looked])

    def _shortlist(self, this: Asked, worth: choosing.Worth | Choose, prefer: Preference) -> shortlisting.Shortlist:
        kinds, destination, tables = this.kinds, this.destination, self._tables
        of = kinds[0] if destination.one_schema else tuple(kinds)
        key = (worth.quality_weight, worth.cost_weight, prefer.value, of, tables.labels)
        found = destination.shortlists.get(key)
        if found is None:
            options = destination.options
            expected = [
                tables.expected(option.key, option.version, kind) for option, kind in zip(options, kinds, strict=True)
            ]
            found = shortlisting.shortlist(worth, [option.version for option in options], expected, prefer)
            destination.shortlists.put(key, found)
        return found

    def _compared(
        self, looks: list[Look], this: Asked, seen: Seen | None, known: Sequence[choosing.Prospect | None] = ()
    ) -> Plan | YardError:
        """The plan with the best of what was looked at; what was not could not be better.

        Of those that are sound, how they would do may be `known`.
        """
        if seen is not None:
            seen.looks = looks
        prospects, (choice, left) = self._compare(looks, this, known)
        if isinstance(choice, choosing.NothingFits):
            return nothing_fits(this.destination, looks, this.rules)
        if seen is not None:
            seen.prospects, seen.budget_left = prospects, left
            seen.scores, seen.propensities = choice.scores, choice.propensities
        propensity = choice.propensities[choice.at] if choice.propensities else None
        return _planned(looks[choice.at], choice.reason, propensity, explored=choice.explored)

    def _compare(
        self, looks: Sequence[Look], this: Asked, known: Sequence[choosing.Prospect | None] = ()
    ) -> tuple[Sequence[choosing.Prospect], Compared]:
        put_off_doubtful(looks)
        known = known or (None,) * len(looks)
        prospects = [each or prospect(look, this) for look, each in zip(looks, known, strict=True)]
        return prospects, compare(
            prospects, this.call, this.destination, tables=self._tables, draw=this.draw, rules=this.rules
        )

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
        this = asked(call, destination, now_s=now_s, remaining_s=remaining_s, draw=draw, excluded=(), rules=rules)
        looks = [self._looking.look(at, this) for at in range(len(destination.options))]
        prospects, (choice, _) = self._compare(looks, this)
        scores: Iterable[float] = [0.0] * len(looks)
        propensities: tuple[float, ...] = ()
        if isinstance(choice, choosing.Choice):
            scores, propensities = choice.scores, choice.propensities
        return tuple(
            CandidateView(
                look.option.version,
                look.filtered,
                score,
                None if look.pick is None else look.pick.predicted_s,
                self._looking.scores(look, now_s, rules),
                look.expected,
                each.late if look.expected is not None and not look.filtered else None,
                propensities[at] if propensities else None,
            )
            for at, (look, score, each) in enumerate(zip(looks, scores, prospects, strict=True))
        )


def _planned(look: Look, reason: str, propensity: float | None = None, *, explored: bool = False) -> Plan:
    pick = look.pick
    assert pick is not None
    record = look.option.hosts[look.states.index(pick.state)]
    return Plan(
        look.option, pick.state, record, pick.predicted_s, reason, pick.probe, look.expected, propensity, explored
    )


def take(decision: Decision, plan: Plan) -> None:
    """Go by `plan` from now on."""
    told = decision.told
    if told is not None and not told.arm and decision.version is not plan.option.version:
        told.propensity, told.explored = None, False  # a retry on another one was not drawn
    decision.version = plan.option.version
    decision.host = plan.record
    decision.reason = plan.reason
    decision.probe = plan.probe
    decision.expected = plan.expected
    if plan.propensity is not None and (told is None or not told.arm):
        told = decision.telling
        told.propensity, told.explored = plan.propensity, plan.explored
