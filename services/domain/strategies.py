"""How a route leads to models: the values of each strategy, and whom one names.

What makes a strategy valid is in `route_validation` and `route_graph`.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.domain.tenancy import Budget

SHADOW_PERCENT = 100.0
SHADOW_IN_FLIGHT = 8
MOST_CALIBRATION_POINTS = 64


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A model, or one version of it."""

    model: str
    version: str = ""

    def __str__(self) -> str:
        """`model` or `model:version`."""
        return f"{self.model}:{self.version}" if self.version else self.model


@dataclass(frozen=True, slots=True)
class RouteName:
    """What another route leads to."""

    route: str

    def __str__(self) -> str:
        """`route NAME`."""
        return f"route {self.route}"


Callee = RouteTarget | RouteName


@dataclass(frozen=True, slots=True)
class Single:
    """Always the same model."""

    target: RouteTarget


@dataclass(frozen=True, slots=True)
class CandidateRule:
    """Which calls a candidate is for; what is empty or 0 says nothing."""

    model: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them; an empty value is any."""
    domains: tuple[str, ...] = ()
    complexities: tuple[str, ...] = ()
    min_elements: int = 0
    """Of one row."""
    max_elements: int = 0


@dataclass(frozen=True, slots=True)
class Choose:
    """The candidate of highest utility, scored for each call."""

    candidates: tuple[RouteTarget, ...]
    quality_weight: float = 1.0
    cost_weight: float = 0.001
    latency_weight: float = 1.0
    rules: tuple[CandidateRule, ...] = ()


class HashKey(enum.Enum):
    """What keeps calls together in a split."""

    SESSION = "SESSION"
    TENANT = "TENANT"
    REQUEST = "REQUEST"


@dataclass(frozen=True, slots=True)
class SplitTarget:
    """One part of a split."""

    target: RouteTarget
    percent: float


@dataclass(frozen=True, slots=True)
class Split:
    """Fixed parts of the calls to each of several."""

    targets: tuple[SplitTarget, ...]
    hash_key: HashKey = HashKey.SESSION


@dataclass(frozen=True, slots=True)
class Shadow:
    """One model answers, another gets copies."""

    primary: RouteTarget
    shadow: RouteTarget
    percent: float = SHADOW_PERCENT
    budget: Budget | None = None
    max_in_flight: int = SHADOW_IN_FLIGHT


@dataclass(frozen=True, slots=True)
class StaticTensor:
    """One tensor of an answer known beforehand; empty `raw` means zeros."""

    shape: tuple[int, ...]
    raw: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Fallback:
    """The first of several that can answer; `static_answer` by output, None if there is none."""

    targets: tuple[Callee, ...]
    static_answer: Mapping[str, StaticTensor] | None = None


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """Chance that an answer of this confidence is right."""

    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What confidences are worth: points of rising confidence, with a straight line between two, and level beyond."""

    points: tuple[CalibrationPoint, ...]


@dataclass(frozen=True, slots=True)
class Escalation:
    """When an answer counts as unsure: the largest element of a row of `output` is below `threshold`.

    With a calibration that is what an answer is given up for whose next one is worth more than it costs; the threshold
    then stands where it is not known how good the next one is. `audit_share` of the sure answers are compared with the
    next step's, after they were given.
    """

    output: str
    threshold: float
    calibration: Calibration | None = None
    audit_share: float = 0.0


@dataclass(frozen=True, slots=True)
class CascadeStep:
    """One step of a cascade; the last one does not escalate."""

    target: RouteTarget
    escalate: Escalation | None = None


@dataclass(frozen=True, slots=True)
class Cascade:
    """Small models first, larger ones where those are unsure."""

    steps: tuple[CascadeStep, ...]


class Combine(enum.Enum):
    """How answers become one."""

    MEAN = "MEAN"
    VOTE = "VOTE"
    WEIGHTED = "WEIGHTED"


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """One member of an ensemble; `weight` is for WEIGHTED."""

    target: RouteTarget
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several answers made into one; `quorum` is the fewest that will do."""

    members: tuple[EnsembleMember, ...]
    combine: Combine
    quorum: int


@dataclass(frozen=True, slots=True)
class TensorSource:
    """An output of a step; without a step, an input of the route."""

    tensor: str
    step: str = ""

    def __str__(self) -> str:
        """`step.tensor` or `the route's tensor`."""
        return f"{self.step}.{self.tensor}" if self.step else f"the route's {self.tensor}"


@dataclass(frozen=True, slots=True)
class PipelineStep:
    """One step of a pipeline."""

    name: str
    call: Callee
    inputs: Mapping[str, TensorSource]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A graph of steps; `outputs` says where each output of the route comes from."""

    steps: tuple[PipelineStep, ...]
    outputs: Mapping[str, TensorSource]


Strategy = Single | Choose | Split | Shadow | Fallback | Cascade | Ensemble | Pipeline

_NAMES: dict[type[Strategy], str] = {
    Single: "single",
    Choose: "choose",
    Split: "split",
    Shadow: "shadow",
    Fallback: "fallback",
    Cascade: "cascade",
    Ensemble: "ensemble",
    Pipeline: "pipeline",
}
STRATEGIES = tuple(_NAMES.values())


def strategy_name(strategy: Strategy) -> str:
    """The name of its field in the contract."""
    return _NAMES[type(strategy)]


def named(strategy: Strategy) -> Iterator[tuple[str, Callee]]:
    """Everybody a strategy names, each with its path, such as `split.targets[0].target`."""
    match strategy:
        case Single(target):
            yield "single.target", target
        case Choose(candidates):
            yield from ((f"choose.candidates[{index}]", target) for index, target in enumerate(candidates))
        case Split(targets):
            yield from ((f"split.targets[{index}].target", part.target) for index, part in enumerate(targets))
        case Shadow(primary, shadow):
            yield "shadow.primary", primary
            yield "shadow.shadow", shadow
        case Fallback(callees):
            for index, callee in enumerate(callees):
                yield _callee_path(f"fallback.targets[{index}]", callee), callee
        case Cascade(steps):
            yield from ((f"cascade.steps[{index}].target", step.target) for index, step in enumerate(steps))
        case Ensemble(members):
            yield from ((f"ensemble.members[{index}].target", each.target) for index, each in enumerate(members))
        case Pipeline(stages):
            for index, stage in enumerate(stages):
                yield _callee_path(f"pipeline.steps[{index}].call", stage.call), stage.call


def _callee_path(at: str, callee: Callee) -> str:
    return f"{at}.route" if isinstance(callee, RouteName) else f"{at}.target"
