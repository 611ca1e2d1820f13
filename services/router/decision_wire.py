"""domain → protobuf for the router: decisions out, encoded by hand where every call has one."""

from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from modelyard.inference.v1 import inference_pb2 as pb
from services.chassis.codec import duration_to, service_class_to
from services.chassis.encoding import varint
from services.chassis.errors import status_of
from services.domain.caching import CacheStatus
from services.domain.host import HostRecord
from services.domain.objects import ModelVersion
from services.domain.service_class import ORDINARY
from services.policy.admission import DeadlineSource
from services.policy.circuit import CircuitState
from services.router.decision import Attempt, CandidateView, Decision, StepView, Told

DECISION_KEY = "x-modelyard-decision"
"""Trailing metadata that says the essentials: `route/model:version@host`, then `key=value` pairs."""

_SOURCES = {
    DeadlineSource.CALLER: pb.DEADLINE_SOURCE_CALLER,
    DeadlineSource.ROUTE_DEFAULT: pb.DEADLINE_SOURCE_ROUTE_DEFAULT,
    DeadlineSource.ROUTE_MAXIMUM: pb.DEADLINE_SOURCE_ROUTE_MAXIMUM,
    DeadlineSource.TIMEOUT_PARAMETER: pb.DEADLINE_SOURCE_TIMEOUT_PARAMETER,
}

_CIRCUITS = {state: pb.CircuitState.Value(f"CIRCUIT_STATE_{state.value}") for state in CircuitState}


CACHED = {status: pb.CacheStatus.Value(f"CACHE_STATUS_{status.value}") for status in CacheStatus}


class _Told(NamedTuple):
    """What all decisions for one version on one host have in common."""

    version: ModelVersion
    host: HostRecord
    encoded: bytes
    """As part of a Decision."""
    text: str
    """As the beginning of the trailing metadata."""


# Tags of Decision, StageTimes and Attempt, checked against the contract by a test.
_REASON, _ATTEMPTS, _STAGES, _BATCH_SIZE = b"\x42", b"\x4a", b"\x52", b"\x58"
_DEADLINE, _DEADLINE_SOURCE, _TRACE_ID, _REQUEST_ID = b"\x72", b"\x78", b"\x82\x01", b"\x8a\x01"
_CHOOSE, _QUEUE, _COMPUTE, _NETWORK, _TOTAL = b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a"
_HOST, _OK, _DURATION, _HEDGE = b"\x0a", b"\x12\x02OK", b"\x1a", b"\x28\x01"
_PROBE = b"\xa0\x02\x01"

_TOLD_KEPT = 4096
_told: dict[tuple[str, str, str, str, int, bool], _Told] = {}


def _told_of(decision: Decision, version: ModelVersion, host: HostRecord) -> _Told:
    """What is the same for call after call, encoded once."""
    route, model, revision = decision.route, version.metadata.name, decision.registry_revision
    known = decision.cached is not None and decision.cached.known
    key = (route, model, version.version, host.host_id, revision, known)
    told = _told.get(key)
    if told is None or told.version is not version or told.host is not host:
        message = pb.Decision(
            route=route,
            registry_revision=revision,
            strategy=decision.strategy,
            model=model,
            version=version.version,
            host=host.host_id,
            zone=host.zone,
            cost_microusd=0 if known else version.cost_microusd,
            quality=version.quality,
        )
        text = f"{route}/{model}:{version.version}@{host.host_id}; strategy={decision.strategy}; "
        if len(_told) >= _TOLD_KEPT:
            _told.clear()
        told = _told[key] = _Told(version, host, message.SerializeToString(), text)
    return told


def trailing_metadata(decision: Decision) -> tuple[tuple[str, str], ...]:
    """The essentials of a decision, for callers that read no Decision."""
    version, host, told = decision.version, decision.host, decision.told
    if version is None or host is None:
        begin = f"{decision.route}; strategy={decision.strategy}; "
    else:
        begin = _told_of(decision, version, host).text
    if told is not None:
        begin += f"arm={told.arm}; " if told.arm else ""
        begin += "degraded=true; " if told.degraded_reason else ""
    if decision.cached is not None:
        begin += f"cache={decision.cached.status.value}; "
    return (
        (
            DECISION_KEY,
            f"{begin}attempts={len(decision.attempts)}; "
            f"cost_microusd={decision.cost_microusd}; deadline={decision.deadline_source.value}; "
            f"trace={decision.trace_id}",
        ),
    )


