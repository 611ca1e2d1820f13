"""Real processes: recorded, found again, and ended, whoever started them."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.domain.clock import SystemClock
from yardctl import processes
from yardctl.layout import Layout
from yardctl.mesh import end_everything, in_stop_order

CLOCK = SystemClock()
SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-uc",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)",
)
ORPHAN_MAKER = (sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEPER!r}, start_new_session=True)")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout.of(tmp_path / "mesh")
    made.create()
    return made


async def started(layout: Layout, name: str, argv: tuple[str, ...] = SLEEPER) -> subprocess.Popen[bytes]:
    process = processes.start(name, argv, layout=layout, address="127.0.0.1:1")
    until_s = CLOCK.now_s() + 20
    while argv is STUBBORN and "ready" not in layout.log_file(name).read_text():
        assert CLOCK.now_s() < until_s
        await CLOCK.sleep(0.02)
    return process


async def test_a_process_is_found_by_its_record_until_it_ends(layout: Layout) -> None:
    child = await started(layout, "router")

    record = processes.live_records(layout)["router"]
    assert (record.pid, record.argv, record.address) == (child.pid, SLEEPER, "127.0.0.1:1")
    assert os.getsid(child.pid) == child.pid, "it has a session of its own"

    child.kill()
    until_s = CLOCK.now_s() + 10
    while record.process() is not None:
        assert CLOCK.now_s() < until_s, "an ended process that nobody has reaped counts as ended"
        await CLOCK.sleep(0.01)
    child.wait()
    assert processes.live_records(layout) == {}
    assert list(processes.read_records(layout)) == ["router"]


async def test_another_process_with_the_same_pid_is_left_alone(layout: Layout) -> None:
    child = await started(layout, "router")
    record = processes.read_records(layout)["router"]
    stranger = replace(record, create_time=record.create_time - 100)

    ended = await processes.end([stranger], clock=CLOCK, term_timeout_s=1.0)

    assert ended == []
    assert child.poll() is None
    child.kill()
    child.wait()


async def test_what_does_not_end_when_asked_is_killed_with_its_children(layout: Layout) -> None:
    polite, stubborn = await started(layout, "a"), await started(layout, "b", STUBBORN)
    records = processes.read_records(layout)

    ended = await processes.end(
        [records["a"], records["b"]],
        clock=CLOCK,
        term_timeout_s=0.5,
        handles={polite.pid: polite, stubborn.pid: stubborn},
    )

    assert [(each.name, each.killed) for each in ended] == [("a", False), ("b", True)]
    assert (polite.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


async def test_a_stopped_process_is_ended_too(layout: Layout) -> None:
    child = await started(layout, "a")
    child.send_signal(signal.SIGSTOP)

    (ended,) = await processes.end(
        list(processes.read_records(layout).values()), clock=CLOCK, term_timeout_s=10.0, handles={child.pid: child}
    )

    assert not ended.killed
    assert child.wait() == -signal.SIGTERM


async def test_everything_is_ended_in_order_even_what_has_no_record(layout: Layout) -> None:
    names = ["etcd", "registry", "local-0", "router", "resource-manager", "local-1", "collector"]
    children = {name: await started(layout, name) for name in names}
    maker = await started(layout, "maker", ORPHAN_MAKER)
    maker.wait()
    processes.remove_record(layout, "maker")
    until_s = CLOCK.now_s() + 10
    while not (strays := processes.unrecorded(layout, {child.pid for child in children.values()})):
        assert CLOCK.now_s() < until_s, "the process without a record is not found"
        await CLOCK.sleep(0.02)
    (layout.run / "half.json").write_text('{"pid": 1')
    (layout.run / "local-2.json").write_text('{"name": "local-2", "pid": 0, "create_time": 0, "argv": []}')

    ordered = [record.name for record in in_stop_order(processes.live_records(layout))]
    ended = await end_everything(layout, handles={child.pid: child for child in children.values()})

    assert ordered == ["router", "resource-manager", "local-0", "local-1", "registry", "collector", "etcd"]
    names = [each.name for each in ended]
    assert (names[:4], ended[4].pid, names[5:]) == (ordered[:4], strays[0].pid, ordered[4:])
    assert all(child.poll() is not None for child in children.values())
    assert strays[0].process() is None
    assert processes.read_records(layout) == {}
    assert await end_everything(layout) == []


def test_variables_of_etcd_do_not_reach_the_processes(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "mine")
    monkeypatch.setenv("ETCD_BIN", "/bin/etcd")
    print_them = (
        sys.executable,
        "-c",
        "import os; print(sorted(k for k in os.environ if k.startswith(('ETCD', 'YARDCTL'))))",
    )

    processes.start("a", print_them, layout=layout).wait()

    assert layout.log_file("a").read_text().strip() == f"['ETCD_BIN', '{processes.MARK}']"
