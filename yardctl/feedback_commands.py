"""The command that says how good an answer was: feedback."""

from typing import Annotated

import typer

from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from services.chassis.channels import open_channel
from yardctl import client, console, render
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RouterOption
from yardctl.errors import USAGE, CommandError


def add_to(app: typer.Typer) -> None:
    """Give the app the command."""
    app.command()(feedback)


def feedback(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The call's id, as in its Decision.")],
    quality: Annotated[
        float | None, typer.Argument(metavar="[QUALITY]", min=0.0, max=1.0, help="How good the answer was.")
    ] = None,
    *,
    metric: Annotated[str, typer.Option("--metric", help="What that measures; empty: the version's own.")] = "",
    segment: Annotated[str, typer.Option("--segment", help="Whom it holds for, such as language=de.")] = "",
    cost_microusd: Annotated[
        float | None, typer.Option("--cost-microusd", min=0.0, help="What the call cost, if not the version's price.")
    ] = None,
    version: Annotated[
        str, typer.Option("--of", metavar="MODEL:VERSION", help="What answered, if another router may have.")
    ] = "",
    domain: Annotated[str, typer.Option("--domain", help="Beside --of: the Decision's domain.")] = "",
    complexity: Annotated[str, typer.Option("--complexity", help="Beside --of: the Decision's complexity.")] = "",
    directory: DirOption = DEFAULT_DIR,
    address: RouterOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say how good an answer was; routes that choose go by it."""
    model, separator, number = version.partition(":")
    if version and not (model and separator and number):
        raise CommandError(f"'--of {version[:60]}' must be MODEL:VERSION", exit_code=USAGE)
    request = inference_pb2.FeedbackRequest(
        request_id=request_id,
        quality=quality,
        metric=metric,
        segment=segment,
        cost_microusd=cost_microusd,
        model=model,
        version=number,
        domain=domain,
        complexity=complexity,
    )

    async def main() -> inference_pb2.FeedbackResponse:
        at = address or console.addresses_of(directory).router
        async with open_channel(at) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            return await client.call(stub.Feedback, request, who=f"router at {at}")

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.to_dict(found))
        return
    now = f"; {found.quality:.4g} is expected of it now" if found.HasField("quality") else ""
    learned = "learned" if found.learned else f"not learned: {found.reason}"
    console.out().print(f"{found.model}:{found.version}: {learned}{now}")
