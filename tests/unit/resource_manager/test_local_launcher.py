"""The local launcher with real processes, which only sleep, and a clock that the test moves."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import pytest

from services.chassis.process import RECYCLE
from services.domain.clock import ManualClock
from services.domain.errors import HostUnavailable
from services.domain.objects import Pool
from services.resource_manager.launchers.local import DRAIN_WITHIN_S, LOOK_EVERY_S, TERM_WITHIN_S, LocalLauncher
from services.resource_manager.launchers.run_directory import RunDirectory, RunFile
from services.resource_manager.reconciler import Action
from tests.fakes.fleet import FakeAuthority, FakeJournal
from tests.fakes.objects import a_pool
from tests.support.ports import free_ports

SLEEPER = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
CRASHER = "raise SystemExit(3)"
SOON_S = 10.0


@dataclass
class FakeDrainer:
    """Ends the host it drains, or refuses."""

    obey: Callable[[str], None] | None = None
    refuses: bool = False
    tokens: list[int] = field(default_factory=list)

    async def drain(self, address: str, *, fencing_token: int) -> None:
        self.tokens.append(fencing_token)
        if self.refuses:
            raise HostUnavailable(f"{address} does not answer")
        if self.obey is not None:
            self.obey(address)


class Machine:
    """A mesh directory and the launchers that work on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.journal = FakeJournal()
        self.drainer = FakeDrainer()
        self.python = sys.executable
        self.program = SLEEPER
        self.processors: tuple[int, ...] = ()
        self.base_port = free_ports(8)[0]
        self.launchers: list[LocalLauncher] = []
        self.pids: dict[int, float] = {}

    def launcher(self) -> LocalLauncher:
        made = LocalLauncher(
            directory=self.directory,
            base_port=self.base_port,
            metrics=False,
            processors=self.processors,
            command=self.command,
            drainer=self.drainer,
            journal=self.journal,
            clock=self.clock,
        )
        self.launchers.append(made)
        return made

    def command(self, host_id: str, pool: Pool, *, address: str, metrics_port: int, cpus: str) -> Sequence[str]:
        argv = [self.python, "-S", "-E", "-c", self.program, host_id, address, str(metrics_port)]
        return [*argv, cpus] if cpus else argv

    def runs(self) -> dict[str, RunFile]:
        """Hosts by the files, of those that run."""
        found = {name: run for name, run in RunDirectory(self.directory).hosts().items() if alive(run)}
        self.pids.update({run.pid: run.create_time for run in found.values()})
        return found

    async def led(self, *pools: Pool, token: int = 7) -> LocalLauncher:
        """A launcher that leads and has looked once."""
        launcher = self.launcher()
        launcher.lead(FakeAuthority(token))
        self.keep(launcher, *pools)
        await launcher.look()
        self.runs()
        return launcher

    def keep(self, launcher: LocalLauncher, *pools: Pool, release: frozenset[str] = frozenset()) -> None:
        launcher.keep({pool.metadata.name: pool for pool in pools}, release=release, revision=3)

    def kill(self, name: str) -> None:
        run = self.runs()[name]
        os.kill(run.pid, signal.SIGKILL)
        eventually(lambda: not alive(run))

    def clean(self) -> None:
        self.runs()
        for pid, create_time in self.pids.items():
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - create_time) < 1.0:
                    process.kill()
                    process.wait(SOON_S)
            except psutil.NoSuchProcess:
                pass
        for launcher in self.launchers:
            launcher.stand_down()
            asyncio.run(launcher.look())


