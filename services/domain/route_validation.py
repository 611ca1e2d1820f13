"""What makes a route valid by itself; whether those that it names exist and fit is in `route_graph`."""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

from services.domain.caching import MAX_AGE_S, Cache
from services.domain.errors import Fault
from services.domain.objects import Route
from services.domain.schemas import MAX_TENSORS, tensor_spec_faults
from services.domain.strategies import (
    MOST_CALIBRATION_POINTS,
    Calibration,
    Callee,
    CandidateRule,
    Cascade,
    Choose,
    Combine,
    Ensemble,
    EnsembleMember,
    Fallback,
    Pipeline,
    RouteName,
    Shadow,
    Single,
    Split,
    StaticTensor,
    Strategy,
    named,
)
from services.domain.tenancy_validation import budget_faults, range_faults, worth_faults
from services.domain.texts import MAX_NAME_LENGTH, line_faults, name_faults, note_faults, shown, too_many

MAX_NAMED = 64
MAX_RULES = 64
MAX_ALLOWED = 32
"""Most candidates, targets, steps or members of one route."""

PERCENT_DECIMALS = 4
"""Finer parts could not be told apart in the hash that a split goes by."""


def route_faults(route: Route) -> list[Fault]:
    """Everything wrong with a route by itself."""
    faults = note_faults(route.description, "route.description") + line_faults(route.owner, "route.owner")
    if route.inputs:
        faults += tensor_spec_faults(route.inputs, "route.inputs")
    if route.outputs:
        faults += tensor_spec_faults(route.outputs, "route.outputs")
    faults += crowd_faults(route.strategy) or _strategy_faults(route)
    if route.default_timeout_s <= 0:
        faults.append(Fault("route.default_timeout", f"{route.default_timeout_s} s must be positive"))
    if route.max_timeout_s < route.default_timeout_s:
        faults.append(
            Fault(
                "route.max_timeout",
                f"{route.max_timeout_s} s must not be below the default of {route.default_timeout_s} s",
            )
        )
    if route.max_in_flight < 0:
        faults.append(Fault("route.max_in_flight", f"{route.max_in_flight} must not be negative; 0 is no limit"))
    if route.cache is not None:
        faults += _cache_faults(route, route.cache)
    return faults + range_faults(route.max_attempts, "route.max_attempts", 1, 10)


def _cache_faults(route: Route, cache: Cache) -> list[Fault]:
    faults = []
    if not 0.0 < cache.ttl_s <= MAX_AGE_S:
        faults.append(Fault("route.cache.ttl", f"{cache.ttl_s:g} s must be positive, and at most {MAX_AGE_S:g} s"))
    if not 0.0 <= cache.stale_s <= MAX_AGE_S:
        faults.append(Fault("route.cache.stale", f"{cache.stale_s:g} s must be in 0 s to {MAX_AGE_S:g} s"))
    if cache.stale_s and isinstance(route.strategy, Cascade | Ensemble | Pipeline):
        text = "of a route that goes on with what its models answer, old answers do not stand in: leave it out"
        faults.append(Fault("route.cache.stale", text))
    if not route.targets:
        text = "this route names only other routes, which go by their own: say it there"
        faults.append(Fault("route.cache", text))
    return faults


def crowd_faults(strategy: Strategy) -> list[Fault]:
    """Lists of a strategy that are too long to be worth a look at what is in them."""
    match strategy:
        case Single() | Shadow():
            lists = []
        case Choose(candidates):
            lists = [("choose.candidates", len(candidates), MAX_NAMED)]
        case Split(targets):
            lists = [("split.targets", len(targets), MAX_NAMED)]
        case Fallback(targets, answer):
            lists = [("fallback.targets", len(targets), MAX_NAMED)]
            lists.append(("fallback.static_answer.outputs", len(answer or ()), MAX_TENSORS))
        case Cascade(steps):
            lists = [("cascade.steps", len(steps), MAX_NAMED)]
        case Ensemble(members):
            lists = [("ensemble.members", len(members), MAX_NAMED)]
        case Pipeline(stages, outputs):
            lists = [("pipeline.steps", len(stages), MAX_NAMED), ("pipeline.outputs", len(outputs), MAX_TENSORS)]
            lists += [
                (f"pipeline.steps[{index}].inputs", len(stage.inputs), MAX_TENSORS)
                for index, stage in enumerate(stages[:MAX_NAMED])
            ]
    return [too_many(count, most, f"route.{path}") for path, count, most in lists if count > most]


