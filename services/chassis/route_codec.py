"""protobuf ⇄ domain for routes and their strategies."""

from collections.abc import Iterable, Mapping

from modelyard.registry.v1 import objects_pb2
from services.chassis.codec import duration_to, seconds_from, spec_from, spec_to
from services.chassis.tenancy_codec import budget_from, budget_to
from services.domain import objects, strategies
from services.domain.errors import Fault, InvalidRequest
from services.domain.texts import shown

_HASH_KEYS = {
    strategies.HashKey.SESSION: objects_pb2.HASH_KEY_SESSION,
    strategies.HashKey.TENANT: objects_pb2.HASH_KEY_TENANT,
    strategies.HashKey.REQUEST: objects_pb2.HASH_KEY_REQUEST,
}
_HASH_KEYS_FROM = {number: key for key, number in _HASH_KEYS.items()}
_COMBINES = {
    strategies.Combine.MEAN: objects_pb2.COMBINE_MEAN,
    strategies.Combine.VOTE: objects_pb2.COMBINE_VOTE,
    strategies.Combine.WEIGHTED: objects_pb2.COMBINE_WEIGHTED,
}
_COMBINES_FROM = {number: combine for combine, number in _COMBINES.items()}


def route_from(metadata: objects.Metadata, spec: objects_pb2.RouteSpec) -> objects.Route:
    """A route.

    Raises:
        InvalidRequest: It has no strategy, or a callee that is nobody.
    """
    default_timeout_s = (
        seconds_from(spec.default_timeout) if spec.HasField("default_timeout") else objects.DEFAULT_TIMEOUT_S
    )
    return objects.Route(
        metadata=metadata,
        strategy=_strategy_from(metadata.name, spec),
        description=spec.description,
        default_timeout_s=default_timeout_s,
        max_timeout_s=(
            seconds_from(spec.max_timeout)
            if spec.HasField("max_timeout")
            else max(objects.MAX_TIMEOUT_S, default_timeout_s)
        ),
        max_attempts=spec.max_attempts or objects.DEFAULT_ATTEMPTS,
        policy=spec.policy,
        owner=spec.owner,
        protected=spec.protected,
        inputs=tuple(spec_from(tensor) for tensor in spec.inputs),
        outputs=tuple(spec_from(tensor) for tensor in spec.outputs),
        max_in_flight=spec.max_in_flight,
        cache=_cache_from(spec.cache) if spec.HasField("cache") else None,
    )


def route_to(route: objects.Route) -> objects_pb2.RouteSpec:
    """A route."""
    spec = objects_pb2.RouteSpec(
        description=route.description,
        default_timeout=duration_to(route.default_timeout_s),
        max_timeout=duration_to(route.max_timeout_s),
        max_attempts=route.max_attempts,
        policy=route.policy,
        owner=route.owner,
        protected=route.protected,
        inputs=[spec_to(tensor) for tensor in route.inputs],
        outputs=[spec_to(tensor) for tensor in route.outputs],
        max_in_flight=route.max_in_flight,
        cache=None if route.cache is None else _cache_to(route.cache),
    )
    _put_strategy(route.strategy, spec)
    return spec


def _cache_from(cache: objects_pb2.Cache) -> objects.Cache:
    return objects.Cache(
        ttl_s=seconds_from(cache.ttl),
        coalesce=cache.coalesce if cache.HasField("coalesce") else True,
        stale_s=seconds_from(cache.stale),
    )


def _cache_to(cache: objects.Cache) -> objects_pb2.Cache:
    stale = duration_to(cache.stale_s) if cache.stale_s else None
    return objects_pb2.Cache(ttl=duration_to(cache.ttl_s), coalesce=cache.coalesce, stale=stale)


def _strategy_from(name: str, spec: objects_pb2.RouteSpec) -> strategies.Strategy:
    match spec.WhichOneof("strategy"):
        case "single":
            return strategies.Single(_target_from(spec.single.target))
        case "choose":
            return strategies.Choose(
                candidates=tuple(_target_from(target) for target in spec.choose.candidates),
                quality_weight=spec.choose.quality_weight or 1.0,
                cost_weight=spec.choose.cost_weight or 0.001,
                latency_weight=spec.choose.latency_weight or 1.0,
                rules=tuple(_rule_from(rule) for rule in spec.choose.rules),
            )
        case "split":
            parts = tuple(
                strategies.SplitTarget(_target_from(part.target), part.percent) for part in spec.split.targets
            )
            key = _HASH_KEYS_FROM.get(spec.split.hash_key, strategies.HashKey.SESSION)
            return strategies.Split(parts, key)
        case "shadow":
            return _shadow_from(spec.shadow)
        case "fallback":
            return _fallback_from(spec.fallback)
        case "cascade":
            return strategies.Cascade(tuple(_cascade_step_from(step) for step in spec.cascade.steps))
        case "ensemble":
            return _ensemble_from(spec.ensemble)
        case "pipeline":
            return _pipeline_from(spec.pipeline)
        case _:
            known = ", ".join(strategies.STRATEGIES)
            raise InvalidRequest.of(
                [Fault("route.strategy", f"route {shown(name)} has no strategy; set one of {known}")]
            )


