"""Commands that read and change what the mesh should be: apply, instantiate, get, list, edit, delete, plan."""

import asyncio
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.resource.v1 import resource_pb2
from services.domain.errors import InvalidRequest, RevisionMoved
from services.domain.objects import ObjectKey
from yardctl import client, console, object_table, render
from yardctl.applying import DryRunOption, ExpectedOption, ReasonOption, author, new_request_id, print_applied
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption, TextOutput
from yardctl.errors import USAGE, CommandError
from yardctl.manifest_text import to_manifest, to_yaml
from yardctl.manifests import KIND_FIELDS, key_of, load, located

KindArgument = Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KIND_FIELDS)}.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The object's metadata.name.")]
VersionOption = Annotated[str, typer.Option("--version", help="Version of a ModelVersion.")]


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    for command in (apply, instantiate, get, list_objects, edit, delete, plan):
        app.command(name="list" if command is list_objects else None)(command)


def kind_named(text: str) -> str:
    """The kind that `text` means: `Route`, `route`, `routes`, `policies`, `model-version`.

    Raises:
        CommandError: None.
    """
    plain = text.lower().replace("-", "").replace("_", "")
    for kind in KIND_FIELDS:
        singular = kind.lower()
        plural = f"{singular[:-1]}ies" if singular.endswith("y") else f"{singular}s"
        if plain in (singular, plural):
            return kind
    raise CommandError(f"'{text}' is no kind: use one of {', '.join(KIND_FIELDS)}", exit_code=USAGE)


