"""The life of one service process: event loop, signals, and an orderly end.

What was begun last is ended first. Owns no service's wiring: that is `app` of each.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib import metadata
from typing import Any, TypeVar

import uvloop

from services.chassis import config as settings
from services.chassis.instruments import BUILD
from services.chassis.loop_lag import watch_loop_lag
from services.chassis.telemetry import logger, setup_logging
from services.domain.clock import SystemClock
from services.domain.errors import YardError

C = TypeVar("C")

FAILED = 1
"""Exit code of a process that could not start, crashed, or did not stop cleanly."""

RECYCLE = 75
"""Exit code of a process that ended in good order and asks to be started anew; EX_TEMPFAIL of sysexits.h."""

_TASK_S = 10.0
"""How long a task of `spawn` may take to handle its cancellation."""

_GC_THRESHOLDS = (20_000, 20, 20)
"""Container objects between two collections of the youngest, and collections of a generation before that of the next.
With Python's own (700, 10, 10), and the modules among what is looked at, a router spent a ninth of its time on
looking: what a call makes is freed by reference counts."""

_MALLOC = ((-3, 128 << 20), (-1, 256 << 20))
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. By default a buffer of a photo's size is mapped and unmapped each
time, page by page: requests of 600 KB were answered at 0.7 of the rate. The price is memory kept between two."""

