"""Keeps a mesh up: starts it, restarts parts that crash, ends it in order when asked to.

`yardctl up` runs it in the foreground. With --detach it is a process of its own, whose progress
comes to the command through a pipe, one JSON object a line, until the mesh is up.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TextIO

from services.chassis import config as settings
from services.chassis.logs import logger, setup_logging
from services.domain.clock import Clock, SystemClock
from yardctl import processes
from yardctl.bootstrap import DeviceChoice
from yardctl.errors import FAILED, CommandError
from yardctl.etcd_binary import find_etcd
from yardctl.layout import DEFAULT_BASE_PORT, Layout, locked
from yardctl.mesh import Mesh, MeshConfig, Report
from yardctl.parts import SUPERVISOR, Part
from yardctl.processes import Ended, kill_group

LOOK_EVERY_S = 0.2
FIRST_REST_S = 0.5
"""Rest before the second restart in a row; the first one is prompt."""
LONGEST_REST_S = 30.0
HEALTHY_S = 60.0
"""A part that ran this long is restarted promptly again."""


@dataclass(frozen=True, slots=True)
class _Restarts:
    """Record of one part."""

    in_a_row: int = 0
    started_s: float = 0.0
    not_before_s: float = 0.0


def rest_s(restarts_in_a_row: int) -> float:
    """Seconds before the next restart of a part: none at first, then doubling."""
    if restarts_in_a_row <= 0:
        return 0.0
    return min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(restarts_in_a_row - 1, 16))


class Parts(Protocol):
    """What the supervisor needs of a mesh."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """Every part by name."""
        ...

    def ended(self, name: str) -> int | None:
        """Exit code of a part that has ended; None while it runs."""
        ...

    def start_part(self, name: str) -> None:
        """Start a part; CommandError if it cannot be."""
        ...

    def pid(self, name: str) -> int:
        """The process id of a part that was started."""
        ...


class Supervisor:
    """Watches the parts of a mesh that is up."""

    def __init__(self, mesh: Parts, *, clock: Clock, report: Report) -> None:
        """Store the mesh, time, and who is told of restarts."""
        self._mesh = mesh
        self._clock = clock
        self._report = report
        self._records: dict[str, _Restarts] = {}
        self._noted: set[str] = set()

    async def run(self) -> None:
        """Restart what ends, until cancelled."""
        now_s = self._clock.now_s()
        self._records = {name: _Restarts(started_s=now_s) for name in self._mesh.parts}
        while True:
            self.look()
            await self._clock.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Once: note what has ended, and start again what has rested."""
        now_s = self._clock.now_s()
        for name in self._mesh.parts:
            code = self._mesh.ended(name)
            if code is None:
                continue
            record = self._records.get(name, _Restarts())
            if name not in self._noted:
                self._noted.add(name)
                in_a_row = 0 if now_s - record.started_s >= HEALTHY_S else record.in_a_row
                rest = rest_s(in_a_row)
                record = _Restarts(in_a_row + 1, record.started_s, now_s + rest)
                self._records[name] = record
                logger().error("part ended", part=name, code=code, restart_in_s=rest)
                self._report(name, f"{_how(code)}, restart in {rest:g} s" if rest else _how(code))
            if now_s >= record.not_before_s:
                self._restart(name, record, now_s)

    def _restart(self, name: str, record: _Restarts, now_s: float) -> None:
        try:
            self._mesh.start_part(name)
        except CommandError as error:
            logger().error("part cannot be restarted", part=name, cause=error.message)
            self._records[name] = _Restarts(record.in_a_row + 1, now_s, now_s + rest_s(record.in_a_row))
            return
        self._noted.discard(name)
        self._records[name] = _Restarts(record.in_a_row, now_s)
        logger().info("part restarted", part=name, pid=self._mesh.pid(name), in_a_row=record.in_a_row)
        self._report(name, f"restarted (pid {self._mesh.pid(name)})")


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


