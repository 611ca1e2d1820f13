"""A real router logs under load; `yardctl replay` decides all of it again over a real registry."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import decision_log_pb2
from services.chassis.delimited import Delimited
from services.domain.objects import Choose, Metadata, Route, RouteTarget
from tests.integration.router.test_inference import stub
from tests.integration.router.zoo import fill, typed
from tests.support.services import ROOT, Bench, bench, eventually

NAMES = (
    "echo", "embed", "quick", "canary", "always", "zeros", "shadowed", "busy", "nowhere",
    "graph", "deep", "council", "hasty", "frugal", "unsure",
)  # fmt: skip


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose router logs."""
    arguments = ("--decision-log-dir", str(tmp_path / "log"), "--decision-log-max-bytes", "100000", "--seed", "7")
    async with bench(tmp_path, hosts=2, router_arguments=arguments) as made:
        await fill(made)
        yield made


async def load(yard: Bench, count: int, at_once: int = 16) -> None:
    """Calls of all kinds, some at a time; some are refused, as they should be."""
    numbers = iter(range(count))
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(yard.router.address, options=options) as channel:

        async def caller() -> None:
            for number in numbers:
                request = typed(NAMES[number % len(NAMES)])
                request.id = f"r{number}"
                request.route.session = f"s{number % 13}"
                if number % 5 == 0:
                    request.route.max_cost_microusd = 20
                try:
                    await stub(channel).Infer(request, timeout=5.0)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                        raise

        await asyncio.gather(*(caller() for _ in range(at_once)))


def files(yard: Bench) -> list[Path]:
    """What was logged."""
    return sorted((yard.directory / "log").iterdir())


def yardctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its user would."""
    environ = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'gen'}")
    command = (sys.executable, "-m", "yardctl", *arguments)
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timeout(180)
async def test_what_was_decided_under_load_is_decided_again(logged: Bench) -> None:
    await load(logged, 900)
    # Money counts from now on: what is decided is so by another revision, and what was decided stands.
    targets = (RouteTarget("small"), RouteTarget("large"))
    revision = await logged.apply(Route(Metadata("embed"), Choose(targets, cost_weight=1.0)))

    async def follows() -> bool:
        async with grpc.aio.insecure_channel(logged.router.address) as channel:
            decision = (await stub(channel).Infer(typed("embed"), timeout=5.0)).decision
        return decision.registry_revision == revision and decision.model == "small"

    await eventually(follows, "the new revision at the router")
    await load(logged, 300)
    await asyncio.to_thread(logged.router.stop)
    assert len(files(logged)) > 2

    replay = ("replay", str(logged.directory / "log"), "--address", logged.registry.address)
    run = await asyncio.to_thread(yardctl, *replay, "-o", "json")

    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)
    assert found["differences"] == found["dropped"] == 0
    assert found["calls"] > 1200
    assert found["choices"] > found["calls"]
    assert found["unknown_revisions"] == {}
    assert found["policies"] == [found["policy"]]
    assert found["torn"] == {}

    # The same over a file, and over the wrong one: then the first difference is named, and its place.
    other = logged.directory / "later.bundle"
    export = ("export", str(other), "--revision", str(revision), "--address", logged.registry.address)
    assert (await asyncio.to_thread(yardctl, *export)).returncode == 0
    run = await asyncio.to_thread(yardctl, *replay[:2], "--objects", str(other))
    assert run.returncode == 1
    assert "otherwise" in run.stdout
    assert str(files(logged)[0].parent) in run.stdout
    assert "candidates[" in run.stdout


@pytest.mark.timeout(180)
async def test_workers_log_into_files_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("--decision-log-dir", str(log), "--decision-log-ratio", "0.5", "--workers", "2")
    async with bench(tmp_path, hosts=1, router_arguments=arguments) as made:
        await fill(made)
        await eventually(lambda: serves(made), "answers")
        await asyncio.gather(*(load(made, 60, at_once=2) for _ in range(8)))
        await asyncio.to_thread(made.router.stop)
        address = made.registry.address
        run = await asyncio.to_thread(yardctl, "replay", str(log), "--address", address, "-o", "json")

    assert run.returncode == 0, run.stdout + run.stderr
    ids: Counter[str] = Counter()
    workers = set()
    for path in log.iterdir():
        for entry in Delimited(path, decision_log_pb2.LogEntry):
            if entry.HasField("header"):
                workers.add(entry.header.router.rpartition("/")[2])
            elif entry.HasField("call") and entry.call.request_id != "mine":
                ids[entry.call.request_id] += 1
    assert workers == {"0", "1"}
    assert set(ids.values()) == {8}  # it is logged by every worker, or by none
    assert 15 <= len(ids) <= 45


async def serves(yard: Bench) -> bool:
    """Whether a call is answered by now."""
    async with grpc.aio.insecure_channel(yard.router.address) as channel:
        try:
            await stub(channel).Infer(typed("echo"), timeout=5.0)
        except grpc.aio.AioRpcError:
            return False
    return True


async def test_a_router_that_is_killed_leaves_a_log_that_can_be_read(logged: Bench) -> None:
    await load(logged, 200)

    async def written() -> bool:
        return any((logged.directory / "log").glob("*.decisions"))

    await eventually(written, "a log")
    logged.router.kill()
    replay = ("replay", str(logged.directory / "log"), "--address", logged.registry.address, "-o", "json")
    run = await asyncio.to_thread(yardctl, *replay)

    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["choices"] > 0
