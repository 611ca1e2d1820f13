"""Keeps each pool's number of host processes running on this machine.

Acts only for a leader. Finds running hosts again by their run files, whoever started them, and
leaves them running when it stops. A host that ends is started again, promptly once and then after
longer and longer rests. One that is too many is drained, then asked, then made to end.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.domain.clock import Clock
from services.domain.errors import StaleFencingToken, YardError
from services.domain.objects import Pool
from services.policy.core_sharing import share_of
from services.policy.restarting import Restarts, after_end
from services.resource_manager.launchers.processes import Processes, environment, port_is_free
from services.resource_manager.launchers.run_directory import LauncherBusy, RunDirectory, RunFile
from services.resource_manager.reconciler import Action, Authority, Journal

LOOK_EVERY_S = 0.25
"""How soon an ended host is seen."""

DRAIN_WITHIN_S = 15.0
"""A drained host that still runs after this is sent SIGTERM."""

TERM_WITHIN_S = 15.0
"""A host that still runs this long after SIGTERM is killed."""

PORTS = 69
"""Host ports, from the first one; what follows belongs to etcd."""

LET_GO_S = 1.0
"""How long the port of a host that has ended may stay taken before the next one gets another."""

METRICS_OFFSET = 1000
"""A host's metrics port, above its port."""

HOST_ADDRESS = "127.0.0.1"


class HostCommand(Protocol):
    """What a host is started with."""

    def __call__(self, host_id: str, pool: Pool, *, address: str, metrics_port: int, cpus: str) -> Sequence[str]:
        """The command line; `cpus` is empty where the host may run on all."""
        ...


class Drainer(Protocol):
    """Tells a host to finish and end."""

    async def drain(self, address: str, *, fencing_token: int) -> None:
        """Order it.

        Raises:
            YardError: It was refused, or did not arrive.
        """
        ...


@dataclass(slots=True)
class _Stop:
    decision_id: str
    drain: asyncio.Task[bool]
    next_s: float
    stage: str = "drain"


@dataclass(slots=True)
class _Host:
    run: RunFile
    started_s: float
    stop: _Stop | None = None


