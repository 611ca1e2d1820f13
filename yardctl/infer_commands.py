"""Commands that call the mesh and look at how a call went: infer, explain, trace."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import typer
from rich.table import Table
from rich.text import Text

from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.chassis.channels import open_channel
from services.chassis.telemetry import Telemetry
from yardctl import client, console, render, render_decision
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RouterOption
from yardctl.errors import USAGE, CommandError
from yardctl.layout import Layout
from yardctl.spans import read_spans
from yardctl.tensors import Spec, add_input, outputs_of
from yardctl.trace import Trace, find_trace

V2_SERVICE = "inference.GRPCInferenceService"


class Prefer(StrEnum):
    """What a call values most where its route may choose."""

    BALANCED = "balanced"
    LATENCY = "latency"
    COST = "cost"
    QUALITY = "quality"


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A route or a model.")]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NAME=VALUE", help="@FILE.npy, @FILE, JSON, or text; repeatable."),
]
VersionOption = Annotated[str, typer.Option("--version", help="A version; empty lets the mesh choose.")]
PreferOption = Annotated[Prefer, typer.Option("--prefer", help="What to value most.")]
CostOption = Annotated[int | None, typer.Option("--max-cost-microusd", min=0, help="Highest price of the call.")]
QualityOption = Annotated[float | None, typer.Option("--min-quality", min=0.0, max=1.0, help="Lowest quality.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Whom the call is for.")]
TierOption = Annotated[str, typer.Option("--tier", help="A tier of the tenant's policy, or of the policy 'default'.")]
SessionOption = Annotated[str, typer.Option("--session", help="What a route that splits its calls keeps together.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline in seconds.")]


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    for command in (infer, explain, trace):
        app.command()(command)


def infer(
    name: NameArgument,
    *,
    inputs: InputOption = None,
    version: VersionOption = "",
    prefer: PreferOption = Prefer.BALANCED,
    max_cost_microusd: CostOption = None,
    min_quality: QualityOption = None,
    tenant: TenantOption = "",
    tier: TierOption = "",
    session: SessionOption = "",
    show_candidates: Annotated[bool, typer.Option("--explain", help="Show the candidates too.")] = False,
    timeout_s: TimeoutOption = 30.0,
    directory: DirOption = DEFAULT_DIR,
    address: RouterOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run one inference, and say how the answer came about."""
    options = _options(prefer, max_cost_microusd, min_quality, tenant, tier, session=session, explain=show_candidates)

    async def main() -> inference_pb2.InferResponse:
        call = await _Call.open(directory, address)
        async with call.channel:
            request = await call.request(name, version, inputs or [], options)
            return await call.infer(request, timeout_s)

    answer = console.guarded(main())
    found = outputs_of(answer)
    if output is Output.JSON:
        plain = [
            {"name": each.name, "datatype": each.datatype, "shape": list(each.array.shape), "data": each.plain()}
            for each in found
        ]
        console.print_json({"id": answer.id, "outputs": plain, "decision": render.to_dict(answer.decision)})
        return
    made = Table(box=None, pad_edge=False, show_header=False)
    for each in found:
        shape = f"{each.datatype} {list(each.array.shape)}"
        made.add_row(Text(each.name, style="bold"), Text(shape, style="dim"), Text(each.short()))
    out = console.out()
    out.print(made)
    out.print(render_decision.decision(answer.decision))
    if show_candidates:
        out.print(render_decision.candidates(answer.decision.candidates, answer.decision))


