"""One option as one call sees it: why it cannot be chosen, or which of its hosts would answer, and when."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.domain.model import schema_faults
from services.domain.objects import Single
from services.domain.request import NO_WISHES, InferCall
from services.domain.rng import KeyedRng
from services.domain.rules import Rules
from services.policy import balancing, choosing, scoring
from services.policy.admission import Reject, RejectReason, admit_to_host
from services.policy.complexity import Kind
from services.policy.learning import Expected
from services.policy.scoring import VersionState
from services.router.destination import Destination, Option
from services.router.expecting import Expects, kinds_of, prospect_of, unfit_of
from services.router.host_picking import Fleet, HostPicking
from services.router.unanswerable import no_host

CUT_RETRY_S = 1.0
"""When to try again while every host refuses the class: cutoffs move once a second."""


class Book(Protocol):
    """Who knows hosts."""

    def states(self, option: Option) -> Sequence[VersionState]:
        """What is known of the option's hosts, in their order."""
        ...


class Asked(NamedTuple):
    """One attempt of one call, for which options are looked at."""

    call: InferCall
    destination: Destination
    now_s: float
    remaining_s: float
    draw: balancing.Draw
    excluded: Collection[str]
    rules: Rules
    kinds: Sequence[Kind]
    """What kind of call it is for each option; empty where nothing depends on it."""
    unfit: Sequence[str]
    """Why the call does not go to each option, by what it is about; empty if nothing is said of that."""


def asked(
    call: InferCall,
    destination: Destination,
    *,
    now_s: float,
    remaining_s: float,
    draw: balancing.Draw,
    excluded: Collection[str],
    rules: Rules,
) -> Asked:
    """An attempt, with what kind of call it is where that matters."""
    kinds: Sequence[Kind] = ()
    unfit: Sequence[str] = ()
    if call.options is not NO_WISHES or not isinstance(destination.choice, Single):  # most are plain ones to one model
        kinds, unfit = kinds_of(call, destination), unfit_of(call, destination)
    return Asked(call, destination, now_s, remaining_s, draw, excluded, rules, kinds, unfit)


@dataclass(slots=True)
class Look:
    """What was seen of one option."""

    option: Option
    states: Sequence[VersionState]
    expected: Expected | None = None
    filtered: str = ""
    pick: balancing.Pick | None = None
    rejected: Reject | None = None
    no_host: bool = False
    unpaid: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether even its best host failed lately."""
        return self.pick is not None and self.pick.penalty_s >= scoring.DOUBT_S

    @property
    def sound(self) -> bool:
        """Whether it can answer, and nothing speaks against it."""
        return not self.filtered and not self.doubtful


class Looking:
    """Looks at options; one per router."""

    def __init__(self, book: Book, fleet: Fleet, rng: KeyedRng, tables: Expects) -> None:
        """Know hosts by `book` and versions by `tables`; sessions find their hosts by `rng`."""
        self._book = book
        self._routers = fleet.routers
        self._tables = tables
        self._picking = HostPicking(fleet, rng)

    def look(self, at: int, asked: Asked) -> Look:
        """Look at the option at that place in the destination's order."""
        call, destination, rules = asked.call, asked.destination, asked.rules
        option = destination.options[at]
        look = Look(option, self._book.states(option))
        if asked.kinds:
            look.expected = self._tables.expected(option.key, option.version, asked.kinds[at])
        if call.inputs and not destination.one_schema and (faults := schema_faults(call.inputs, option.model.inputs)):
            look.filtered = "; ".join(map(str, faults))
            return look
        if asked.unfit and asked.unfit[at]:
            look.filtered = asked.unfit[at]
            return look
        look.filtered = choosing.wish_unmet(option.version, call.options, look.expected)
        if rules.money is not None and not look.filtered:
            look.filtered = choosing.unpaid(option.version, rules)
            look.unpaid = bool(look.filtered)
        states = look.states
        zone, excluded = call.options.zone, asked.excluded
        if zone or excluded:
            states = [
                state
                for state, record in zip(states, option.hosts, strict=True)
                if zone in ("", record.zone) and record.host_id not in excluded
            ]
        if states:
            pick = self._pick(look, states, asked)
            if rules.protection.shedding and pick.state.host.cuts(rules.service_class.level, asked.now_s):
                self._pick_uncut(look, states, asked)
            else:
                look.pick = pick
            if look.pick is not None and look.pick.predicted_s > asked.remaining_s and not look.filtered:
                _admit(look, look.pick, asked.now_s, asked.remaining_s)
        elif not look.filtered:
            look.no_host = True
            look.filtered = no_host(option, zone, excluded)
        return look

    def scores(self, look: Look, now_s: float, rules: Rules) -> tuple[scoring.HostScore, ...]:
        """All hosts of an option, as they would be compared."""
        band, protection = rules.service_class.band, rules.protection
        return tuple(
            scoring.score(state, now_s, zone=record.zone, routers=self._routers, band=band, protection=protection)
            for state, record in zip(look.states, look.option.hosts, strict=True)
        )

    def _pick(self, look: Look, states: Sequence[VersionState], asked: Asked) -> balancing.Pick:
        options, draw = asked.call.options, asked.draw
        return self._picking.pick(
            look.option,
            look.states,
            states,
            now_s=asked.now_s,
            draw=draw,
            rules=asked.rules,
            session=options.session,
            # A probe may fail: it is a call's first attempt, and of a call that may have another.
            may_probe=options.idempotent and draw.number == 1,
        )

    def _pick_uncut(self, look: Look, states: Sequence[VersionState], asked: Asked) -> None:
        """Pick among hosts that do not refuse the class now; if all do, `look` says so."""
        service_class = asked.rules.service_class
        uncut = [state for state in states if not state.host.cuts(service_class.level, asked.now_s)]
        if uncut:
            look.pick = self._pick(look, uncut, asked)
            return
        look.rejected = Reject(RejectReason.QUEUE_TOO_LONG, CUT_RETRY_S)
        look.filtered = look.filtered or f"every host that has it refuses calls of band {service_class.band} now"


def _admit(look: Look, pick: balancing.Pick, now_s: float, remaining_s: float) -> None:
    verdict = admit_to_host(
        predicted_s=pick.predicted_s,
        idle_s=scoring.idle_s(pick.state, now_s),
        remaining_s=remaining_s,
        measured=pick.state.measured(now_s),
    )
    if isinstance(verdict, Reject):
        look.rejected = verdict
        look.filtered = f"predicted {pick.predicted_s * 1e3:.3g} ms, over the {max(0.0, remaining_s) * 1e3:.3g} ms left"


def prospect(look: Look, asked: Asked) -> choosing.Prospect:
    """How an option would do for the call."""
    if look.filtered or look.pick is None:
        return choosing.Prospect(look.option.version, look.filtered, expected=look.expected)
    return prospect_of(look.option, look.pick, look.expected, now_s=asked.now_s, remaining_s=asked.remaining_s)


def put_off_doubtful(looks: Sequence[Look]) -> None:
    """Leave out what only failing hosts can answer, if anything else can: each try there may cost a retry."""
    if len(looks) > 1 and any(look.sound for look in looks):
        for look in looks:
            if not look.filtered and look.doubtful and look.pick is not None:
                look.filtered = f"{look.pick.state.host.host_id}, its best host, failed lately"
