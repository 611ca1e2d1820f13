"""A mesh on this machine as a library: start it, start and stop single parts, end it.

`yardctl up` and `down` are built on it; tests and benchmarks use it directly:

    mesh = await Mesh.start(directory, base_port=free_base_port(), hosts=2)
    await mesh.kill_part("registry")
    mesh.start_part("registry")
    await mesh.wait_healthy("registry")
    await mesh.stop()

Restarts nothing by itself: that is the supervisor's, and for hosts the resource manager's.
"""

import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.domain.clock import Clock, SystemClock
from services.domain.errors import YardError
from yardctl import client, processes
from yardctl.bootstrap import DeviceChoice, default_memory_bytes, ensure_pool, resolve_device
from yardctl.errors import CommandError
from yardctl.etcd_binary import EtcdBinary, find_etcd
from yardctl.health import fault_of
from yardctl.layout import (
    DEFAULT_BASE_PORT,
    Addresses,
    Layout,
    MeshInfo,
    free_base_port,
    refuse_ports_in_use,
    write_mesh_info,
)
from yardctl.logs import last_words
from yardctl.parts import (
    REGISTRY,
    STAGES,
    STOP_AFTER_HOSTS,
    STOP_BEFORE_HOSTS,
    SUPERVISOR,
    Part,
    parts_of,
    ports_of,
)
from yardctl.processes import Ended, Record

__all__ = ["Mesh", "MeshConfig", "end_everything", "free_base_port"]

HEALTHY_WITHIN_S = 60.0
"""A part takes about 2 s; a busy machine with cold disks takes many times that."""
HOSTS_WITHIN_S = 120.0
STOP_WITHIN_S = 20.0
"""Time a process has to drain and end by itself before it is killed."""
_POLL_S = 0.05
_CLOCK = SystemClock()

Report = Callable[[str, str], None]
"""Told of progress: which part, and how far it is."""


def _silent(_part: str, _state: str) -> None:
    """Reports to nobody."""


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What a mesh is started with."""

    directory: Path
    base_port: int = DEFAULT_BASE_PORT
    hosts: int = 2
    """Hosts of the first pool; once a registry has pools, they say."""
    trace_ratio: float = 0.01
    device: DeviceChoice = "auto"
    memory_bytes: int = 0
    """What models may take on each host of the first pool; 0 is a share of the machine's."""
    router_flags: tuple[str, ...] = ()
    """Further settings of the router, as on its command line."""
    share_cpus: bool = False
    """Give each host its own part of the machine's processors."""


