"""Commands that move a route from one version to another: rollout start, promote, abort, status."""

from collections.abc import Callable
from typing import Annotated

import typer

from modelyard.registry.v1 import registry_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.object_codec import object_from, object_to
from services.domain.errors import RevisionMoved
from services.domain.objects import ObjectKey, Route
from services.domain.strategies import HashKey, RouteTarget
from yardctl import client, console, render
from yardctl.applying import DryRunOption, ReasonOption, author, new_request_id, print_applied
from yardctl.client import RegistryClient
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption
from yardctl.errors import CommandError
from yardctl.rollouts import CANARY, Rollout, aborted, parse_steps, parse_target, promoted, rollout_of, started

RouteArgument = Annotated[str, typer.Argument(metavar="ROUTE", help="The route.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Also where no host has the new version ready: its calls fail until one has.")
]

DEFAULT_STEPS = ",".join(f"{percent:g}" for percent in CANARY)

TRIES = 5
"""A step is tried so often while others change the mesh as well."""

rollout = typer.Typer(
    help="Move a route from one version to another, step by step; each step is a revision.", no_args_is_help=True
)


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    for command in (start, promote, abort, status):
        rollout.command()(command)
    app.add_typer(rollout, name="rollout")


def start(
    route: RouteArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="MODEL:VERSION", help="The version to come.")],
    from_: Annotated[
        str, typer.Option("--from", metavar="MODEL:VERSION", help="The one to go; else the one that the route names.")
    ] = "",
    steps: Annotated[
        str, typer.Option("--steps", help="Per cents of the calls, step by step; 100 alone is blue-green.")
    ] = DEFAULT_STEPS,
    shadow: Annotated[bool, typer.Option("--shadow", help="First send it copies, and answer by the old one.")] = False,
    hash_key: Annotated[
        HashKey, typer.Option("--by", help="What keeps calls together.", case_sensitive=False)
    ] = HashKey.SESSION,
    force: ForceOption = False,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Begin: the new version gets its first part of the calls, or copies of them."""
    parsed = console.checked(lambda: (parse_target(to), parse_target(from_) if from_ else None, parse_steps(steps)))
    new, old, per_cents = parsed

    def step(found: Route) -> Route:
        return started(found, new, old=old, steps=per_cents, shadow=shadow, hash_key=hash_key)

    registry = console.registry_of(directory, address)
    _change(route, step, force=force, reason=reason, dry_run=dry_run, address=registry, output=output)


def promote(
    route: RouteArgument,
    *,
    force: ForceOption = False,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Go on to the next step; after the last one the rollout is over."""
    registry = console.registry_of(directory, address)
    _change(route, promoted, force=force, reason=reason, dry_run=dry_run, address=registry, output=output)


def abort(
    route: RouteArgument,
    *,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Return to the strategy from before."""
    registry = console.registry_of(directory, address)
    _change(route, aborted, force=True, reason=reason, dry_run=dry_run, address=registry, output=output)


def status(
    *, directory: DirOption = DEFAULT_DIR, address: RegistryOption = "", output: OutputOption = Output.TABLE
) -> None:
    """List the rollouts under way."""

    async def main() -> tuple[list[tuple[Route, Rollout]], list[resources_pb2.HostRecord]]:
        async with client.registry(console.registry_of(directory, address)) as registry:
            messages, _ = await registry.objects("Route")
            routes = [found for found in map(object_from, messages) if isinstance(found, Route)]
            running = [(found, told) for found in routes if (told := rollout_of(found)) is not None]
            return running, await registry.hosts()

    running, hosts = console.guarded(main())
    if output is Output.JSON:
        console.print_json(
            [
                {
                    "route": found.metadata.name,
                    "from": str(told.old),
                    "to": str(told.new),
                    "steps": list(told.steps),
                    "at": told.at,
                    "ready": _ready(told.new, hosts),
                }
                for found, told in running
            ]
        )
        return
    if not running:
        console.out().print("no route is in a rollout")
        return
    rows = [
        (
            found.metadata.name,
            str(told.old),
            told.said,
            " → ".join("copies" if step == 0.0 else f"{step:g} %" for step in told.steps),
            str(_ready(told.new, hosts)),
        )
        for found, told in running
    ]
    console.out().print(render.table(("route", "from", "stands", "steps", "hosts ready"), rows))


def _change(
    name: str,
    step: Callable[[Route], Route],
    *,
    force: bool,
    reason: str,
    dry_run: bool,
    address: str,
    output: Output,
) -> None:
    async def main() -> registry_pb2.ApplyResponse:
        async with client.registry(address) as registry:
            for tries in range(TRIES, 0, -1):
                found, revision = await _route(registry, name)
                made = step(found)
                told = rollout_of(made)
                if told is not None and not force:
                    _check_ready(told.new, await registry.hosts())
                why = f"rollout of {name}: {f'over, {_goes_to(made)}' if told is None else told.said}"
                request = registry_pb2.ApplyRequest(
                    objects=[object_to(made)],
                    expected_revision=revision,
                    author=author(),
                    reason=f"{why}; {reason}" if reason else why,
                    request_id=new_request_id(),
                    dry_run=dry_run,
                )
                try:
                    return await registry.apply(request)
                except RevisionMoved:  # somebody changed something, perhaps something else
                    if tries == 1:
                        raise
        raise AssertionError

    print_applied(console.guarded(main()), dry_run, output)


async def _route(registry: RegistryClient, name: str) -> tuple[Route, int]:
    answer = await registry.get(ObjectKey("Route", name))
    found = object_from(answer.object)
    assert isinstance(found, Route)
    return found, answer.revision


def _check_ready(target: RouteTarget, hosts: list[resources_pb2.HostRecord]) -> None:
    if not _ready(target, hosts):
        raise CommandError(
            f"no host has {target} ready: its calls would fail. Raise its min_replicas and see 'yardctl hosts', or use "
            "--force"
        )


def _ready(target: RouteTarget, hosts: list[resources_pb2.HostRecord]) -> int:
    """Hosts that have it ready and take calls."""
    key = model_pb2.ModelKey(model=target.model, version=target.version)
    return sum(
        not host.draining and any(each.key == key and each.state == model_pb2.MODEL_STATE_READY for each in host.models)
        for host in hosts
    )


def _goes_to(route: Route) -> str:
    targets = " and ".join(dict.fromkeys(str(target) for target in route.targets))
    return f"it goes to {targets}"
