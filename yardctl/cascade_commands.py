"""`yardctl cascade fit`: what a step's confidence is worth, from answers known to be right or wrong, into its route."""

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.inference.v1 import decision_log_pb2
from modelyard.registry.v1 import registry_pb2
from services.chassis.delimited import Delimited
from services.chassis.object_codec import object_from, object_to
from services.domain.objects import ObjectKey, Route
from services.domain.strategies import Calibration, CalibrationPoint, Cascade
from yardctl import client, console
from yardctl.applying import DryRunOption, ReasonOption, author, new_request_id, print_applied
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption
from yardctl.errors import USAGE, CommandError
from yardctl.replay_commands import files_of

cascade = typer.Typer(help="What the confidences of a cascade's steps are worth.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    cascade.command()(fit)
    app.add_typer(cascade, name="cascade")


@cascade.callback()
def _group() -> None:
    """Keep it a group of commands, though it has one."""


def fit(
    route: Annotated[str, typer.Argument(metavar="ROUTE", help="The route.")],
    *,
    step: Annotated[int, typer.Option("--step", min=0, help="Which of its steps, from 0.")] = 0,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="FILE", help="Lines of CONFIDENCE,RIGHT, where right is 1 or 0."),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option("--log", metavar="LOG", help="Audits in a decision log: a file, or a directory. Repeatable."),
    ] = None,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Fit the calibration of a step and write it into the route, as a new revision."""
    if (samples is None) == (not logs):
        raise typer.BadParameter("say either --samples or --log")
    registry = console.registry_of(directory, address)

    async def main() -> registry_pb2.ApplyResponse:
        async with client.registry(registry) as served:
            answer = await served.get(ObjectKey("Route", route))
            before = object_from(answer.object)
            assert isinstance(before, Route)
            _check(before, step)
            lines = _lines(samples) if samples is not None else audits(files_of(logs or []), route, step)
            found = await _fitted(lines)
            error = found["calibration_error"]
            why = f"calibration of step {step} of {route}: {found['samples']} answers, {found['right']:.1%} right"
            why += "" if error is None else f", error {error:.3f}"
            return await served.apply(
                registry_pb2.ApplyRequest(
                    objects=[object_to(calibrated(before, step, found["points"]))],
                    expected_revision=answer.revision,
                    author=author(),
                    reason=f"{why}; {reason}" if reason else why,
                    request_id=new_request_id(),
                    dry_run=dry_run,
                )
            )

    print_applied(console.guarded(main()), dry_run, output)


def calibrated(route: Route, step: int, points: Iterable[tuple[float, float]]) -> Route:
    """The same route with another calibration of one of its steps."""
    assert isinstance(route.strategy, Cascade)
    steps = list(route.strategy.steps)
    escalation = steps[step].escalate
    assert escalation is not None
    table = Calibration(tuple(CalibrationPoint(*point) for point in points))
    steps[step] = replace(steps[step], escalate=replace(escalation, calibration=table))
    return replace(route, strategy=Cascade(tuple(steps)))


def _check(route: Route, step: int) -> None:
    """That it has a step to calibrate."""
    name, strategy = route.metadata.name, route.strategy
    if not isinstance(strategy, Cascade):
        raise CommandError(f"route '{name}' is no cascade", exit_code=USAGE)
    if step >= len(strategy.steps) or strategy.steps[step].escalate is None:
        last = len(strategy.steps) - 2
        raise CommandError(f"step {step} of '{name}' does not escalate: --step is 0 to {last}", exit_code=USAGE)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", exit_code=USAGE) from None


def audits(files: Iterable[Path], route: str, step: int) -> Iterator[str]:
    """What was learned of a step, as lines."""
    for path in files:
        for entry in Delimited(path, decision_log_pb2.LogEntry):
            learned = entry.escalation
            if learned.HasField("agreed") and (learned.route, learned.step) == (route, step):
                yield f"{learned.confidence!r},{learned.agreed:d}"


async def _fitted(lines: Iterable[str]) -> dict[str, Any]:
    """What the router's own code makes of samples."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.router.calibrate"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate("\n".join(lines).encode())
    if process.returncode or not said:
        raise CommandError(complaint.decode(errors="replace").strip() or "the fit ended without a word")
    return dict(json.loads(said))
