"""Moving a route from one version to another in steps, each of them a revision: what the route is after each.

What a rollout is about stands in the route itself, in an annotation: from what to what, its steps, and the strategy
from before, to which an abort returns. So anybody can go on with it, and the history shows every step.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from modelyard.registry.v1 import objects_pb2
from services.chassis.object_codec import object_from, object_to
from services.domain.objects import Route
from services.domain.strategies import HashKey, RouteTarget, Shadow, Single, Split, SplitTarget
from yardctl.errors import CommandError

ANNOTATION = "rollout"
SHADOW = 0.0
"""The step in which the new version gets copies of the calls, and answers none."""

CANARY = (1.0, 5.0, 25.0, 50.0, 100.0)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout under way."""

    old: RouteTarget
    new: RouteTarget
    steps: tuple[float, ...]
    """Per cent of the calls that the new version gets, step by step; `SHADOW` comes first if at all, 100 last."""
    at: int
    """The step it is in, from 0."""
    hash_key: HashKey
    before: str
    """The route's strategy from before, encoded."""

    @property
    def said(self) -> str:
        """Where it stands, in words."""
        share = "gets copies" if self.steps[self.at] == SHADOW else f"gets {self.steps[self.at]:g} %"
        return f"{self.new} {share} (step {self.at + 1} of {len(self.steps)})"

    @property
    def last(self) -> bool:
        """Whether the new version gets all."""
        return self.at == len(self.steps) - 1


def rollout_of(route: Route) -> Rollout | None:
    """The rollout that a route is in; None if it is in none.

    Raises:
        CommandError: The annotation is not one of ours.
    """
    text = route.metadata.annotations.get(ANNOTATION)
    if text is None:
        return None
    try:
        told = json.loads(text)
        return Rollout(
            old=_target(told["from"]),
            new=_target(told["to"]),
            steps=tuple(float(step) for step in told["steps"]),
            at=int(told["at"]),
            hash_key=HashKey[told["hash_key"]],
            before=str(told["before"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"the annotation '{ANNOTATION}' of route '{route.metadata.name}' is no rollout: {error}; remove it with "
            f"'yardctl edit route {route.metadata.name}'"
        ) from error


def started(
    route: Route, new: RouteTarget, *, old: RouteTarget | None, steps: Sequence[float], shadow: bool, hash_key: HashKey
) -> Route:
    """The route in the first step.

    Args:
        route: As it is.
        new: The version to come.
        old: The version that answers now; None: the one that the route names.
        steps: Per cents, growing, the last one 100.
        shadow: Whether the new version gets copies first.
        hash_key: What keeps calls together.

    Raises:
        CommandError: The route is in a rollout, or cannot begin this one.
    """
    name = route.metadata.name
    if (running := rollout_of(route)) is not None:
        raise CommandError(f"route '{name}' is in a rollout: {running.said}; promote or abort it first")
    _check(steps)
    if old is None:
        old = _answers_now(route)
    if not old.version or not new.version:
        which = old if not old.version else new
        raise CommandError(
            f"'{which}' names no version: a rollout needs both, since the newest version of a model takes over by "
            "itself (--from MODEL:VERSION, --to MODEL:VERSION)"
        )
    if old == new:
        raise CommandError(f"route '{name}' goes to {new} already")
    all_steps = ((SHADOW,) if shadow else ()) + tuple(steps)
    before = base64.b64encode(_spec_of(route)).decode()
    return _in_step(route, Rollout(old, new, all_steps, 0, hash_key, before))


def promoted(route: Route) -> Route:
    """The route in the next step; after the last one it is a plain route to the new version.

    Raises:
        CommandError: It is in no rollout.
    """
    rollout = _running(route)
    if rollout.last:
        return _without(replace(route, strategy=Single(rollout.new)))
    return _in_step(route, replace(rollout, at=rollout.at + 1))


def aborted(route: Route) -> Route:
    """The route with the strategy from before.

    Raises:
        CommandError: It is in no rollout.
    """
    rollout = _running(route)
    message = objects_pb2.Object.FromString(base64.b64decode(rollout.before))
    before = object_from(message)
    assert isinstance(before, Route)
    return _without(replace(route, strategy=before.strategy))


def parse_steps(text: str) -> tuple[float, ...]:
    """`1,5,25,100` as per cents.

    Raises:
        CommandError: They are no steps.
    """
    try:
        steps = tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise CommandError(f"--steps '{text}' must be per cents such as 1,5,25,50,100") from None
    _check(steps)
    return steps


def parse_target(text: str) -> RouteTarget:
    """`model:version` or `model`.

    Raises:
        CommandError: It is empty.
    """
    if not text.partition(":")[0]:
        raise CommandError(f"'{text}' must be MODEL:VERSION")
    return _target(text)


def _check(steps: Sequence[float]) -> None:
    grows = all(earlier < later for earlier, later in pairwise(steps))
    if not steps or not grows or steps[-1] != 100.0 or not 0.0 < steps[0] <= 100.0:
        said = ",".join(f"{step:g}" for step in steps)
        raise CommandError(f"--steps {said} must grow, be above 0, and end with 100")


def _answers_now(route: Route) -> RouteTarget:
    match route.strategy:
        case Single(target):
            return target
        case Split(targets) if sum(part.percent > 0.0 for part in targets) == 1:
            return next(part.target for part in targets if part.percent > 0.0)
        case _:
            raise CommandError(
                f"route '{route.metadata.name}' does not go to one version: say which one is to be replaced "
                "(--from MODEL:VERSION); an abort returns to the strategy that it has now"
            )


def _in_step(route: Route, rollout: Rollout) -> Route:
    percent = rollout.steps[rollout.at]
    strategy: Shadow | Single | Split
    if percent == SHADOW:
        strategy = Shadow(rollout.old, rollout.new)
    elif percent == 100.0:
        strategy = Single(rollout.new)
    else:
        # In decimals as people write them: 99.9 and 0.1 are 100 exactly.
        parts = (SplitTarget(rollout.old, round(100.0 - percent, 6)), SplitTarget(rollout.new, percent))
        strategy = Split(parts, rollout.hash_key)
    told = {
        "from": str(rollout.old),
        "to": str(rollout.new),
        "steps": [f"{step:g}" for step in rollout.steps],
        "at": rollout.at,
        "hash_key": rollout.hash_key.name,
        "before": rollout.before,
    }
    return _annotated(replace(route, strategy=strategy), {**route.metadata.annotations, ANNOTATION: json.dumps(told)})


def _without(route: Route) -> Route:
    kept = {key: value for key, value in route.metadata.annotations.items() if key != ANNOTATION}
    return _annotated(route, kept)


def _annotated(route: Route, annotations: Mapping[str, str]) -> Route:
    return replace(route, metadata=replace(route.metadata, annotations=annotations))


def _running(route: Route) -> Rollout:
    rollout = rollout_of(route)
    if rollout is None:
        raise CommandError(f"route '{route.metadata.name}' is in no rollout: 'yardctl rollout start' begins one")
    return rollout


def _spec_of(route: Route) -> bytes:
    """The strategy alone; what else the route says stays as it is by then."""
    bare = Route(replace(route.metadata, labels={}, annotations={}), route.strategy)
    return object_to(bare).SerializeToString(deterministic=True)


def _target(text: str) -> RouteTarget:
    model, _, version = text.partition(":")
    return RouteTarget(model, version)