def apply(
    *,
    files: Annotated[list[Path], typer.Option("-f", "--file", help="Manifest or folder of manifests; repeatable.")],
    reason: ReasonOption = "",
    expected_revision: ExpectedOption = 0,
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Create and update objects from manifests: all of them, or none."""

    async def main() -> registry_pb2.ApplyResponse:
        documents = load(files)
        request = registry_pb2.ApplyRequest(
            objects=[document.object for document in documents],
            reason=reason,
            expected_revision=expected_revision,
            dry_run=dry_run,
            author=author(),
            request_id=new_request_id(),
        )
        async with client.registry(console.registry_of(directory, address)) as registry:
            try:
                return await registry.apply(request)
            except InvalidRequest as error:
                raise located(error, documents) from error

    print_applied(console.guarded(main()), dry_run, output)


def instantiate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The Template's metadata.name.")],
    *,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="KEY=VALUE", help="A parameter; repeatable.")
    ] = None,
    reason: ReasonOption = "",
    expected_revision: ExpectedOption = 0,
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Make the objects of a Template: all of them, or none."""

    async def main() -> registry_pb2.InstantiateResponse:
        request = registry_pb2.InstantiateRequest(
            template=name,
            parameters=_parameters(parameters or []),
            reason=reason,
            expected_revision=expected_revision,
            dry_run=dry_run,
            author=author(),
            request_id=new_request_id(),
        )
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.instantiate(request)

    print_applied(console.guarded(main()), dry_run, output)


def _parameters(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise CommandError(f"'{text}' is no KEY=VALUE", exit_code=USAGE)
        if name in found:
            raise CommandError(f"'{name}' is given twice", exit_code=USAGE)
        found[name] = value
    return found


def delete(
    kind: KindArgument,
    name: NameArgument,
    *,
    version: VersionOption = "",
    reason: ReasonOption = "",
    expected_revision: ExpectedOption = 0,
    dry_run: DryRunOption = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete one object."""

    async def main() -> registry_pb2.ApplyResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            key = await _key(registry, kind, name, version)
            request = registry_pb2.ApplyRequest(
                deletes=[objects_pb2.ObjectKey(kind=key.kind, name=key.name, version=key.version)],
                reason=reason,
                expected_revision=expected_revision,
                dry_run=dry_run,
                author=author(),
                request_id=new_request_id(),
            )
            return await registry.apply(request)

    print_applied(console.guarded(main()), dry_run, output)


async def _key(registry: client.RegistryClient, kind: str, name: str, version: str) -> ObjectKey:
    key = ObjectKey(kind_named(kind), name, version)
    if key.kind == "ModelVersion" and not version:
        found, _ = await registry.objects("ModelVersion")
        versions = [item.model_version.version for item in found if item.metadata.name == name]
        there = f"there are {', '.join(versions)}" if versions else f"'{name}' has none"
        raise CommandError(f"a ModelVersion needs --version; {there}", exit_code=USAGE)
    if key.kind != "ModelVersion" and version:
        raise CommandError(f"a {key.kind} has no --version", exit_code=USAGE)
    return key


def get(
    kind: KindArgument,
    name: NameArgument,
    *,
    version: VersionOption = "",
    revision: Annotated[int, typer.Option("--revision", min=0, help="As it was at this revision; 0 is now.")] = 0,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: Annotated[TextOutput, typer.Option("-o", "--output", help="How to print.")] = TextOutput.YAML,
) -> None:
    """Print one object as a manifest."""

    async def main() -> objects_pb2.Object:
        async with client.registry(console.registry_of(directory, address)) as registry:
            answer = await registry.get(await _key(registry, kind, name, version), revision)
            return answer.object

    item = console.guarded(main())
    if output is TextOutput.JSON:
        console.print_json(to_manifest(item))
    else:
        sys.stdout.write(to_yaml([item]))


def edit(
    kind: KindArgument,
    name: NameArgument,
    *,
    version: VersionOption = "",
    reason: ReasonOption = "",
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Change one object in an editor ($VISUAL, $EDITOR or vi); refused if it changed meanwhile."""

    async def main() -> registry_pb2.ApplyResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            found = await registry.get(await _key(registry, kind, name, version))
            with tempfile.TemporaryDirectory(prefix="yardctl-edit-") as folder:
                file = Path(folder) / f"{name}.yaml"
                file.write_text(to_yaml([found.object]), encoding="utf-8")
                await _run_editor(file)
                documents = load([file])
                if [document.key for document in documents] != [key_of(found.object)]:
                    raise CommandError(f"the text must stay that of {key_of(found.object)}; nothing was changed")
                request = registry_pb2.ApplyRequest(
                    objects=[document.object for document in documents],
                    reason=reason or f"edit {key_of(found.object)}",
                    expected_revision=found.revision,
                    author=author(),
                    request_id=new_request_id(),
                )
                try:
                    return await registry.apply(request)
                except (InvalidRequest, RevisionMoved) as error:
                    kept = Path(tempfile.mkdtemp(prefix="yardctl-edit-")) / file.name
                    shutil.copy(file, kept)
                    console.err().print(f"your text is kept in {kept}", markup=False, soft_wrap=True)
                    raise (located(error, documents) if isinstance(error, InvalidRequest) else error) from error

    print_applied(console.guarded(main()), False, output)


async def _run_editor(file: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        process = await asyncio.create_subprocess_exec(*shlex.split(command), str(file))
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot start the editor '{command}': {error}; set EDITOR", exit_code=USAGE) from error
    if await process.wait() != 0:
        raise CommandError(f"the editor ended with {process.returncode}, nothing was changed")


def list_objects(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help="Only this kind.")] = "",
    *,
    revision: Annotated[int, typer.Option("--revision", min=0, help="As it was at this revision; 0 is now.")] = 0,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List objects."""

    async def main() -> tuple[list[objects_pb2.Object], int]:
        wanted = kind_named(kind) if kind else ""
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.objects(wanted, revision)

    found, at = console.guarded(main())
    if output is Output.JSON:
        console.print_json({"revision": at, "objects": [to_manifest(item) for item in found]})
    elif found:
        console.out().print(object_table.objects(sorted(found, key=lambda item: str(key_of(item)))))
    else:
        console.out().print(f"no {kind_named(kind) if kind else 'object'} at revision {at}")


def plan(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most decisions to list.")] = 10,
    directory: DirOption = DEFAULT_DIR,
    address: Annotated[
        str,
        typer.Option("--address", metavar="HOST:PORT", help="The resource manager, instead of the one of --dir."),
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show where model versions should be, and what the resource manager did last."""
    target = ""

    async def main() -> tuple[resource_pb2.GetPlanResponse, resource_pb2.ListDecisionsResponse]:
        nonlocal target
        target = address or console.addresses_of(directory).resource_manager
        who = f"resource manager at {target}"
        async with client.resource_manager(target) as stub:
            found = await client.call(stub.GetPlan, resource_pb2.GetPlanRequest(), who=who)
            request = resource_pb2.ListDecisionsRequest(limit=limit)
            return found, await client.call(stub.ListDecisions, request, who=who)

    found, decided = console.guarded(main())
    if output is Output.JSON:
        console.print_json({**render.to_dict(found), **render.to_dict(decided)})
        return
    out = console.out()
    standing = f"leads, fencing token {found.fencing_token}" if found.leading else "does not lead"
    out.print(f"leader {found.leader_id or 'unknown'}; {target} {standing}", markup=False)
    if not found.HasField("plan"):
        out.print("no plan yet")
    else:
        out.print(f"plan for revision {found.plan.revision}, made {render.time_of(found.plan.time)} UTC")
        placed = [(f"{each.key.model}:{each.key.version}", each.host_id) for each in found.plan.placements]
        out.print(render.table(("version", "host"), placed))
        for each in found.plan.unplaced:
            missing = f"{each.key.model}:{each.key.version} lacks {each.missing}: {each.reason}"
            out.print(missing, style="yellow", markup=False)
    rows = [
        (
            render.time_of(each.time),
            resource_pb2.PlacementAction.Name(each.action).removeprefix("PLACEMENT_ACTION_").lower().replace("_", " "),
            f"{each.key.model}:{each.key.version}" if each.HasField("key") else "",
            each.host_id,
            each.reason,
            each.outcome or "under way",
        )
        for each in decided.decisions
    ]
    if rows:
        out.print(render.table(("time (utc)", "action", "version", "host", "reason", "outcome"), rows))
