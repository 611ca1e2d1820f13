"""Several router processes on one port, with a real registry and a real host."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelyard.inference.v1 import inference_pb2_grpc
from tests.integration.router.zoo import ECHO, VERSIONS, a_model, a_version, typed
from tests.support.ports import free_ports
from tests.support.services import ROOT, Bench, bench, eventually

HOLD, HELD_MS = a_model("hold"), 3000.0
CHANNELS = 16
"""So many connections all go to one of two workers once in 32,768 times."""

Stub: TypeAlias = "inference_pb2_grpc.InferenceServiceAsyncStub"


async def fill(made: Bench) -> None:
    versions = (VERSIONS["echo"][0], a_version("hold", base_ms=HELD_MS, batch=32))
    await made.apply(ECHO, HOLD, *versions)
    for model, version in zip((ECHO, HOLD), versions, strict=True):
        await made.load("host-0", model, version)

    async def ready() -> bool:
        (host,) = await made.listed()
        return sum(hosted.state == 2 for hosted in host.models) == len(versions)

    await eventually(ready, "both models on the host")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """What routers need: a registry, and a host with both models."""
    with asyncio.Runner() as runner:
        context = bench(tmp_path_factory.mktemp("served"), hosts=1)
        made = runner.run(context.__aenter__())
        try:
            runner.run(fill(made))
            yield made
        finally:
            runner.run(context.__aexit__(None, None, None))


class Parent:
    """A router with two workers, in a process group of its own."""

    def __init__(self, directory: Path, registry: str, *arguments: str) -> None:
        port, self._metrics_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self._log = directory / "router.log"
        self._command = [
            *(sys.executable, "-m", "services.router", "--workers", "2", "--address", self.address),
            *("--metrics-port", str(self._metrics_port), "--registry", registry),
            *("--snapshot", str(directory / "router.binpb"), *arguments),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def environ(self) -> dict[str, str]:
        return dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'gen'}")

    async def start(self) -> None:
        """Start it, and wait until both workers route by the registry's word."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self.environ(), stdout=log, stderr=log, start_new_session=True
            )
        await eventually(self.whole, f"two workers\n{self.log()}")

    def again(self) -> subprocess.CompletedProcess[str]:
        """Start another one on the same address; its end."""
        return subprocess.run(
            self._command, cwd=ROOT, env=self.environ(), capture_output=True, text=True, timeout=60, check=False
        )

    async def whole(self) -> bool:
        assert self.process.poll() is None, f"the parent ended:\n{self.log()}"
        try:
            found = await self.metrics()
        except OSError:
            return False
        # A worker that serves has not always told its metrics yet.
        return found["modelyard_router_workers"] == 2 and found.get("modelyard_router_snapshot_revision", 0) > 0

    async def metrics(self) -> dict[str, float]:
        """Every value that the parent tells, by name and labels as they are written."""
        text = await asyncio.to_thread(self._read)
        return {
            sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def _read(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def connections(self) -> list[int]:
        """How many connections each worker has from callers."""
        port = int(self.address.rpartition(":")[2])
        return [
            sum(
                each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
                for each in worker.net_connections("tcp")
            )
            for worker in self.workers()
        ]

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)


@asynccontextmanager
async def parent(served: Bench, directory: Path, *arguments: str) -> AsyncIterator[Parent]:
    made = Parent(directory, served.registry.address, *arguments)
    try:
        await made.start()
        yield made
    finally:
        made.end()


@asynccontextmanager
async def callers(address: str, count: int = CHANNELS) -> AsyncIterator[list[Stub]]:
    """Callers with a connection each, all of them connected."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(count)
        ]
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), 30)
        yield [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]


async def outcome(stub: Stub, model: str) -> str:
    try:
        await stub.Infer(typed(model), timeout=20.0)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def all_held(router: Parent, count: int) -> None:
    async def there() -> bool:
        active = "modelyard_rpc_server_active_calls method=Infer service=modelyard.inference.v1.InferenceService"
        return (await router.metrics()).get(active) == count

    await eventually(there, f"{count} calls in the routers")


async def test_both_workers_serve_the_port_and_what_they_count_adds_up(served: Bench, tmp_path: Path) -> None:
    async with parent(served, tmp_path) as router, callers(router.address) as stubs:
        outcomes = await asyncio.gather(*(outcome(stub, "echo") for stub in stubs for _ in range(5)))
        connections = router.connections()
        found = await router.metrics()
        second = await asyncio.to_thread(router.again)

    assert set(outcomes) == {"OK"}
    assert sum(connections) == CHANNELS
    assert min(connections) > 0
    assert found["modelyard_router_requests_total model=echo outcome=OK route=echo version=1.0.0"] == 5 * CHANNELS
    of_all = "model=echo outcome=OK route=echo tenant= tier= version=1.0.0"
    assert found[f"modelyard_router_request_duration_seconds_count {of_all}"] == 5 * CHANNELS
    assert {"process_start_time_seconds worker=0", "process_start_time_seconds worker=1"} <= set(found)
    assert second.returncode == 1
    assert re.fullmatch(rf"router: cannot start: {router.address} is in use: .*--address.*\n", second.stderr)


async def test_a_killed_worker_is_back_in_service_and_no_count_goes_backwards(served: Bench, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def call_on(stub: Stub) -> None:
        while not stop.is_set():
            outcomes[await outcome(stub, "echo")] += 1

    async with parent(served, tmp_path) as router, callers(router.address) as stubs:
        outcomes.update([await outcome(stub, "echo") for stub in stubs])
        held = [asyncio.ensure_future(outcome(stub, "hold")) for stub in stubs]
        await all_held(router, CHANNELS)
        seen, (lost, kept), victim = await router.metrics(), router.connections(), router.workers()[0]
        victim.kill()

        async def noticed() -> bool:
            return sum(call.done() for call in held) >= lost

        await eventually(noticed, "callers noticing their loss")
        load = [asyncio.ensure_future(call_on(stub)) for stub in stubs]
        backwards: set[str] = set()

        async def restarted() -> bool:
            now = await router.metrics()
            backwards.update(name for name in seen if only_grows(name) and now.get(name, 0.0) < seen[name])
            seen.update(now)
            return now["modelyard_router_worker_restarts_total"] == 1 and await router.whole()

        try:
            await eventually(restarted, "the worker's return")
        finally:
            stop.set()
            await asyncio.gather(*load)
        assert await restarted()
        async with callers(router.address) as fresh:
            again = await asyncio.gather(*(outcome(stub, "echo") for stub in fresh))
            connections = router.connections()
        alive = {worker.pid for worker in router.workers()}

    assert backwards == set()
    assert Counter(await asyncio.gather(*held)) == {"UNAVAILABLE": lost, "OK": kept}
    assert set(outcomes) == {"OK"}
    assert seen["modelyard_router_requests_total model=echo outcome=OK route=echo version=1.0.0"] == outcomes["OK"]
    assert set(again) == {"OK"}
    assert min(connections) > 0
    assert victim.pid not in alive


def only_grows(name: str) -> bool:
    """Whether a value may only grow."""
    return name.partition(" ")[0].endswith(("_total", "_count", "_bucket", "_sum"))


@pytest.mark.parametrize("whom", ["the parent", "all"])
async def test_a_stop_loses_no_call_whether_the_parent_is_told_or_all_are(
    served: Bench, tmp_path: Path, whom: str
) -> None:
    async with parent(served, tmp_path) as router, callers(router.address) as stubs:
        workers = router.workers()
        held = [asyncio.ensure_future(outcome(stub, "hold")) for stub in stubs]
        await all_held(router, CHANNELS)
        if whom == "all":
            os.killpg(router.process.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            router.process.send_signal(signal.SIGTERM)
        outcomes = await asyncio.gather(*held)
        code = await asyncio.to_thread(router.process.wait, 20)

    assert outcomes == ["OK"] * CHANNELS
    assert code == 0
    assert not any(worker.is_running() for worker in workers)
    assert "second signal" not in router.log()
    assert '"level":"error"' not in router.log()


async def test_workers_end_with_a_killed_parent_and_the_next_one_takes_over(served: Bench, tmp_path: Path) -> None:
    async with parent(served, tmp_path) as router:
        workers = router.workers()
        router.process.kill()
        router.process.wait(20)
        await router.start()

        async def gone() -> bool:
            return not any(worker.is_running() for worker in workers)

        await eventually(gone, "the end of the workers")
        async with callers(router.address) as stubs:
            outcomes = await asyncio.gather(*(outcome(stub, "echo") for stub in stubs))

    assert len(workers) == 2
    assert set(outcomes) == {"OK"}


async def test_the_limit_of_calls_in_flight_holds_for_all_workers_together(served: Bench, tmp_path: Path) -> None:
    async with parent(served, tmp_path, "--max-in-flight", "4") as router, callers(router.address) as stubs:
        held = [asyncio.ensure_future(outcome(stub, "hold")) for stub in stubs[:4]]
        await all_held(router, 4)
        connections = router.connections()
        refused = await asyncio.gather(*(outcome(stub, "echo") for stub in stubs))
        answered = await asyncio.gather(*held)
        afterwards = [await outcome(stub, "echo") for stub in stubs]

    assert min(connections) > 0
    assert set(refused) == {"RESOURCE_EXHAUSTED"}
    assert answered == ["OK"] * 4
    assert set(afterwards) == {"OK"}


async def test_a_worker_that_cannot_serve_fails_the_start_with_its_own_word(served: Bench, tmp_path: Path) -> None:
    router = Parent(tmp_path, served.registry.address)

    def broken() -> dict[str, str]:
        return dict(Parent.environ(router), PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")

    router.environ = broken  # type: ignore[method-assign]
    ended = await asyncio.to_thread(router.again)

    assert ended.returncode == 1
    assert re.search(r"router: cannot start: worker \d ended with code 1 before all served\n", ended.stderr)