async def supervise(
    config: MeshConfig,
    *,
    report: Report,
    on_up: Callable[[Mesh], None],
    on_stop: Callable[[str], None],
    clock: Clock,
) -> list[Ended]:
    """Bring a mesh up and keep it up until SIGTERM, SIGINT or SIGHUP; then end it in order.

    A second signal kills everything at once.

    Args:
        config: What to start.
        report: Told of progress and restarts.
        on_up: Called once everything serves.
        on_stop: Called with the signal's name when the end begins.
        clock: Time.

    Returns:
        What was ended.

    Raises:
        CommandError: It cannot be started, or is up already. Nothing is left running.
    """
    mesh = Mesh(config, find_etcd(), clock=clock)
    stopping = asyncio.Event()
    with locked(mesh.layout), _signals(mesh.layout, stopping, on_stop):
        mesh.check()
        mesh.layout.create()
        processes.write_record(mesh.layout, SUPERVISOR, os.getpid(), sys.argv, "")
        watching: asyncio.Task[None] | None = None
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            starting = asyncio.ensure_future(mesh.bring_up(report))
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
                on_up(mesh)
                watching = asyncio.ensure_future(Supervisor(mesh, clock=clock, report=report).run())
                await asyncio.wait({watching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if watching is not None:
                watching.cancel()
                await asyncio.wait({watching})
            ended = await mesh.stop(report)
            processes.remove_record(mesh.layout, SUPERVISOR)
        if watching is not None and not watching.cancelled():
            watching.result()
    return ended


@contextmanager
def _signals(layout: Layout, stopping: asyncio.Event, on_stop: Callable[[str], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def on_signal(number: signal.Signals) -> None:
        if not stopping.is_set():
            on_stop(number.name)
            stopping.set()
            return
        for record in processes.live_records(layout).values():
            if record.pid != os.getpid():
                kill_group(record.pid)

    for number in handled:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


# --- as a process of its own -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """Settings of a detached supervisor; `yardctl up --detach` starts it."""

    dir: Path
    """The mesh directory."""
    base_port: int = DEFAULT_BASE_PORT
    """Port of the router; the others follow."""
    hosts: int = 2
    """Hosts of the first pool."""
    trace_ratio: float = 0.01
    """Share of traces recorded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the first pool's hosts."""
    memory_bytes: int = 0
    """What models may take on each host of the first pool; 0 is a share of the machine's."""
    share_cpus: bool = False
    """Give each host its own part of the machine's processors."""
    progress_fd: int = -1
    """Descriptor that progress is written to until the mesh is up; -1 for none."""


def argv_of(config: MeshConfig, progress_fd: int) -> tuple[str, ...]:
    """Arguments that start a detached supervisor."""
    return (
        *(sys.executable, "-m", "yardctl.supervisor"),
        *("--dir", str(Layout.of(config.directory).directory)),
        *("--base-port", str(config.base_port)),
        *("--hosts", str(config.hosts)),
        *("--trace-ratio", str(config.trace_ratio)),
        *("--device", config.device),
        *("--memory-bytes", str(config.memory_bytes)),
        *(("--share-cpus",) if config.share_cpus else ()),
        *("--progress-fd", str(progress_fd)),
    )


class _Progress:
    """Writes progress to the pipe for as long as somebody reads it."""

    def __init__(self, pipe: TextIO | None) -> None:
        self._pipe = pipe

    def write(self, **content: str) -> None:
        """Send one line."""
        if self._pipe is None:
            return
        try:
            self._pipe.write(json.dumps(content) + "\n")
            self._pipe.flush()
        except OSError:
            self._pipe = None

    def close(self) -> None:
        """Say that nothing more will come."""
        if self._pipe is not None:
            pipe, self._pipe = self._pipe, None
            pipe.close()


def _run(config: SupervisorConfig) -> int:
    device: DeviceChoice = config.device
    mesh_config = MeshConfig(
        config.dir,
        config.base_port,
        config.hosts,
        config.trace_ratio,
        device,
        config.memory_bytes,
        share_cpus=config.share_cpus,
    )
    progress = _Progress(os.fdopen(config.progress_fd, "w") if config.progress_fd >= 0 else None)

    def on_up(_mesh: Mesh) -> None:
        logger().info("mesh is up")
        progress.write(event="up")
        progress.close()

    def on_stop(why: str) -> None:
        logger().info("stopping", why=why)

    def report(part: str, state: str) -> None:
        logger().info("progress", part=part, state=state)
        progress.write(event="part", part=part, state=state)

    try:
        ended = asyncio.run(supervise(mesh_config, report=report, on_up=on_up, on_stop=on_stop, clock=SystemClock()))
    except CommandError as error:
        logger().error("mesh cannot be kept up", cause=error.message)
        progress.write(event="failed", message=error.message)
        return FAILED
    logger().info("mesh ended", parts=[each.name for each in ended])
    return 0


def main() -> int:
    """Run a detached supervisor."""
    try:
        config = settings.load(
            SupervisorConfig, prog="python -m yardctl.supervisor", argv=sys.argv[1:], environ=os.environ
        )
    except settings.ConfigError as error:
        return settings.exit_with_faults(error)
    setup_logging(SUPERVISOR, SUPERVISOR)
    return _run(config)


if __name__ == "__main__":
    sys.exit(main())
