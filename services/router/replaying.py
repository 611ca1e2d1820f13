"""Decides again what a decision log says was decided, and compares. No I/O.

Runs the router's own planner, views and policies on what was logged and on the objects of the revision that the log
names: there is no second implementation that could agree with the log while the router does not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from google.protobuf.message import Message

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.inference.v1.inference_pb2 import CacheStatus
from services.chassis.codec import record_from, service_class_from
from services.domain.errors import InvalidRequest, ModelNotFound, NotSupported, VersionNotFound
from services.domain.host import HostRecord
from services.domain.model import ModelKey, TensorMeta
from services.domain.objects import RouteTarget
from services.domain.request import InferCall
from services.domain.rng import KeyedRng
from services.domain.rules import Money, Rules
from services.domain.strategies import Split
from services.policy.balancing import Draw
from services.policy.scoring import VersionState
from services.policy.splitting import arm_of, hash_key
from services.router.destination import Destination, Option
from services.router.host_picking import Fleet
from services.router.log_entries import FORMAT, result_of, settled_of
from services.router.log_escalations import Field, escalation_differing
from services.router.log_evidence import LoggedTables
from services.router.log_profiles import PREFERENCES
from services.router.log_states import state_from, unknown
from services.router.planning import Planner, Seen
from services.router.settling import settle
from services.router.snapshot import Objects, Snapshot
from services.router.strategies.course import draw_key
from services.router.wire import options_of

T = TypeVar("T")

_PREFERS = {number: preference for preference, number in PREFERENCES.items()}


class Unreadable(Exception):
    """The file is no decision log of this format; says why."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is decided otherwise now."""

    entry: int
    """Which entry of its file, from 1."""
    what: str
    """`call`, `choice`, `escalation`, `arm` or `answer`."""
    call: int
    request_id: str
    name: str
    revision: int
    now_s: float
    fields: tuple[Field, ...]


@dataclass(slots=True)
class Tally:
    """What a replay has come to."""

    calls: int = 0
    choices: int = 0
    outcomes: int = 0
    labels: int = 0
    dropped: int = 0
    differences: int = 0
    first: Difference | None = None
    unknown_revisions: dict[int, int] = field(default_factory=dict)
    """Choices and calls that could not be decided again, by the revision whose objects are missing."""
    policies: set[str] = field(default_factory=set)
    """Versions of the code that decided."""


@dataclass(slots=True)
class _Call:
    logged: pb.LogCall
    rules: Rules
    arm: tuple[str, float] | None
    """As it is decided now; None if the route is no split down to a model."""
    keeps: bool = False
    """Whether a route on its way keeps answers."""
    decided: bool = False
    """Whether it was decided anew."""


