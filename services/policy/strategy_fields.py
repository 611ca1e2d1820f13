"""Which fields the strategy of a route has: their paths, those of the protobuf message, and their values."""

from collections.abc import Iterator, Mapping

from services.domain.strategies import (
    Callee,
    CandidateRule,
    Cascade,
    Choose,
    Ensemble,
    Fallback,
    Pipeline,
    RouteName,
    RouteTarget,
    Shadow,
    Single,
    Split,
    Strategy,
    TensorSource,
)

Leaf = str | int | float | bool | bytes | tuple[int, ...] | None
"""The value of a field; None if it is not set."""


def seconds(value: float) -> str:
    """A duration."""
    return f"{value!r}s"


def or_none(value: str) -> str | None:
    """A text; not set if it is empty."""
    return value or None


def strategy_fields(strategy: Strategy) -> Iterator[tuple[str, Leaf]]:
    """Path and value of every field of a strategy, in the order of its message."""
    match strategy:
        case Single(target):
            yield from _target_fields("route.single.target", target)
        case Choose(candidates, quality_weight, cost_weight, latency_weight, rules):
            for index, target in enumerate(candidates):
                yield from _target_fields(f"route.choose.candidates[{index}]", target)
            yield "route.choose.quality_weight", quality_weight
            yield "route.choose.cost_weight", cost_weight
            yield "route.choose.latency_weight", latency_weight
            for index, rule in enumerate(rules):
                yield from _rule_fields(f"route.choose.rules[{index}]", rule)
        case Split(parts, hash_key):
            for index, part in enumerate(parts):
                yield from _target_fields(f"route.split.targets[{index}].target", part.target)
                yield f"route.split.targets[{index}].percent", part.percent
            yield "route.split.hash_key", hash_key.value
        case Shadow():
            yield from _shadow_fields(strategy)
        case Fallback(callees, answer):
            for index, callee in enumerate(callees):
                yield from _callee_fields(f"route.fallback.targets[{index}]", callee)
            yield "route.fallback.static_answer", None if answer is None else f"{len(answer)} outputs"
            for name, tensor in sorted((answer or {}).items()):
                yield f"route.fallback.static_answer.outputs[{name}].shape", tensor.shape
                yield f"route.fallback.static_answer.outputs[{name}].raw", tensor.raw
        case Cascade(steps):
            for index, step in enumerate(steps):
                at = f"route.cascade.steps[{index}]"
                yield from _target_fields(f"{at}.target", step.target)
                if step.escalate is not None:
                    yield f"{at}.escalate.output", step.escalate.output
                    yield f"{at}.escalate.threshold", step.escalate.threshold
                    points = () if step.escalate.calibration is None else step.escalate.calibration.points
                    for number, point in enumerate(points):
                        yield f"{at}.escalate.calibration.points[{number}].confidence", point.confidence
                        yield f"{at}.escalate.calibration.points[{number}].right", point.right
                    yield f"{at}.escalate.audit_share", step.escalate.audit_share
        case Ensemble(members, combine, quorum):
            for index, member in enumerate(members):
                yield from _target_fields(f"route.ensemble.members[{index}].target", member.target)
                yield f"route.ensemble.members[{index}].weight", member.weight
            yield "route.ensemble.combine", combine.value
            yield "route.ensemble.quorum", quorum
        case Pipeline(stages, outputs):
            for index, stage in enumerate(stages):
                at = f"route.pipeline.steps[{index}]"
                yield f"{at}.name", stage.name
                yield from _callee_fields(f"{at}.call", stage.call)
                yield from _source_fields(f"{at}.inputs", stage.inputs)
            yield from _source_fields("route.pipeline.outputs", outputs)


def _rule_fields(path: str, rule: CandidateRule) -> Iterator[tuple[str, Leaf]]:
    yield f"{path}.model", rule.model
    for key, value in sorted(rule.labels.items()):
        yield f"{path}.labels[{key}]", value
    for name, texts in (("domains", rule.domains), ("complexities", rule.complexities)):
        for index, text in enumerate(texts):
            yield f"{path}.{name}[{index}]", text
    yield f"{path}.min_elements", rule.min_elements
    yield f"{path}.max_elements", rule.max_elements


def _target_fields(path: str, target: RouteTarget) -> Iterator[tuple[str, Leaf]]:
    yield f"{path}.model", target.model
    yield f"{path}.version", or_none(target.version)


def _callee_fields(path: str, callee: Callee) -> Iterator[tuple[str, Leaf]]:
    if isinstance(callee, RouteName):
        yield f"{path}.route", callee.route
    else:
        yield from _target_fields(f"{path}.target", callee)


def _source_fields(path: str, sources: Mapping[str, TensorSource]) -> Iterator[tuple[str, Leaf]]:
    for name, source in sorted(sources.items()):
        yield f"{path}[{name}].step", or_none(source.step)
        yield f"{path}[{name}].tensor", source.tensor


def _shadow_fields(shadow: Shadow) -> Iterator[tuple[str, Leaf]]:
    yield from _target_fields("route.shadow.primary", shadow.primary)
    yield from _target_fields("route.shadow.shadow", shadow.shadow)
    yield "route.shadow.percent", shadow.percent
    if shadow.budget is not None:
        yield "route.shadow.budget.amount_microusd", shadow.budget.amount_microusd
        yield "route.shadow.budget.period", seconds(shadow.budget.period_s)
    yield "route.shadow.max_in_flight", shadow.max_in_flight