class LocalLauncher:
    """Host processes of one mesh directory."""

    def __init__(
        self,
        *,
        directory: Path,
        base_port: int,
        metrics: bool,
        processors: Sequence[int],
        command: HostCommand,
        drainer: Drainer,
        journal: Journal,
        clock: Clock,
    ) -> None:
        """Keep what `run` needs.

        Args:
            directory: The mesh directory, absolute: `run/` and `logs/` are below it.
            base_port: First port of hosts.
            metrics: Whether hosts serve metrics, at their port + 1000.
            processors: What hosts share among them, each its part, ascending; none: each host may run on all.
            command: What a host is started with.
            drainer: Tells a host to finish.
            journal: Where decisions are kept.
            clock: Time.
        """
        self._directory = directory
        self._base_port = base_port
        self._metrics = metrics
        self._processors = processors
        self._command = command
        self._drainer = drainer
        self._journal = journal
        self._clock = clock
        self._files = RunDirectory(directory)
        self._processes = Processes()
        self._authority: Authority | None = None
        self._adopted = False
        self._hosts: dict[str, _Host] = {}
        self._restarts: dict[str, Restarts] = {}
        self._ends: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._pools: Mapping[str, Pool] | None = None
        self._release: frozenset[str] = frozenset()
        self._revision = 0

    def lead(self, authority: Authority) -> None:
        """Act from now on, for as long as the authority holds; running hosts are looked for first."""
        self._authority = authority
        self._adopted = False
        self._pools = None

    def stand_down(self) -> None:
        """Act no more, and leave everything as it is."""
        self._authority = None
        for host in self._hosts.values():
            if host.stop is not None:
                host.stop.drain.cancel()
                self._journal.close(host.stop.decision_id, "leadership was lost")
        self._hosts.clear()
        self._restarts.clear()

    def surplus(self, pools: Mapping[str, Pool]) -> frozenset[str]:
        """Hosts it runs that the pools do not ask for."""
        return frozenset(self._hosts) - frozenset(wanted_hosts(pools))

    def keep(self, pools: Mapping[str, Pool], *, release: frozenset[str], revision: int) -> None:
        """Say what should run, and which hosts that should not may be ended."""
        self._pools, self._release, self._revision = pools, release, revision

    async def run(self) -> None:
        """Look after the hosts until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Once: reap, and if leading, find out what ended, start what lacks, end what is too many."""
        self._processes.reap()
        authority = self._authority
        if authority is None or not authority.holds():
            return
        try:
            if not self._adopted:
                found = await asyncio.to_thread(self._take_over, authority.fencing_token)
                if authority is not self._authority:
                    return
                self._hosts, self._adopted = found, True
            self._note_ended()
            if self._pools is not None:
                await self._start_missing(wanted_hosts(self._pools), authority)
                await self._stop_surplus(frozenset(wanted_hosts(self._pools)), authority)
        except LauncherBusy:
            return  # the next look is soon
        except StaleFencingToken as error:
            self._journal.note("a later leader looks after the hosts of this machine", error=error.message)
            self.stand_down()

    def _take_over(self, token: int) -> dict[str, _Host]:
        """Find what runs already. An earlier leader's higher token counts only while a host of its runs."""
        hosts = {}
        found = {name: self._find(entry) for name, entry in self._files.hosts().items()}
        with self._files.guarded(token, seize=not any(found.values())):
            now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
            for name, entry in self._files.hosts().items():
                self._ports[name] = entry.port
                if running := self._find(entry):
                    if running != entry:
                        self._files.write(running)
                    hosts[name] = _Host(running, now_s - max(0.0, wall_s - running.create_time))
                else:
                    self._files.remove(name)
        return hosts

    def _find(self, entry: RunFile) -> RunFile | None:
        """The entry of a process that runs; None if it does not."""
        if entry.pid == 0:
            # Its launcher ended between the start and the writing of the pid.
            found = self._processes.search(entry.argv)
            return _with_process(entry, *found) if found else None
        return entry if self._processes.running(entry.pid, entry.create_time) else None

    def _note_ended(self) -> None:
        now_s = self._clock.now_s()
        for name, host in list(self._hosts.items()):
            if self._processes.running(host.run.pid, host.run.create_time):
                continue
            del self._hosts[name]
            self._processes.reap()
            how = self._processes.ending(host.run.pid)
            if host.stop is not None:
                host.stop.drain.cancel()
                self._files.remove(name)
                self._restarts.pop(name, None)
                self._journal.close(host.stop.decision_id, "OK")
            else:
                ran_s = now_s - host.started_s
                self._restarts[name] = after_end(self._restarts.get(name, Restarts()), ran_s=ran_s, now_s=now_s)
                self._ends[name] = f"it {how} after {ran_s:.1f} s"

    async def _start_missing(self, wanted: Mapping[str, Pool], authority: Authority) -> None:
        for name, pool in wanted.items():
            restarts = self._restarts.get(name, Restarts())
            if name in self._hosts or self._clock.now_s() < restarts.not_before_s or not authority.holds():
                continue
            reason = f"pool '{pool.metadata.name}' keeps {pool.min_hosts} hosts"
            if how := self._ends.pop(name, ""):
                reason = f"{how}, end {restarts.in_a_row} in a row"
            decision_id = self._journal.open(
                Action.START_HOST,
                key=None,
                host_id=name,
                reason=reason,
                revision=self._revision,
                fencing_token=authority.fencing_token,
            )
            await self._let_go(name)
            try:
                cpus = self._cpus_of(name, wanted)
                entry = await asyncio.to_thread(self._start, name, pool, cpus, authority.fencing_token)
            except OSError as error:
                self._restarts[name] = after_end(restarts, ran_s=0.0, now_s=self._clock.now_s())
                self._journal.close(decision_id, str(error))
            except (LauncherBusy, YardError) as error:
                self._journal.close(decision_id, str(error))
                raise
            else:
                self._hosts[name] = _Host(entry, self._clock.now_s())
                self._journal.close(decision_id, "OK")

    async def _let_go(self, name: str) -> None:
        """Wait a moment for the port that a host had: one that was killed holds it until its last thread has ended."""
        port = self._ports.get(name, 0)
        until_s = self._clock.now_s() + LET_GO_S
        while port and not port_is_free(port) and self._clock.now_s() < until_s:
            await self._clock.sleep(LET_GO_S / 50)

    def _cpus_of(self, name: str, wanted: Mapping[str, Pool]) -> str:
        """Its part of the processors. Hosts that run already keep what they were given among fewer or more."""
        if not self._processors:
            return ""
        return ",".join(map(str, share_of(list(wanted).index(name), len(wanted), self._processors)))

    def _start(self, name: str, pool: Pool, cpus: str, token: int) -> RunFile:
        """Start a host, unless it runs; in a thread, since it waits for the disk."""
        with self._files.guarded(token):
            before = self._files.hosts().get(name)
            if before is not None and (running := self._find(before)):
                return running
            port = self._port_for(name)
            address = f"{HOST_ADDRESS}:{port}"
            metrics_port = port + METRICS_OFFSET if self._metrics else 0
            argv = list(self._command(name, pool, address=address, metrics_port=metrics_port, cpus=cpus))
            entry = RunFile(name=name, pid=0, create_time=0.0, argv=argv, address=address, pool=pool.metadata.name)
            self._files.write(entry)
            try:
                pid, create_time = self._processes.start(
                    argv, log=self._directory / "logs" / f"{name}.log", environ=environment(("MODELYARD_CONFIG",))
                )
            except OSError:
                self._files.remove(name)
                raise
            entry = _with_process(entry, pid, create_time)
            self._files.write(entry)
            self._ports[name] = port
            return entry

    def _port_for(self, name: str) -> int:
        """The port it had, so that callers find it again; else the first free one.

        Raises:
            OSError: None is free.
        """
        taken = {entry.port for entry in self._files.hosts().values() if entry.name != name}
        ports = range(self._base_port, self._base_port + PORTS)
        before = self._ports.get(name, 0)
        for port in ([before] if before in ports else []) + list(ports):
            if port in taken or not port_is_free(port):
                continue
            if not self._metrics or port_is_free(port + METRICS_OFFSET):
                return port
        raise OSError(f"no port from {ports.start} to {ports.stop - 1} is free for a host")

    async def _stop_surplus(self, wanted: frozenset[str], authority: Authority) -> None:
        for name, host in list(self._hosts.items()):
            if host.stop is None:
                if name in self._release and name not in wanted and authority.holds():
                    host.stop = self._begin_stop(name, host, authority)
                continue
            if host.stop.stage == "drain" and host.stop.drain.done() and not host.stop.drain.result():
                host.stop.next_s = 0.0  # it did not take the drain
            if self._clock.now_s() >= host.stop.next_s and authority.holds():
                number = signal.SIGTERM if host.stop.stage == "drain" else signal.SIGKILL
                await asyncio.to_thread(self._signal, host.run, number, authority.fencing_token)
                host.stop.stage = number.name
                host.stop.next_s = self._clock.now_s() + TERM_WITHIN_S

    def _begin_stop(self, name: str, host: _Host, authority: Authority) -> _Stop:
        decision_id = self._journal.open(
            Action.STOP_HOST,
            key=None,
            host_id=name,
            reason=f"pool '{host.run.pool}' does not ask for it",
            revision=self._revision,
            fencing_token=authority.fencing_token,
        )
        drain = asyncio.create_task(self._drain(name, host.run.address, authority.fencing_token))
        return _Stop(decision_id, drain, self._clock.now_s() + DRAIN_WITHIN_S)

    async def _drain(self, name: str, address: str, token: int) -> bool:
        try:
            await self._drainer.drain(address, fencing_token=token)
        except YardError as error:
            self._journal.note("a host did not take its drain", host=name, error=error.message)
            return False
        return True

    def _signal(self, entry: RunFile, number: signal.Signals, token: int) -> None:
        with self._files.guarded(token):
            self._processes.send(entry.pid, entry.create_time, number)


def wanted_hosts(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Ids of the hosts that pools ask for, `<pool>-<index>`, with their pools."""
    return {f"{name}-{index}": pool for name, pool in sorted(pools.items()) for index in range(max(0, pool.min_hosts))}


def _with_process(entry: RunFile, pid: int, create_time: float) -> RunFile:
    return RunFile(
        name=entry.name, pid=pid, create_time=create_time, argv=entry.argv, address=entry.address, pool=entry.pool
    )
