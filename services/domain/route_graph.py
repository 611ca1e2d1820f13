"""What routes lead to: whether those that they name exist and fit, and that no route leads back to itself.

Looks at all routes of a state together. What a pipeline wires is in `pipeline_wiring`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.domain.errors import Fault
from services.domain.model import TensorMeta, TensorSpec, tensor_faults
from services.domain.objects import Model, Route
from services.domain.ordering import ordered
from services.domain.pipeline_wiring import wiring_faults
from services.domain.route_validation import crowd_faults
from services.domain.schemas import FLOATS, Schema, input_misfits, output_misfits, unlike
from services.domain.strategies import (
    Callee,
    Cascade,
    Combine,
    Ensemble,
    Fallback,
    Pipeline,
    RouteTarget,
    StaticTensor,
    named,
    strategy_name,
)
from services.domain.texts import shown

MAX_NESTING = 8
"""Most routes in a row that lead to each other, the first included."""

_LISTS = {
    "single": "single.target",
    "choose": "choose.candidates",
    "split": "split.targets",
    "shadow": "shadow.shadow",
    "fallback": "fallback.targets",
    "cascade": "cascade.steps",
    "ensemble": "ensemble.members",
}
"""Where it is said that the models of a route differ."""

_NOT_ANSWERING = "shadow.shadow"
"""Path of the one whose answers reach no caller."""


@dataclass(frozen=True, slots=True)
class Known:
    """What routes can name."""

    models: Mapping[str, Model]
    versions: Mapping[str, set[str]]
    routes: Mapping[str, Route]


def route_reference_faults(known: Known) -> dict[str, list[Fault]]:
    """Faults of what routes name and lead to, by route."""
    schemas: dict[str, Schema | None] = {}
    found: dict[str, list[Fault]] = {}
    nesting: dict[str, tuple[str, ...]] = {}
    for name, route in known.routes.items():
        if inner := route.routes:
            nesting[name] = inner
        elif faults := _route_faults(route, known, schemas):
            found[name] = faults
    # Those that are named come first, so that each schema is known when it is asked for.
    order = ordered(nesting)
    depths: dict[str, int] = {}
    for name in order.names:
        route = known.routes[name]
        faults = _route_faults(route, known, schemas)
        depths[name] = 1 + max(depths.get(inner, 1) for inner in nesting[name])
        at = f"route.{strategy_name(route.strategy)}"
        if name in order.circles:
            faults.append(Fault(at, f"routes lead back to themselves: {' → '.join(order.circles[name])}"))
        elif depths[name] == MAX_NESTING + 1:
            faults.append(Fault(at, f"leads over {depths[name]} routes in a row, at most {MAX_NESTING}"))
        if faults:
            found[name] = faults
    return found


def _route_faults(route: Route, known: Known, schemas: dict[str, Schema | None]) -> list[Fault]:
    """Faults of one route; notes its schema."""
    if crowd_faults(route.strategy):
        return []  # that is all there is to be said of it
    faults: list[Fault] = []
    callees: list[tuple[str, Callee, Schema | None]] = []
    for path, callee in named(route.strategy):
        faults += _missing(route, callee, f"route.{path}", known)
        if isinstance(callee, RouteTarget):
            model = known.models.get(callee.model)
            schema = None if model is None else Schema(model.inputs, model.outputs)
        else:
            schema = schemas.get(callee.route)
        callees.append((path, callee, schema))
    schema = schemas[route.metadata.name] = _schema_of(route, [schema for _, _, schema in callees])
    if isinstance(route.strategy, Pipeline):
        faults += wiring_faults(route, route.strategy, [schema for _, _, schema in callees])
    elif len(callees) > 1 or route.inputs or route.outputs:
        faults += _misfits(route, callees)
    match route.strategy:
        case Cascade():
            faults += _escalation_faults(route.strategy, [schema for _, _, schema in callees])
        case Ensemble() if schema is not None:
            faults += _combine_faults(route.strategy, schema)
        case Fallback(static_answer=answer) if schema is not None and answer is not None:
            faults += _static_faults(answer, schema)
        case _:
            pass
    name = route.metadata.name
    answering = (callee for path, callee, _ in callees if path != _NOT_ANSWERING)
    if name in known.models and any(not isinstance(one, RouteTarget) or one.model != name for one in answering):
        faults.append(
            Fault(
                "metadata.name",
                f"a Model is called '{name}' too, and is not among the route's own: callers could "
                "not tell which of the two they name",
            )
        )
    return faults


def _missing(route: Route, callee: Callee, at: str, known: Known) -> Iterator[Fault]:
    """Faults of a callee that does not exist, or belongs to another tenant."""
    found: Model | Route | None
    if isinstance(callee, RouteTarget):
        kind, name, at_name, found = "Model", callee.model, f"{at}.model", known.models.get(callee.model)
        if found is not None and callee.version and callee.version not in known.versions.get(callee.model, ()):
            yield Fault(f"{at}.version", f"Model {shown(name)} has no version {shown(callee.version)}")
    else:
        kind, name, at_name, found = "Route", callee.route, at, known.routes.get(callee.route)
    if found is None:
        if name:  # an empty one is a fault of the route by itself
            yield Fault(at_name, f"there is no {kind} {shown(name)}")
    elif found.metadata.tenant not in ("", route.metadata.tenant):
        yield Fault(at_name, foreign(f"{kind} {shown(name)}", found.metadata.tenant))


def foreign(what: str, tenant: str) -> str:
    """Why an object may not be referred to."""
    return f"{what} belongs to tenant '{tenant}': only objects of that tenant may refer to it"


def _schema_of(route: Route, callees: Sequence[Schema | None]) -> Schema | None:
    """What a route takes and gives: what it says itself, else what the first that it names does."""
    first = callees[0] if callees else None
    inputs = route.inputs or (first.inputs if first else ())
    outputs = route.outputs or (first.outputs if first else ())
    return Schema(inputs, outputs) if inputs and outputs else None


def _misfits(route: Route, callees: Sequence[tuple[str, Callee, Schema | None]]) -> Iterator[Fault]:
    inputs: list[tuple[TensorSpec, ...]] = []
    outputs: list[tuple[TensorSpec, ...]] = []
    for path, callee, schema in callees:
        if schema is None:
            continue
        why = list(input_misfits(schema.inputs, route.inputs)) if route.inputs else []
        inputs.append(schema.inputs)
        if path != _NOT_ANSWERING:
            why += output_misfits(schema.outputs, route.outputs) if route.outputs else ()
            outputs.append(schema.outputs)
        yield from (Fault(f"route.{path}", f"{shown(str(callee))} {text}") for text in why)
    at = f"route.{_LISTS[strategy_name(route.strategy)]}"
    if not route.inputs and any(unlike(inputs[0], other) for other in inputs[1:]):
        yield Fault(at, "its models take different inputs, so that no request could fit all of them")
    if not route.outputs and any(unlike(outputs[0], other) for other in outputs[1:]):
        yield Fault(
            at,
            "its models give different outputs, so that no caller could know what comes; if what they have in common "
            "will do, say so in the route's own outputs",
        )


def _escalation_faults(cascade: Cascade, schemas: Sequence[Schema | None]) -> Iterator[Fault]:
    for index, (step, schema) in enumerate(zip(cascade.steps, schemas, strict=True)):
        if step.escalate is None or schema is None:
            continue
        path = f"route.cascade.steps[{index}].escalate.output"
        name = step.escalate.output
        spec = next((spec for spec in schema.outputs if spec.name == name), None)
        if spec is None:
            given = ", ".join(spec.name for spec in schema.outputs)
            yield Fault(path, f"{shown(str(step.target))} gives no output {shown(name)}; it gives {given}")
        elif spec.datatype not in FLOATS:
            yield Fault(path, f"{shown(name)} is {spec.datatype}; a threshold needs one of {', '.join(sorted(FLOATS))}")
        after = schemas[index + 1] if index + 1 < len(schemas) else None
        if step.escalate.audit_share and after is not None and all(spec.name != name for spec in after.outputs):
            text = f"{shown(str(cascade.steps[index + 1].target))} gives no output {shown(name)} to compare with"
            yield Fault(path.replace(".output", ".audit_share"), text)


def _combine_faults(ensemble: Ensemble, schema: Schema) -> Iterator[Fault]:
    votes = ensemble.combine is Combine.VOTE
    for spec in schema.outputs:
        if (spec.datatype in FLOATS) is votes:
            why = (
                "are hardly ever equal, so that there is nothing to vote on: use MEAN or WEIGHTED"
                if votes
                else "have no mean: use VOTE"
            )
            yield Fault("route.ensemble.combine", f"elements of output {shown(spec.name)}, {spec.datatype}, {why}")


def _static_faults(answer: Mapping[str, StaticTensor], schema: Schema) -> Iterator[Fault]:
    at = "route.fallback.static_answer.outputs"
    specs = {spec.name: spec for spec in schema.outputs}
    for name, tensor in answer.items():
        path = f"{at}[{shown(name)[1:-1]}]"
        spec = specs.pop(name, None)
        if spec is None:
            yield Fault(path, f"the route gives no output {shown(name)}")
        elif len(spec.shape) != len(tensor.shape) or any(
            most not in (-1, size) for most, size in zip(spec.shape, tensor.shape, strict=True)
        ):
            yield Fault(f"{path}.shape", f"{list(tensor.shape)} must be {list(spec.shape)}, where -1 is any size")
        elif tensor.raw and min(tensor.shape, default=0) >= 0:
            meta = TensorMeta(name, spec.datatype, tensor.shape, raw_bytes=len(tensor.raw))
            for fault in tensor_faults(meta, path):
                yield Fault(fault.path, fault.message.removeprefix(f"input '{name}': "))
    yield from (Fault(at, f"output {shown(name)} of the route is missing") for name in specs)
