"""Commands about hosts and what is on them: hosts, host, drift, cordon, uncordon, drain."""

import asyncio
import time
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.registry.v1 import registry_pb2
from services.chassis.channels import open_channel
from services.chassis.codec import record_from
from services.chassis.object_codec import object_from
from yardctl import client, console, render
from yardctl.applying import author
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption, RegistryOption
from yardctl.drift import Drift
from yardctl.drift import drift as compare
from yardctl.errors import FAILED, CommandError
from yardctl.host_view import headline, host_table

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Its id, as 'yardctl hosts' lists it.")]
WhyOption = Annotated[str, typer.Option("--reason", help="Why; kept with the order.")]


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    for command in (hosts, host, drift, cordon, uncordon, drain):
        app.command()(command)


def hosts(
    *,
    gone: Annotated[
        bool, typer.Option("--gone", help="Those that are not listed any more, as they were last.")
    ] = False,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List hosts and the model versions on them."""

    async def main() -> registry_pb2.ListHostsResponse:
        async with client.registry(console.registry_of(directory, address)) as registry:
            return await registry.host_list(include_gone=gone)

    found = console.guarded(main())
    if output is Output.JSON:
        console.print_json(render.to_dict(found) if gone else [render.to_dict(record) for record in found.hosts])
        return
    out = console.out()
    if gone:
        out.print(render.gone_hosts(found.gone) if found.gone else "no host is remembered that is gone")
        return
    out.print(render.hosts(found.hosts) if found.hosts else "no host is listed")
    for order in found.orders:
        out.print(_said(order), markup=False, soft_wrap=True)


def host(
    host: HostArgument,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it live, with what came since the last look, until Ctrl-C.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2, max=60.0)] = 1.0,
    directory: DirOption = DEFAULT_DIR,
    address: RegistryOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what one host does: each version and band, with queue, waits, batches, drops, waste and memory."""

    async def main() -> None:
        async with client.registry(console.registry_of(directory, address)) as registry:
            records = await registry.hosts()
        found = next((record for record in records if record.host_id == host), None)
        if found is None:
            listed = ", ".join(sorted(record.host_id for record in records)) or "none is"
            raise CommandError(f"no host '{host}' is listed; listed: {listed}")
        who = f"host {host} at {found.address}"
        async with open_channel(found.address) as channel:
            stub: host_pb2_grpc.ModelHostServiceAsyncStub = host_pb2_grpc.ModelHostServiceStub(channel)
            status = await client.call(stub.GetStatus, host_pb2.GetStatusRequest(), who=who)
            if output is Output.JSON:
                console.print_json(render.to_dict(status))
            elif watch:
                await _watched(stub, status, who, every)
            else:
                console.out().print(headline(status), markup=False, soft_wrap=True)
                console.out().print(host_table(status))

    console.guarded(main())


async def _watched(
    stub: "host_pb2_grpc.ModelHostServiceAsyncStub", first: host_pb2.GetStatusResponse, who: str, every_s: float
) -> None:
    before, before_s = first, time.monotonic()
    with Live(Group(headline(first), host_table(first)), console=console.out(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(every_s)
            status = await client.call(stub.GetStatus, host_pb2.GetStatusRequest(), who=who)
            now_s = time.monotonic()
            live.update(Group(headline(status), host_table(status, before, now_s - before_s)), refresh=True)
            before, before_s = status, now_s


def drift(
    *, directory: DirOption = DEFAULT_DIR, address: RegistryOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Show where what is differs from what should be. Ends with code 1 if it does."""

    async def main() -> tuple[list[Drift], int]:
        async with client.registry(console.registry_of(directory, address)) as registry:
            messages, revision = await registry.objects()
            records = [record_from(record) for record in await registry.hosts()]
            return compare([object_from(message) for message in messages], records), revision

    found, revision = console.guarded(main())
    if output is Output.JSON:
        differences = [{**each._asdict(), "key": str(each.key)} for each in found]
        console.print_json({"revision": revision, "drift": differences})
    elif found:
        rows = [(str(each.key), each.desired, each.live, each.why) for each in found]
        console.out().print(render.table(("object", "should be", "is", "why"), rows))
    else:
        console.out().print(f"everything is as revision {revision} wants it")
    if found:
        raise typer.Exit(FAILED)


def _said(order: registry_pb2.HostOrder) -> str:
    what = "drained and cordoned" if order.drain_pid else "cordoned" if order.cordoned else "free"
    why = f": {order.reason}" if order.reason else ""
    return f"{order.host_id} is {what}, by {order.author or 'nobody named'} at {render.time_of(order.time)}{why}"


def cordon(
    host: HostArgument, *, reason: WhyOption = "", directory: DirOption = DEFAULT_DIR, address: RegistryOption = ""
) -> None:
    """Give a host no further versions. What it has it keeps, and calls go on."""
    _order(host, registry_pb2.HOST_ACTION_CORDON, reason, console.registry_of(directory, address))


def uncordon(
    host: HostArgument, *, reason: WhyOption = "", directory: DirOption = DEFAULT_DIR, address: RegistryOption = ""
) -> None:
    """Let a host have versions again."""
    _order(host, registry_pb2.HOST_ACTION_UNCORDON, reason, console.registry_of(directory, address))


def drain(
    host: HostArgument, *, reason: WhyOption = "", directory: DirOption = DEFAULT_DIR, address: RegistryOption = ""
) -> None:
    """End a host once its calls are answered, and cordon it."""
    _order(host, registry_pb2.HOST_ACTION_DRAIN, reason, console.registry_of(directory, address))


def _order(host: str, action: "registry_pb2.HostAction.ValueType", reason: str, address: str) -> None:
    async def main() -> registry_pb2.HostOrder:
        async with client.registry(address) as registry:
            request = registry_pb2.OrderHostRequest(host_id=host, action=action, reason=reason, author=author())
            return await registry.order_host(request)

    console.out().print(_said(console.guarded(main())), markup=False, soft_wrap=True)
