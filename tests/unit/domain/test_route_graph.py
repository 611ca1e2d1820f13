"""What routes lead to: those that they name exist, fit, may be named, and do not lead back."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.domain.model import TensorSpec
from services.domain.objects import Metadata, Model, Object, Route
from services.domain.route_graph import MAX_NESTING
from services.domain.strategies import (
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
)
from services.domain.validation import validate
from tests.fakes.objects import a_model, a_policy, a_route, a_tenant, a_version

A, B = RouteTarget("a"), RouteTarget("b")
INTS = (TensorSpec("label", "INT64", (-1,)),)
SAME: tuple[Object, ...] = (a_model("a"), a_model("b"), a_version("a"))


def two(one: RouteTarget, other: RouteTarget) -> list[Strategy]:
    """Every strategy that names two models."""
    return [
        Choose((one, other)),
        Split((SplitTarget(one, 50), SplitTarget(other, 50))),
        Shadow(one, other),
        Fallback((one, other)),
        Cascade((CascadeStep(one, Escalation("y", 0.5)), CascadeStep(other))),
        Ensemble((EnsembleMember(one), EnsembleMember(other)), Combine.MEAN, 2),
    ]


def faults(*objects: Object) -> list[str]:
    state = {item.key: item for item in objects}
    return [f"{key.name}: {fault}" for key, found in validate(state, ()).items() for fault in found]


def wide(name: str, *, inputs: int = 4, outputs: int = 4) -> Model:
    """A model as `a_model`, of other sizes."""
    return Model(Metadata(name), (TensorSpec("x", "FP32", (-1, inputs)),), (TensorSpec("y", "FP32", (-1, outputs)),))


@pytest.mark.parametrize("strategy", two(A, B))
def test_models_that_are_alike_fit_every_strategy(strategy: Strategy) -> None:
    assert faults(*SAME, a_route("r", strategy)) == []


@pytest.mark.parametrize("strategy", two(A, RouteTarget("none")))
def test_a_model_that_is_not_there_is_named(strategy: Strategy) -> None:
    (found,) = faults(*SAME, a_route("r", strategy))

    assert found.endswith(".model: there is no Model 'none'")


@pytest.mark.parametrize("strategy", two(B, RouteTarget("a", "9.0.0")))
def test_a_version_that_is_not_there_is_named(strategy: Strategy) -> None:
    (found,) = faults(*SAME, a_route("r", strategy))

    assert found.endswith(".version: Model 'a' has no version '9.0.0'")


@pytest.mark.parametrize("strategy", two(A, RouteTarget("wide")))
def test_models_that_take_different_inputs_are_refused(strategy: Strategy) -> None:
    assert any(
        "its models take different inputs" in fault
        for fault in faults(*SAME, wide("wide", inputs=5), a_route("r", strategy))
    )


@pytest.mark.parametrize("strategy", two(A, RouteTarget("wide")))
def test_models_that_give_different_outputs_are_refused_but_as_a_shadow(strategy: Strategy) -> None:
    found = faults(*SAME, wide("wide", outputs=5), a_route("r", strategy))

    assert any("its models give different outputs" in fault for fault in found) is not isinstance(strategy, Shadow)


@pytest.mark.parametrize("strategy", two(A, RouteTarget("wide")))
def test_a_route_may_say_what_its_models_have_in_common(strategy: Strategy) -> None:
    own = replace(a_route("r", strategy), outputs=(TensorSpec("y", "FP32", (-1, -1)),))

    assert faults(*SAME, wide("wide", outputs=5), own) == []


@pytest.mark.parametrize("strategy", two(A, RouteTarget("wide")))
def test_every_model_must_fit_what_the_route_says(strategy: Strategy) -> None:
    own = replace(
        a_route("r", strategy),
        inputs=(TensorSpec("x", "FP32", (-1, 5)),),
        outputs=(TensorSpec("z", "FP32", (-1, -1)),),
    )

    found = faults(*SAME, wide("wide"), own)

    assert sum("takes FP32 [-1, 4] as input 'x', here it is FP32 [-1, 5]" in fault for fault in found) == 2
    assert sum("gives no output 'z'" in fault for fault in found) == (1 if isinstance(strategy, Shadow) else 2)


def chain(count: int) -> list[Object]:
    """Routes that each fall back to the next one, the last one to a model."""
    links = [a_route(f"r{n}", Fallback((A, RouteName(f"r{n + 1}")))) for n in range(1, count)]
    return [*SAME, *links, a_route(f"r{count}", Single(B))]


def test_routes_may_lead_to_routes_but_not_over_too_many() -> None:
    assert faults(*chain(MAX_NESTING)) == []
    assert faults(*chain(MAX_NESTING + 1)) == ["r1: route.fallback: leads over 9 routes in a row, at most 8"]
    assert len(faults(*chain(5000))) == 1


def test_routes_that_lead_back_are_refused_each() -> None:
    circle = [
        a_route("p", Fallback((A, RouteName("q")))),
        a_route("q", Fallback((A, RouteName("p")))),
        a_route("s", Fallback((A, RouteName("s")))),
    ]

    assert faults(*SAME, *circle) == [
        "p: route.fallback: routes lead back to themselves: p → q → p",
        "q: route.fallback: routes lead back to themselves: p → q → p",
        "s: route.fallback: routes lead back to themselves: s → s",
    ]


def test_a_route_that_is_not_there_is_named() -> None:
    assert faults(*SAME, a_route("r", Fallback((A, RouteName("none"))))) == [
        "r: route.fallback.targets[1].route: there is no Route 'none'"
    ]


def test_what_a_named_route_takes_and_gives_must_fit_too() -> None:
    other = a_route("other", Single(RouteTarget("wide")))

    found = faults(*SAME, wide("wide", inputs=5, outputs=5), other, a_route("r", Fallback((A, RouteName("other")))))

    assert [fault.partition(", so that")[0] for fault in found] == [
        "r: route.fallback.targets: its models take different inputs",
        "r: route.fallback.targets: its models give different outputs",
    ]


def test_an_audit_needs_the_output_of_the_next_step_too() -> None:
    cascade = Cascade((CascadeStep(A, Escalation("y", 0.5, audit_share=0.1)), CascadeStep(B)))
    other = replace(a_model("b"), outputs=(replace(a_model("b").outputs[0], name="z"),))
    route = replace(a_route("r", cascade), outputs=())

    assert faults(a_model("a"), a_model("b"), route) == []
    assert any("'b' gives no output 'y' to compare with" in fault for fault in faults(a_model("a"), other, route))


def test_a_threshold_needs_an_output_that_has_one() -> None:
    def cascade(output: str) -> Route:
        return a_route("r", Cascade((CascadeStep(A, Escalation(output, 0.5)), CascadeStep(B))))

    both = tuple(replace(a_model(name), outputs=(*a_model(name).outputs, *INTS)) for name in "ab")

    assert faults(*both, cascade("y")) == []
    assert faults(*both, cascade("z")) == [
        "r: route.cascade.steps[0].escalate.output: 'a' gives no output 'z'; it gives y, label"
    ]
    (found,) = faults(*both, cascade("label"))
    assert found.startswith("r: route.cascade.steps[0].escalate.output: 'label' is INT64; a threshold needs one of ")


@pytest.mark.parametrize(
    ("outputs", "combine", "fits"),
    [
        (a_model("a").outputs, Combine.MEAN, True),
        (a_model("a").outputs, Combine.VOTE, False),
        (INTS, Combine.MEAN, False),
        (INTS, Combine.WEIGHTED, False),
        (INTS, Combine.VOTE, True),
    ],
)
def test_what_is_combined_must_have_a_mean_or_be_countable(
    outputs: tuple[TensorSpec, ...], combine: Combine, fits: bool
) -> None:
    models = [replace(a_model(name), outputs=outputs) for name in "ab"]
    ensemble = Ensemble((EnsembleMember(A), EnsembleMember(B)), combine, 2)

    found = faults(*models, a_route("r", ensemble))

    assert [fault.split(":")[1] for fault in found] == ([] if fits else [" route.ensemble.combine"])


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"y": StaticTensor((2, 4))}, ""),
        ({"y": StaticTensor((1, 4), b"\0" * 16)}, ""),
        ({}, ": output 'y' of the route is missing"),
        ({"y": StaticTensor((1, 4)), "z": StaticTensor(())}, "[z]: the route gives no output 'z'"),
        ({"y": StaticTensor((1, 5))}, "[y].shape: [1, 5] must be [-1, 4], where -1 is any size"),
        ({"y": StaticTensor((4,))}, "[y].shape: [4] must be [-1, 4], where -1 is any size"),
        ({"y": StaticTensor((1, 4), b"\0" * 15)}, "[y]: FP32 of shape [1, 4] takes 16 bytes, 15 came"),
    ],
)
def test_a_static_answer_is_one_that_the_route_could_give(answer: dict[str, StaticTensor], fault: str) -> None:
    found = faults(*SAME, a_route("r", Fallback((A,), answer)))

    assert found == ([f"r: route.fallback.static_answer.outputs{fault}"] if fault else [])


def owned(name: str, tenant: str) -> tuple[Object, ...]:
    return (replace(a_model(name), metadata=Metadata(name, tenant=tenant)),)


@pytest.mark.parametrize("strategy", [*two(A, RouteTarget("theirs")), Fallback((A, RouteName("their-route")))])
def test_what_belongs_to_another_tenant_cannot_be_named(strategy: Strategy) -> None:
    their_route = Route(Metadata("their-route", tenant="acme"), Single(RouteTarget("theirs")))
    state: Sequence[Object] = (
        *SAME,
        a_policy(),
        a_tenant("acme"),
        a_tenant("other"),
        *owned("theirs", "acme"),
        their_route,
    )

    for tenant, allowed in (("acme", True), ("other", False), ("", False)):
        found = faults(*state, Route(Metadata("r", tenant=tenant), strategy))
        assert [fault.partition("belongs to ")[2] for fault in found] == (
            [] if allowed else ["tenant 'acme': only objects of that tenant may refer to it"]
        )


def test_a_policy_that_a_route_names_must_be_there() -> None:
    route = replace(a_route("r", Single(A)), policy="standard")

    assert faults(*SAME, route) == ["r: route.policy: there is no Policy 'standard'"]
    assert faults(*SAME, a_policy(), route) == []


@pytest.mark.parametrize(
    ("strategy", "allowed"),
    [
        (Split((SplitTarget(A, 90), SplitTarget(RouteTarget("a", "1.0.0"), 10))), True),
        (Shadow(A, B), True),
        (Single(B), False),
        (Fallback((A, RouteName("other"))), False),
        (Pipeline((PipelineStep("s", RouteName("other"), {}),), {}), False),
    ],
)
def test_a_route_may_be_called_like_the_only_model_that_answers_by_it(strategy: Strategy, allowed: bool) -> None:
    found = faults(*SAME, a_route("other", Single(B)), a_route("a", strategy))

    assert any("callers could not tell which of the two they name" in fault for fault in found) is not allowed
