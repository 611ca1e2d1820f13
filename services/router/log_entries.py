"""Decisions as entries of a log: domain values in, bytes of one file out.

What calls have in common is written once a file and referred to; of states and hosts only what has changed since.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import model_pb2, service_class_pb2
from services.chassis.codec import record_to, service_class_to
from services.chassis.encoding import varint
from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.domain.objects import RouteTarget
from services.domain.rules import Money
from services.domain.service_class import ServiceClass
from services.policy.admission import DeadlineSource
from services.policy.learning import Evidence
from services.router.decision import Attempt, Cached
from services.router.decision_wire import CACHED, attempt_status
from services.router.labelling import Labelled
from services.router.log_escalations import Audited, Weighed, escalation_of
from services.router.log_evidence import evidence_to
from services.router.log_profiles import Profile, profile_to
from services.router.log_states import Facts, Taken, message_of
from services.router.planning import Plan, Seen
from services.router.snapshot import Snapshot

FORMAT = "modelyard.decision-log/1"

PROFILES = 4096
"""Most profiles that a file keeps apart: callers may make up as many as they like, and numbers are then used again."""

SOURCES = {source: inference_pb2.DeadlineSource.Value(f"DEADLINE_SOURCE_{source.value}") for source in DeadlineSource}


@dataclass(slots=True)
class Begun:
    """A call as it began."""

    sequence: int
    start_s: float
    revision: int
    profile: Profile
    request_id: str
    trace_id: str
    remaining_s: float | None
    deadline_s: float
    deadline_source: DeadlineSource
    service_class: ServiceClass
    strategy: str
    written_in: int = 0
    """The last file that it was written in; the writer's."""


class Chosen(NamedTuple):
    """A choice, or that there was none."""

    begun: Begun
    snapshot: Snapshot
    profile: Profile
    target: RouteTarget | None
    now_s: float
    remaining_s: float
    number: int
    drawn: int | None
    excluded: Collection[str]
    service_class: ServiceClass
    taken: list[Taken]
    seen: Seen
    plan: Plan | YardError
    money: Money | None


class Ended(NamedTuple):
    """How a call ended."""

    begun: Begun
    status: str
    duration_s: float
    arm: str
    propensity: float | None
    attempts: tuple[Attempt, ...]
    queue_s: float | None
    compute_s: float | None
    batch_size: int
    cached: Cached | None


class LabelCame(NamedTuple):
    """A label, and when it came; monotonic seconds."""

    labelled: Labelled
    now_s: float


Item = Chosen | Ended | Weighed | Audited | LabelCame


@dataclass(frozen=True, slots=True)
class Origin:
    """What holds for the router all the time."""

    router: str
    release: str
    policy_version: str
    seed: int
    routers: int
    zone: str
    zone_way_s: float
    ratio: float


