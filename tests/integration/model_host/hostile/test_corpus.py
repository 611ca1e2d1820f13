"""The whole corpus on one real host: each artifact is refused, leaves nothing behind, and the host goes on."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
import psutil
import pytest
import pytest_asyncio
import safetensors.torch
import torch

from modelyard.registry.v1 import objects_pb2
from services.chassis.errors import from_rpc_error
from services.model_host.memory_bound import SLACK_BYTES
from tests.integration.model_host.hostile import archives, graphs, pickles, places, weights
from tests.integration.model_host.hostile.archives import tampered_export
from tests.integration.model_host.hostile.watched_host import AUDIT_FILE, CONNECTED, LOOKED_UP, PROCESSES
from tests.integration.model_host.hostile.workshop import Hostile, Planted, Workshop, model_of
from tests.support.host import (
    FAILED,
    ROOT,
    HostProcess,
    artifact_of,
    execute_request,
    raw_outputs,
    running_host,
    version_object,
)
from tests.support.https_server import HttpsServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore")]

CORPUS = [hostile for kind in (pickles, archives, weights, graphs, places) for hostile in kind.corpus()]
MEMORY_BYTES = 256 << 20
"""What models may take on the host of these tests."""

PEAK_RESET = "/proc/self/clear_refs"
"""Written to before memory is measured."""

GOOD_EVERY = 20
"""Artifacts between two honest ones."""


@dataclass
class Stage:
    """A host that is watched, and all that lies around it."""

    host: HostProcess
    folder: Path
    server: HttpsServer
    audit_file: Path
    cache: Path
    canary: Path
    loads: int = 0
    refused: list[str] = field(default_factory=list)
    """Names of what was refused so far."""

    def events(self) -> list[list[str]]:
        """What the host did to its surroundings so far."""
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]

    def surroundings(self) -> dict[str, tuple[int, int, int]]:
        """Everything around the host but its cache, its log and the audit file: mode, size, time of change."""
        found = {}
        for path in self.folder.rglob("*"):
            if self.cache not in (path, *path.parents) and path not in (self.audit_file, self.host.log):
                status = path.lstat()
                found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
        return found

    def workshop(self) -> Workshop:
        """For the next artifact."""
        self.loads += 1
        folder = self.folder / "made" / str(self.loads)
        folder.mkdir(parents=True)
        return Workshop(folder, self.canary, self.server)

    async def refusal(self, model: objects_pb2.Object, version: objects_pb2.Object) -> str:
        """What the host says against a version; empty if it loads."""
        name = version.metadata.name
        try:
            await self.host.order(version, model, decision_id=name)
        except grpc.aio.AioRpcError as error:
            refused = from_rpc_error(error)
            return f"{refused.reason}: {refused.message}"
        hosted = await self.host.settled(name)
        return hosted.message if hosted.state == FAILED else ""

    async def serve_honestly(self) -> None:
        """Load an honest model and ask it."""
        workshop = self.workshop()
        name = f"honest-{self.loads}"
        path = workshop.folder / "m.safetensors"
        state = {"layers.0.weight": torch.eye(4)[:3].contiguous(), "layers.0.bias": torch.zeros(3)}
        safetensors.torch.save_file(state, path)
        version = version_object(
            name,
            backend="torch",
            architecture="mlp",
            options={"sizes": "4,3", "input": "x"},
            artifact=artifact_of(path),
            max_batch_size=2,
        )
        await self.host.load(version, model_of(name, "torch"), decision_id=name)
        request = execute_request({"x": ("FP32", np.eye(4, dtype=np.float32)[:2])}, model=name)
        reply = await self.host.stub.Execute(request, timeout=20)
        assert raw_outputs(reply.response)["label"].tolist() == [0, 1]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[HttpsServer]:
    with HttpsServer(folder) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One for all artifacts."""
    folder = tmp_path_factory.mktemp("hostile")
    outside = folder / "outside"
    outside.mkdir()
    with served(folder) as server:
        audit_file = folder / "audit.jsonl"
        environ = {
            AUDIT_FILE: str(audit_file),
            "HOME": str(outside),
            "TMPDIR": str(outside),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        flags = (
            *("--artifact-sources", f"file:,{server.url}/models", "--ca-file", str(server.ca_file)),
            *("--max-artifact-bytes", str(places.MOST_BYTES), "--memory-bytes", str(MEMORY_BYTES)),
        )
        program = ("tests.integration.model_host.hostile.watched_host",)
        async with running_host(folder, *flags, program=program, environ=environ) as host:
            made = Stage(host, folder, server, audit_file, folder / "cache", outside / "canary")
            await made.serve_honestly()
            yield made


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def test_the_corpus_is_large_and_each_of_it_is_another_one() -> None:
    assert len(CORPUS) >= 60
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
async def test_it_is_refused_and_leaves_nothing_behind(stage: Stage, hostile: Hostile) -> None:
    workshop = stage.workshop()
    model, version = hostile.objects(f"hostile-{stage.loads}", workshop)
    process = psutil.Process(stage.host.pid)
    before, events = stage.surroundings(), len(stage.events())
    most_bytes = max(peak_bytes(stage.host.pid), process.memory_info().rss + MEMORY_BYTES + SLACK_BYTES)

    said = await stage.refusal(model, version)

    assert said, "it was loaded"
    assert hostile.says in said
    assert "internal" not in said.lower().split()
    assert not stage.canary.exists()
    assert process.children(recursive=True) == []
    assert stage.surroundings() == before
    assert peak_bytes(stage.host.pid) <= most_bytes
    for event, *about in stage.events()[events:]:
        assert event not in PROCESSES
        assert event != LOOKED_UP
        assert event != CONNECTED or about[1] == f"('127.0.0.1', {stage.server.port})"
        if event == "open" or event.startswith("os."):
            assert any(str(stage.cache) in argument for argument in about) or about[0] == PEAK_RESET, about
    assert not list(stage.cache.rglob("incoming-*"))
    stage.refused.append(hostile.name)
    if len(stage.refused) % GOOD_EVERY == 0:
        await stage.serve_honestly()


async def test_the_host_serves_after_all_of_them(stage: Stage) -> None:
    await stage.serve_honestly()
    assert stage.host.process.returncode is None
    assert not stage.canary.exists()


# --- that the net holds: what it must catch is let in ----------------------------------------------


def test_a_payload_that_is_unpickled_leaves_its_mark(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Planted(canary)))
    assert canary.exists()


