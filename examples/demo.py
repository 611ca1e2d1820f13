"""The whole of modelyard in a minute: a mesh with real models, real inputs, a trace, and a host that dies.

    python -m examples.demo        (or: make demo)

Exits with 0 only if every answer was right and no call failed while a host was killed. Nothing is left running,
whatever happens; the mesh's directory, with its logs, is kept only if something was wrong.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape

from examples import outage, progress, scenes
from examples.caller import Caller
from examples.progress import Progress
from examples.scenes import Stage
from examples.tensors import infer_request, texts
from examples.zoo import inputs, manifesting, prepare
from examples.zoo.manifesting import TemplateError
from examples.zoo.measuring import MeasuringError
from examples.zoo.prepare import Prepared
from examples.zoo.weights import WeightsError
from modelyard.inference.v1 import inference_pb2
from modelyard.registry.v1 import objects_pb2, registry_pb2
from modelyard.type.v1 import model_pb2
from services.chassis.channels import open_channel
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.domain.errors import YardError
from yardctl import client, render
from yardctl.errors import CommandError
from yardctl.etcd_binary import find_etcd
from yardctl.layout import Layout, free_base_port, locked
from yardctl.mesh import Mesh, MeshConfig, end_everything
from yardctl.spans import StoredSpan, read_spans
from yardctl.trace import Trace, TraceNode, find_trace

DIRECTORY = prepare.ROOT / ".modelyard-demo"
HOSTS = 2
HOST_MEMORY_BYTES = 3 << 30
READY_WITHIN_S = 180.0
TRACE_WITHIN_S = 10.0
POLL_S = 0.1
INTERRUPTED = 130
_CLOCK = SystemClock()


def main() -> int:
    """Run the demo; the exit code says whether everything was as it should be."""
    terminal = progress.console()
    # Asked to end by whomever, it ends as on Ctrl-C: in good order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        terminal.rule("[bold]modelyard: models as one system", align="left", style="dim")
        with _alone():
            shown = Progress(terminal)
            zoo = prepare.prepare(prepare.DEFAULT_FOLDER, shown)
            return asyncio.run(_run(zoo, terminal, shown))
    except (KeyboardInterrupt, asyncio.CancelledError):
        terminal.print("[yellow]interrupted; nothing is left running[/yellow]")
        return INTERRUPTED
    except (CommandError, MeasuringError, TemplateError, WeightsError, YardError, OSError) as error:
        terminal.print(f"[red]the demo cannot go on:[/red] {escape(str(error))}", soft_wrap=True)
        return 1


async def _run(zoo: Prepared, terminal: Console, shown: Progress) -> int:
    layout = Layout.of(DIRECTORY)
    stage = Stage(terminal)
    with _cancelled_by(signal.SIGTERM):
        # What a demo that was itself killed has left behind.
        await end_everything(layout)
        _clear(layout)
        mesh = Mesh(MeshConfig(DIRECTORY, free_base_port(), HOSTS, 1.0, "cpu", HOST_MEMORY_BYTES), find_etcd())
        try:
            await _perform(mesh, zoo, stage, shown)
        finally:
            await _stop(mesh, terminal)
    terminal.print()
    if stage.wrong:
        terminal.print(f"[red]{len(stage.wrong)} of {stage.checks} checks failed[/red]; logs are in {layout.logs}")
        return 1
    _clear(layout)
    terminal.print(f"[green]all {stage.checks} checks passed[/green]")
    return 0


@dataclass(frozen=True, slots=True)
class _Line:
    """What calls go through."""

    caller: Caller
    telemetry: Telemetry
    registry: client.RegistryClient


async def _perform(mesh: Mesh, zoo: Prepared, stage: Stage, shown: Progress) -> None:
    with shown.step("bring up the mesh") as step:
        await mesh.bring_up()
        step.result = f"router at {mesh.addresses.router}, {HOSTS} hosts"
    telemetry = Telemetry(
        service="demo", instance=str(os.getpid()), otlp_endpoint=mesh.addresses.collector, sample_ratio=1.0
    )
    try:
        async with open_channel(mesh.addresses.router) as channel, client.registry(mesh.addresses.registry) as registry:
            line = _Line(Caller(channel, telemetry), telemetry, registry)
            await _apply(line, zoo, shown)
            traced = await _scenes(line.caller, zoo, stage)
            await _show_trace(mesh.layout, traced, stage)
            await _outage(line, zoo, stage)
    finally:
        await telemetry.shutdown()


async def _apply(line: _Line, zoo: Prepared, shown: Progress) -> None:
    objects = manifesting.objects_in(zoo.manifests)
    with shown.step("apply the zoo") as step:
        request = registry_pb2.ApplyRequest(objects=objects, reason="the demo's zoo", author="examples.demo")
        applied = await line.registry.apply(request)
        step.result = f"{len(applied.changes)} objects as revision {applied.revision}"
    wanted = sum(item.model_version.min_replicas for item in objects)
    with shown.step("load models until every replica is ready") as step:
        await _wait_ready(line.registry, wanted, shown)
        await _wait_routable(line.caller, objects)
        versions = sum(item.HasField("model_version") for item in objects)
        step.result = f"{versions} versions, {wanted} replicas on {HOSTS} hosts"


async def _wait_ready(registry: client.RegistryClient, wanted: int, shown: Progress) -> None:
    until_s = _CLOCK.now_s() + READY_WITHIN_S
    while True:
        models = [each for host in await registry.hosts() for each in host.models]
        ready = sum(each.state == model_pb2.MODEL_STATE_READY for each in models)
        shown.note(f"{ready} of {wanted} replicas ready")
        if ready >= wanted:
            return
        failed = [each for each in models if each.state == model_pb2.MODEL_STATE_FAILED]
        if failed and _CLOCK.now_s() >= until_s:
            raise CommandError(f"{failed[0].key.model}:{failed[0].key.version} did not load: {failed[0].message}")
        if _CLOCK.now_s() >= until_s:
            raise CommandError(f"{ready} of {wanted} replicas are ready after {READY_WITHIN_S:g} s")
        await _CLOCK.sleep(POLL_S)


async def _wait_routable(caller: Caller, objects: list[objects_pb2.Object]) -> None:
    """Wait until the router knows of them too; it follows the registry within milliseconds."""
    until_s = _CLOCK.now_s() + READY_WITHIN_S
    for item in objects:
        name, version = item.metadata.name, item.model_version.version
        while item.HasField("model_version") and not await caller.ready(name, version):
            if _CLOCK.now_s() >= until_s:
                raise CommandError(f"the router has no host for {name}:{version}")
            await _CLOCK.sleep(POLL_S)


async def _scenes(caller: Caller, zoo: Prepared, stage: Stage) -> str:
    tumours = inputs.held_out(zoo.held_out / "breast_cancer.npz")
    digits = inputs.held_out(zoo.held_out / "digits.npz")
    await scenes.sentences(caller, stage)
    traced = await scenes.photos(caller, stage)
    await scenes.sounds(caller, stage)
    await scenes.tumours(caller, stage, tumours)
    await scenes.digits(caller, stage, digits)
    await scenes.open_protocol(caller, stage, digits)
    return traced


async def _show_trace(layout: Layout, trace_id: str, stage: Stage) -> None:
    stage.title("One trace: the photo of the cat, from this client to the compute thread")
    trace = await _whole_trace(layout, trace_id)
    if trace is not None:
        stage.console.print(render.trace(trace))
    services, levels = _way_to_compute(trace)
    way = " > ".join(services) or "none"
    stage.check(services == ["demo", "router", "model_host"], f"one tree: {way}, with the compute {levels} levels down")


async def _whole_trace(layout: Layout, trace_id: str) -> Trace | None:
    """The trace once all of it has arrived, or what there is of it after some seconds."""
    until_s = _CLOCK.now_s() + TRACE_WITHIN_S
    while True:
        trace = find_trace(read_spans(layout.traces), trace_id)
        if _way_to_compute(trace)[0] or _CLOCK.now_s() >= until_s:
            return trace
        await _CLOCK.sleep(POLL_S)


def _way_to_compute(trace: Trace | None) -> tuple[list[str], int]:
    """Services on the way from the trace's only root to its compute, and how many spans below it that is."""
    if trace is None or len(trace.roots) != 1 or trace.roots[0].orphan:
        return [], 0
    spans = _spans_to(trace.roots[0], "compute")
    return list(dict.fromkeys(span.service for span in spans)), max(0, len(spans) - 1)


