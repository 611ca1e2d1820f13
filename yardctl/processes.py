"""Processes of a mesh: starting one, keeping a record of it, finding it again, ending it.

A record (`run/<name>.json`) names a process by pid and creation time, so that whoever reads it
later, even after the supervisor was killed, ends that process and no other.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import modelyard
import yardctl
from services.domain.clock import Clock
from yardctl.layout import Layout, write_json

MARK = "YARDCTL_MESH_DIRECTORY"
"""Environment variable that every process of a mesh inherits; finds those without a record."""

_POLL_S = 0.02
_SAME_PROCESS_S = 2.0
"""Creation times of one process differ by less: they are derived from a boot time that the
system's clock adjustments move. A pid does not come round again within that time."""


@dataclass(frozen=True, slots=True)
class Record:
    """One process that was started."""

    name: str
    pid: int
    create_time: float
    argv: tuple[str, ...]
    address: str

    def process(self) -> psutil.Process | None:
        """The process, if it still runs. A zombie does not."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.create_time) > _SAME_PROCESS_S:
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.Error:
            return None


@dataclass(frozen=True, slots=True)
class Ended:
    """One process that was ended."""

    name: str
    pid: int
    killed: bool
    """True if it did not end when asked to and was killed."""


def start(
    name: str,
    argv: Sequence[str],
    *,
    layout: Layout,
    address: str = "",
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    record: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output appended to its log, and record it.

    Args:
        name: Names its log and its record.
        argv: What to run.
        layout: The mesh directory, with its folders.
        address: Where it will serve.
        environ: Variables added to this process's.
        pass_fds: Descriptors it inherits.
        record: False leaves the record to the process itself.

    Raises:
        OSError: It cannot be started.
    """
    with layout.log_file(name).open("ab") as log:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=pass_fds,
            env={**_inherited(), **(environ or {}), MARK: str(layout.directory)},
        )
    if record:
        write_record(layout, name, process.pid, argv, address)
    return process


def _inherited() -> dict[str, str]:
    # etcd refuses to start where a variable of its own repeats one of its flags. ETCD_BIN is ours.
    found = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_") or name == "ETCD_BIN"}
    # The processes run the code that this one runs, and nothing that lies in the current directory.
    roots = [str(Path(package.__path__[0]).resolve().parent) for package in (yardctl, modelyard)]
    paths = dict.fromkeys([*roots, *filter(None, found.get("PYTHONPATH", "").split(os.pathsep))])
    return {**found, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def write_record(layout: Layout, name: str, pid: int, argv: Sequence[str], address: str) -> None:
    """Record a process that runs; one that has already ended leaves no record."""
    try:
        create_time = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    write_json(layout.run / f"{name}.json", asdict(Record(name, pid, create_time, tuple(argv), address)))


def remove_record(layout: Layout, name: str) -> None:
    """Forget a process that has ended."""
    (layout.run / f"{name}.json").unlink(missing_ok=True)


def read_records(layout: Layout) -> dict[str, Record]:
    """Every record of the mesh by name, whether its process runs or not."""
    records = {}
    for path in sorted(layout.run.glob("*.json")):
        record = _read_record(path)
        if record is not None:
            records[record.name] = record
    return records


def _read_record(path: Path) -> Record | None:
    try:
        content = json.loads(path.read_text())
        return Record(
            name=str(content.get("name", path.stem)),
            pid=int(content["pid"]),
            create_time=float(content["create_time"]),
            argv=tuple(content.get("argv", ())),
            address=str(content.get("address", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def live_records(layout: Layout) -> dict[str, Record]:
    """The records whose process runs, by name."""
    return {name: record for name, record in read_records(layout).items() if record.process() is not None}


def unrecorded(layout: Layout, known_pids: Iterable[int]) -> list[Record]:
    """Processes that belong to the mesh by their environment, and are not among `known_pids`.

    There are some where one was killed between starting a process and recording it. This
    process and its ancestors never count.
    """
    skipped = {*known_pids, os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in skipped:
            continue
        try:
            if process.environ().get(MARK) != str(layout.directory) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            argv = tuple(process.cmdline())
            found.append(Record(_name_of(process, argv), process.pid, process.create_time(), argv, address=""))
        except (psutil.Error, OSError):
            continue
    return found


def _name_of(process: psutil.Process, argv: Sequence[str]) -> str:
    """The module that a Python runs, else the program's own name."""
    return argv[argv.index("-m") + 1] if "-m" in argv[:-1] else process.name()


async def end(
    records: Sequence[Record],
    *,
    clock: Clock,
    term_timeout_s: float,
    handles: Mapping[int, subprocess.Popen[bytes]] | None = None,
) -> list[Ended]:
    """End processes all at once: ask with SIGTERM, and after `term_timeout_s` kill their groups.

    Args:
        records: Which ones; those that do not run are left out.
        clock: Time.
        term_timeout_s: Time each has to end by itself.
        handles: Those that are children of this process, by pid: they are reaped.

    Returns:
        What was ended, in the given order.
    """
    handles = handles or {}
    running = {record.pid: record for record in records if record.process() is not None}
    for pid in running:
        _signal(pid, signal.SIGTERM)
    left = await _wait_gone(list(running.values()), handles, clock=clock, timeout_s=term_timeout_s)
    killed = {record.pid for record in left}
    for pid in killed:
        kill_group(pid)
    await _wait_gone(left, handles, clock=clock, timeout_s=5.0)
    return [Ended(record.name, record.pid, record.pid in killed) for record in running.values()]


def kill_group(pid: int) -> None:
    """SIGKILL a process, and its group where it leads one."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        # One that was stopped (SIGSTOP) acts on nothing but SIGKILL before it is continued.
        os.kill(pid, signal.SIGCONT)


async def _wait_gone(
    records: Sequence[Record], handles: Mapping[int, subprocess.Popen[bytes]], *, clock: Clock, timeout_s: float
) -> list[Record]:
    until_s = clock.now_s() + timeout_s
    while True:
        for record in records:
            if (handle := handles.get(record.pid)) is not None:
                handle.poll()
        records = [record for record in records if record.process() is not None]
        if not records or clock.now_s() >= until_s:
            return list(records)
        await clock.sleep(_POLL_S)
