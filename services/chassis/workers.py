"""Several processes of one service on one address: the parent that starts, watches, restarts and ends them.

The parent holds the address, bound and not listening, so that nobody else takes it while workers come and go;
the kernel spreads new connections over the workers that listen (SO_REUSEPORT), and a connection stays where it
is. Metrics of all workers are read from the parent, as one.

Workers are asked to stop over their links and never by signal: Ctrl-C reaches them from the terminal as well,
and a second signal ends a process at once.
"""

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.registry import Collector

from services.chassis import instruments
from services.chassis.config import ENV_PREFIX
from services.chassis.logs import logger
from services.chassis.metrics_merge import OF_A_PROCESS, Merge
from services.chassis.process import FAILED, Process
from services.chassis.server import PortInUse, check_address, port_in_use
from services.chassis.shared_counts import CountsTable
from services.chassis.worker_link import ASK, DRAIN, HEAD, SERVES
from services.domain.clock import Clock

HEALTHY_S = 30.0
"""A worker that ran this long starts again with a clean record."""

ASK_EVERY_S = 1.0
"""How often workers are asked for their metrics even if nobody reads them: what a killed worker counted since
is lost. An answer takes a worker about a millisecond."""

ANSWER_S = 0.5
"""How long a reader of metrics waits for the workers; of one that has not answered, the last word counts."""

READ_S = 5.0
"""How long a reader of metrics waits for the event loop, which may be late on a machine that is; readers of Prometheus
wait for 10 s."""

STOP_S = 15.0
"""How long workers may take to drain before they are killed."""

_END_S = 5.0
"""How long a worker that hung up may take to be gone, and a killed one to be reaped."""

_PATIENCE_S = 1.0
"""How long an address may stay taken: workers whose parent was killed listen for half a second more."""

_RETRY_S = 0.05


class WorkerFailed(OSError):
    """A worker ended before all of them served."""


async def reserve(address: str, *, insecure: bool, clock: Clock) -> tuple[socket.socket, str]:
    """Hold an address for workers of this user: bound and not listening, so that the kernel sends it nothing.

    Args:
        address: `HOST:PORT`; port 0 takes a free one.
        insecure: Allow an address that other machines reach.
        clock: Time.

    Returns:
        What holds it until it is closed, and the address with its port.

    Raises:
        PortInUse: Another process has it.
        OSError: It cannot be bound, or must not.
    """
    until_s = clock.now_s() + _PATIENCE_S
    while True:
        try:
            check_address(address, insecure=insecure)
            return _hold(address)
        except PortInUse:
            if clock.now_s() >= until_s:
                raise
            await clock.sleep(_RETRY_S)


def _hold(address: str) -> tuple[socket.socket, str]:
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    holder = socket.socket(family, kind, protocol)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # passes connections that linger
        holder.bind(where)
        # From here on nobody binds it but with SO_REUSEPORT, which only workers use. Set before, it would
        # also have let this process in beside another one's workers.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(address) from None
        raise
    return holder, f"{host}:{holder.getsockname()[1]}"


def flags_of(config: object) -> list[str]:
    """Every setting as a flag, so that a process that is given them has the very same configuration."""
    assert dataclasses.is_dataclass(config)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return [f"--{name.replace('_', '-')}={_text(value)}" for name, value in values.items()]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _environ() -> dict[str, str]:
    """This process's environment, less the file of settings: the flags hold what was read from it."""
    return {name: value for name, value in os.environ.items() if name != f"{ENV_PREFIX}CONFIG"}