def _rule_from(rule: objects_pb2.CandidateRule) -> strategies.CandidateRule:
    return strategies.CandidateRule(
        rule.model,
        dict(rule.labels),
        tuple(rule.domains),
        tuple(rule.complexities),
        rule.min_elements,
        rule.max_elements,
    )


def _rule_to(rule: strategies.CandidateRule) -> objects_pb2.CandidateRule:
    return objects_pb2.CandidateRule(
        model=rule.model,
        labels=rule.labels,
        domains=rule.domains,
        complexities=rule.complexities,
        min_elements=rule.min_elements,
        max_elements=rule.max_elements,
    )


def _put_strategy(strategy: strategies.Strategy, spec: objects_pb2.RouteSpec) -> None:
    match strategy:
        case strategies.Single(target):
            spec.single.target.CopyFrom(_target_to(target))
        case strategies.Choose(candidates, quality_weight, cost_weight, latency_weight, rules):
            spec.choose.CopyFrom(
                objects_pb2.Choose(
                    candidates=[_target_to(target) for target in candidates],
                    quality_weight=quality_weight,
                    cost_weight=cost_weight,
                    latency_weight=latency_weight,
                    rules=map(_rule_to, rules),
                )
            )
        case strategies.Split(parts, hash_key):
            targets = [objects_pb2.SplitTarget(target=_target_to(part.target), percent=part.percent) for part in parts]
            spec.split.CopyFrom(objects_pb2.Split(targets=targets, hash_key=_HASH_KEYS[hash_key]))
        case strategies.Shadow(primary, shadow, percent, budget, max_in_flight):
            spec.shadow.CopyFrom(
                objects_pb2.Shadow(
                    primary=_target_to(primary),
                    shadow=_target_to(shadow),
                    percent=percent,
                    budget=budget_to(budget),
                    max_in_flight=max_in_flight,
                )
            )
        case strategies.Fallback(callees, answer):
            spec.fallback.CopyFrom(
                objects_pb2.Fallback(
                    targets=[_callee_to(callee) for callee in callees],
                    static_answer=None if answer is None else _static_to(answer),
                )
            )
        case strategies.Cascade(steps):
            spec.cascade.CopyFrom(objects_pb2.Cascade(steps=[_cascade_step_to(step) for step in steps]))
        case strategies.Ensemble(members, combine, quorum):
            made = [
                objects_pb2.EnsembleMember(target=_target_to(member.target), weight=member.weight) for member in members
            ]
            spec.ensemble.CopyFrom(objects_pb2.Ensemble(members=made, combine=_COMBINES[combine], quorum=quorum))
        case strategies.Pipeline(stages, outputs):
            spec.pipeline.CopyFrom(
                objects_pb2.Pipeline(
                    steps=[
                        objects_pb2.PipelineStep(
                            name=stage.name, call=_callee_to(stage.call), inputs=_sources_to(stage.inputs)
                        )
                        for stage in stages
                    ],
                    outputs=_sources_to(outputs),
                )
            )


def _target_from(target: objects_pb2.RouteTarget) -> strategies.RouteTarget:
    return strategies.RouteTarget(target.model, target.version)


def _target_to(target: strategies.RouteTarget) -> objects_pb2.RouteTarget:
    return objects_pb2.RouteTarget(model=target.model, version=target.version)


def _callees_from(callees: Iterable[tuple[str, objects_pb2.Callee]]) -> tuple[strategies.Callee, ...]:
    """Callees, each with its path; nobody is no value of the domain."""
    found: list[strategies.Callee] = []
    faults = []
    for path, callee in callees:
        match callee.WhichOneof("callee"):
            case "target":
                found.append(_target_from(callee.target))
            case "route":
                found.append(strategies.RouteName(callee.route))
            case _:
                faults.append(Fault(path, "names nobody; set one of target, route"))
    if faults:
        raise InvalidRequest.of(faults)
    return tuple(found)