class Mesh:
    """The processes of one mesh directory, as children of this process."""

    def __init__(self, config: MeshConfig, etcd: EtcdBinary, *, clock: Clock = _CLOCK) -> None:
        """Know the parts; `bring_up` starts them.

        Args:
            config: What to start it with.
            etcd: The etcd to run.
            clock: Time.
        """
        self.config = config
        self.layout = Layout.of(config.directory)
        self.addresses = Addresses.from_base(config.base_port)
        self.parts: Mapping[str, Part] = parts_of(
            self.layout,
            self.addresses,
            etcd=etcd.path,
            trace_ratio=config.trace_ratio,
            router_flags=config.router_flags,
            share_cpus=config.share_cpus,
        )
        self._clock = clock
        self._handles: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    async def start(
        cls,
        directory: Path,
        *,
        base_port: int,
        hosts: int = 2,
        trace_ratio: float = 0.01,
        device: DeviceChoice = "cpu",
        memory_bytes: int = 0,
        router_flags: tuple[str, ...] = (),
    ) -> Self:
        """Start a mesh and wait until all of it serves. What was started is ended again if it fails.

        Raises:
            CommandError: It cannot be started; the message says why.
        """
        config = MeshConfig(directory, base_port, hosts, trace_ratio, device, memory_bytes, router_flags)
        mesh = cls(config, find_etcd())
        try:
            await mesh.bring_up()
        except BaseException:
            await mesh.stop()
            raise
        return mesh

    def check(self) -> None:
        """Refuse what cannot work: processes of this mesh that still run, ports that are taken.

        Raises:
            CommandError: Something is in the way.
        """
        records = [each for name, each in processes.live_records(self.layout).items() if name != SUPERVISOR]
        running = ", ".join(f"{each.name} (pid {each.pid})" for each in [*records, *_strays(self.layout)])
        if running:
            raise CommandError(
                f"a mesh without supervisor still runs in {self.layout.directory}: {running}; "
                "end it with 'yardctl down'"
            )
        refuse_ports_in_use(ports_of(self.parts, self.addresses, self.config.hosts))

    async def bring_up(self, report: Report = _silent) -> None:
        """Start every part in order, give a new registry its first pool, wait for its hosts.

        Args:
            report: Told of progress.

        Raises:
            CommandError: A part did not come up. What was started still runs: call `stop`.
        """
        self.check()
        self.layout.create()
        info = MeshInfo(self.config.base_port, self.config.hosts, self.config.trace_ratio, self.addresses)
        write_mesh_info(self.layout, info)
        wanted: dict[str, int] = {}
        for stage in STAGES:
            for name in stage:
                report(name, "starting")
                self.start_part(name)
            for name in stage:
                await self.wait_healthy(name)
                report(name, "healthy")
            if REGISTRY in stage:
                report("pools", "reading")
                wanted = await self._pools()
                report("pools", ", ".join(f"{pool} ({count} hosts)" for pool, count in wanted.items()))
        await self.wait_hosts(sum(wanted.values()), report=report)

    async def _pools(self) -> dict[str, int]:
        device = resolve_device(self.config.device)
        memory_bytes = self.config.memory_bytes or default_memory_bytes(device, self.config.hosts)
        async with client.registry(self.addresses.registry) as registry:
            try:
                return await ensure_pool(registry, hosts=self.config.hosts, device=device, memory_bytes=memory_bytes)
            except YardError as error:
                raise CommandError(f"the registry refused the first pool: {error.message}") from error

    async def wait_hosts(self, count: int, *, timeout_s: float = HOSTS_WITHIN_S, report: Report = _silent) -> None:
        """Wait until at least `count` hosts of this mesh's own are listed.

        Those that the registry still lists from before it was killed do not count.

        Raises:
            CommandError: They are not within `timeout_s`.
        """
        until_s = self._clock.now_s() + timeout_s
        seen = -1
        async with client.registry(self.addresses.registry) as registry:
            while True:
                own = {record.pid for record in self.hosts().values()}
                try:
                    listed = [host.host_id for host in await registry.hosts() if host.pid in own]
                except (CommandError, YardError):
                    listed = []
                if len(listed) != seen:
                    seen = len(listed)
                    report("hosts", "healthy" if seen >= count else f"{seen} of {count}")
                if seen >= count:
                    return
                if self._clock.now_s() >= until_s:
                    raise CommandError(f"{seen} of {count} hosts are listed after {timeout_s:g} s{self._host_cause()}")
                await self._clock.sleep(_POLL_S)

    def _host_cause(self) -> str:
        for name in processes.read_records(self.layout):
            if name not in self.parts and name != SUPERVISOR and (words := last_words(self.layout.log_file(name))):
                return f"; {name} said: {words} (see {self.layout.log_file(name)})"
        return f": see {self.layout.log_file('resource-manager')}"

    # --- single parts --------------------------------------------------------------------------

    def start_part(self, name: str) -> None:
        """Start a part that does not run; its log is appended to.

        Raises:
            CommandError: It cannot be started.
        """
        part = self.parts[name]
        try:
            self._handles[name] = processes.start(name, part.argv, layout=self.layout, address=part.address)
        except OSError as error:
            raise CommandError(f"{name} cannot be started: {error.strerror}: {part.argv[0]}") from error

    def ended(self, name: str) -> int | None:
        """Exit code of a part that has ended (negative: the signal); None while it runs or before its start."""
        handle = self._handles.get(name)
        return None if handle is None else handle.poll()

    def pid(self, name: str) -> int:
        """The process id of a part that was started."""
        return self._handles[name].pid

    async def wait_healthy(self, name: str, *, timeout_s: float = HEALTHY_WITHIN_S) -> None:
        """Wait until a part says that it serves.

        Raises:
            CommandError: It ended, or does not serve within `timeout_s`.
        """
        part = self.parts[name]
        until_s = self._clock.now_s() + timeout_s
        while True:
            code = self.ended(name)
            if code is not None:
                words = last_words(self.layout.log_file(name))
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                raise CommandError(
                    f"{name} {how} while starting{f': {words}' if words else ''} (see {self.layout.log_file(name)})"
                )
            fault = await fault_of(part)
            if not fault:
                return
            if self._clock.now_s() >= until_s:
                raise CommandError(
                    f"{name} at {part.address} {fault} after {timeout_s:g} s: see {self.layout.log_file(name)}"
                )
            await self._clock.sleep(_POLL_S)

    async def kill_part(self, name: str) -> None:
        """End one part with SIGKILL, as a crash, and wait for its end."""
        handle = self._handles.get(name)
        if handle is not None and handle.poll() is None:
            handle.kill()
        record = processes.read_records(self.layout).get(name)
        if record is not None:
            handles = {} if handle is None else {handle.pid: handle}
            await processes.end([record], clock=self._clock, term_timeout_s=0.0, handles=handles)
        if handle is not None:
            handle.wait()
        processes.remove_record(self.layout, name)

    # --- hosts ---------------------------------------------------------------------------------

    def hosts(self) -> dict[str, Record]:
        """The host processes that run, by host id."""
        return _hosts(processes.live_records(self.layout).values(), self.parts)

    def kill_host(self, host_id: str) -> None:
        """End a host process with SIGKILL, as a crash; the resource manager starts it again.

        Raises:
            CommandError: No such host runs.
        """
        record = self.hosts().get(host_id)
        if record is None:
            raise CommandError(f"no host '{host_id}' runs; running: {', '.join(self.hosts()) or 'none'}")
        processes.kill_group(record.pid)

    # --- all -----------------------------------------------------------------------------------

    async def stop(self, report: Report = _silent) -> list[Ended]:
        """End everything in order, hosts included. Nothing of the mesh runs afterwards."""
        handles = {handle.pid: handle for handle in self._handles.values()}
        ended = await end_everything(self.layout, clock=self._clock, handles=handles, report=report)
        for handle in self._handles.values():
            handle.wait()
        self._handles.clear()
        return ended