def alive(run: RunFile) -> bool:
    try:
        process = psutil.Process(run.pid)
        return abs(process.create_time() - run.create_time) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(check: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.clean()


async def test_each_pool_gets_its_number_of_hosts_with_a_file_and_a_log(machine: Machine) -> None:
    await machine.led(a_pool("cpu", hosts=2), a_pool("big"))

    runs = machine.runs()
    assert sorted(runs) == ["big-0", "cpu-0", "cpu-1"]
    assert len({run.address for run in runs.values()}) == 3
    raw = msgspec.json.decode((machine.directory / "run" / "cpu-0.json").read_bytes())
    assert {"name", "pid", "create_time", "argv", "address", "pool"} <= set(raw)
    assert raw["argv"] == psutil.Process(raw["pid"]).cmdline()
    assert (machine.directory / "logs" / "cpu-0.log").exists()
    assert os.getsid(raw["pid"]) == raw["pid"]
    assert [one.action for one in machine.journal.decisions] == [Action.START_HOST] * 3
    assert machine.journal.ended() == ["OK"] * 3


async def test_hosts_share_the_processors_only_where_that_is_asked(machine: Machine) -> None:
    machine.processors = (0, 1, 2, 5)
    await machine.led(a_pool("cpu", hosts=2), a_pool("big"))

    assert {name: run.argv[-1] for name, run in machine.runs().items()} == {"big-0": "0", "cpu-0": "1", "cpu-1": "2,5"}


async def test_a_host_that_asks_to_be_started_anew_is_and_the_decision_says_so(machine: Machine) -> None:
    machine.program = f"import sys; sys.exit({RECYCLE})"
    launcher = await machine.led(a_pool("cpu"))
    (first,) = RunDirectory(machine.directory).hosts().values()
    eventually(lambda: not alive(first))

    machine.program = SLEEPER
    await launcher.look()

    assert machine.runs()["cpu-0"].pid != first.pid
    assert machine.journal.decisions[-1].reason.startswith("it ended to be started anew after")


async def test_looking_again_starts_nothing_more(machine: Machine) -> None:
    launcher = await machine.led(a_pool("cpu", hosts=2))
    before = machine.runs()

    for _ in range(3):
        await launcher.look()

    assert machine.runs() == before


async def test_one_that_does_not_lead_starts_nothing(machine: Machine) -> None:
    launcher = machine.launcher()
    machine.keep(launcher, a_pool())
    await launcher.look()
    launcher.lead(FakeAuthority(held=False))
    machine.keep(launcher, a_pool())
    await launcher.look()

    assert machine.runs() == {}
    assert not (machine.directory / "run").exists(), "it leaves no token either"


async def test_a_host_that_ends_starts_again_promptly_on_its_port_and_then_rests(machine: Machine) -> None:
    launcher = await machine.led(a_pool())
    first = machine.runs()["cpu-0"]

    machine.kill("cpu-0")
    await launcher.look()
    second = machine.runs()["cpu-0"]
    assert second.pid != first.pid
    assert second.address == first.address
    assert "was ended by SIGKILL" in machine.journal.decisions[-1].reason

    machine.kill("cpu-0")
    await launcher.look()
    assert machine.runs() == {}
    machine.clock.advance(0.5)
    await launcher.look()
    assert list(machine.runs()) == ["cpu-0"]


async def test_a_host_that_cannot_stay_up_is_started_less_and_less_often(machine: Machine) -> None:
    machine.program = CRASHER
    launcher = await machine.led(a_pool())
    starts = []

    for _ in range(240):
        before = len(machine.journal.decisions)
        run = RunDirectory(machine.directory).hosts().get("cpu-0")
        if run is not None:
            eventually(lambda run=run: not alive(run))  # type: ignore[misc]
        await launcher.look()
        if len(machine.journal.decisions) > before:
            starts.append(machine.clock.now_s() - 1_000.0)
        machine.clock.advance(LOOK_EVERY_S)

    # The first restart is prompt; the next ones rest from when the end was seen, one look later.
    rests = [after - before - LOOK_EVERY_S for before, after in pairwise(starts)]
    assert starts[0] == 0.0
    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert "ended with code 3" in machine.journal.decisions[-1].reason


async def test_one_that_ran_for_a_minute_is_restarted_promptly_again(machine: Machine) -> None:
    launcher = await machine.led(a_pool())
    for _ in range(3):
        machine.clock.advance(61.0)
        machine.kill("cpu-0")
        await launcher.look()
        assert list(machine.runs()) == ["cpu-0"]


async def test_no_zombie_stays(machine: Machine) -> None:
    launcher = await machine.led(a_pool())
    run = machine.runs()["cpu-0"]

    machine.kill("cpu-0")
    await launcher.look()

    assert not psutil.pid_exists(run.pid)


async def test_a_restarted_launcher_adopts_what_runs(machine: Machine) -> None:
    await machine.led(a_pool("cpu", hosts=2))
    before = machine.runs()

    again = await machine.led(a_pool("cpu", hosts=2), token=9)

    assert machine.runs() == before
    assert len(machine.journal.decisions) == 2
    # And looks after it as after its own.
    machine.kill("cpu-1")
    await again.look()
    assert sorted(machine.runs()) == ["cpu-0", "cpu-1"]
    assert machine.runs()["cpu-0"] == before["cpu-0"]


async def test_a_host_that_another_launcher_started_meanwhile_is_not_started_twice(machine: Machine) -> None:
    late = await machine.led()
    await machine.led(a_pool())
    before = machine.runs()

    machine.keep(late, a_pool())
    await late.look()
    await late.look()

    assert machine.runs() == before


async def test_a_host_started_by_a_launcher_that_died_before_it_wrote_the_pid_is_found(machine: Machine) -> None:
    await machine.led(a_pool())
    run = machine.runs()["cpu-0"]
    files = RunDirectory(machine.directory)
    files.write(msgspec.structs.replace(run, pid=0, create_time=0.0))

    await machine.led(a_pool(), token=9)

    assert machine.runs()["cpu-0"].pid == run.pid
    assert len(machine.journal.decisions) == 1


async def test_a_pid_that_belongs_to_somebody_else_by_now_is_never_touched(machine: Machine) -> None:
    await machine.led(a_pool("other"))
    stranger = machine.runs()["other-0"]
    files = RunDirectory(machine.directory)
    files.write(msgspec.structs.replace(stranger, name="cpu-0", pool="cpu", create_time=stranger.create_time - 50.0))

    launcher = await machine.led(a_pool("other"), token=9)
    machine.keep(launcher, a_pool("other"), release=frozenset({"cpu-0"}))
    for _ in range(5):
        await launcher.look()
        machine.clock.advance(DRAIN_WITHIN_S)

    assert machine.runs() == {"other-0": stranger}
    assert machine.drainer.tokens == []


async def test_a_paused_leader_that_resumes_changes_nothing(machine: Machine) -> None:
    stale = machine.launcher()
    stale.lead(FakeAuthority(7))
    machine.keep(stale)
    await stale.look()
    await machine.led(a_pool(), token=12)
    before = machine.runs()

    # It still believes that it leads, and wants more hosts, and none of those that run.
    machine.keep(stale, a_pool("mine", hosts=3), release=frozenset({"cpu-0"}))
    await stale.look()
    await stale.look()

    assert machine.runs() == before
    assert any("later leader" in note for note in machine.journal.notes)


async def test_a_host_too_many_is_drained_and_forgotten_when_it_ends(machine: Machine) -> None:
    launcher = await machine.led(a_pool("cpu", hosts=2))
    runs = machine.runs()
    machine.drainer.obey = lambda address: os.kill(runs["cpu-1"].pid, signal.SIGTERM)
    pools = {"cpu": a_pool("cpu", hosts=1)}

    assert launcher.surplus(pools) == {"cpu-1"}
    machine.keep(launcher, a_pool("cpu", hosts=1))
    await launcher.look()
    await asyncio.sleep(0)
    assert machine.drainer.tokens == [], "it was not released yet"

    machine.keep(launcher, a_pool("cpu", hosts=1), release=frozenset({"cpu-1"}))
    await launcher.look()
    await asyncio.sleep(0)
    eventually(lambda: not alive(runs["cpu-1"]))
    await launcher.look()

    assert machine.drainer.tokens == [7]
    assert list(machine.runs()) == ["cpu-0"]
    assert not (machine.directory / "run" / "cpu-1.json").exists()
    assert machine.journal.decisions[-1].action is Action.STOP_HOST
    assert machine.journal.ended()[-1] == "OK"
    assert launcher.surplus(pools) == frozenset()


async def test_a_host_that_ignores_drain_and_sigterm_is_killed_in_the_end(machine: Machine) -> None:
    machine.program = STUBBORN
    launcher = await machine.led(a_pool())
    run = machine.runs()["cpu-0"]
    eventually(lambda: "deaf" in (machine.directory / "logs" / "cpu-0.log").read_text())
    machine.keep(launcher, release=frozenset({"cpu-0"}))

    await launcher.look()
    await launcher.look()
    machine.clock.advance(DRAIN_WITHIN_S)
    await launcher.look()
    await launcher.look()
    assert alive(run), "SIGTERM comes first"
    machine.clock.advance(TERM_WITHIN_S)
    await launcher.look()
    eventually(lambda: not alive(run))
    await launcher.look()

    assert machine.journal.ended()[-1] == "OK"


async def test_a_host_that_refuses_its_drain_is_sent_sigterm_without_waiting(machine: Machine) -> None:
    machine.drainer.refuses = True
    launcher = await machine.led(a_pool())
    run = machine.runs()["cpu-0"]
    machine.keep(launcher, release=frozenset({"cpu-0"}))

    await launcher.look()
    await asyncio.sleep(0)
    await launcher.look()

    eventually(lambda: not alive(run))


async def test_a_host_wanted_again_while_it_ends_is_started_again(machine: Machine) -> None:
    launcher = await machine.led(a_pool())
    run = machine.runs()["cpu-0"]
    machine.drainer.obey = lambda address: os.kill(run.pid, signal.SIGTERM)
    machine.keep(launcher, release=frozenset({"cpu-0"}))
    await launcher.look()
    await asyncio.sleep(0)

    machine.keep(launcher, a_pool())
    eventually(lambda: not alive(run))
    await launcher.look()

    assert machine.runs()["cpu-0"].pid != run.pid


async def test_a_program_that_cannot_be_started_is_told_and_tried_again_later(machine: Machine) -> None:
    machine.python = "/nonexistent/python"
    launcher = await machine.led(a_pool())

    assert "/nonexistent/python" in machine.journal.ended()[0]
    assert RunDirectory(machine.directory).hosts() == {}
    await launcher.look()
    await launcher.look()
    assert len(machine.journal.decisions) == 2


async def test_a_port_that_is_taken_is_left_to_its_owner(machine: Machine) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", machine.base_port))
        owner.listen()
        await machine.led(a_pool())

    assert machine.runs()["cpu-0"].port != machine.base_port
