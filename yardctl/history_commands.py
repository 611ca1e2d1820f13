"""Commands about how the mesh's desired state came to be: history, show, diff, rollback, export, import, verify."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

import typer

from modelyard.registry.v1 import registry_pb2
from yardctl import client, console, render
from yardctl.applying import DryRunOption, ExpectedOption, ReasonOption, author, new_request_id, print_applied
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption
from yardctl.errors import FAILED, USAGE, CommandError
from yardctl.manifest_text import to_yaml

RevisionArgument = Annotated[int, typer.Argument(metavar="REVISION", min=1, help="Its number.")]

STDOUT = Path("-")


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    commands: dict[str, Callable[..., None]] = {
        "history": history,
        "show": show,
        "diff": diff,
        "rollback": rollback,
        "export": export,
        "import": import_file,
        "verify": verify,
    }
    for name, command in commands.items():
        app.command(name=name)(command)


def history(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most revisions to list.")] = 20,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List revisions, newest first: who changed what, when and why."""

    async def main() -> list[registry_pb2.Revision]:
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.revisions(limit)

    revisions = console.guarded(main())
    if output is Output.JSON:
        console.print_json([render.to_dict(each) for each in revisions])
        return
    rows = [(str(each.number), render.time_of(each.time), each.author, each.reason, _what(each)) for each in revisions]
    console.out().print(render.table(("revision", "time (utc)", "author", "reason", "changes"), rows))


def _what(revision: registry_pb2.Revision) -> str:
    if revision.change_count == 1 and revision.changes:
        return f"{render.action(revision.changes[0])} {render.key_text(revision.changes[0].key)}"
    if revision.change_count > len(revision.changes):
        return f"{revision.change_count} changes"
    return render.change_counts(revision.changes)


def show(
    revision: Annotated[int, typer.Argument(metavar="[REVISION]", min=0, help="Its number; 0 is the newest.")] = 0,
    *,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one revision: who, when, why, and what it changed, field by field."""

    async def main() -> registry_pb2.GetRevisionResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.revision(revision)

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.to_dict(found))
        return
    record, out = found.revision, console.out()
    for name, text in (
        ("revision", str(record.number)),
        ("time (utc)", render.time_of(record.time)),
        ("author", record.author or "-"),
        ("reason", record.reason or "-"),
        ("request", record.request_id or "-"),
        ("restores", f"revision {record.restores}" if record.restores else ""),
        ("digest", found.digest),
        ("parent", record.parent_digest or "none, it is the first"),
    ):
        if text:
            out.print(f"{name:10}  {text}", markup=False, soft_wrap=True)
    if found.oldest:
        out.print("what it changed is not known any more: the revision before it was collected")
    else:
        out.print(render.changes(found.changes))


def diff(
    before: Annotated[int, typer.Argument(metavar="FROM", min=0, help="A revision; 0 is the empty state.")],
    after: Annotated[int, typer.Argument(metavar="[TO]", min=0, help="A revision; 0 is the newest.")] = 0,
    *,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what leads from one revision to another, field by field."""

    async def main() -> registry_pb2.DiffResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.diff(before, after)

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.to_dict(found))
    elif not found.changes:
        console.out().print(f"revisions {found.from_revision} and {found.to_revision} are the same")
    else:
        console.out().print(render.changes(found.changes))
        counts = render.change_counts(found.changes)
        console.out().print(f"revision {found.from_revision} to {found.to_revision}: {counts}")


def rollback(
    revision: RevisionArgument,
    *,
    reason: ReasonOption = "",
    expected_revision: ExpectedOption = 0,
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make everything as it was at a revision; this is a new revision of its own."""

    async def main() -> registry_pb2.RollbackResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.rollback(
                registry_pb2.RollbackRequest(
                    revision=revision,
                    reason=reason,
                    expected_revision=expected_revision,
                    dry_run=dry_run,
                    author=author(),
                    request_id=new_request_id(),
                )
            )

    print_applied(console.guarded(main()), dry_run, output)


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; - is standard output.")],
    *,
    revision: Annotated[int, typer.Option("--revision", min=0, help="As it was at this revision; 0 is now.")] = 0,
    with_history: Annotated[bool, typer.Option("--history", help="Every revision that is kept, not only one.")] = False,
    manifests: Annotated[bool, typer.Option("--yaml", help="As manifests to read and apply, not as a file.")] = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
) -> None:
    """Write everything that the mesh should be into one file."""
    if with_history and (revision or manifests):
        console.fail("--history exports every revision as a file: leave --revision and --yaml out", USAGE)

    async def main() -> None:
        async with client.registry(console.registry_of(directory, address)) as registry:
            parts = _manifests(registry, revision) if manifests else registry.export(revision, history=with_history)
            await _write(file, parts)

    console.guarded(main())


async def _manifests(registry: client.RegistryClient, revision: int) -> AsyncIterator[bytes]:
    items, _ = await registry.objects("", revision)
    yield to_yaml(items).encode()


async def _write(file: Path, parts: AsyncIterator[bytes]) -> None:
    """Write a file whole or not at all."""
    if file == STDOUT:
        async for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    unfinished = file.with_name(f".{file.name}.part")
    try:
        with unfinished.open("wb") as to:
            async for part in parts:
                to.write(part)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What an export wrote.")],
    *,
    reason: ReasonOption = "",
    expected_revision: ExpectedOption = 0,
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make everything as it stands in an exported file. What is not in the file is deleted."""
    try:
        source = file.open("rb")
    except OSError as error:
        console.fail(f"{error.strerror or error}: {file}", USAGE)

    async def main() -> registry_pb2.ImportResponse:
        options = registry_pb2.ImportOptions(
            reason=reason or f"import {file.name}",
            expected_revision=expected_revision,
            dry_run=dry_run,
            author=author(),
            request_id=new_request_id(),
        )
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.take(options, source)

    answer = console.guarded(main())
    if answer.revisions and output is Output.TABLE:
        what = "could be taken over, nothing was changed" if dry_run else "were taken over"
        console.out().print(f"{answer.revisions} revisions {what}")
        return
    print_applied(answer, dry_run, output)


def verify(
    *, directory: DirOption = DEFAULT_DIR, address: RegistryOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Recompute every digest of the history, and say where the chain is broken if it is."""

    async def main() -> registry_pb2.VerifyResponse:
        said: registry_pb2.VerifyResponse | None = None
        async with client.registry(console.registry_of(directory, address)) as registry:
            async for said in registry.verify():
                if not said.done and sys.stderr.isatty():
                    console.err().print(f"revision {said.oldest} of {said.head} …", end="\r")
        if said is None or not said.done:
            raise CommandError("the registry did not say how it ended: try again")
        return said

    found = console.guarded(main())
    broken = found.HasField("broken")
    if output is Output.JSON:
        console.print_json({"whole": not broken, **render.to_dict(found)})
    elif broken:
        link = found.broken
        console.out().print(f"broken at revision {link.revision}: {link.key} {link.what}", markup=False, soft_wrap=True)
    else:
        counted = f"{found.revisions} revisions, {found.trees} trees, {found.objects} objects"
        whole = f"whole from revision {found.head} back to {found.oldest}: {counted}"
        console.out().print(whole if found.head else "nothing is stored yet")
    if broken:
        raise typer.Exit(FAILED)