async def end_everything(
    layout: Layout,
    *,
    clock: Clock = _CLOCK,
    handles: dict[int, subprocess.Popen[bytes]] | None = None,
    report: Report = _silent,
    term_timeout_s: float = STOP_WITHIN_S,
) -> list[Ended]:
    """End whatever of a mesh runs, by its records and by its mark, whoever started it.

    The router first, so that calls end well, and the resource manager, so that nobody restarts
    hosts; then the hosts; then what they were registered with; etcd last. Not the supervisor.

    Args:
        layout: The mesh directory.
        clock: Time.
        handles: Processes that are children of this one, by pid.
        report: Told of progress.
        term_timeout_s: Time each has to end by itself.

    Returns:
        What was ended, in that order.
    """
    ended: list[Ended] = []

    async def end(records: Iterable[Record]) -> None:
        running = [record for record in records if record.process() is not None]
        for record in running:
            report(record.name, "stopping")
        gone = await processes.end(running, clock=clock, term_timeout_s=term_timeout_s, handles=handles)
        for each in gone:
            report(each.name, "killed" if each.killed else "stopped")
        ended.extend(gone)

    def named(*names: str) -> list[Record]:
        records = processes.read_records(layout)
        return [records[name] for name in names if name in records]

    fixed = {SUPERVISOR, *STOP_BEFORE_HOSTS, *STOP_AFTER_HOSTS}
    await end(named(*STOP_BEFORE_HOSTS))
    # Read only now: the resource manager may have started one until it ended.
    await end(_hosts(processes.read_records(layout).values(), fixed).values())
    await end(_strays(layout))
    for name in STOP_AFTER_HOSTS:
        await end(named(name))
    for name, record in processes.read_records(layout).items():
        if name != SUPERVISOR and record.process() is None:
            processes.remove_record(layout, name)
    return ended


def in_stop_order(records: Mapping[str, Record]) -> list[Record]:
    """Records in the order in which `end_everything` ends their processes; without the supervisor."""
    hosts = _hosts(records.values(), (*STOP_BEFORE_HOSTS, *STOP_AFTER_HOSTS))
    names = (*STOP_BEFORE_HOSTS, *hosts, *STOP_AFTER_HOSTS)
    return [records[name] for name in names if name in records]


def _hosts(records: Iterable[Record], fixed: Iterable[str]) -> dict[str, Record]:
    fixed = {*fixed, SUPERVISOR}
    return {record.name: record for record in records if record.name not in fixed}


def _strays(layout: Layout) -> list[Record]:
    return processes.unrecorded(layout, (record.pid for record in processes.read_records(layout).values()))