def _strategy_faults(route: Route) -> list[Fault]:
    strategy = route.strategy
    match strategy:
        case Single():
            faults = []
        case Choose():
            faults = _choose_faults(strategy)
        case Split():
            faults = _split_faults(strategy)
        case Shadow():
            faults = _shadow_faults(strategy)
        case Fallback():
            faults = _fallback_faults(strategy)
        case Cascade():
            faults = _cascade_faults(strategy)
        case Ensemble():
            faults = _ensemble_faults(strategy)
        case Pipeline():
            faults = _pipeline_faults(route, strategy)
    for path, callee in named(strategy):
        faults += _callee_faults(callee, f"route.{path}")
    return faults


def _callee_faults(callee: Callee, path: str) -> list[Fault]:
    if isinstance(callee, RouteName):
        return line_faults(callee.route, path, needed=True)
    return line_faults(callee.model, f"{path}.model", needed=True) + line_faults(callee.version, f"{path}.version")


def _count_faults(count: int, path: str, *, least: int = 1) -> list[Fault]:
    needed = "at least one is needed" if least == 1 else f"at least {least} are needed"
    return [] if count >= least else [Fault(path, needed)]


def _twice_faults(named_once: Iterable[tuple[str, Callee]]) -> list[Fault]:
    """Faults of who stands twice; in a split, say, nobody could tell which part is meant."""
    first: dict[Callee, str] = {}
    faults = []
    for path, callee in named_once:
        if first.setdefault(callee, path) != path:
            faults.append(Fault(f"route.{path}", f"{shown(str(callee))} stands twice"))
    return faults


def _choose_faults(choose: Choose) -> list[Fault]:
    faults = _count_faults(len(choose.candidates), "route.choose.candidates")
    for path, weight in (
        ("quality_weight", choose.quality_weight),
        ("cost_weight", choose.cost_weight),
        ("latency_weight", choose.latency_weight),
    ):
        faults += worth_faults(weight, f"route.choose.{path}")
    return faults + _rules_faults(choose)


def _rules_faults(choose: Choose) -> list[Fault]:
    if len(choose.rules) > MAX_RULES:
        return [too_many(len(choose.rules), MAX_RULES, "route.choose.rules")]
    faults = []
    models = {target.model for target in choose.candidates}
    for index, rule in enumerate(choose.rules):
        at = f"route.choose.rules[{index}]"
        if rule.model not in models:
            faults.append(Fault(f"{at}.model", f"{shown(rule.model)} is none of the candidates"))
        if rule == CandidateRule(rule.model):
            faults.append(Fault(at, "says nothing: without a rule a candidate takes every call"))
        for name, texts in (("labels", rule.labels), ("domains", rule.domains), ("complexities", rule.complexities)):
            if len(texts) > MAX_ALLOWED:
                faults.append(too_many(len(texts), MAX_ALLOWED, f"{at}.{name}"))
                continue
            for text in texts:
                faults += line_faults(text, f"{at}.{name}", needed=True)
        for key, value in rule.labels.items():
            faults += line_faults(value, f"{at}.labels[{key[:64]}]")
        if rule.min_elements < 0:
            faults.append(Fault(f"{at}.min_elements", f"{rule.min_elements} must not be negative"))
        if rule.max_elements and rule.max_elements < max(1, rule.min_elements):
            text = f"{rule.max_elements} must not be below min_elements, nor negative"
            faults.append(Fault(f"{at}.max_elements", text))
    return faults


def _split_faults(split: Split) -> list[Fault]:
    at = "route.split.targets"
    faults = _count_faults(len(split.targets), at) + _twice_faults(named(split))
    sound = True
    for index, part in enumerate(split.targets):
        wrong = _percent_faults(part.percent, f"{at}[{index}].percent")
        sound = sound and not wrong
        faults += wrong
    # In decimals, as they were written: three times 33.3333 and a rest are 100 exactly or not at all.
    total = sum((Decimal(repr(part.percent)) for part in split.targets), Decimal(0)) if sound else Decimal(100)
    if split.targets and total != 100:
        faults.append(Fault(at, f"percent is {total.normalize():f} in all, and must be 100"))
    return faults


def _percent_faults(percent: float, path: str) -> list[Fault]:
    faults = range_faults(percent, path, 0, 100)
    if not faults and round(percent, PERCENT_DECIMALS) != percent:
        faults.append(Fault(path, f"{percent} has more than {PERCENT_DECIMALS} decimals"))
    return faults


def _shadow_faults(shadow: Shadow) -> list[Fault]:
    at = "route.shadow"
    faults = _percent_faults(shadow.percent, f"{at}.percent")
    if shadow.primary == shadow.shadow:
        faults.append(Fault(f"{at}.shadow", f"{shown(str(shadow.shadow))} is the primary itself"))
    if shadow.budget is not None:
        faults += budget_faults(shadow.budget, f"{at}.budget")
    if shadow.max_in_flight < 1:
        faults.append(Fault(f"{at}.max_in_flight", f"{shadow.max_in_flight} must be positive"))
    return faults


