"""Strategy `pipeline`: each step is asked as soon as what it needs is there; the first that fails ends the others."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.domain.errors import ModelFailed, YardError
from services.domain.request import InferCall
from services.domain.strategies import Pipeline, PipelineStep, TensorSource
from services.domain.tensor import RawTensor
from services.policy.critical_path import behind_s
from services.router.decision import Decision, StepView
from services.router.destination import Destination
from services.router.strategies.course import Course

REASON = "put together from its steps"


@dataclass(slots=True)
class _Run:
    """One call on its way through the steps."""

    course: Course
    call: InferCall
    decision: Decision
    behind_s: Mapping[str, float]
    given: dict[str, Mapping[str, RawTensor]]
    """Tensors by who gave them: a step, or the caller, who has no name."""
    used: Mapping[str, list[str]]
    """Outputs of each step that somebody uses."""
    running: dict[asyncio.Task[None], PipelineStep] = field(default_factory=dict)

    def sourced(self, sources: Mapping[str, TensorSource]) -> dict[str, RawTensor]:
        """The tensors that come from `sources`; inputs that the caller may leave out, and has, are missing."""
        found = {}
        for name, source in sources.items():
            tensors = self.given[source.step]
            if source.tensor in tensors:
                found[name] = tensors[source.tensor]
            elif source.step:
                raise ModelFailed(f"step '{source.step}' gave no output '{source.tensor}'")
        return found

    async def step(self, step: PipelineStep, callee: Destination) -> None:
        """Ask one step."""
        course, leg, start_s = self.course, self.decision.leg(), self.course.clock.now_s()
        try:
            asked = course.composes.asking(self.call, self.sourced(step.inputs), wanted=self.used[step.name])
            if faults := callee.misfits(asked.inputs):
                raise ModelFailed(f"it cannot take what the steps before gave: {'; '.join(map(str, faults))}")
            answer = await course.ask(asked, callee, leg, course.cut(self.behind_s[step.name]))
            self.given[step.name] = course.composes.outputs(answer)
        except YardError as error:
            course.note(self.decision, step.name, leg, start_s, error)
            raise
        course.note(self.decision, step.name, leg, start_s)
        if leg.told is not None and leg.told.degraded_reason:
            told = self.decision.telling
            told.degraded_reason += f"{'; ' if told.degraded_reason else ''}{step.name}: {leg.told.degraded_reason}"

    async def end(self) -> None:
        """End the steps under way, and say that they were not waited for."""
        dropped = [step for task, step in self.running.items() if not task.done()]
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        for step in dropped:
            self.decision.telling.steps.append(StepView(step.name, None, None, "another step failed", dropped=True))


async def carry_out(
    course: Course, call: InferCall, destination: Destination, pipeline: Pipeline, decision: Decision
) -> object:
    """Ask every step; the outputs of the route are the answer."""
    callees = {step.name: callee for step, callee in zip(pipeline.steps, destination.callees, strict=True)}
    needs = _needs(pipeline)
    behind = behind_s(needs, {name: callee.expected_s for name, callee in callees.items()})
    run = _Run(course, call, decision, behind, {"": course.composes.inputs(call)}, _used(pipeline))
    waiting = {step.name: step for step in pipeline.steps}
    loop = asyncio.get_running_loop()
    try:
        while waiting or run.running:
            for name in [name for name in waiting if all(each in run.given for each in needs[name])]:
                step = waiting.pop(name)
                run.running[loop.create_task(run.step(step, callees[name]))] = step
            done, _ = await asyncio.wait(run.running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                step = run.running.pop(task)
                try:
                    task.result()
                except YardError as error:
                    raise _of_step(step, error) from error
    finally:
        if run.running:
            await run.end()
    decision.reason = REASON
    return course.composes.answer(call, destination.name, run.sourced(pipeline.outputs))


def plan(course: Course, call: InferCall, destination: Destination, pipeline: Pipeline, decision: Decision) -> None:
    """Say whom each step would ask, by what their registered schemas say; tensors between steps are not known."""
    answerable = True
    for step, callee in zip(pipeline.steps, destination.callees, strict=True):
        leg = decision.leg()
        course.plan(call._replace(inputs=()), callee, leg)
        course.note_dry(decision, step.name, leg)
        answerable = answerable and leg.answerable
    decision.telling.answerable = answerable
    decision.reason = REASON if answerable else "not every step can be asked now"


def _needs(pipeline: Pipeline) -> dict[str, list[str]]:
    return {
        step.name: list(dict.fromkeys(source.step for source in step.inputs.values() if source.step))
        for step in pipeline.steps
    }


def _used(pipeline: Pipeline) -> dict[str, list[str]]:
    sources = [source for step in pipeline.steps for source in step.inputs.values()] + list(pipeline.outputs.values())
    used: dict[str, list[str]] = {step.name: [] for step in pipeline.steps}
    for source in dict.fromkeys(sources):
        if source.step:
            used[source.step].append(source.tensor)
    return used


def _of_step(step: PipelineStep, error: YardError) -> YardError:
    """`error`, saying which step it is of."""
    error.message = f"step '{step.name}': {error.message}"
    error.metadata.setdefault("step", step.name)
    return error
