"""Whether a pipeline's steps and outputs come from somewhere, fit, and are of use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.domain.errors import Fault
from services.domain.model import TensorSpec
from services.domain.objects import Route
from services.domain.ordering import ordered
from services.domain.schemas import Schema, wiring_misfit
from services.domain.strategies import Pipeline, PipelineStep, TensorSource
from services.domain.texts import shown

_AT = "route.pipeline"


@dataclass(slots=True)
class _Wiring:
    """One pipeline, and what of it is used."""

    inputs: Mapping[str, TensorSpec]
    """The route's."""
    steps: Mapping[str, Mapping[str, TensorSpec] | None]
    """Outputs of each step, by its name; None where its callee is not known."""
    used_inputs: set[str] = field(default_factory=set)
    used_steps: set[str] = field(default_factory=set)

    def source(self, source: TensorSource, path: str) -> TensorSpec | Fault | None:
        """Where a tensor comes from; None if that cannot be known, since the callee is not."""
        if not source.step:
            self.used_inputs.add(source.tensor)
            spec = self.inputs.get(source.tensor)
            return spec or Fault(f"{path}.tensor", f"the route has no input {shown(source.tensor)}")
        if source.step not in self.steps:
            return Fault(f"{path}.step", f"there is no step {shown(source.step)}")
        self.used_steps.add(source.step)
        outputs = self.steps[source.step]
        if outputs is None:
            return None
        spec = outputs.get(source.tensor)
        given = f"step {shown(source.step)} gives no output {shown(source.tensor)}; it gives {', '.join(outputs)}"
        return spec or Fault(f"{path}.tensor", given)


def wiring_faults(route: Route, pipeline: Pipeline, schemas: Sequence[Schema | None]) -> list[Fault]:
    """Everything wrong with how a pipeline is wired.

    Args:
        route: Whose inputs and outputs are the pipeline's.
        pipeline: Its strategy.
        schemas: What the callee of each step takes and gives; None where that is not known.
    """
    wiring = _Wiring(
        inputs={spec.name: spec for spec in route.inputs},
        steps={
            step.name: None if schema is None else {spec.name: spec for spec in schema.outputs}
            for step, schema in zip(pipeline.steps, schemas, strict=True)
        },
    )
    faults: list[Fault] = []
    for index, (step, schema) in enumerate(zip(pipeline.steps, schemas, strict=True)):
        faults += _step_faults(wiring, step, schema, f"{_AT}.steps[{index}].inputs")
    faults += _output_faults(wiring, route, pipeline)
    faults += _idle_faults(wiring, route, pipeline)
    needs = {step.name: [source.step for source in step.inputs.values()] for step in pipeline.steps}
    circles = dict.fromkeys(ordered(needs).circles.values())
    faults += [Fault(f"{_AT}.steps", f"steps wait for each other: {' → '.join(circle)}") for circle in circles]
    return faults


def _step_faults(wiring: _Wiring, step: PipelineStep, schema: Schema | None, at: str) -> Iterator[Fault]:
    taken = {} if schema is None else {spec.name: spec for spec in schema.inputs}
    for name, source in step.inputs.items():
        path = f"{at}[{shown(name)[1:-1]}]"
        found = wiring.source(source, path)
        if isinstance(found, Fault):
            yield found
        if schema is None:
            continue
        sink = taken.pop(name, None)
        if sink is None:
            yield Fault(path, f"{shown(str(step.call))} takes no input {shown(name)}")
        elif isinstance(found, TensorSpec):
            # An input of the route is a promise to every caller; of a step's output only its own run can tell.
            if misfit := wiring_misfit(found, sink, strict=not source.step):
                yield Fault(path, f"{source} does not fit: {misfit}")
            elif not source.step and found.optional and not sink.optional:
                yield Fault(path, f"{source} does not fit: it is optional, and is needed here")
    for spec in taken.values():
        if not spec.optional:
            yield Fault(at, f"input {shown(spec.name)} of {shown(str(step.call))} comes from nowhere")


def _output_faults(wiring: _Wiring, route: Route, pipeline: Pipeline) -> Iterator[Fault]:
    promised = {spec.name: spec for spec in route.outputs}
    for name, source in pipeline.outputs.items():
        path = f"{_AT}.outputs[{shown(name)[1:-1]}]"
        found = wiring.source(source, path)
        if isinstance(found, Fault):
            yield found
        sink = promised.pop(name, None)
        if sink is None:
            yield Fault(path, f"the route gives no output {shown(name)}")
        elif isinstance(found, TensorSpec) and (misfit := wiring_misfit(found, sink, strict=True)):
            yield Fault(path, f"{source} does not fit: {misfit}")
    for name in promised:
        yield Fault(f"{_AT}.outputs", f"output {shown(name)} of the route comes from nowhere")


def _idle_faults(wiring: _Wiring, route: Route, pipeline: Pipeline) -> Iterator[Fault]:
    for index, spec in enumerate(route.inputs):
        if spec.name not in wiring.used_inputs:
            yield Fault(f"route.inputs[{index}]", f"no step uses input {shown(spec.name)}")
    for index, step in enumerate(pipeline.steps):
        if step.name not in wiring.used_steps:
            yield Fault(f"{_AT}.steps[{index}]", f"nothing uses an output of step {shown(step.name)}")