def explain(
    name: NameArgument,
    *,
    inputs: InputOption = None,
    version: VersionOption = "",
    prefer: PreferOption = Prefer.BALANCED,
    max_cost_microusd: CostOption = None,
    min_quality: QualityOption = None,
    tenant: TenantOption = "",
    tier: TierOption = "",
    session: SessionOption = "",
    directory: DirOption = DEFAULT_DIR,
    address: RouterOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what a call would be sent to, and why; run nothing."""
    options = _options(prefer, max_cost_microusd, min_quality, tenant, tier, session=session, explain=True)

    async def main() -> inference_pb2.Decision:
        call = await _Call.open(directory, address)
        async with call.channel:
            request = await call.request(name, version, inputs or [], options, dry_run=True)
            stub = inference_pb2_grpc.InferenceServiceStub(call.channel)
            asked = inference_pb2.ExplainRequest(request=request)
            return (await client.call(stub.Explain, asked, who=call.who)).decision

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.to_dict(found))
        return
    out = console.out()
    out.print(render_decision.decision(found))
    out.print(render_decision.candidates(found.candidates, found))


def trace(
    trace_id: Annotated[str, typer.Argument(metavar="[ID]", help="The trace, or its beginning; else the latest.")] = "",
    *,
    directory: DirOption = DEFAULT_DIR,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print one trace as a tree, from the mesh's own collector."""

    async def main() -> Trace:
        layout = Layout.of(directory)
        found = find_trace(read_spans(layout.traces), trace_id.lower())
        if found is None:
            what = f"no trace '{trace_id}'" if trace_id else "no trace"
            raise CommandError(
                f"{what} in {layout.traces}: 'yardctl infer' always makes one; other calls by --trace-ratio of 'up'"
            )
        return found

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.trace_json(found))
    else:
        console.out().print(render.trace(found))


def _options(
    prefer: Prefer,
    max_cost_microusd: int | None,
    min_quality: float | None,
    tenant: str,
    tier: str,
    *,
    session: str,
    explain: bool,
) -> inference_pb2.RouteOptions:
    return inference_pb2.RouteOptions(
        prefer=inference_pb2.Preference.Value(f"PREFERENCE_{prefer.name}"),
        max_cost_microusd=max_cost_microusd,
        min_quality=min_quality,
        explain=explain,
        tenant=tenant,
        tier=tier,
        session=session,
    )


class _Call:
    """One call to a router, from the inputs as typed to the answer."""

    def __init__(self, address: str, collector: str, channel: grpc.aio.Channel) -> None:
        """Store where the router and the collector are; `collector` may be empty."""
        self.who = f"router at {address}"
        self.channel = channel
        self._collector = collector

    @classmethod
    async def open(cls, directory: Path, address: str) -> "_Call":
        """The router that is named, or that of the directory."""
        if address:
            return cls(address, "", open_channel(address))
        addresses = console.addresses_of(directory)
        return cls(addresses.router, addresses.collector, open_channel(addresses.router))

    async def request(
        self,
        name: str,
        version: str,
        inputs: Sequence[str],
        options: inference_pb2.RouteOptions,
        *,
        dry_run: bool = False,
    ) -> inference_pb2.InferRequest:
        """The request, its tensors built from the model's own schema.

        A dry run may leave inputs out: they stand there without contents, a size of 1 where any will do.
        """
        request = inference_pb2.InferRequest(model_name=name, model_version=version, route=options)
        specs = await self._schema(name, version)
        takes = f"'{name}' takes {', '.join(map(str, specs.values()))}"
        for given in inputs:
            input_name, separator, value = given.partition("=")
            if not separator or input_name not in specs:
                raise CommandError(f"'--input {given[:60]}' must be NAME=VALUE; {takes}", exit_code=USAGE)
            add_input(request, specs[input_name], value)
        if dry_run and not inputs:
            for spec in specs.values():
                shape = [1 if size == -1 else size for size in spec.shape]
                request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
        elif not inputs:
            raise CommandError(f"{takes}: give each as --input NAME=VALUE", exit_code=USAGE)
        return request

    async def _schema(self, name: str, version: str) -> dict[str, Spec]:
        ask: Any = self.channel.unary_unary(
            f"/{V2_SERVICE}/ModelMetadata",
            request_serializer=v2.ModelMetadataRequest.SerializeToString,
            response_deserializer=v2.ModelMetadataResponse.FromString,
        )
        request = v2.ModelMetadataRequest(name=name, version=version)
        answer: v2.ModelMetadataResponse = await client.call(ask, request, who=self.who)
        return {each.name: Spec(each.name, each.datatype, tuple(each.shape)) for each in answer.inputs}

    async def infer(self, request: inference_pb2.InferRequest, timeout_s: float) -> inference_pb2.InferResponse:
        """Send it inside a trace of its own, which the mesh's collector gets."""
        telemetry = Telemetry(
            service="yardctl", instance=str(os.getpid()), otlp_endpoint=self._collector or None, sample_ratio=1.0
        )
        stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        try:
            with telemetry.span("yardctl infer", kind="client", attributes={"route": request.model_name}):
                return await client.call(stub.Infer, request, who=self.who, timeout_s=timeout_s)
        finally:
            await telemetry.shutdown()
