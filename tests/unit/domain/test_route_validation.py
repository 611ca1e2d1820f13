"""Routes by themselves: each rule of each strategy has a route that breaks it."""

from dataclasses import replace

import pytest

from services.domain.model import TensorSpec
from services.domain.route_validation import route_faults
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    CandidateRule,
    Cascade,
    CascadeStep,
    Choose,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    RouteTarget,
    Shadow,
    Single,
    Split,
    SplitTarget,
    StaticTensor,
    Strategy,
    TensorSource,
)
from services.domain.tenancy import Budget
from services.domain.validation import validate
from tests.fakes.objects import a_route

A, B = RouteTarget("a"), RouteTarget("b", "1.0.0")
NAN = float("nan")
SURE = Escalation("scores", 0.8)
X = TensorSpec("x", "FP32", (-1,))


def calibrated(*points: tuple[float, float], audit_share: float = 0.0) -> Cascade:
    table = Calibration(tuple(CalibrationPoint(*point) for point in points))
    return Cascade((CascadeStep(A, Escalation("scores", 0.8, table, audit_share)), CascadeStep(B)))


def of(strategy: Strategy) -> list[str]:
    return [str(fault) for fault in route_faults(a_route("r", strategy))]


def split(*percents: float) -> Split:
    return Split(tuple(SplitTarget(RouteTarget(f"m{number}"), each) for number, each in enumerate(percents)))


def ensemble(*weights: float | None, combine: Combine = Combine.MEAN, quorum: int = 1) -> Ensemble:
    members = (EnsembleMember(RouteTarget(f"m{number}"), each) for number, each in enumerate(weights))
    return Ensemble(tuple(members), combine, quorum)


@pytest.mark.parametrize(
    "strategy",
    [
        Single(A),
        Choose((A, B)),
        split(33.3, 33.3, 33.4),
        split(0.1, 0.2, 99.7),
        split(100, 0),
        split(*(0.0001,) * 10, 99.999),
        Shadow(A, B, 0.0),
        Shadow(A, B, 12.5, Budget(1_000)),
        Fallback((A, RouteName("b"))),
        Fallback((A,), {"y": StaticTensor((1, 4))}),
        Cascade((CascadeStep(A, SURE), CascadeStep(B))),
        ensemble(None, None, quorum=2),
        ensemble(0.5, 3.0, combine=Combine.WEIGHTED),
    ],
)
def test_a_strategy_that_makes_sense_has_no_fault(strategy: Strategy) -> None:
    assert of(strategy) == []


