"""How one answer came about, as it is told to the caller, counted and logged."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from services.domain.caching import CacheStatus
from services.domain.errors import YardError
from services.domain.host import HostRecord
from services.domain.objects import ModelVersion
from services.domain.rules import NO_RULES, Rules
from services.domain.service_class import ServiceClass
from services.policy.admission import DeadlineSource
from services.policy.learning import Expected
from services.policy.pricing import Hold
from services.policy.scoring import HostScore

if TYPE_CHECKING:
    from services.router.recording import Record


class Attempt(NamedTuple):
    """One try at one host; `error` is None if it answered, or lost a race."""

    host_id: str
    duration_s: float
    error: YardError | None
    hedge: bool = False
    """It was sent while another was slow to answer."""
    cancelled: bool = False
    """Another answered first."""


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One version that was looked at."""

    version: ModelVersion
    filtered: str
    score: float
    predicted_s: float | None
    hosts: tuple[HostScore, ...]
    expected: Expected | None = None
    """What is expected of it for such a call; None where nothing had to be."""
    late: float | None = None
    """Chance that its answer would come too late; None where nothing was compared."""
    propensity: float | None = None
    """Chance that it is chosen; None where that is the best in any case."""


@dataclass(slots=True)
class Stages:
    """Seconds by stage; None where a stage did not happen."""

    choose_s: float = 0.0
    queue_s: float | None = None
    compute_s: float | None = None
    network_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepView:
    """One that a route asked on the way to its answer."""

    name: str
    """The step of a pipeline; else whom the route names."""
    version: ModelVersion | None
    host: HostRecord | None
    reason: str
    """Why this candidate; where there was no answer, why."""
    duration_s: float | None = None
    """None in a dry run."""
    error: YardError | None = None
    dropped: bool = False
    """It was not waited for."""


class Cached(NamedTuple):
    """What the answers that a route keeps had to do with one call."""

    status: CacheStatus
    age_s: float | None = None
    """Of a kept answer."""

    @property
    def known(self) -> bool:
        """Whether nothing was computed for it."""
        return self.status is CacheStatus.HIT or self.status is CacheStatus.COALESCED


class CopyEnded(NamedTuple):
    """What became of the copy of a call for a shadow."""

    route: str
    request_id: str
    outcome: str
    """`equal`, `different`, `other_shape`; `failed`; or which bound kept it from being made: `over_in_flight`,
    `over_bytes`, `over_budget`."""
    largest: float | None = None
    """Largest absolute difference of two numbers, if they could be subtracted."""
    why: str = ""
    """The output that differs, or the error."""


@dataclass(slots=True)
class Told:
    """What the strategy of a route that leads over others has to say."""

    arm: str = ""
    propensity: float | None = None
    explored: bool = False
    """Another version than the best was tried, by chance."""
    degraded_reason: str = ""
    steps: list[StepView] = field(default_factory=list)
    cost_microusd: int | None = None
    """Of every version that answered; None if that is the one of the decision."""
    begun: bool = False
    """A part of the answer has gone out."""
    copy: bool = False
    """It is for a shadow: what becomes of it must not make a host look worse to callers."""
    answerable: bool = False
    """In a dry run: there would be an answer, though of no single version."""


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
    rules: Rules = NO_RULES
    version: ModelVersion | None = None
    """None as long as nothing is chosen."""
    host: HostRecord | None = None
    reason: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)
    batch_size: int = 0
    candidates: tuple[CandidateView, ...] = ()
    """Only where the caller asked for an explanation."""
    told: Told | None = None
    """None where no strategy led over others."""
    refusal: str = ""
    """In a dry run: why the call would not be let in now; empty if it would."""
    cached: Cached | None = None
    """None where the route keeps no answers, or several were put together."""
    probe: bool = False
    """It went to a host that had been in trouble, to see."""
    racing: bool = False
    """While more than one attempt is under way."""
    record: "Record | None" = None
    """What is written down of it; None if nothing is."""
    expected: Expected | None = None
    """What was expected of the version for such a call; None where nothing had to be of any."""
    hold: Hold | None = None
    """What it is paid from; None if no budget bounds it."""

    @property
    def service_class(self) -> ServiceClass:
        """Whom it is for."""
        return self.rules.service_class

    @property
    def telling(self) -> Told:
        """`told`, to be written to."""
        if self.told is None:
            self.told = Told()
        return self.told

    @property
    def cost_weight(self) -> float | None:
        """The price of a microdollar that it was made at; None if its route says."""
        if self.hold is not None:
            return self.hold.cost_weight
        return None if (price := self.rules.price) is None else price.cost_weight

    @property
    def cost_microusd(self) -> int:
        """Price of what answered."""
        if self.told is not None and self.told.cost_microusd is not None:
            return self.told.cost_microusd
        if self.cached is not None and self.cached.known:
            return 0
        return 0 if self.version is None else self.version.cost_microusd

    @property
    def spent_microusd(self) -> int:
        """Price of those that answered on the way to a failure."""
        return 0 if self.told is None else self.told.cost_microusd or 0

    @property
    def is_copy(self) -> bool:
        """Whether it is for a shadow."""
        return self.told is not None and self.told.copy

    @property
    def answerable(self) -> bool:
        """Whether a dry run found whom to ask, or an answer known beforehand."""
        return self.version is not None or (self.told is not None and self.told.answerable)

    def leg(self) -> "Decision":
        """A decision of its own for one of those that the route asks; has of this what holds for the whole call."""
        return Decision(
            route=self.route,
            request_id=self.request_id,
            trace_id=self.trace_id,
            deadline_s=self.deadline_s,
            deadline_source=self.deadline_source,
            strategy=self.strategy,
            registry_revision=self.registry_revision,
            rules=self.rules,
            record=self.record,
            hold=None if self.hold is None else self.hold.another(),
        )

    def adopt(self, leg: "Decision") -> None:
        """Let what answered `leg` be what answers this."""
        self.version, self.host, self.reason = leg.version, leg.host, leg.reason
        self.batch_size, self.cached, self.probe = leg.batch_size, leg.cached, leg.probe
        self.expected = leg.expected
        stages, own = leg.stages, self.stages
        own.queue_s, own.compute_s, own.network_s = stages.queue_s, stages.compute_s, stages.network_s
        if leg.told is not None:
            told = self.telling
            told.arm, told.propensity = leg.told.arm, leg.told.propensity
            told.explored = leg.told.explored
            told.degraded_reason = told.degraded_reason or leg.told.degraded_reason
            told.begun = told.begun or leg.told.begun
            told.answerable = told.answerable or leg.told.answerable
