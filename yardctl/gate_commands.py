"""Commands about changes that a gate kept out: attempts, approve."""

from typing import Annotated

import typer
from rich.text import Text

from modelyard.registry.v1 import registry_pb2
from yardctl import client, console, render
from yardctl.applying import author
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    for command in (attempts, approve):
        app.command()(command)


def attempts(
    attempt: Annotated[str, typer.Argument(metavar="[ATTEMPT]", help="Only this one, with everything found.")] = "",
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most to list.")] = 20,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List changes that a gate kept out, newest first, and why."""

    async def main() -> list[registry_pb2.Attempt]:
        async with client.registry(console.registry_of(directory, address)) as registry:
            found = await registry.attempts(1000 if attempt else limit)
            return [each for each in found if attempt in ("", each.id)]

    found = console.guarded(main())
    if attempt and not found:
        console.fail(f"there is no attempt '{attempt}'")
    out = console.out()
    if output is Output.JSON:
        console.print_json([render.to_dict(each) for each in found])
    elif attempt:
        out.print(render.changes(found[0].changes))
        out.print(render.findings(found[0].findings))
    elif not found:
        out.print("no change was kept out")
    else:
        rows = [
            (each.id, render.time_of(each.time), each.author, each.reason, str(each.change_count),
             Text(_why(each), style="red"), ", ".join(each.approvers))
            for each in found
        ]  # fmt: skip
        columns = ("attempt", "time (utc)", "author", "reason", "changes", "kept out by", "may be approved by")
        out.print(render.table(columns, rows))


def _why(attempt: registry_pb2.Attempt) -> str:
    return ", ".join(sorted({finding.gate for finding in attempt.findings if not finding.passed}))


def approve(
    attempt: Annotated[str, typer.Argument(metavar="ATTEMPT", help="Its id, as 'yardctl attempts' lists it.")],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the approval.")] = "",
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
) -> None:
    """Approve of a change to what you own. Whoever wanted it then applies the same again."""

    async def main() -> registry_pb2.Approval:
        async with client.registry(console.registry_of(directory, address)) as registry:
            request = registry_pb2.ApproveRequest(attempt_id=attempt, author=author(), reason=reason)
            return await registry.approve(request)

    approval = console.guarded(main())
    console.out().print(
        f"approved by {approval.author} for a week: who wanted it applies the same again", markup=False, soft_wrap=True
    )