def _callee_to(callee: strategies.Callee) -> objects_pb2.Callee:
    if isinstance(callee, strategies.RouteName):
        return objects_pb2.Callee(route=callee.route)
    return objects_pb2.Callee(target=_target_to(callee))


def _shadow_from(shadow: objects_pb2.Shadow) -> strategies.Shadow:
    return strategies.Shadow(
        primary=_target_from(shadow.primary),
        shadow=_target_from(shadow.shadow),
        percent=shadow.percent if shadow.HasField("percent") else strategies.SHADOW_PERCENT,
        budget=budget_from(shadow.budget) if shadow.HasField("budget") else None,
        max_in_flight=shadow.max_in_flight or strategies.SHADOW_IN_FLIGHT,
    )


def _fallback_from(fallback: objects_pb2.Fallback) -> strategies.Fallback:
    callees = _callees_from((f"route.fallback.targets[{index}]", each) for index, each in enumerate(fallback.targets))
    if not fallback.HasField("static_answer"):
        return strategies.Fallback(callees)
    tensors = sorted(fallback.static_answer.outputs.items())
    return strategies.Fallback(
        callees, {name: strategies.StaticTensor(tuple(tensor.shape), tensor.raw) for name, tensor in tensors}
    )


def _static_to(answer: Mapping[str, strategies.StaticTensor]) -> objects_pb2.StaticAnswer:
    return objects_pb2.StaticAnswer(
        outputs={name: objects_pb2.StaticTensor(shape=each.shape, raw=each.raw) for name, each in answer.items()}
    )


def _cascade_step_from(step: objects_pb2.CascadeStep) -> strategies.CascadeStep:
    escalation = _escalation_from(step.escalate) if step.HasField("escalate") else None
    return strategies.CascadeStep(_target_from(step.target), escalation)


def _escalation_from(escalation: objects_pb2.Escalation) -> strategies.Escalation:
    points = tuple(strategies.CalibrationPoint(each.confidence, each.right) for each in escalation.calibration.points)
    return strategies.Escalation(
        output=escalation.output,
        threshold=escalation.threshold,
        calibration=strategies.Calibration(points) if escalation.HasField("calibration") else None,
        audit_share=escalation.audit_share,
    )


def _escalation_to(escalation: strategies.Escalation) -> objects_pb2.Escalation:
    calibration = escalation.calibration
    return objects_pb2.Escalation(
        output=escalation.output,
        threshold=escalation.threshold,
        calibration=None
        if calibration is None
        else objects_pb2.Calibration(
            points=[
                objects_pb2.CalibrationPoint(confidence=each.confidence, right=each.right)
                for each in calibration.points
            ]
        ),
        audit_share=escalation.audit_share,
    )


def _cascade_step_to(step: strategies.CascadeStep) -> objects_pb2.CascadeStep:
    escalation = None if step.escalate is None else _escalation_to(step.escalate)
    return objects_pb2.CascadeStep(target=_target_to(step.target), escalate=escalation)


def _ensemble_from(ensemble: objects_pb2.Ensemble) -> strategies.Ensemble:
    members = tuple(
        strategies.EnsembleMember(_target_from(each.target), each.weight if each.HasField("weight") else None)
        for each in ensemble.members
    )
    combine = _COMBINES_FROM.get(ensemble.combine, strategies.Combine.MEAN)
    return strategies.Ensemble(members, combine, ensemble.quorum or len(members))


def _pipeline_from(pipeline: objects_pb2.Pipeline) -> strategies.Pipeline:
    callees = _callees_from(
        (f"route.pipeline.steps[{index}].call", step.call) for index, step in enumerate(pipeline.steps)
    )
    steps = tuple(
        strategies.PipelineStep(step.name, callee, _sources_from(step.inputs))
        for step, callee in zip(pipeline.steps, callees, strict=True)
    )
    return strategies.Pipeline(steps, _sources_from(pipeline.outputs))


def _sources_from(sources: Mapping[str, objects_pb2.TensorSource]) -> dict[str, strategies.TensorSource]:
    return {name: strategies.TensorSource(each.tensor, each.step) for name, each in sorted(sources.items())}


def _sources_to(sources: Mapping[str, strategies.TensorSource]) -> dict[str, objects_pb2.TensorSource]:
    return {name: objects_pb2.TensorSource(step=each.step, tensor=each.tensor) for name, each in sources.items()}
