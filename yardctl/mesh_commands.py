"""Commands that run a mesh on this machine and look after it: up, down, status, logs."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from modelyard.resource.v1 import resource_pb2
from services.domain.clock import Clock, SystemClock
from services.domain.errors import YardError
from yardctl import client, console, logs, processes, render
from yardctl.bootstrap import DeviceChoice
from yardctl.console import DEFAULT_DIR, DirOption, Output, OutputOption
from yardctl.display import UpDisplay, print_warning
from yardctl.errors import USAGE, CommandError
from yardctl.etcd_binary import find_etcd
from yardctl.health import fault_of, grpc_fault
from yardctl.layout import DEFAULT_BASE_PORT, Addresses, Layout, locked, read_mesh_info
from yardctl.mesh import Mesh, MeshConfig, end_everything, in_stop_order
from yardctl.parts import SUPERVISOR, Part, parts_of
from yardctl.processes import Ended, Record
from yardctl.quantities import parse_size
from yardctl.supervisor import argv_of, supervise

SUPERVISOR_STALL_S = 30.0
"""A supervisor that was asked to end, and ends nothing for this long, is killed."""


def add_to(app: typer.Typer) -> None:
    """Give the app these commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command(name="logs")(show_logs)


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and return.")] = False,
    directory: DirOption = DEFAULT_DIR,
    base_port: Annotated[
        int, typer.Option("--base-port", help="The router's port; the other parts follow.")
    ] = DEFAULT_BASE_PORT,
    hosts: Annotated[int, typer.Option("--hosts", min=0, max=64, help="Hosts of a new mesh's first pool.")] = 2,
    trace_ratio: Annotated[
        float, typer.Option("--trace-ratio", min=0.0, max=1.0, help="Share of calls that are traced.")
    ] = 0.01,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda: for a new mesh's first pool.")] = "auto",
    memory: Annotated[
        str, typer.Option("--memory", help="What models may take on each host, such as 2GiB. Default: a share.")
    ] = "",
    share_cpus: Annotated[
        bool, typer.Option("--share-cpus", help="Give each host its own part of the processors.")
    ] = False,
) -> None:
    """Start a mesh on this machine: etcd, all services, and hosts."""
    choices: dict[str, DeviceChoice] = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
    if device not in choices:
        console.fail(f"--device '{device}' must be one of {', '.join(choices)}", USAGE)
    try:
        memory_bytes = parse_size(memory) if memory else 0
    except ValueError as error:
        console.fail(f"--memory: {error}", USAGE)
    config = MeshConfig(directory, base_port, hosts, trace_ratio, choices[device], memory_bytes, share_cpus=share_cpus)
    console.guarded(_up(config, detach))


async def _up(config: MeshConfig, detach: bool) -> None:
    etcd = find_etcd()
    mesh = Mesh(config, etcd)
    # The supervisor checks all of this again, under the lock; here it saves the wait.
    with locked(mesh.layout):
        mesh.check()
    if etcd.warning:
        print_warning(etcd.warning)
    if detach:
        await _up_detached(mesh)
        return
    with UpDisplay() as display:

        def on_up(mesh: Mesh) -> None:
            display.finish()
            _print_addresses(mesh.addresses, mesh.layout, "Ctrl-C ends it")

        def on_stop(why: str) -> None:
            display.finish()
            console.out().print(f"stopping ({why}); once more kills everything at once", markup=False)

        await supervise(config, report=display.report, on_up=on_up, on_stop=on_stop, clock=SystemClock())
    console.out().print("stopped; nothing is left running")


async def _up_detached(mesh: Mesh) -> None:
    mesh.layout.create()
    read_end, write_end = os.pipe()
    supervisor = processes.start(
        SUPERVISOR, argv_of(mesh.config, write_end), layout=mesh.layout, pass_fds=(write_end,), record=False
    )
    os.close(write_end)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, supervisor.terminate)
    loop.add_signal_handler(signal.SIGTERM, supervisor.terminate)
    try:
        with UpDisplay() as display, os.fdopen(read_end) as pipe:
            last = await asyncio.to_thread(_follow_progress, pipe, display)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
    if last.get("event") == "up":
        # It outlives this process; no longer ours to wait for.
        supervisor.returncode = 0
        _print_addresses(mesh.addresses, mesh.layout, "'yardctl down' with the same --dir ends it")
        return
    await asyncio.to_thread(supervisor.wait)
    log = mesh.layout.log_file(SUPERVISOR)
    raise CommandError(last.get("message") or f"the start was broken off: see {log}")


