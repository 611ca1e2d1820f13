"""How one answer came about, as it is told to the caller, counted and logged."""

from dataclasses import dataclass, field
from typing import NamedTuple

from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.objects import ModelVersion
from services.domain.service_class import ORDINARY, ServiceClass
from services.policy.admission import DeadlineSource
from services.policy.scoring import HostScore


class Attempt(NamedTuple):
    """One try at one host; `error` is None if it answered."""

    host_id: str
    duration_s: float
    error: YardError | None


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One version that was looked at."""

    version: ModelVersion
    filtered: str
    score: float
    predicted_s: float | None
    hosts: tuple[HostScore, ...]


@dataclass(slots=True)
class Stages:
    """Seconds by stage; None where a stage did not happen."""

    choose_s: float = 0.0
    queue_s: float | None = None
    compute_s: float | None = None
    network_s: float | None = None
    total_s: float | None = None


@dataclass(slots=True)
class Decision:
    """One decision; filled as the call goes on."""

    route: str
    request_id: str
    trace_id: str
    deadline_s: float
    deadline_source: DeadlineSource
    strategy: str
    registry_revision: int = 0
    service_class: ServiceClass = ORDINARY
    version: ModelVersion | None = None
    """None as long as nothing is chosen."""
    host: HostRecord | None = None
    reason: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)
    batch_size: int = 0
    candidates: tuple[CandidateView, ...] = ()
    """Only where the caller asked for an explanation."""
