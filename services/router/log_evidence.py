"""What had been learned of versions, as it stands in a log: values in, messages out, and back."""

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.type.v1 import model_pb2
from services.domain.model import ModelKey
from services.domain.objects import ModelVersion
from services.policy.complexity import Kind
from services.policy.learning import NO_EVIDENCE, Evidence, Expected, Moments, Seen, expectation


def evidence_to(key: ModelKey, evidence: Evidence) -> pb.LogEvidence:
    """It as it is logged."""
    return pb.LogEvidence(
        key=model_pb2.ModelKey(model=key.model, version=key.version),
        cell=_seen_to(evidence.cell),
        domain=_seen_to(evidence.domain),
        usual=_moments_to(evidence.usual),
    )


def evidence_from(message: pb.LogEvidence) -> Evidence:
    """It as it was read."""
    return Evidence(_seen_from(message.cell), _seen_from(message.domain), _moments_from(message.usual))


class LoggedTables:
    """What was known when a choice was made, in the place of the tables that knew it."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._evidence: dict[ModelKey, Evidence] = {}
        self.budget_left = 0.0
        """Of the route's error budget, as it was read for the choice."""
        self.labels = 0
        """As `expecting.Expects`."""

    def take(self, message: pb.LogEvidence) -> None:
        """From now on this is known of a version."""
        self._evidence[ModelKey(message.key.model, message.key.version)] = evidence_from(message)
        self.labels += 1

    def expected(self, key: ModelKey, version: ModelVersion, kind: Kind) -> Expected:
        """As `planning.Expects`."""
        return expectation(self._evidence.get(key, NO_EVIDENCE), version, kind)

    def error_budget_left(self, route: str, objective: float) -> float:
        """As `expecting.Expects`."""
        return self.budget_left


def _seen_to(seen: Seen) -> pb.LogSeen:
    return pb.LogSeen(quality=_moments_to(seen.quality), cost=_moments_to(seen.cost), time=_moments_to(seen.time))


def _seen_from(message: pb.LogSeen) -> Seen:
    return Seen(_moments_from(message.quality), _moments_from(message.cost), _moments_from(message.time))


def _moments_to(moments: Moments) -> pb.LogMoments | None:
    """None if nothing was seen."""
    if not moments.weight:
        return None
    return pb.LogMoments(weight=moments.weight, mean=moments.mean, variance=moments.variance)


def _moments_from(message: pb.LogMoments) -> Moments:
    return Moments(message.weight, message.mean, message.variance)
