"""`yardctl replay`: decides again what routers logged. The deciding is the router's, run as a process of its own."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from modelyard.inference.v1 import decision_log_pb2
from services.chassis.delimited import Delimited
from services.domain.errors import RevisionNotFound
from yardctl import client, console, render
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption
from yardctl.errors import FAILED, USAGE, CommandError

LOGS = "*.decisions"
"""What a router calls the files of its log."""


def add_to(app: typer.Typer) -> None:
    """Give the app this command."""
    app.command()(replay)


def replay(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Files, or directories with such files.")],
    *,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--objects",
            metavar="[REVISION=]FILE",
            help="Objects from 'yardctl export --revision' instead of the registry; without a number, for every "
            "revision that has no file of its own. Repeatable.",
        ),
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide again what routers logged, over the recorded revisions; name the first difference.

    Exits with 1 if anything is decided otherwise, or could not be decided again.
    """

    async def main() -> dict[str, Any]:
        files = files_of(logs)
        with tempfile.TemporaryDirectory(prefix="yardctl-replay-") as held:
            given = objects or await _exports(files, Path(held), console.registry_of(directory, address))
            return await _replayed(files, given)

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(found)
    else:
        _print(found)
    if found["differences"] or found["unknown_revisions"]:
        raise typer.Exit(FAILED)


def files_of(given: Sequence[Path]) -> list[Path]:
    """Every file that is meant, those of a directory in their order."""
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(path.glob(LOGS))
            if not inside:
                raise CommandError(f"{path} has no decision log in it: no file is called {LOGS}", exit_code=USAGE)
            files += inside
        else:
            files.append(path)
    return files


def _revisions(files: Iterable[Path]) -> set[int]:
    """Revisions that the logs were decided by."""
    found = set()
    for path in files:
        for entry in Delimited(path, decision_log_pb2.LogEntry):
            if entry.HasField("choice"):
                found.add(entry.choice.revision)
            elif entry.HasField("call"):
                found.add(entry.call.revision)
    return found


async def _exports(files: Sequence[Path], to: Path, address: str) -> list[str]:
    """The objects of each revision, as the registry has them; those that it has no more are left out."""
    given = []
    async with client.registry(address) as registry:
        for revision in sorted(await asyncio.to_thread(_revisions, files)):
            path = to / f"{revision}.bundle"
            try:
                with path.open("wb") as file:
                    async for part in registry.export(revision, history=False):
                        file.write(part)
            except RevisionNotFound:
                continue
            given.append(f"{revision}={path}")
    return given


async def _replayed(files: Sequence[Path], objects: Sequence[str]) -> dict[str, Any]:
    """What the router's own code comes to."""
    options = [word for each in objects for word in ("--objects", each)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.router.replay", *options, "--", *map(str, files)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate()
    if process.returncode not in (0, 1) or not said:
        raise CommandError(complaint.decode(errors="replace").strip() or "the replay ended without a word")
    return dict(json.loads(said))


def _print(found: dict[str, Any]) -> None:
    out = console.out()
    for path, why in found["torn"].items():
        out.print(f"{path}: {why}; what comes before it counts", style="yellow", markup=False, soft_wrap=True)
    if found["dropped"]:
        out.print(f"{found['dropped']} entries were never written: the router says so", style="yellow")
    missing = found["unknown_revisions"]
    if missing:
        named = ", ".join(sorted(missing, key=int))
        text = (
            f"{sum(missing.values())} entries by revisions {named} were not decided again: their objects are not known"
        )
        out.print(text, style="yellow", soft_wrap=True)
    counts = f"decided again: {_count(found['choices'], 'choice')} of {_count(found['calls'], 'call')}"
    if found["first"] is None:
        out.print(f"{counts}, no difference")
        return
    out.print(f"{counts}, {found['differences']} otherwise", style="red")
    out.print(_facts(found["first"]))
    fields = [(each["path"] or "-", each["logged"], each["now"]) for each in found["first"]["fields"]]
    out.print(render.table(("field", "logged", "now"), fields))
    if found["policies"] != [found["policy"]]:
        out.print("the log was written by other code than this: its policies may be others", style="yellow")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _facts(first: dict[str, Any]) -> Table:
    """What the first difference is one of, a fact a line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    for name, text in (
        ("first", f"{first['what']} by revision {first['revision']}, at {first['now_s']:.6f} s of the router's clock"),
        ("call", f"{first['call']} to {first['name']}, request {first['request_id']}"),
        ("in", f"{first['file']}, entry {first['entry']}"),
    ):
        made.add_row(Text(name, style="dim"), Text(text, overflow="fold"))
    return made