_UNWIND_S = 1.0
"""How long a stop that ran out of time may take to handle its cancellation."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    name: str
    stop: Callable[[], Awaitable[None]]
    timeout_s: float
    level: int = logging.INFO


class Process:
    """What a service's `start` is handed: where it enters what must be stopped, and its tasks."""

    def __init__(self) -> None:
        """A process that runs until someone asks it to stop."""
        self.stopping = asyncio.Event()
        """Set once the process was asked to stop."""
        self.exit_code = 0
        self._steps: list[_Step] = []

    def on_stop(self, name: str, stop: Callable[[], Awaitable[None]], *, timeout_s: float = 10.0) -> None:
        """Enter a step of the drain. Steps run last in, first out, with the tasks of `spawn` among them.

        Args:
            name: For the log.
            stop: Ends something that was begun just before.
            timeout_s: Seconds it may take; then it is cancelled and the drain goes on.
        """
        self._steps.append(_Step(name, stop, timeout_s))

    def spawn(self, name: str, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coro` beside the service until it returns or, in its turn of the drain, is cancelled.

        If it raises, the process stops with exit code 1: half a service helps nobody. So begin what the
        server needs before `on_stop` of the server, and it lives until the server has drained.

        Args:
            name: For the log, and of the task.
            coro: Usually a loop.
        """
        task = asyncio.get_running_loop().create_task(coro, name=name)
        step = _Step(name, lambda: _cancel(task), _TASK_S, logging.DEBUG)
        self._steps.append(step)

        def ended(_: asyncio.Task[None]) -> None:
            if step in self._steps:
                self._steps.remove(step)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                logger().error("task crashed", task=name, exc_info=error)
                self.request_stop(f"task {name} crashed", exit_code=FAILED)

        task.add_done_callback(ended)
        return task

    def request_stop(self, why: str, *, exit_code: int = 0) -> None:
        """Begin the drain; the first reason is logged, the first non-zero exit code is kept."""
        self.exit_code = self.exit_code or exit_code
        if not self.stopping.is_set():
            self.stopping.set()
            logger().info("stopping", why=why)

    def give_up(self, line: str) -> None:
        """Begin the drain of a process that could not start; its user reads `line`, and not the drain's."""
        sys.stderr.write(f"{line}\n")
        self.exit_code = FAILED
        self._steps = [dataclasses.replace(step, level=logging.DEBUG) for step in self._steps]
        self.stopping.set()

    async def drain(self) -> None:
        """Run every step, last in, first out; one that fails or takes too long does not keep the next from running."""
        while self._steps:
            await self._run(self._steps.pop())

    async def _run(self, step: _Step) -> None:
        clock = SystemClock()
        start_s = clock.now_s()
        task = asyncio.ensure_future(step.stop())
        await asyncio.wait({task}, timeout=step.timeout_s)
        took_s = round(clock.now_s() - start_s, 3)
        if not task.done():
            logger().error("stop took too long, going on without it", step=step.name, timeout_s=step.timeout_s)
            self.exit_code = self.exit_code or FAILED
            task.cancel()
            await asyncio.wait({task}, timeout=_UNWIND_S)
        elif task.cancelled() or task.exception() is not None:
            error = None if task.cancelled() else task.exception()
            logger().error("stop failed, going on", step=step.name, exc_info=error)
            self.exit_code = self.exit_code or FAILED
        else:
            logger().log(step.level, "stopped", step=step.name, took_s=took_s)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def run(name: str, start: Callable[[Process], Awaitable[None]]) -> int:
    """Run a service until it is asked to stop.

    SIGTERM and Ctrl-C begin the drain, also in the middle of `start`; a second one ends the process at once.

    Args:
        name: Of the service, for messages.
        start: Begins everything and returns; what it must end it enters with `on_stop` and `spawn`.

    Returns:
        The exit code: 0, or 1 if it could not start, a task crashed, or a stop failed.
    """
    _keep_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(name, start))


async def _live(name: str, start: Callable[[Process], Awaitable[None]]) -> int:
    process = Process()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if process.stopping.is_set():
            sys.stderr.write(f"{name}: second signal ({number.name}), ending at once\n")
            sys.stderr.flush()
            os._exit(128 + number)
        process.request_stop(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    process.spawn("loop lag", watch_loop_lag(SystemClock()))
    starting = asyncio.ensure_future(start(process))
    stopping = asyncio.ensure_future(process.stopping.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()  # no effect unless it was asked to stop before it had begun
    await asyncio.wait({starting})
    error = None if starting.cancelled() else starting.exception()
    if error is not None:
        process.give_up(_explained(name, error))
    elif not starting.cancelled():
        _spare_collector()
        logger().info("serving")
    await stopping
    await process.drain()
    logger().log(logging.DEBUG if error else logging.INFO, "ended", exit_code=process.exit_code)
    return process.exit_code


def _keep_memory() -> None:
    """Let the allocator keep large buffers for the next use; another libc than glibc has its own ways."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC:
            mallopt(parameter, value)


def _spare_collector() -> None:
    """What is here now stays to the end: the collector need not look at it again, and can look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _explained(name: str, error: BaseException) -> str:
    """Why `start` failed, in one line; where the cause is not one of ours, its traceback is logged first."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{name}: cannot start: {error.strerror}{where}"
    if not isinstance(error, YardError | OSError):
        logger().error("start failed unexpectedly", exc_info=error)
    return f"{name}: cannot start: {error or type(error).__name__}"


def _version() -> str:
    try:
        return metadata.version("modelyard")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a checkout that was never installed


def main(name: str, config_cls: type[C], start: Callable[[C, Process], Awaitable[None]]) -> int:
    """Load the configuration from flags, environment and file, set up logging, and run.

    Args:
        name: Of the service.
        config_cls: Its configuration; `instance` and `log_level`, where there, are the log's.
        start: Begins everything.

    Returns:
        The exit code; 2 if the configuration has faults, which are all printed.
    """
    try:
        config = settings.load(config_cls, prog=f"python -m services.{name}", argv=sys.argv[1:], environ=os.environ)
    except settings.ConfigError as error:
        return settings.exit_with_faults(error)
    instance = getattr(config, "instance", None) or name
    setup_logging(name, instance, level=getattr(config, "log_level", "info"))
    BUILD.info({"service": name, "instance": instance, "version": _version()})
    return run(name, lambda process: start(config, process))
