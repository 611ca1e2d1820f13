"""What the commands that change the mesh's desired state share: their options, and how they tell what changed."""

import getpass
import uuid
from typing import Annotated

import typer

from modelyard.registry.v1 import registry_pb2
from yardctl import console, render
from yardctl.console import Output
from yardctl.manifest_text import to_manifest

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]
ExpectedOption = Annotated[
    int, typer.Option("--expected-revision", min=0, help="Refuse if the head is another one; 0 takes any.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]

Answer = (
    registry_pb2.ApplyResponse
    | registry_pb2.InstantiateResponse
    | registry_pb2.RollbackResponse
    | registry_pb2.ImportResponse
)


def author() -> str:
    """Who the history says changed something."""
    return getpass.getuser()


def new_request_id() -> str:
    """An id under which a request that got no answer can be asked again."""
    return uuid.uuid4().hex


def print_applied(answer: Answer, dry_run: bool, output: Output) -> None:
    """What a change did, or would do."""
    if output is Output.JSON:
        made = (
            {"objects": [to_manifest(item) for item in answer.objects]}
            if isinstance(answer, registry_pb2.InstantiateResponse)
            else {}
        )
        console.print_json({"dry_run": dry_run, **render.to_dict(answer), **made})
        return
    if not answer.changes:
        console.out().print(f"nothing to change at revision {answer.revision}")
        return
    console.out().print(render.changes(answer.changes))
    if answer.findings:
        console.out().print(render.findings(answer.findings))
    counts = render.change_counts(answer.changes)
    where = f"dry run at revision {answer.revision}, nothing was changed" if dry_run else f"revision {answer.revision}"
    console.out().print(f"{where}: {counts}")
    if dry_run and not all(finding.passed for finding in answer.findings):
        console.fail("gates would keep this out")
