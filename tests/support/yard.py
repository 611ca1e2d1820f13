"""A whole mesh for a test: real processes, the identity model on it, and calls in flight."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2, registry_pb2, registry_pb2_grpc
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.errors import from_rpc_error
from yardctl.mesh import Mesh, free_base_port

MODEL = "echo"
KEY = model_pb2.ModelKey(model=MODEL, version="1.0.0")


def echo_objects(replicas: int, *, base_ms: int = 0) -> list[objects_pb2.Object]:
    """A model that answers its input, with `replicas`; each batch takes `base_ms`."""
    metadata = objects_pb2.Metadata(name=MODEL)
    tensor = model_pb2.TensorSpec(name="x", datatype="INT64", shape=[-1, -1])
    version = objects_pb2.ModelVersionSpec(
        version=KEY.version,
        backend=objects_pb2.Backend(name="identity", options={"base_ms": str(base_ms)}),
        batching=objects_pb2.Batching(max_batch_size=16),
        min_replicas=replicas,
    )
    return [
        objects_pb2.Object(metadata=metadata, model=objects_pb2.ModelSpec(inputs=[tensor], outputs=[tensor])),
        objects_pb2.Object(metadata=metadata, model_version=version),
    ]


async def until(
    done: Callable[[], bool], what: str, within_s: float = 60.0, *, seen: Callable[[], object] = lambda: ""
) -> None:
    """Wait until `done` says so; after `within_s` fail with `what` and what was `seen` instead."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not done():
        assert loop.time() < end, f"{what} did not come about in {within_s:g} s {seen()}"
        await asyncio.sleep(0.02)


@dataclass
class Yard:
    """A mesh with the echo model, and clients of it."""

    mesh: Mesh

    @asynccontextmanager
    async def registry(self) -> AsyncIterator["registry_pb2_grpc.RegistryServiceAsyncStub"]:
        """A stub of its registry."""
        async with grpc.aio.insecure_channel(self.mesh.addresses.registry) as channel:
            yield registry_pb2_grpc.RegistryServiceStub(channel)

    async def listed(self) -> list[resources_pb2.HostRecord]:
        """The hosts that the registry lists."""
        async with self.registry() as registry:
            return list((await registry.ListHosts(registry_pb2.ListHostsRequest(), timeout=5)).hosts)

    async def ready(self) -> list[str]:
        """Ids of the live host processes on which the echo model is READY."""
        pids = {record.pid for record in self.mesh.hosts().values()}
        return [
            host.host_id
            for host in await self.listed()
            if host.pid in pids and any(m.key == KEY and m.state == model_pb2.MODEL_STATE_READY for m in host.models)
        ]

    async def wait_ready(self, replicas: int, within_s: float = 60.0) -> list[str]:
        """Wait until the echo model is READY on `replicas` live processes; their ids."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while len(ready := await self.ready()) < replicas:
            assert loop.time() < end, f"{len(ready)} of {replicas} replicas are ready after {within_s:g} s"
            await asyncio.sleep(0.05)
        return ready


@asynccontextmanager
async def yard(directory: Path, *, hosts: int, trace_ratio: float = 0.01) -> AsyncIterator[Yard]:
    """A running mesh whose echo model is ready on every host."""
    mesh = await Mesh.start(
        directory, base_port=free_base_port(), hosts=hosts, trace_ratio=trace_ratio, memory_bytes=1 << 30
    )
    try:
        started = Yard(mesh)
        async with started.registry() as registry:
            await registry.Apply(registry_pb2.ApplyRequest(objects=echo_objects(hosts), reason="test"), timeout=10)
        await started.wait_ready(hosts)
        yield started
    finally:
        await mesh.stop()


@dataclass
class Load:
    """Callers in closed loop, each answer checked against its question."""

    router: str
    callers: int
    timeout_s: float = 10.0
    answered: int = 0
    retried: int = 0
    wrong: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Calls flow while the block runs."""
        stop = asyncio.Event()
        async with grpc.aio.insecure_channel(self.router) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            tasks = [asyncio.create_task(self._caller(stub, number, stop)) for number in range(self.callers)]
            try:
                await until(lambda: self.answered >= self.callers, "first answers", seen=lambda: self.failures)
                yield
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    async def _caller(
        self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", number: int, stop: asyncio.Event
    ) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            request = inference_pb2.InferRequest(model_name=MODEL)
            tensor = request.inputs.add(name="x", datatype="INT64", shape=[1, 2])
            tensor.contents.int64_contents.extend([number, count])
            try:
                answer = await stub.Infer(request, timeout=self.timeout_s)
            except grpc.aio.AioRpcError as error:
                self.failures[f"{error.code().name}: {error.details()} {from_rpc_error(error).metadata}"] += 1
                await asyncio.sleep(0.01)
                continue
            self.answered += 1
            self.retried += len(answer.decision.attempts) > 1
            self.wrong += list(answer.outputs[0].contents.int64_contents) != [number, count]
