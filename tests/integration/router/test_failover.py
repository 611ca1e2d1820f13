"""Parts go away under load; each test has processes of its own."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from tests.integration.router.zoo import ECHO, SLOW, VERSIONS, typed
from tests.support.services import Bench, bench, eventually

pytestmark = pytest.mark.alone  # where every process is slow, more calls fail than may be tried again

CALLERS = 32


@dataclass
class Load:
    """Callers in closed loop, each answer checked."""

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    retried: int = 0

    @asynccontextmanager
    async def on(self, address: str) -> AsyncIterator[None]:
        """Calls flow while the block runs."""
        stop = asyncio.Event()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            callers = [asyncio.ensure_future(self._call(stub, stop)) for _ in range(CALLERS)]
            try:
                yield
            finally:
                stop.set()
                await asyncio.gather(*callers)

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.answered + count

        async def there() -> bool:
            return self.answered >= wanted

        await eventually(there, f"{count} more answers ({dict(self.failures)})", 60.0)

    async def _call(self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                answer = await stub.Infer(typed(), timeout=10.0)
            except grpc.aio.AioRpcError as error:
                self.failures[f"{error.code().name}: {error.details()}"] += 1
                continue
            assert list(answer.outputs[0].contents.fp32_contents) == [0.0, 1.0, 2.0, 3.0]
            self.answered += 1
            self.retried += len(answer.decision.attempts) > 1
            self.hosts[answer.decision.host] += 1


async def serve_echo(made: Bench) -> None:
    (version, _) = VERSIONS["echo"]
    await made.apply(ECHO, version)
    for host_id in made.hosts:
        await made.load(host_id, ECHO, version)
    await eventually(lambda: known_hosts(made, len(made.hosts)), "the router knowing every host")


async def known_hosts(made: Bench, count: int) -> bool:
    try:
        return len((await explain(made)).candidates[0].hosts) == count
    except (grpc.aio.AioRpcError, IndexError):
        return False


async def explain(made: Bench) -> pb.Decision:
    async with grpc.aio.insecure_channel(made.router.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return (await stub.Explain(pb.ExplainRequest(request=typed()), timeout=5.0)).decision


async def serving(made: Bench) -> bool:
    async with grpc.aio.insecure_channel(made.router.address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        return await check(b"", timeout=5.0) == b"\x08\x01"


async def test_no_call_fails_when_hosts_are_killed_in_the_middle_of_calls(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
            for victim in ("host-0", "host-1", "host-0"):
                made.hosts[victim].kill()
                await load.more(300)
                await made.hosts[victim].start()
                await made.load(victim, ECHO, VERSIONS["echo"][0])
                load.hosts.clear()

                async def back(victim: str = victim) -> bool:
                    return load.hosts[victim] > 0

                await eventually(back, f"{victim} taking calls again", 40.0)

    assert dict(load.failures) == {}
    assert load.retried > 0


async def test_a_frozen_host_is_left_alone_within_seconds(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
            made.hosts["host-0"].send(signal.SIGSTOP)
            try:
                await load.more(500)
            finally:
                made.hosts["host-0"].send(signal.SIGCONT)
            load.hosts.clear()

            async def back() -> bool:
                return load.hosts["host-0"] > 0

            await eventually(back, "host-0 taking calls again", 40.0)

    assert dict(load.failures) == {}


async def test_a_model_that_takes_longer_than_anybody_said_is_no_frozen_host(tmp_path: Path) -> None:
    version = replace(VERSIONS["slow"][0], backend=replace(VERSIONS["slow"][0].backend, options={"base_ms": "1500"}))
    async with bench(tmp_path, hosts=2) as made:
        await made.apply(SLOW, version)
        for host_id in made.hosts:
            await made.load(host_id, SLOW, version)
        async with grpc.aio.insecure_channel(made.router.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)

            async def ready() -> bool:
                asked = pb.ExplainRequest(request=typed("slow"))
                return bool((await stub.Explain(asked, timeout=5.0)).decision.candidates[0].hosts[1:])

            await eventually(ready, "the router knowing both hosts")
            answers = await asyncio.gather(*(stub.Infer(typed("slow"), timeout=30.0) for _ in range(4)))

    assert [len(answer.decision.attempts) for answer in answers] == [1, 1, 1, 1]


async def test_calls_go_on_without_registry_and_etcd_and_after_their_return(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
            made.registry.kill()
            made.etcd.kill()
            await load.more(1000)
            made.etcd.start()
            await made.registry.start()
            await load.more(1000)
        again = await explain(made)

    assert dict(load.failures) == {}
    assert again.host


async def test_a_router_started_without_a_registry_serves_from_its_snapshot(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        before = await explain(made)

        async def written() -> bool:
            return made.snapshot.exists()

        await eventually(written, "the snapshot on disk")
        made.router.stop()
        made.registry.kill()
        made.etcd.kill()
        await made.router.start()

        assert await serving(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
        assert dict(load.failures) == {}
        assert (await explain(made)).registry_revision == before.registry_revision


async def test_a_router_killed_and_started_without_a_registry_serves_from_its_snapshot(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=1) as made:
        await serve_echo(made)

        async def written() -> bool:
            return made.snapshot.exists() and b"host-0" in made.snapshot.read_bytes()

        await eventually(written, "the snapshot on disk")
        made.registry.kill()
        made.router.kill()
        await made.router.start()

        assert (await explain(made)).host == "host-0"


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_router_without_registry_and_snapshot_says_that_it_does_not_serve(
    tmp_path: Path, damaged: bool
) -> None:
    async with bench(tmp_path, hosts=0) as made:
        made.router.stop()
        made.registry.kill()
        if damaged:
            made.snapshot.write_bytes(b"modelyard-router-snapshot 1 0000\nnonsense")
        else:
            made.snapshot.unlink(missing_ok=True)
        await made.router.start()

        assert not await serving(made)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await explain(made)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "not heard from the registry" in str(caught.value.details())

        await made.registry.start()
        await eventually(lambda: serving(made), "serving once the registry is heard")


async def test_an_unloaded_version_gets_no_more_calls_and_fails_none(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
            await made.unload("host-0", VERSIONS["echo"][0].model_key)
            await eventually(lambda: known_hosts(made, 1), "the router knowing of the unload")
            load.hosts.clear()
            await load.more(200)

    assert dict(load.failures) == {}
    assert load.hosts["host-0"] <= CALLERS  # those that were under way


async def test_a_host_that_stops_in_good_order_fails_no_call(tmp_path: Path) -> None:
    async with bench(tmp_path, hosts=2) as made:
        await serve_echo(made)
        load = Load()
        async with load.on(made.router.address):
            await load.more(200)
            await asyncio.to_thread(made.hosts["host-0"].stop)
            await load.more(300)

    assert dict(load.failures) == {}