def _spans_to(node: TraceNode, name: str) -> list[StoredSpan]:
    if node.span.name == name:
        return [node.span]
    for child in node.children:
        if found := _spans_to(child, name):
            return [node.span, *found]
    return []


async def _outage(line: _Line, zoo: Prepared, stage: Stage) -> None:
    stage.title(f"A host is killed under {outage.CALLERS} callers")
    pixels = inputs.held_out(zoo.held_out / "digits.npz").rows[:8].astype(np.float32)
    requests = [
        infer_request("digits", {"pixels": pixels}),
        infer_request("embed", {"text": texts("Every model is in its place.")}),
        infer_request("digits", {"pixels": pixels[:1]}),
    ]
    requests[2].route.prefer = inference_pb2.PREFERENCE_COST
    seen = await outage.stream_through_a_kill(
        line.caller, requests, line.registry, lambda text: stage.console.print(f"[yellow]![/yellow] {escape(text)}")
    )
    tally = seen.tally
    for failure, count in _counted(tally.failures):
        stage.console.print(f"  [red]{count} x[/red] {escape(failure)}")
    stage.check(not tally.failures, f"{tally.calls} calls, {len(tally.failures)} failed")
    shares = ", ".join(f"{host} {count}" for host, count in sorted(tally.hosts.items()))
    stage.console.print(f"  {tally.retried} were tried again on another host; answered by {shares}")
    p50, p99 = (render.span_of_time(tally.percentile_s(percent)) for percent in (50, 99))
    stage.console.print(f"  P50 {p50}, P99 {p99}, slowest {render.span_of_time(max(tally.durations_s))}")
    stage.check(
        seen.back is not None,
        f"{seen.killed.host_id} is back as pid {seen.back.pid}, a model ready {seen.back.after_s:.1f} s after the kill"
        if seen.back
        else f"{seen.killed.host_id} did not come back within {outage.BACK_WITHIN_S:g} s",
    )


def _counted(texts_seen: list[str]) -> list[tuple[str, int]]:
    return sorted(((text, texts_seen.count(text)) for text in set(texts_seen)), key=lambda item: -item[1])[:5]


async def _stop(mesh: Mesh, terminal: Console) -> None:
    ended = await mesh.stop()
    killed = [each.name for each in ended if each.killed]
    forced = f", {', '.join(killed)} by force" if killed else ""
    terminal.print(f"\n  [green]✓[/green] stopped {len(ended)} processes{forced}; nothing is left running")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the demo's directory, in which only one may run.

    Raises:
        CommandError: Another demo does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(Layout.of(DIRECTORY)))
        except CommandError as error:
            raise CommandError(f"another demo runs in {DIRECTORY}: wait for its end, or end it with Ctrl-C") from error
        yield


@contextlib.contextmanager
def _cancelled_by(number: signal.Signals) -> Iterator[None]:
    """End in good order on a signal, as on Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)


def _clear(layout: Layout) -> None:
    """Empty the mesh's directory, but for the lock that this process holds."""
    for entry in layout.directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != layout.lock_file:
            entry.unlink()


if __name__ == "__main__":
    sys.exit(main())