@pytest.mark.parametrize("code", list(pickles._OPCODES), ids=str)
def test_each_program_of_the_pickle_machine_does_what_it_should(tmp_path: Path, code: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "canary.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    (tmp_path / "m.pkl").write_bytes(pickles._OPCODES[code](str(canary).encode()))
    script = "import pickle, subprocess, sys; made = pickle.load(open(sys.argv[1], 'rb')); getattr(made, 'wait', str)()"
    subprocess.run([sys.executable, "-c", script, tmp_path / "m.pkl"], check=False, capture_output=True, timeout=60)
    assert canary.exists()


async def test_the_watch_sees_a_payload_on_a_host_without_the_defence(tmp_path: Path) -> None:
    """The same archive as in the corpus, the same host, but that it trusts its artifacts: the mark is there."""
    workshop_folder = tmp_path / "made"
    workshop_folder.mkdir()
    audit_file, canary = tmp_path / "audit.jsonl", tmp_path / "canary"
    with served(tmp_path) as server:
        workshop = Workshop(workshop_folder, canary, server)
        wanted = workshop.file("m.pt2", tampered_export(workshop))
    version = version_object(
        "trusted", backend="torch", architecture="exported", artifact=wanted.message, executes_code=True
    )
    program = ("tests.integration.model_host.hostile.watched_host",)
    environ = {AUDIT_FILE: str(audit_file)}
    async with running_host(tmp_path, "--trusts-artifacts", program=program, environ=environ) as host:
        await host.order(version, model_of("trusted", "torch"))
        await host.settled("trusted")
    events = [json.loads(line) for line in audit_file.read_text().splitlines()]
    assert canary.exists()
    assert [event for event in events if event[:2] == ["open", str(canary)]]
    assert [event for event in events if event[0] == LOOKED_UP and "exec" in event]


def test_the_watch_sees_processes_connections_and_writes(tmp_path: Path) -> None:
    """Events as the watched host writes them down, of a script that does all of it."""
    audit_file = tmp_path / "audit.jsonl"
    script = (
        "import runpy, os, socket, subprocess\n"
        "def run(*_, **__):\n"
        "    os.system('true'); subprocess.run(['true']); open(os.environ['X'], 'w').close()\n"
        "    socket.socket().connect_ex(('127.0.0.1', 9))\n"
        "runpy.run_module = run\n"
        "from tests.integration.model_host.hostile import watched_host\n"
        "watched_host._main()\n"
    )
    environ = {**os.environ, AUDIT_FILE: str(audit_file), "X": str(tmp_path / "x"), "PYTHONPATH": f"{ROOT}:{ROOT}/gen"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environ, cwd=ROOT, timeout=60)
    seen = {json.loads(line)[0] for line in audit_file.read_text().splitlines()}
    assert {"os.system", "subprocess.Popen", "open", CONNECTED} <= seen