def _follow_progress(pipe: Any, display: UpDisplay) -> dict[str, str]:
    """Show the supervisor's progress until it is up, has failed, or is gone."""
    last: dict[str, str] = {}
    for line in pipe:
        last = json.loads(line)
        if last["event"] == "part":
            display.report(last["part"], last["state"])
    return last


def _print_addresses(addresses: Addresses, layout: Layout, ending: str) -> None:
    out = console.out()
    flag = "" if layout.directory == DEFAULT_DIR.resolve() else f" --dir {layout.directory}"
    rows = [
        ("router", addresses.router, "InferenceService, and the Open Inference Protocol V2"),
        ("registry", addresses.registry, "RegistryService"),
        ("resource manager", addresses.resource_manager, "ResourceManagerService"),
        ("trace collector", addresses.collector, "OTLP over gRPC"),
        ("etcd", addresses.etcd, ""),
    ]
    out.print(render.table(("serving", "address", "what"), rows))
    out.print(
        f"next: yardctl apply{flag} -f FOLDER, yardctl infer{flag} NAME --input ..., yardctl status{flag}; {ending}",
        markup=False,
    )


# --- down ------------------------------------------------------------------------------------------


def down(*, directory: DirOption = DEFAULT_DIR, output: OutputOption = Output.TABLE) -> None:
    """End the mesh of a directory, whatever state it is in. What was applied is kept."""
    layout = Layout.of(directory)
    ended = console.guarded(_down(layout, SystemClock()))
    if output is Output.JSON:
        console.print_json([{"name": each.name, "pid": each.pid, "killed": each.killed} for each in ended])
        return
    out = console.out()
    for each in ended:
        out.print(f"{'killed ' if each.killed else 'stopped'} {each.name} (pid {each.pid})", markup=False)
    out.print(f"nothing runs in {layout.directory}" if not ended else "nothing is left running", markup=False)


async def _down(layout: Layout, clock: Clock) -> list[Ended]:
    supervisor = processes.live_records(layout).get(SUPERVISOR)
    ended: list[Ended] = []
    if supervisor is not None:
        before = in_stop_order(processes.live_records(layout))
        killed = await _end_supervisor(layout, supervisor, clock)
        ended += [Ended(record.name, record.pid, False) for record in before if record.process() is None]
        ended.append(Ended(SUPERVISOR, supervisor.pid, killed))
    ended += await end_everything(layout, clock=clock)
    processes.remove_record(layout, SUPERVISOR)
    return ended


async def _end_supervisor(layout: Layout, supervisor: Record, clock: Clock) -> bool:
    """Ask the supervisor to end everything and itself; kill it if it gets nowhere. Whether it was killed."""
    os.kill(supervisor.pid, signal.SIGTERM)
    os.kill(supervisor.pid, signal.SIGCONT)
    left = len(processes.live_records(layout))
    since_s = clock.now_s()
    while supervisor.process() is not None:
        await clock.sleep(0.05)
        now_left = len(processes.live_records(layout))
        if now_left != left:
            left, since_s = now_left, clock.now_s()
        elif clock.now_s() - since_s > SUPERVISOR_STALL_S:
            await processes.end([supervisor], clock=clock, term_timeout_s=0.0)
            return True
    return False


# --- status ----------------------------------------------------------------------------------------