@pytest.mark.parametrize(
    ("strategy", "fault"),
    [
        (Single(RouteTarget("")), "single.target.model: must not be empty"),
        (Single(RouteTarget("a" * 300)), "single.target.model: has 300 characters, at most 256"),
        (Choose(()), "choose.candidates: at least one is needed"),
        (Choose(tuple(RouteTarget(f"m{n}") for n in range(65))), "choose.candidates: has 65 entries, at most 64"),
        (Choose((A,), rules=(CandidateRule("nobody", domains=("d",)),)), "choose.rules[0].model: 'nobody' is none of"),
        (Choose((A,), rules=(CandidateRule(A.model),)), "choose.rules[0]: says nothing"),
        (Choose((A,), rules=(CandidateRule(A.model, domains=("",)),)), "choose.rules[0].domains"),
        (
            Choose((A,), rules=(CandidateRule(A.model, min_elements=-1),)),
            "choose.rules[0].min_elements: -1 must",
        ),
        (
            Choose((A,), rules=(CandidateRule(A.model, min_elements=9, max_elements=8),)),
            "choose.rules[0].max_elements: 8 must not be below",
        ),
        (Choose((A,), quality_weight=NAN), "choose.quality_weight: nan must be finite and not negative"),
        (split(), "split.targets: at least one is needed"),
        (split(33.3, 33.3, 33.3), "split.targets: percent is 99.9 in all, and must be 100"),
        (split(60, 50), "split.targets: percent is 110 in all, and must be 100"),
        (split(99.9999), "split.targets: percent is 99.9999 in all, and must be 100"),
        (split(100, -1), "split.targets[1].percent: -1 must be in 0 to 100"),
        (split(NAN), "split.targets[0].percent: nan must be in 0 to 100"),
        (split(50.00001, 49.99999), "split.targets[0].percent: 50.00001 has more than 4 decimals"),
        (Split((SplitTarget(A, 50), SplitTarget(A, 50))), "split.targets[1].target: 'a' stands twice"),
        (Shadow(A, A), "shadow.shadow: 'a' is the primary itself"),
        (Shadow(A, B, 101.0), "shadow.percent: 101.0 must be in 0 to 100"),
        (Shadow(A, B, budget=Budget(0)), "shadow.budget.amount_microusd: 0 must be positive"),
        (Shadow(A, B, max_in_flight=-1), "shadow.max_in_flight: -1 must be positive"),
        (Fallback(()), "fallback.targets: at least one is needed"),
        (Fallback((A,)), "fallback.targets: a single one needs a static_answer behind it"),
        (Fallback((A, A)), "fallback.targets[1].target: 'a' stands twice"),
        (Fallback((A, RouteName(""))), "fallback.targets[1].route: must not be empty"),
        (Fallback((A, B), {"y": StaticTensor((-1,))}), "fallback.static_answer.outputs[y].shape: [-1]: a dimension"),
        (Cascade((CascadeStep(A),)), "cascade.steps: at least 2 are needed"),
        (Cascade((CascadeStep(A), CascadeStep(B))), "cascade.steps[0].escalate: every step but the last says"),
        (Cascade((CascadeStep(A, SURE), CascadeStep(B, SURE))), "cascade.steps[1].escalate: there is no step after"),
        (Cascade((CascadeStep(A, Escalation("", 0.5)), CascadeStep(B))), "cascade.steps[0].escalate.output: must not"),
        (Cascade((CascadeStep(A, Escalation("y", NAN)), CascadeStep(B))), "cascade.steps[0].escalate.threshold: nan"),
        (calibrated(), "cascade.steps[0].escalate.calibration.points: 0 points; there must be 1 to 64"),
        (calibrated((NAN, 0.5)), "cascade.steps[0].escalate.calibration.points[0].confidence: nan must be finite"),
        (calibrated((0.5, 0.5), (0.5, 0.6)), "cascade.steps[0].escalate.calibration.points[1].confidence: 0.5 must be"),
        (calibrated((0.5, 0.5), (0.6, 0.4)), "cascade.steps[0].escalate.calibration.points[1].right: 0.4 must not be"),
        (calibrated((0.5, 1.5)), "cascade.steps[0].escalate.calibration.points[0].right: 1.5 must be in 0 to 1"),
        (calibrated((0.5, 0.5), audit_share=2.0), "cascade.steps[0].escalate.audit_share: 2.0 must be in 0 to 1"),
        (Cascade((CascadeStep(A, SURE), CascadeStep(A))), "cascade.steps[1].target: 'a' stands twice"),
        (ensemble(None), "ensemble.members: at least 2 are needed"),
        (ensemble(None, None, quorum=3), "ensemble.quorum: 3 must be in 1 to 2, its members"),
        (ensemble(None, None, quorum=-1), "ensemble.quorum: -1 must be in 1 to 2, its members"),
        (ensemble(1.0, None), "ensemble.members[0].weight: counts for WEIGHTED only, not for MEAN"),
        (ensemble(1.0, None, combine=Combine.WEIGHTED), "ensemble.members[1].weight: every member of WEIGHTED has one"),
        (ensemble(1.0, 0.0, combine=Combine.WEIGHTED), "ensemble.members[1].weight: 0.0 must be finite and positive"),
    ],
)
def test_a_strategy_that_makes_no_sense_is_refused(strategy: Strategy, fault: str) -> None:
    assert any(found.startswith(f"route.{fault}") for found in of(strategy)), of(strategy)


def test_a_pipeline_says_what_it_takes_and_gives_and_names_its_steps_apart() -> None:
    source = {"x": TensorSource("x")}
    pipeline = Pipeline((PipelineStep("One", A, source), PipelineStep("One", A, source)), {})

    assert [fault.split(": ")[0] for fault in of(pipeline)] == [
        "route.inputs",
        "route.outputs",
        "route.pipeline.steps[0].name",
        "route.pipeline.steps[1].name",
        "route.pipeline.steps[1].name",
    ]
    assert of(Pipeline((), {}))[-1] == "route.pipeline.steps: at least one is needed"


def test_the_rest_of_a_route_is_checked_whatever_its_strategy() -> None:
    route = replace(
        a_route("r", Single(A)),
        default_timeout_s=0.0,
        max_timeout_s=-1.0,
        max_attempts=11,
        max_in_flight=-1,
        owner="a\nb",
        inputs=(X, X),
        outputs=(replace(X, datatype="FP33"),),
    )

    assert [fault.path for fault in route_faults(route)] == [
        "route.owner",
        "route.inputs[1].name",
        "route.outputs[0].datatype",
        "route.default_timeout",
        "route.max_timeout",
        "route.max_in_flight",
        "route.max_attempts",
    ]


def test_a_flood_of_names_is_one_fault_and_nothing_in_it_is_looked_at() -> None:
    many = tuple(RouteTarget("a") for _ in range(10_000))
    sources = {f"x{number}": TensorSource("x") for number in range(257)}
    floods: tuple[Strategy, ...] = (
        Choose(many),
        Split(tuple(SplitTarget(target, 1.0) for target in many)),
        Fallback(many),
        Fallback((A, B), {f"y{number}": StaticTensor(()) for number in range(257)}),
        Cascade(tuple(CascadeStep(target) for target in many)),
        Ensemble(tuple(EnsembleMember(target) for target in many), Combine.MEAN, 1),
    )
    for strategy in floods:
        route = a_route("r", strategy)
        found = [
            *route_faults(route),
            *(fault for faults in validate({route.key: route}, ()).values() for fault in faults),
        ]
        assert len(found) == 1, found
        assert "entries, at most" in found[0].message
    pipeline = replace(a_route("r", Pipeline((PipelineStep("a", A, sources),), sources)), inputs=(X,), outputs=(X,))
    assert [fault.path for fault in route_faults(pipeline)] == [
        "route.pipeline.outputs",
        "route.pipeline.steps[0].inputs",
    ]