class _Life:
    """One worker process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.serves = False
        self._writer = writer
        self._answer: asyncio.Future[None] | None = None

    def ask(self) -> asyncio.Future[None]:
        """Ask for its metrics, unless that was done and not answered yet."""
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            self.say(ASK)
        return self._answer

    def answered(self) -> None:
        """It said its metrics, or never will."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
        self._answer = None

    def say(self, word: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(word)

    def hang_up(self) -> None:
        self.answered()
        self._writer.close()


class Workers(Collector):
    """The workers of one service; as a collector, their metrics as one."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        table: CountsTable,
        count: int,
        rest_s: Callable[[int], float],
        serving: Gauge,
        restarts: Counter,
        gauge_merge: Mapping[str, instruments.GaugeMerge] = instruments.GAUGE_MERGE,
        clock: Clock,
    ) -> None:
        """Keep what `start` needs.

        Args:
            command: What to run as the worker of that number, from 0. It opens a `Link`.
            table: The page of counts, which every worker inherits.
            count: Workers.
            rest_s: Seconds between an end and the next start, by how often it ended in a row.
            serving: Says how many workers serve.
            restarts: Counts restarts.
            gauge_merge: How gauges are merged.
            clock: Time.
        """
        self._command = command
        self._table = table
        self._count = count
        self._rest_s = rest_s
        self._serving = serving
        self._restarts = restarts
        self._clock = clock
        self._merge = Merge(gauge_merge)
        self._lives: dict[int, _Life] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._up: asyncio.Future[None] = self._loop.create_future()

    async def start(self, process: Process) -> None:
        """Start them, and restart them until `process` stops; returns once all serve.

        Raises:
            WorkerFailed: One ended before that.
        """
        self._tasks = [process.spawn(f"worker {number}", self._keep(number)) for number in range(self._count)]
        process.spawn("metrics of workers", self._ask_often())
        process.on_stop("workers", lambda: self._drain(process), timeout_s=STOP_S + 2 * _END_S)
        await self._up

    # --- metrics ---------------------------------------------------------------------------------

    def registry(self) -> CollectorRegistry:
        """What `serve_metrics` serves, from a thread of its own."""
        registry = CollectorRegistry(support_collectors_without_names=True)
        registry.register(self)
        return registry

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before it is asked for."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything as of now; from another thread than the event loop's."""
        return asyncio.run_coroutine_threadsafe(self.metrics(), self._loop).result(READ_S)

    async def metrics(self) -> list[Metric]:
        """Everything as of now."""
        answers = [life.ask() for life in self._lives.values() if life.serves]
        if answers:
            await asyncio.wait(answers, timeout=ANSWER_S)
        return self._merge.metrics(self._own(), name="parent")

    def _own(self) -> list[Metric]:
        """What the parent itself has to say: it serves no calls."""
        names = {metric.name for each in (self._serving, self._restarts) for metric in each.describe()}
        return [
            metric
            for metric in instruments.REGISTRY.collect()
            if metric.name in names or metric.type == "info" or metric.name.startswith(OF_A_PROCESS)
        ]

    async def _ask_often(self) -> None:
        while True:
            await self._clock.sleep(ASK_EVERY_S)
            for life in self._lives.values():
                if life.serves:
                    life.ask()

    # --- lives -----------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """One worker after the other, until the drain."""
        in_a_row = 0
        while True:
            began_s = self._clock.now_s()
            how = await self._live(number)
            if self._stopping.is_set():
                return
            if not self._up.done():
                self._up.set_exception(WorkerFailed(f"worker {number} {how} before all served"))
                return
            ran_s = self._clock.now_s() - began_s
            in_a_row = 1 if ran_s >= HEALTHY_S else in_a_row + 1
            rest_s = self._rest_s(in_a_row)
            logger().error("worker ended", worker=number, how=how, ran_s=round(ran_s, 3), restart_in_s=rest_s)
            await self._rest(rest_s)
            if self._stopping.is_set():
                return
            self._restarts.inc()

    async def _rest(self, duration_s: float) -> None:
        """Wait for so long, or for the drain."""
        waits = {asyncio.ensure_future(self._clock.sleep(duration_s)), asyncio.ensure_future(self._stopping.wait())}
        _, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()

    async def _live(self, number: int) -> str:
        """One process from its start to its end; returns how it ended."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command(number), stdin=theirs.fileno(), pass_fds=(self._table.fd,), env=_environ()
                )
        except OSError as error:
            ours.close()
            return f"could not be started: {error.strerror}"
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        life = self._lives[number] = _Life(process, writer)
        try:
            if self._stopping.is_set():
                life.say(DRAIN)
            await self._hear(number, life, reader)
            with contextlib.suppress(TimeoutError):  # it hung up and is still there: half a worker helps nobody
                await asyncio.wait_for(process.wait(), _END_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            del self._lives[number]
            life.hang_up()
            self._merge.ended(str(number))
            self._table.clear(number)
            self._count_serving()
        return _ending(process.returncode)

    async def _hear(self, number: int, life: _Life, reader: asyncio.StreamReader) -> None:
        """Take what a worker says until it hangs up."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, length = HEAD.unpack(await reader.readexactly(HEAD.size))
                body = await reader.readexactly(length)
                if kind == SERVES:
                    life.serves = True
                    self._count_serving()
                    logger().info("worker serves", worker=number, pid=life.process.pid)
                else:
                    self._merge.heard(str(number), body)
                    life.answered()

    def _count_serving(self) -> None:
        serving = sum(life.serves for life in self._lives.values())
        self._serving.set(serving)
        if serving == self._count and not self._up.done():
            self._up.set_result(None)

    async def _drain(self, process: Process) -> None:
        """Have every worker stop in good order; kill those that take too long."""
        self._stopping.set()
        for life in self._lives.values():
            life.say(DRAIN)
        _, late = await asyncio.wait(self._tasks, timeout=STOP_S)
        if late:
            logger().error("workers took too long to stop and are killed", workers=sorted(self._lives), after_s=STOP_S)
            process.exit_code = process.exit_code or FAILED
            for life in self._lives.values():
                life.process.kill()
            await asyncio.wait(late, timeout=_END_S)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