def encode_decision(decision: Decision) -> bytes:
    """A Decision for its caller, encoded by hand: there is one for each call. Durations are to the microsecond."""
    version, host = decision.version, decision.host
    if version is None or host is None:
        known = pb.Decision(
            route=decision.route, registry_revision=decision.registry_revision, strategy=decision.strategy
        ).SerializeToString()
    else:
        known = _told_of(decision, version, host).encoded
    parts = [
        known,
        _text_field(_REASON, decision.reason),
        _text_field(_TRACE_ID, decision.trace_id),
        _text_field(_REQUEST_ID, decision.request_id),
        _DEADLINE,
        _duration(decision.deadline_s),
        _DEADLINE_SOURCE,
        varint(_SOURCES[decision.deadline_source]),
    ]
    if decision.batch_size:
        parts += (_BATCH_SIZE, varint(decision.batch_size))
    stages = decision.stages
    if stages.total_s is not None:
        times = [_CHOOSE, _duration(stages.choose_s), _TOTAL, _duration(stages.total_s)]
        if stages.queue_s is not None and stages.compute_s is not None and stages.network_s is not None:
            times += (
                _QUEUE, _duration(stages.queue_s), _COMPUTE, _duration(stages.compute_s),
                _NETWORK, _duration(stages.network_s),
            )  # fmt: skip
        encoded = b"".join(times)
        parts += (_STAGES, varint(len(encoded)), encoded)
    for attempt in decision.attempts:
        encoded = _encode_attempt(attempt)
        parts += (_ATTEMPTS, varint(len(encoded)), encoded)
    if decision.service_class is not ORDINARY:
        parts.append(pb.Decision(service_class=service_class_to(decision.service_class)).SerializeToString())
        if (cost_weight := decision.cost_weight) is not None:
            parts.append(pb.Decision(cost_weight=cost_weight).SerializeToString())
    if decision.probe:
        parts.append(_PROBE)
    if decision.told is not None:
        parts.append(_encode_told(decision.told))
    if decision.refusal:
        parts.append(pb.Decision(refusal=decision.refusal).SerializeToString())
    if (cached := decision.cached) is not None:
        age = None if cached.age_s is None else duration_to(cached.age_s)
        parts.append(pb.Decision(cache=CACHED[cached.status], cache_age=age).SerializeToString())
    if (expected := decision.expected) is not None:
        kind = expected.kind
        parts.append(
            pb.Decision(quality=expected.quality, domain=kind.domain, complexity=kind.complexity).SerializeToString()
        )
    if decision.candidates:
        parts.append(pb.Decision(candidates=map(_candidate_to, decision.candidates)).SerializeToString())
    return b"".join(parts)


def _encode_attempt(attempt: Attempt) -> bytes:
    if attempt.error is None:
        ended = pb.Attempt(status="CANCELLED").SerializeToString() if attempt.cancelled else _OK
    else:
        ended = pb.Attempt(status=attempt_status(attempt), message=attempt.error.message).SerializeToString()
    hedge = _HEDGE if attempt.hedge else b""
    return b"".join((_text_field(_HOST, attempt.host_id), ended, _DURATION, _duration(attempt.duration_s), hedge))


def _encode_told(told: Told) -> bytes:
    return pb.Decision(
        arm=told.arm,
        propensity=told.propensity,
        explored=told.explored,
        degraded_reason=told.degraded_reason,
        cost_microusd=told.cost_microusd or 0,
        steps=map(_step_to, told.steps),
    ).SerializeToString()


def _step_to(step: StepView) -> pb.DecisionStep:
    if step.dropped:
        status = "CANCELLED"
    elif step.duration_s is None:
        status = ""
    else:
        status = "OK" if step.error is None else status_of(step.error).name
    return pb.DecisionStep(
        name=step.name,
        model="" if step.version is None else step.version.metadata.name,
        version="" if step.version is None else step.version.version,
        host="" if step.host is None else step.host.host_id,
        status=status,
        duration=None if step.duration_s is None else duration_to(step.duration_s),
        reason=step.reason,
    )


def _text_field(tag: bytes, text: str) -> bytes:
    encoded = text.encode()
    return b"".join((tag, varint(len(encoded)), encoded)) if encoded else b""


def _duration(seconds: float) -> bytes:
    """A Duration with its length before it."""
    micros = int(seconds * 1e6)
    kept = _durations.get(micros)
    if kept is None:
        whole, rest = divmod(micros, 1_000_000)
        encoded = Duration(seconds=whole, nanos=1000 * rest).SerializeToString()
        kept = varint(len(encoded)) + encoded
        if len(_durations) >= _DURATIONS_KEPT:
            _durations.clear()
        _durations[micros] = kept
    return kept


_DURATIONS_KEPT = 65536
_durations: dict[int, bytes] = {}


def decision_to(decision: Decision) -> pb.Decision:
    """A Decision for its caller."""
    return pb.Decision.FromString(encode_decision(decision))


def attempt_status(attempt: Attempt) -> str:
    """Canonical name of the status that an attempt ended with."""
    if attempt.error is None:
        return "CANCELLED" if attempt.cancelled else "OK"
    return status_of(attempt.error).name


def _candidate_to(candidate: CandidateView) -> pb.Candidate:
    version, expected = candidate.version, candidate.expected
    return pb.Candidate(
        model=version.metadata.name,
        version=version.version,
        filtered=candidate.filtered,
        score=candidate.score,
        quality=version.quality if expected is None else expected.quality,
        cost_microusd=version.cost_microusd if expected is None else round(expected.cost_microusd),
        service_time=None if expected is None else duration_to(expected.service_s),
        service_time_p95=None if expected is None else duration_to(expected.p95_s),
        late=candidate.late,
        propensity=candidate.propensity,
        labels=0.0 if expected is None else expected.labels,
        answers=0.0 if expected is None else expected.answers,
        predicted=None if candidate.predicted_s is None else duration_to(candidate.predicted_s),
        hosts=[
            pb.HostScore(
                host=score.host_id,
                zone=score.zone,
                predicted=duration_to(score.predicted_s),
                backlog=score.backlog,
                penalty=duration_to(score.penalty_s),
                ejected=score.ejected,
                circuit=_CIRCUITS[score.circuit],
                trouble=score.trouble,
            )
            for score in candidate.hosts
        ],
    )