def _fallback_faults(fallback: Fallback) -> list[Fault]:
    at = "route.fallback.targets"
    faults = _count_faults(len(fallback.targets), at) + _twice_faults(named(fallback))
    if len(fallback.targets) == 1 and fallback.static_answer is None:
        faults.append(Fault(at, "a single one needs a static_answer behind it, or is strategy 'single'"))
    for name, tensor in (fallback.static_answer or {}).items():
        path = f"route.fallback.static_answer.outputs[{shown(name)[1:-1]}]"
        faults += line_faults(name, path, most=MAX_NAME_LENGTH, needed=True) + _static_faults(tensor, path)
    return faults


def _static_faults(tensor: StaticTensor, path: str) -> list[Fault]:
    if any(size < 0 for size in tensor.shape):
        return [Fault(f"{path}.shape", f"{list(tensor.shape)}: a dimension of an answer is not negative")]
    return []


def _cascade_faults(cascade: Cascade) -> list[Fault]:
    at = "route.cascade.steps"
    faults = _count_faults(len(cascade.steps), at, least=2) + _twice_faults(named(cascade))
    for index, step in enumerate(cascade.steps):
        path = f"{at}[{index}].escalate"
        last = index == len(cascade.steps) - 1
        if step.escalate is None:
            if not last:
                faults.append(Fault(path, "every step but the last says when the next one is asked"))
            continue
        if last:
            faults.append(Fault(path, "there is no step after the last one"))
        faults += line_faults(step.escalate.output, f"{path}.output", most=MAX_NAME_LENGTH, needed=True)
        if not math.isfinite(step.escalate.threshold):
            faults.append(Fault(f"{path}.threshold", f"{step.escalate.threshold} must be finite"))
        faults += range_faults(step.escalate.audit_share, f"{path}.audit_share", 0, 1)
        if step.escalate.calibration is not None:
            faults += _calibration_faults(step.escalate.calibration, f"{path}.calibration.points")
    return faults


def _calibration_faults(calibration: Calibration, at: str) -> list[Fault]:
    points = calibration.points
    faults = []
    if not 1 <= len(points) <= MOST_CALIBRATION_POINTS:
        faults.append(Fault(at, f"{len(points)} points; there must be 1 to {MOST_CALIBRATION_POINTS}"))
    for index, point in enumerate(points):
        path = f"{at}[{index}]"
        if not math.isfinite(point.confidence):
            faults.append(Fault(f"{path}.confidence", f"{point.confidence} must be finite"))
        elif index and not point.confidence > points[index - 1].confidence:
            faults.append(Fault(f"{path}.confidence", f"{point.confidence} must be above the one before it"))
        faults += range_faults(point.right, f"{path}.right", 0, 1)
        if index and point.right < points[index - 1].right:
            faults.append(Fault(f"{path}.right", f"{point.right} must not be below the one before it"))
    return faults


def _ensemble_faults(ensemble: Ensemble) -> list[Fault]:
    at = "route.ensemble"
    members = ensemble.members
    faults = _count_faults(len(members), f"{at}.members", least=2) + _twice_faults(named(ensemble))
    faults += _weight_faults(members, ensemble.combine)
    if members and not 1 <= ensemble.quorum <= len(members):
        faults.append(Fault(f"{at}.quorum", f"{ensemble.quorum} must be in 1 to {len(members)}, its members"))
    return faults


def _weight_faults(members: Sequence[EnsembleMember], combine: Combine) -> list[Fault]:
    faults = []
    for index, member in enumerate(members):
        path = f"route.ensemble.members[{index}].weight"
        if combine is not Combine.WEIGHTED:
            if member.weight is not None:
                faults.append(Fault(path, f"counts for WEIGHTED only, not for {combine.value}"))
        elif member.weight is None:
            faults.append(Fault(path, "every member of WEIGHTED has one"))
        elif not 0.0 < member.weight < float("inf"):
            faults.append(Fault(path, f"{member.weight} must be finite and positive"))
    return faults


def _pipeline_faults(route: Route, pipeline: Pipeline) -> list[Fault]:
    faults = [
        Fault(f"route.{side}", "a pipeline says what it takes and gives: at least one is needed")
        for side, specs in (("inputs", route.inputs), ("outputs", route.outputs))
        if not specs
    ]
    at = "route.pipeline.steps"
    faults += _count_faults(len(pipeline.steps), at)
    seen: set[str] = set()
    for index, step in enumerate(pipeline.steps):
        faults += name_faults(step.name, f"{at}[{index}].name")
        if step.name in seen:
            faults.append(Fault(f"{at}[{index}].name", f"{shown(step.name)} stands twice"))
        seen.add(step.name)
    return faults