class Entries:
    """Makes the entries of one file after another."""

    def __init__(self, origin: Origin) -> None:
        """Of the router `origin`; `begin` comes first."""
        self._origin = origin
        self._file = 0
        self._hosts: Mapping[str, HostRecord] = {}
        self._profiles: dict[Profile, int] = {}
        self._facts: dict[tuple[str, ModelKey], Facts] = {}
        self._evidence: dict[ModelKey, Evidence] = {}

    def begin(self, *, wall_s: float, now_s: float) -> bytes:
        """Start a file, at a time of day that is `now_s` on the monotonic clock; its first entry."""
        self._file += 1
        self._hosts = {}
        self._profiles.clear()
        self._facts.clear()
        self._evidence.clear()
        origin = self._origin
        header = pb.LogHeader(
            format=FORMAT,
            router=origin.router,
            release=origin.release,
            policy_version=origin.policy_version,
            seed=origin.seed,
            routers=origin.routers,
            zone=origin.zone,
            zone_way_s=origin.zone_way_s,
            ratio=origin.ratio,
            start=Timestamp(seconds=int(wall_s), nanos=int(wall_s % 1.0 * 1e9)),
            start_s=now_s,
        )
        return _entry("header", header)

    def gap(self, dropped: int) -> bytes:
        """So many are missing."""
        return _entry("gap", pb.LogGap(dropped=dropped))

    def chosen(self, chosen: Chosen) -> bytes:
        """A choice, after whatever it refers to."""
        parts: list[bytes] = []
        begun = chosen.begun
        self._introduce(begun, parts)
        if chosen.snapshot.hosts is not self._hosts:
            self._turn_to(chosen.snapshot.hosts, parts)
        choice = pb.LogChoice(
            call=begun.sequence,
            now_s=chosen.now_s,
            remaining_s=chosen.remaining_s,
            revision=chosen.snapshot.revision,
            profile=self._number(chosen.profile, parts),
            target=None if chosen.target is None else _key(chosen.target),
            number=chosen.number,
            excluded=chosen.excluded,
            service_class=None
            if chosen.service_class is begun.service_class
            else service_class_to(chosen.service_class),
            result=result_of(chosen.seen, chosen.plan, chosen.drawn),
            error_budget_left=chosen.seen.budget_left,
            learned_order=chosen.seen.learned_order,
        )
        if (money := chosen.money) is not None:
            choice.left_microusd = money.left_microusd
            if money.cost_weight is not None:
                choice.cost_weight = money.cost_weight
        for taken in chosen.taken:
            at = (taken.record.host_id, taken.key)
            if self._facts.get(at) != taken.facts:
                self._facts[at] = taken.facts
                choice.states.append(message_of(taken))
        for look in chosen.seen.looks:
            if look.expected is not None and self._evidence.get(look.option.key) != look.expected.evidence:
                self._evidence[look.option.key] = look.expected.evidence
                choice.evidence.append(evidence_to(look.option.key, look.expected.evidence))
        parts.append(_entry("choice", choice))
        return b"".join(parts)

    def ended(self, ended: Ended) -> bytes:
        """How a call ended; before that the call, if no choice was made for it."""
        parts: list[bytes] = []
        begun = ended.begun
        if not begun.written_in:
            begun.written_in = self._file
            parts.append(self._call(begun, parts))
        attempts = [
            pb.LogAttempt(host=each.host_id, status=attempt_status(each), duration_s=each.duration_s)
            for each in ended.attempts
        ]
        outcome = pb.LogOutcome(
            call=ended.begun.sequence,
            status=ended.status,
            duration_s=ended.duration_s,
            arm=ended.arm,
            propensity=ended.propensity,
            attempts=attempts,
            queue_s=ended.queue_s,
            compute_s=ended.compute_s,
            batch_size=ended.batch_size,
            cache=_UNCACHED if ended.cached is None else CACHED[ended.cached.status],
        )
        parts.append(_entry("outcome", outcome))
        return b"".join(parts)

    def labelled(self, labelled: Labelled, now_s: float) -> bytes:
        """A label."""
        label, kind = labelled.label, labelled.kind
        message = pb.LogLabel(
            request_id=label.request_id,
            now_s=now_s,
            route=labelled.route,
            key=_key(labelled.key),
            domain=kind.domain,
            complexity=kind.complexity,
            quality=label.quality,
            metric=label.metric,
            segment=label.segment,
            cost_microusd=label.cost_microusd,
            learned=not labelled.reason,
        )
        return _entry("label", message)

    def entry(self, item: Item) -> bytes:
        """Whatever it is."""
        match item:
            case Chosen():
                return self.chosen(item)
            case Ended():
                return self.ended(item)
            case LabelCame():
                return self.labelled(item.labelled, item.now_s)
            case _:
                parts: list[bytes] = []
                self._introduce(item.begun, parts)
                parts.append(_entry("escalation", escalation_of(item, item.begun.sequence)))
                return b"".join(parts)

    def _introduce(self, begun: Begun, parts: list[bytes]) -> None:
        """Write the call before what refers to it, unless this file has it."""
        if begun.written_in != self._file:
            begun.written_in = self._file
            parts.append(self._call(begun, parts))

    def _call(self, begun: Begun, parts: list[bytes]) -> bytes:
        call = pb.LogCall(
            sequence=begun.sequence,
            start_s=begun.start_s,
            revision=begun.revision,
            profile=self._number(begun.profile, parts),
            request_id=begun.request_id,
            trace_id=begun.trace_id,
            remaining_s=begun.remaining_s,
            settled=settled_of(begun.deadline_s, begun.deadline_source, begun.service_class, begun.strategy),
        )
        return _entry("call", call)

    def _number(self, profile: Profile, parts: list[bytes]) -> int:
        """By which the file refers to a profile."""
        number = self._profiles.get(profile)
        if number is None:
            if len(self._profiles) >= PROFILES:
                self._profiles.clear()
            number = self._profiles[profile] = len(self._profiles)
            parts.append(_entry("profile", profile_to(number, profile)))
        return number

    def _turn_to(self, hosts: Mapping[str, HostRecord], parts: list[bytes]) -> None:
        before, self._hosts = self._hosts, hosts
        listed = [record_to(record) for host_id, record in hosts.items() if before.get(host_id) != record]
        gone = [host_id for host_id in before if host_id not in hosts]
        if listed or gone:
            parts.append(_entry("fleet", pb.LogFleet(listed=listed, gone=gone)))