class _Book:
    """States as they were logged."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, ModelKey], VersionState] = {}
        self._of_option: dict[Option, Sequence[VersionState]] = {}

    def take(self, states: Iterable[pb.LogState]) -> None:
        """Go on to the next choice, before which these changed."""
        self._of_option.clear()
        for state in states:
            self._logged[state.host, ModelKey(state.key.model, state.key.version)] = state_from(state)

    def states(self, option: Option) -> Sequence[VersionState]:
        """As `planning.Book`; a state that was not read then stands there as that of a new host."""
        found = self._of_option.get(option)
        if found is None:
            found = self._of_option[option] = [
                self._logged.get((record.host_id, option.key)) or unknown(option, at)
                for at, record in enumerate(option.hosts)
            ]
        return found


class Replay:
    """Goes through the entries of one file."""

    def __init__(self, objects: Callable[[int], Objects | None], tally: Tally) -> None:
        """Go by `objects` of a revision, None where they are not known; count in `tally`."""
        self._objects = objects
        self._tally = tally
        self._entry = 0
        self._rng = KeyedRng(0)
        self._book = _Book()
        self._tables = LoggedTables()
        self._planner: Planner | None = None
        self._hosts: Mapping[str, HostRecord] = {}
        self._profiles: dict[int, InferCall] = {}
        self._calls: dict[int, _Call] = {}
        self._views: dict[int, Snapshot] = {}

    @property
    def begun(self) -> bool:
        """Whether there was a header."""
        return self._planner is not None

    def take(self, entry: pb.LogEntry) -> None:
        """Go one entry on.

        Raises:
            Unreadable: The file is of another format, or refers to what it does not have.
        """
        self._entry += 1
        which = entry.WhichOneof("entry")
        if (self._planner is None) != (which == "header"):
            raise Unreadable("not a decision log: it does not begin with a header")
        match which:
            case "header":
                self._take_header(entry.header)
            case "fleet":
                self._take_fleet(entry.fleet)
            case "profile":
                self._profiles[entry.profile.number] = _call_from(entry.profile)
            case "call":
                self._take_call(entry.call)
            case "choice":
                self._take_choice(entry.choice)
            case "outcome":
                self._take_outcome(entry.outcome)
            case "escalation":
                self._take_escalation(entry.escalation)
            case "gap":
                self._tally.dropped += entry.gap.dropped
            case "label":
                self._tally.labels += 1

    def _take_header(self, header: pb.LogHeader) -> None:
        if header.format != FORMAT:
            raise Unreadable(f"its format is '{header.format[:60]}', not {FORMAT}")
        self._rng = KeyedRng(header.seed)
        fleet = Fleet(routers=header.routers, zone=header.zone, zone_way_s=header.zone_way_s)
        self._planner = Planner(self._book, fleet, self._rng, self._tables)
        self._tally.policies.add(header.policy_version)

    def _named(self, known: Mapping[int, T], number: int, what: str) -> T:
        """What an entry refers to."""
        found = known.get(number)
        if found is None:
            raise Unreadable(f"entry {self._entry} refers to {what} {number}, which is not in the file")
        return found

    def _take_fleet(self, fleet: pb.LogFleet) -> None:
        hosts = {host_id: record for host_id, record in self._hosts.items() if host_id not in fleet.gone}
        hosts.update((message.host_id, record_from(message)) for message in fleet.listed)
        self._hosts = hosts
        self._views.clear()

    def _view(self, revision: int) -> Snapshot | None:
        """What was seen then; None if the objects are not known, and then it is counted."""
        view = self._views.get(revision)
        if view is None:
            objects = self._objects(revision)
            if objects is None:
                missing = self._tally.unknown_revisions
                missing[revision] = missing.get(revision, 0) + 1
                return None
            view = self._views[revision] = Snapshot(objects, self._hosts)
        return view

    def _take_call(self, logged: pb.LogCall) -> None:
        profile = self._named(self._profiles, logged.profile, "profile")
        call = profile._replace(request_id=logged.request_id, trace_id=logged.trace_id)
        known = _Call(logged, Rules(service_class_from(logged.settled.service_class)), None)
        self._calls[logged.sequence] = known
        view = self._view(logged.revision)
        if view is None:
            return
        self._tally.calls += 1
        try:
            destination = view.destination(call.name, call.version)
            left_s = logged.remaining_s if logged.HasField("remaining_s") else None
            rules, allowed = settle(call, view, destination, left_s)
            known.rules = rules
            settled = settled_of(allowed.duration_s, allowed.source, rules.service_class, destination.strategy)
        except (ModelNotFound, VersionNotFound, NotSupported, InvalidRequest) as error:
            self._differ(
                "call", logged, [_refused(error)], name=call.name, revision=logged.revision, now_s=logged.start_s
            )
            return
        known.decided = True
        known.arm, known.keeps = self._arm(call, destination), _keeps(destination)
        if settled.SerializeToString() != logged.settled.SerializeToString():
            fields = list(_differing(logged.settled, settled))
            self._differ("call", logged, fields, name=call.name, revision=logged.revision, now_s=logged.start_s)

    def _arm(self, call: InferCall, destination: Destination) -> tuple[str, float] | None:
        """The part that the call falls into, by the last split on its way."""
        found = None
        while isinstance(split := destination.route.strategy, Split):
            options, name = call.options, destination.name
            key = hash_key(split, session=options.session, tenant=options.tenant, request_id=call.request_id)
            arm = arm_of(split, lambda part, key=key, name=name: self._rng.unit(key, f"split/{name}/{part}"))  # type: ignore[misc]
            found, destination = (arm.name, arm.propensity), destination.callees[arm.at]
        return found if destination.choice is not None else None

    def _take_choice(self, logged: pb.LogChoice) -> None:
        self._book.take(logged.states)
        for evidence in logged.evidence:
            self._tables.take(evidence)
        self._tables.budget_left = logged.error_budget_left
        view = self._view(logged.revision)
        if view is None:
            return
        self._tally.choices += 1
        call = self._named(self._profiles, logged.profile, "profile")
        of = self._named(self._calls, logged.call, "call").logged
        try:
            if logged.HasField("target"):
                destination = view.target(RouteTarget(logged.target.model, logged.target.version))
            else:
                destination = view.destination(call.name, call.version)
            result = self._decide(logged, call._replace(request_id=of.request_id, trace_id=of.trace_id), destination)
        except (ModelNotFound, VersionNotFound, NotSupported, InvalidRequest) as error:
            self._differ("choice", of, [_refused(error)], name=call.name, revision=logged.revision, now_s=logged.now_s)
            return
        if result.SerializeToString() != logged.result.SerializeToString():
            fields = list(_differing(logged.result, result))
            self._differ("choice", of, fields, name=call.name, revision=logged.revision, now_s=logged.now_s)

    def _decide(self, logged: pb.LogChoice, call: InferCall, destination: Destination) -> pb.LogResult:
        assert self._planner is not None
        if destination.choice is None:
            raise NotSupported(f"'{destination.name}' leads over others")
        rules = self._calls[logged.call].rules
        if logged.HasField("service_class"):
            rules = replace(rules, service_class=service_class_from(logged.service_class))
        if logged.HasField("left_microusd"):
            weight = logged.cost_weight if logged.HasField("cost_weight") else None
            rules = replace(rules, money=Money(logged.left_microusd, weight))
        draw = Draw(lambda purpose: self._rng.bits(draw_key(call), f"{purpose}/{logged.number}"), logged.number)
        seen = Seen()
        plan = self._planner.plan(
            call,
            destination,
            now_s=logged.now_s,
            remaining_s=logged.remaining_s,
            draw=draw,
            excluded=tuple(logged.excluded),
            rules=rules,
            seen=seen,
            only=_looked_at(logged, destination) if logged.learned_order else None,
        )
        return result_of(seen, plan, draw.drawn)

    def _take_escalation(self, logged: pb.LogEscalation) -> None:
        known = self._named(self._calls, logged.call, "call")
        if logged.HasField("agreed"):
            return  # it was learned, not decided
        view = self._view(known.logged.revision)
        if view is None:
            return
        self._tally.choices += 1
        fields = escalation_differing(logged, view.objects.routes.get(logged.route), known.rules)
        if fields:
            of = known.logged
            self._differ("escalation", of, fields, name=logged.route, revision=of.revision, now_s=of.start_s)

    def _take_outcome(self, logged: pb.LogOutcome) -> None:
        self._tally.outcomes += 1
        known = self._calls.get(logged.call)
        if known is None or not known.decided:
            return
        fields = []
        if known.arm is not None:
            name, propensity = known.arm
            if logged.arm != name:
                fields.append(Field("arm", logged.arm, name))
            if logged.propensity != propensity:
                fields.append(Field("propensity", repr(logged.propensity), repr(propensity)))
        if logged.cache and not known.keeps:
            fields.append(Field("cache", CacheStatus.Name(logged.cache), "the route keeps no answers"))
        if fields:
            of = known.logged
            self._differ(
                "arm" if known.arm is not None else "answer",
                of,
                fields,
                name=self._profiles[of.profile].name,
                revision=of.revision,
                now_s=of.start_s,
            )

    def _differ(
        self, what: str, of: pb.LogCall, fields: Sequence[Field], *, name: str, revision: int, now_s: float
    ) -> None:
        self._tally.differences += 1
        if self._tally.first is None:
            self._tally.first = Difference(
                self._entry, what, of.sequence, of.request_id, name, revision, now_s, tuple(fields)
            )


def _looked_at(logged: pb.LogChoice, destination: Destination) -> list[int]:
    """Places of the options that were looked at: what was known of the others is not logged."""
    places = {option.key: at for at, option in enumerate(destination.options)}
    keys = [ModelKey(each.key.model, each.key.version) for each in logged.result.candidates]
    return sorted(places[key] for key in keys if key in places)


def _keeps(destination: Destination) -> bool:
    return destination.route.cache is not None or any(map(_keeps, destination.callees))


def _refused(error: ModelNotFound | VersionNotFound | NotSupported | InvalidRequest) -> Field:
    return Field("", "decided", f"{type(error).__name__}: {error.message}")


def _differing(logged: Message, now: Message, path: str = "") -> Iterator[Field]:
    """Fields that are not the same, the innermost ones."""
    for spec in logged.DESCRIPTOR.fields:
        at = f"{path}{spec.name}"
        before, after = getattr(logged, spec.name), getattr(now, spec.name)
        if spec.is_repeated:
            if len(before) != len(after):
                yield Field(at, f"{len(before)} of them", f"{len(after)} of them")
            for index, (one, other) in enumerate(zip(before, after, strict=False)):
                yield from _differing(one, other, f"{at}[{index}].")
        elif spec.message_type is not None:
            yield from _differing(before, after, f"{at}.")
        elif spec.has_presence and logged.HasField(spec.name) != now.HasField(spec.name):
            yield Field(
                at, *(repr(getattr(each, spec.name)) if each.HasField(spec.name) else "-" for each in (logged, now))
            )
        elif before != after:
            yield Field(at, _text(before), _text(after))


def _text(value: object) -> str:
    """A value with every digit that it has."""
    return value if isinstance(value, str) else repr(value)


def _call_from(profile: pb.LogProfile) -> InferCall:
    """A call as decisions see it; ids are the call's own."""
    options = profile.options
    inputs = tuple(
        TensorMeta(
            each.name,
            each.datatype,
            tuple(each.shape),
            each.raw_bytes if each.HasField("raw_bytes") else None,
            each.typed_count if each.HasField("typed_count") else None,
        )
        for each in profile.inputs
    )
    wishes = options_of(options, _PREFERS[options.prefer])
    timeout_s = profile.timeout_s if profile.HasField("timeout_s") else None
    return InferCall(profile.name, profile.version, "", inputs, wishes, timeout_s, "", None)