def status(
    *,
    directory: DirOption = DEFAULT_DIR,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Only what the registry there knows.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show every part, the hosts and the revision.

    The exit code is 1 if a part does not serve.
    """
    found = console.guarded(_status(directory, address))
    if output is Output.JSON:
        console.print_json({**found, "hosts": [render.to_dict(host) for host in found["hosts"]]})
    else:
        _print_status(found)
    if any(part["health"] != "healthy" for part in found["parts"]):
        raise typer.Exit(1)


async def _status(directory: Path, address: str) -> dict[str, Any]:
    if address:
        fault = await grpc_fault(address)
        part = {"name": "registry", "pid": 0, "address": address, "health": fault or "healthy", "uptime_s": 0.0}
        return {"directory": "", "parts": [part], **await _registry_status(address), "leader": ""}
    layout = Layout.of(directory)
    info = read_mesh_info(layout)
    parts = parts_of(layout, info.addresses, etcd=Path("etcd"), trace_ratio=info.trace_ratio)
    records = processes.live_records(layout)
    now_s = SystemClock().wall_s()
    known, leader, *found = await asyncio.gather(
        _registry_status(info.addresses.registry),
        _leader(info.addresses.resource_manager),
        *(_part_status(part, records.get(part.name), now_s) for part in parts.values()),
    )
    supervisor = records.get(SUPERVISOR)
    rows = [_row(SUPERVISOR, "", supervisor, "healthy" if supervisor else "down", now_s), *found]
    return {"directory": str(layout.directory), "parts": rows, **known, "leader": leader}


async def _part_status(part: Part, record: Record | None, now_s: float) -> dict[str, Any]:
    health = "down" if record is None else (await fault_of(part) or "healthy")
    return _row(part.name, part.address, record, health, now_s)


def _row(name: str, address: str, record: Record | None, health: str, now_s: float) -> dict[str, Any]:
    uptime_s = max(0.0, now_s - record.create_time) if record else 0.0
    return {
        "name": name,
        "pid": record.pid if record else 0,
        "address": address,
        "health": health,
        "uptime_s": round(uptime_s, 1),
    }


async def _registry_status(address: str) -> dict[str, Any]:
    try:
        async with client.registry(address) as registry:
            hosts = await registry.hosts()
            revisions = await registry.revisions(1)
    except (CommandError, YardError):
        return {"revision": None, "hosts": []}
    return {"revision": revisions[0].number if revisions else 0, "hosts": hosts}


async def _leader(address: str) -> str:
    try:
        async with client.resource_manager(address) as stub:
            answer = await client.call(stub.GetPlan, resource_pb2.GetPlanRequest(), who="resource manager", timeout_s=1)
    except (CommandError, YardError):
        return ""
    return answer.leader_id


def _print_status(found: dict[str, Any]) -> None:
    out = console.out()
    rows = [
        (
            part["name"],
            str(part["pid"] or "-"),
            part["address"] or "-",
            render.state(part["health"]),
            render.span_of_time(part["uptime_s"]) if part["uptime_s"] else "-",
        )
        for part in found["parts"]
    ]
    out.print(render.table(("part", "pid", "address", "health", "uptime"), rows))
    revision = "unknown" if found["revision"] is None else found["revision"]
    out.print(f"revision {revision}, leader {found['leader'] or 'unknown'}", markup=False)
    if found["hosts"]:
        out.print(render.hosts(found["hosts"]))
    else:
        out.print(Text("no host is listed", style="yellow"))
    if all(part["health"] == "down" for part in found["parts"]):
        out.print(f"nothing runs in {found['directory']}: start it with 'yardctl up'", markup=False)


# --- logs ------------------------------------------------------------------------------------------


def show_logs(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One process, such as router or local-0.")] = "",
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new lines.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each.")] = 40,
    directory: DirOption = DEFAULT_DIR,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the logs of a mesh; with -o json the lines as they are."""
    console.guarded(_logs(Layout.of(directory), name, follow, lines, output))


async def _logs(layout: Layout, name: str, follow: bool, lines: int, output: Output) -> None:
    names = sorted(path.stem for path in layout.logs.glob("*.log"))
    if not names:
        raise CommandError(f"no logs in {layout.directory}: start a mesh with 'yardctl up', or name one with --dir")
    if name and name not in names:
        raise CommandError(f"no log of '{name}': there are {', '.join(names)}")
    chosen = [name] if name else names
    follower = logs.Follower(layout.logs, name)
    follower.skip()
    found = [(each, line) for each in chosen for line in logs.tail(layout.log_file(each), lines)]
    if not name:
        found = _by_time(found)
    width = max(len(each) for each in chosen) if not name else 0
    _print_lines(found, width, output)
    while follow:
        await asyncio.sleep(0.2)
        _print_lines(list(follower.new_lines()), width, output)


def _by_time(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Lines of several logs in the order of their times; one without follows the line before it."""
    keyed = []
    last = ""
    for index, (name, line) in enumerate(found):
        last = logs.time_of(line) or last
        keyed.append((last, index, name, line))
    return [(name, line) for _, _, name, line in sorted(keyed)]


def _print_lines(found: list[tuple[str, str]], width: int, output: Output) -> None:
    for name, line in found:
        prefix = f"{name:<{width}}  " if width and output is Output.TABLE else ""
        sys.stdout.write(prefix + (line if output is Output.JSON else logs.readable(line)) + "\n")
    sys.stdout.flush()
