"""`yardctl up` and `down` as an operator meets them: real commands, real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from yardctl.layout import Layout, free_base_port
from yardctl.processes import MARK, Record, live_records

WITHIN_S = 60.0


def yardctl(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "yardctl", *arguments],
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def left_of(directory: Path) -> list[str]:
    """Processes that belong to the mesh by their environment or their arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            mark = process.environ().get(MARK) == str(directory)
            if mark or any(str(directory) in argument for argument in process.cmdline()):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def until_gone(record: Record) -> None:
    """Wait until a process that was killed is no more."""
    end_s = time.monotonic() + WITHIN_S
    while record.process() is not None:
        assert time.monotonic() < end_s, f"{record.name} still runs"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def base_port() -> int:
    return free_base_port()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, base_port: int) -> Iterator[Path]:
    """Directory of a detached mesh with one host."""
    directory = tmp_path_factory.mktemp("up") / "mesh"
    started = yardctl(
        "up", "--detach", "--dir", str(directory), "--base-port", str(base_port), "--hosts", "1", "--memory", "256MiB"
    )
    assert started.returncode == 0, started.stderr + started.stdout
    assert f"127.0.0.1:{base_port}" in started.stdout
    yield directory
    yardctl("down", "--dir", str(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A mesh directory of a test's own; nothing of it runs afterwards, even if the test fails."""
    yield tmp_path / "mesh"
    yardctl("down", "--dir", str(tmp_path / "mesh"))


@pytest.mark.timeout(180)
def test_status_shows_every_part_and_the_host_as_healthy(up: Path, base_port: int) -> None:
    answer = yardctl("status", "--dir", str(up), "-o", "json")

    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert {part["name"]: part["health"] for part in status["parts"]} == dict.fromkeys(
        ("supervisor", "etcd", "collector", "registry", "resource-manager", "router"), "healthy"
    )
    assert [host["host_id"] for host in status["hosts"]] == ["local-0"]
    assert status["hosts"][0]["device"]["memory_bytes"] == 256 << 20
    assert status["revision"] == 1
    assert status["leader"] == "resource-manager"
    by_address = yardctl("hosts", "--address", f"127.0.0.1:{base_port + 1}", "-o", "json")
    assert [host["host_id"] for host in json.loads(by_address.stdout)] == ["local-0"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("flags", [(), ("--detach",)])
def test_a_second_up_in_the_same_directory_is_refused(up: Path, flags: tuple[str, ...]) -> None:
    before = {name: record.pid for name, record in live_records(Layout.of(up)).items()}

    second = yardctl("up", "--dir", str(up), "--base-port", str(free_base_port()), *flags)

    assert second.returncode == 1
    assert second.stderr.strip().startswith(f"yardctl: a mesh is already up in {up}: ")
    assert "yardctl down" in second.stderr
    assert {name: record.pid for name, record in live_records(Layout.of(up)).items()} == before


ECHO = """\
kind: Model
metadata: {name: echo}
spec:
  inputs: [{name: x, datatype: FP32, shape: [-1, 3]}]
  outputs: [{name: x, datatype: FP32, shape: [-1, 3]}]
---
kind: ModelVersion
metadata: {name: echo}
spec: {version: 1.0.0, backend: {name: identity}, min_replicas: 1, cost_microusd: 3}
---
kind: Route
metadata: {name: say}
spec: {choose: {candidates: [{model: echo}]}}
"""


@pytest.mark.timeout(120)
def test_a_call_is_answered_explained_and_traced(up: Path, tmp_path: Path) -> None:
    (tmp_path / "echo.yaml").write_text(ECHO)
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0, 3.0]]))
    applied = yardctl("apply", "--dir", str(up), "-f", str(tmp_path))
    assert applied.returncode == 0, applied.stderr
    end_s = time.monotonic() + WITHIN_S
    while "READY" not in yardctl("hosts", "--dir", str(up)).stdout:
        assert time.monotonic() < end_s, "the model does not become ready"

    answer = yardctl("infer", "say", "--input", f"x=@{tmp_path}/x.npy", "--dir", str(up), "-o", "json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [[1.0, 2.0, 3.0]]}]
    decision = found["decision"]
    assert (decision["route"], decision["model"], decision["host"]) == ("say", "echo", "local-0")
    assert decision["cost_microusd"] == 3

    names: list[str] = []
    whole = {"compute", "modelyard.inference.v1.InferenceService/Infer"}  # each process sends its own spans
    while not whole <= set(names):
        assert time.monotonic() < end_s, f"the trace is not whole: {names}"
        trace = yardctl("trace", decision["trace_id"], "--dir", str(up), "-o", "json")
        names = names_of(json.loads(trace.stdout)["spans"]) if trace.returncode == 0 else []
    assert names[:2] == ["yardctl infer", "modelyard.inference.v1.InferenceService/Infer"]
    assert "modelyard.host.v1.ModelHostService/Dispatch" in names

    explained = yardctl("explain", "say", "--dir", str(up))
    assert "say → echo:1.0.0@local-0" in explained.stdout, explained.stderr
    unknown = yardctl("infer", "sya", "--input", "x=1", "--dir", str(up))
    assert (unknown.returncode, unknown.stderr.startswith("yardctl: ")) == (1, True)
    assert "say" in unknown.stderr


def names_of(spans: list[dict[str, Any]]) -> list[str]:
    """Span names, depth first."""
    return [name for span in spans for name in (span["name"], *names_of(span["children"]))]


@pytest.mark.timeout(120)
def test_a_part_that_crashes_is_restarted(up: Path) -> None:
    layout = Layout.of(up)
    before = live_records(layout)["registry"]

    os.kill(before.pid, signal.SIGKILL)

    end_s = time.monotonic() + WITHIN_S
    while (now := live_records(layout).get("registry")) is None or now.pid == before.pid:
        assert time.monotonic() < end_s, "the registry is not restarted"
        time.sleep(0.05)
    log = yardctl("logs", "supervisor", "--dir", str(up))
    assert "part ended part=registry code=-9" in log.stdout
    assert f"part restarted part=registry pid={now.pid}" in log.stdout


@pytest.mark.timeout(180)
def test_a_killed_supervisor_leaves_a_mesh_that_down_ends_without_rest(up: Path) -> None:
    """Runs after the tests that need the mesh: it ends it."""
    layout = Layout.of(up)
    records = live_records(layout)
    for name in ("supervisor", "registry"):
        os.kill(records[name].pid, signal.SIGKILL)
        until_gone(records[name])

    refused = yardctl("up", "--detach", "--dir", str(up))
    status = yardctl("status", "--dir", str(up), "-o", "json")
    down = yardctl("down", "--dir", str(up))
    again = yardctl("down", "--dir", str(up))

    assert refused.returncode == 1
    assert "a mesh without supervisor still runs" in refused.stderr
    assert status.returncode == 1
    health = {part["name"]: part["health"] for part in json.loads(status.stdout)["parts"]}
    assert (health["supervisor"], health["registry"], health["router"]) == ("down", "down", "healthy")
    assert down.returncode == 0, down.stderr
    for name in ("router", "resource-manager", "local-0", "collector", "etcd"):
        assert f"{name} (pid {records[name].pid})" in down.stdout
    assert again.returncode == 0
    assert again.stdout.strip() == f"nothing runs in {up}"
    assert left_of(up) == []
    assert not list(layout.run.glob("*.json"))


@pytest.mark.timeout(180)
def test_ctrl_c_ends_a_mesh_in_the_foreground_and_nothing_is_left(
    directory: Path, tmp_path: Path, base_port: int
) -> None:
    arguments = ("up", "--dir", str(directory), "--base-port", str(base_port), "--hosts", "0")
    manifest = tmp_path / "pool.yaml"
    manifest.write_text(
        "kind: Pool\nmetadata: {name: spare}\nspec: {device_kind: CPU, memory_bytes: 64MiB, min_hosts: 0}\n"
    )
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "yardctl", *arguments], stdout=output, stderr=output, start_new_session=True
        )
        end_s = time.monotonic() + WITHIN_S
        while "Ctrl-C ends it" not in (text := Path(output.name).read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < end_s, text
            time.sleep(0.05)
        applied = yardctl("apply", "--dir", str(directory), "-f", str(manifest), "--reason", "spare room")
        process.send_signal(signal.SIGINT)
        code = process.wait(WITHIN_S)
    text = Path(output.name).read_text()

    assert applied.returncode == 0, applied.stderr
    assert code == 0, text
    assert text.strip().endswith("stopped; nothing is left running")
    order = [line.partition(":")[0] for line in text.splitlines() if line.endswith(": stopped")]
    assert set(order[:2]) == {"router", "resource-manager"}
    assert order[2:] == ["registry", "collector", "etcd"]
    assert left_of(directory) == []


def test_a_port_in_use_is_refused_before_anything_starts(directory: Path) -> None:
    base_port = free_base_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", base_port + 1))
        other.listen()

        refused = yardctl("up", "--detach", "--dir", str(directory), "--base-port", str(base_port))

    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith(f"yardctl: port {base_port + 1} (registry) is in use by pid {os.getpid()} ")
    assert "--base-port" in line
    assert left_of(directory) == []


def test_a_missing_etcd_is_one_clear_line(tmp_path: Path) -> None:
    refused = yardctl("up", "--dir", str(tmp_path / "mesh"), environ={"ETCD_BIN": str(tmp_path / "no-etcd")})

    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert line == f"yardctl: ETCD_BIN is '{tmp_path}/no-etcd', which is no executable file: correct it or unset it"


def test_a_part_that_cannot_start_is_named_with_its_cause_and_nothing_is_left(directory: Path, tmp_path: Path) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
    broken.chmod(0o755)

    refused = yardctl(
        *("up", "--detach", "--dir", str(directory), "--base-port", str(free_base_port())),
        environ={"ETCD_BIN": str(broken)},
    )

    assert refused.returncode == 1
    assert "yardctl: etcd ended with code 3 while starting: the disk is full (see " in refused.stderr
    assert left_of(directory) == []
