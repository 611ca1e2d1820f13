"""A pipeline's graph: everything comes from somewhere, fits, is of use, and nothing waits for itself."""

from dataclasses import replace

import pytest

from services.domain.model import TensorSpec
from services.domain.objects import Metadata, Model, Object, Route
from services.domain.strategies import Callee, Pipeline, PipelineStep, RouteName, RouteTarget, Single, TensorSource
from services.domain.validation import validate
from tests.fakes.objects import a_route

IMAGE = TensorSpec("image", "UINT8", (-1, -1, -1, 3))
BOXES = TensorSpec("boxes", "FP32", (-1, 4))
LABELS = TensorSpec("labels", "INT64", (-1,))
HINT = TensorSpec("hint", "BYTES", (-1,), optional=True)
DETECT = Model(Metadata("detect"), (IMAGE,), (BOXES, TensorSpec("crops", "UINT8", (-1, -1, -1, 3))))
NAME = Model(Metadata("name"), (TensorSpec("crops", "UINT8", (-1, 64, 64, 3)), HINT), (LABELS,))


def source(text: str) -> TensorSource:
    """`step.tensor`, or a tensor of the route."""
    step, _, tensor = text.rpartition(".")
    return TensorSource(tensor, step)


def step(name: str, call: Callee | str, **inputs: str) -> PipelineStep:
    callee = RouteTarget(call) if isinstance(call, str) else call
    return PipelineStep(name, callee, {tensor: source(text) for tensor, text in inputs.items()})


FIND = step("find", "detect", image="image")
TELL = step("tell", "name", crops="find.crops")


def pipeline(*steps: PipelineStep, **outputs: str) -> Route:
    wanted = outputs or {"labels": "tell.labels"}
    strategy = Pipeline(steps, {name: source(text) for name, text in wanted.items()})
    return replace(a_route("r", strategy), inputs=(IMAGE,), outputs=(LABELS,))


def faults(route: Route, *others: Object) -> list[str]:
    state = {item.key: item for item in (DETECT, NAME, *others, route)}
    return [str(fault) for found in validate(state, ()).values() for fault in found]


def test_a_graph_that_is_wired_through_has_no_fault() -> None:
    assert faults(pipeline(FIND, TELL)) == []
    assert faults(pipeline(TELL, FIND)) == []  # in any order


def test_a_step_may_name_a_route_and_is_checked_by_what_that_takes() -> None:
    naming = a_route("naming", Single(RouteTarget("name")))
    by_route = step("tell", RouteName("naming"), crops="find.crops")

    assert faults(pipeline(FIND, by_route), naming) == []
    assert faults(pipeline(FIND, replace(by_route, inputs={})), naming) == [
        "route.pipeline.steps[1].inputs: input 'crops' of 'route naming' comes from nowhere",
        "route.pipeline.steps[0]: nothing uses an output of step 'find'",
    ]


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (
            (FIND, step("tell", "name", crops="seek.crops")),
            [
                "route.pipeline.steps[1].inputs[crops].step: there is no step 'seek'",
                "route.pipeline.steps[0]: nothing uses an output of step 'find'",
            ],
        ),
        (
            (FIND, step("tell", "name", crops="find.cuts")),
            ["route.pipeline.steps[1].inputs[crops].tensor: step 'find' gives no output 'cuts'; it gives boxes, crops"],
        ),
        (
            (FIND, step("tell", "name", crops="find.boxes")),
            [
                "route.pipeline.steps[1].inputs[crops]: find.boxes does not fit: it is FP32 [-1, 4], "
                "UINT8 [-1, 64, 64, 3] is needed"
            ],
        ),
        (
            (step("find", "detect", image="picture"), TELL),
            [
                "route.pipeline.steps[0].inputs[image].tensor: the route has no input 'picture'",
                "route.inputs[0]: no step uses input 'image'",
            ],
        ),
        (
            (step("find", "detect", image="image", mask="image"), TELL),
            ["route.pipeline.steps[0].inputs[mask]: 'detect' takes no input 'mask'"],
        ),
        (
            (FIND, TELL, step("idle", "detect", image="image")),
            ["route.pipeline.steps[2]: nothing uses an output of step 'idle'"],
        ),
        (
            (FIND, step("tell", "name", crops="image")),
            [
                "route.pipeline.steps[1].inputs[crops]: the route's image does not fit: it is UINT8 [-1, -1, -1, 3], "
                "UINT8 [-1, 64, 64, 3] is needed",
                "route.pipeline.steps[0]: nothing uses an output of step 'find'",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_named_at_its_place(steps: tuple[PipelineStep, ...], found: list[str]) -> None:
    assert faults(pipeline(*steps)) == found


def test_every_output_of_the_route_comes_from_a_step_and_fits() -> None:
    assert faults(pipeline(FIND, TELL, labels="tell.labels", more="find.boxes")) == [
        "route.pipeline.outputs[more]: the route gives no output 'more'"
    ]
    assert faults(pipeline(FIND, TELL, other="tell.labels")) == [
        "route.pipeline.outputs[other]: the route gives no output 'other'",
        "route.pipeline.outputs: output 'labels' of the route comes from nowhere",
    ]
    assert faults(pipeline(FIND, TELL, labels="find.boxes"))[0] == (
        "route.pipeline.outputs[labels]: find.boxes does not fit: it is FP32 [-1, 4], INT64 [-1] is needed"
    )


def test_steps_that_wait_for_each_other_are_refused() -> None:
    turn = Model(Metadata("turn"), (BOXES,), (BOXES,))
    ring = pipeline(
        FIND,
        TELL,
        step("a", "turn", boxes="b.boxes"),
        step("b", "turn", boxes="a.boxes"),
        step("c", "turn", boxes="c.boxes"),
    )

    assert faults(ring, turn) == [
        "route.pipeline.steps: steps wait for each other: a → b → a",
        "route.pipeline.steps: steps wait for each other: c → c",
    ]


def test_an_optional_input_of_the_route_cannot_feed_what_needs_it() -> None:
    needs = replace(NAME, inputs=(NAME.inputs[0], replace(HINT, optional=False)))
    route = pipeline(FIND, step("tell", "name", crops="find.crops", hint="hint"))
    route = replace(route, inputs=(IMAGE, HINT))

    assert faults(route) == []
    assert faults(route, needs) == [
        "route.pipeline.steps[1].inputs[hint]: the route's hint does not fit: it is optional, and is needed here"
    ]


def test_a_step_whose_callee_is_unknown_brings_no_further_faults() -> None:
    assert faults(pipeline(FIND, step("tell", "nobody", crops="find.crops"))) == [
        "route.pipeline.steps[1].call.target.model: there is no Model 'nobody'"
    ]