_UNCACHED = inference_pb2.CACHE_STATUS_UNSPECIFIED
_TAGS = {field.name: varint(field.number << 3 | 2) for field in pb.LogEntry.DESCRIPTOR.fields}


def _entry(kind: str, message: Message) -> bytes:
    """A LogEntry as it stands in a file, around an encoded message: to copy it into another one takes as long again."""
    raw = message.SerializeToString()
    head = _TAGS[kind] + varint(len(raw))
    return b"".join((varint(len(head) + len(raw)), head, raw))


@lru_cache(1024)
def _class_to(service_class: ServiceClass) -> service_class_pb2.ServiceClass:
    """Kept: there are few, and all calls have one."""
    return service_class_to(service_class)


def settled_of(deadline_s: float, source: DeadlineSource, service_class: ServiceClass, strategy: str) -> pb.LogSettled:
    """What came out for a whole call."""
    return pb.LogSettled(
        deadline_s=deadline_s,
        deadline_source=SOURCES[source],
        service_class=_class_to(service_class),
        strategy=strategy,
    )


def result_of(seen: Seen, plan: Plan | YardError, drawn: int | None) -> pb.LogResult:
    """What came out of a choice."""
    scores = seen.scores or (0.0,) * len(seen.looks)
    candidates = []
    for at, (look, score) in enumerate(zip(seen.looks, scores, strict=True)):
        candidate = pb.LogCandidate(key=_key(look.option.key), filtered=look.filtered, score=score)
        if look.pick is not None:
            candidate.host = look.pick.state.host.host_id
            candidate.predicted_s, candidate.penalty_s = look.pick.predicted_s, look.pick.penalty_s
        if (expected := look.expected) is not None:
            if expected.quality is not None:
                candidate.quality = expected.quality
            candidate.cost_microusd = expected.cost_microusd
            candidate.service_s, candidate.p95_s = expected.service_s, expected.p95_s
            if seen.prospects and not look.filtered:
                candidate.late = seen.prospects[at].late
            if seen.propensities:
                candidate.propensity = seen.propensities[at]
        candidates.append(candidate)
    result = pb.LogResult(candidates=candidates, drawn=drawn)
    if isinstance(plan, Plan):
        result.chosen = next(at for at, look in enumerate(seen.looks) if look.option is plan.option)
        result.host, result.predicted_s, result.reason = plan.record.host_id, plan.predicted_s, plan.reason
    else:
        result.reason = f"{type(plan).__name__}: {plan.message}"
    return result


def _key(key: ModelKey | RouteTarget) -> model_pb2.ModelKey:
    return model_pb2.ModelKey(model=key.model, version=key.version)
