"""A real model host in a process of its own, and requests for it."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.inference.v1 import inference_pb2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.model_host.tensors import NDArray, from_raw, to_raw
from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
STOP_S = 20.0
LOAD_S = 60.0

READY = model_pb2.MODEL_STATE_READY
FAILED = model_pb2.MODEL_STATE_FAILED


def spec(name: str, datatype: str = "FP32", shape: Sequence[int] = (-1, 4), **more: bool) -> model_pb2.TensorSpec:
    """One input or output."""
    return model_pb2.TensorSpec(name=name, datatype=datatype, shape=shape, **more)


def model_object(
    name: str = "echo",
    *,
    inputs: Sequence[model_pb2.TensorSpec] = (spec("x"),),
    outputs: Sequence[model_pb2.TensorSpec] = (spec("y"),),
) -> objects_pb2.Object:
    """A Model; without schemas, FP32 `x` [-1, 4] to `y` of the same."""
    return objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name), model=objects_pb2.ModelSpec(inputs=inputs, outputs=outputs)
    )


def artifact_of(path: Path) -> objects_pb2.Artifact:
    """The file, with its right digest."""
    return objects_pb2.Artifact(uri=f"file:{path}", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def version_object(
    name: str = "echo",
    version: str = "1.0.0",
    *,
    backend: str = "identity",
    architecture: str = "",
    options: Mapping[str, str] | None = None,
    artifact: objects_pb2.Artifact | None = None,
    files: Mapping[str, objects_pb2.Artifact] | None = None,
    max_batch_size: int = 32,
    memory_bytes: int = 0,
    executes_code: bool = False,
    warmup: Sequence[objects_pb2.WarmupSample] = (),
) -> objects_pb2.Object:
    """A ModelVersion; without arguments, the identity."""
    return objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name),
        model_version=objects_pb2.ModelVersionSpec(
            version=version,
            artifact=artifact,
            files=files,
            backend=objects_pb2.Backend(
                name=backend, architecture=architecture, options=options, executes_code=executes_code
            ),
            resources=resources_pb2.ResourceNeed(memory_bytes=memory_bytes),
            batching=objects_pb2.Batching(max_batch_size=max_batch_size),
            warmup=warmup,
        ),
    )


def execute_request(
    inputs: Mapping[str, tuple[str, NDArray]],
    *,
    model: str = "echo",
    version: str = "1.0.0",
    request_id: str = "",
    outputs: Sequence[str] = (),
) -> host_pb2.ExecuteRequest:
    """A raw request; `inputs` is datatype and array by name."""
    request = inference_pb2.InferRequest(id=request_id)
    for name, (datatype, array) in inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    for name in outputs:
        request.outputs.add(name=name)
    return host_pb2.ExecuteRequest(key=model_pb2.ModelKey(model=model, version=version), request=request)


def echo_request(*rows: Sequence[float], model: str = "echo", request_id: str = "") -> host_pb2.ExecuteRequest:
    """A request for `model_object` and `version_object` as they are by default."""
    return execute_request({"x": ("FP32", np.array(rows, np.float32))}, model=model, request_id=request_id)


def raw_outputs(response: inference_pb2.InferResponse) -> dict[str, NDArray]:
    """The outputs of a raw answer."""
    return {
        output.name: from_raw(output.datatype, tuple(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


class HostProcess:
    """One `python -m services.model_host`."""

    def __init__(self, process: "asyncio.subprocess.Process", address: str, log: Path) -> None:
        """Made by `running_host`."""
        self.process = process
        self.address = address
        self.log = log
        self._channel = grpc.aio.insecure_channel(address)
        self.stub: host_pb2_grpc.ModelHostServiceAsyncStub = host_pb2_grpc.ModelHostServiceStub(self._channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to it."""
        return self._channel

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    async def order(
        self,
        version: objects_pb2.Object,
        model: objects_pb2.Object | None = None,
        *,
        decision_id: str = "d1",
        token: int = 1,
    ) -> model_pb2.ModelState.ValueType:
        """Order a load."""
        request = host_pb2.LoadModelRequest(
            model=model or model_object(), version=version, decision_id=decision_id, fencing_token=token
        )
        return (await self.stub.LoadModel(request, timeout=10)).state

    async def hosted(self, name: str, version: str = "1.0.0") -> resources_pb2.HostedModel | None:
        """The version's entry in the record."""
        status = await self.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10)
        for hosted in status.record.models:
            if hosted.key == model_pb2.ModelKey(model=name, version=version):
                return hosted
        return None

    async def settled(self, name: str = "echo", version: str = "1.0.0") -> resources_pb2.HostedModel:
        """The version's entry once it is READY or FAILED."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LOAD_S
        while True:
            hosted = await self.hosted(name, version)
            if hosted is not None and hosted.state in (READY, FAILED):
                return hosted
            assert loop.time() < end_s, f"{name}:{version} does not settle: {hosted}"
            await asyncio.sleep(0.02)

    async def load(
        self,
        version: objects_pb2.Object | None = None,
        model: objects_pb2.Object | None = None,
        *,
        decision_id: str = "d1",
        token: int = 1,
    ) -> resources_pb2.HostedModel:
        """Load a version, by default the identity, and wait until it is READY."""
        version = version or version_object()
        model = model or model_object(version.metadata.name)
        await self.order(version, model, decision_id=decision_id, token=token)
        hosted = await self.settled(version.metadata.name, version.model_version.version)
        assert hosted.state == READY, hosted.message
        return hosted

    async def load_now(self, name: str = "echo") -> resources_pb2.ModelLoad:
        """The load of a model's only version."""
        status = await self.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=10)
        (load,) = [load for load in status.load.models if load.key.model == name]
        return load

    async def busy(self, *, queued: int, running: int = 1, name: str = "echo") -> None:
        """Wait until so many calls wait and run."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LOAD_S
        while ((load := await self.load_now(name)).queued, load.running) != (queued, running):
            assert loop.time() < end_s, f"{name} is not as busy as that: {load}"
            await asyncio.sleep(0.01)

    async def gone(self, name: str = "echo", version: str = "1.0.0") -> None:
        """Wait until the version is not here any more."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LOAD_S
        while (hosted := await self.hosted(name, version)) is not None:
            assert loop.time() < end_s, f"{name}:{version} does not go: {hosted}"
            await asyncio.sleep(0.02)

    async def wait_exit(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.wait_for(self.process.wait(), STOP_S)

    async def close(self) -> None:
        """End it in good order, or by force."""
        await self._channel.close()
        if self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def running_host(
    directory: Path,
    *flags: str,
    host_id: str = "test-0",
    pool: str = "test",
    registry: str = "",
    address: str | None = None,
    metrics_port: int = 0,
    program: Sequence[str] = ("services.model_host",),
    device: str = "cpu",
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[HostProcess]:
    """A host that serves; it is ended with the block.

    Args:
        directory: For its cache and its log, `<host_id>.log`.
        flags: More flags.
        host_id: Its id.
        pool: Its pool.
        registry: HOST:PORT; empty reports to none.
        address: HOST:PORT; None takes a free one.
        metrics_port: 0 serves no metrics.
        program: The module that is run, and its arguments before those of a host.
        device: What it computes with.
        environ: More of its environment.
    """
    where = address or f"127.0.0.1:{free_ports(1)[0]}"
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{host_id}.log"
    command = [
        *(sys.executable, "-m", *program),
        *("--host-id", host_id, "--instance", host_id, "--pool", pool, "--registry", registry, "--address", where),
        *("--metrics-port", str(metrics_port), "--cache-dir", str(directory / "cache" / host_id), "--device", device),
        *flags,
    ]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    host = HostProcess(process, where, log)
    try:
        await _serving(host)
        yield host
    finally:
        await host.close()


async def _serving(host: HostProcess) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + START_S
    while True:
        try:
            await host.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            text = host.log.read_text(errors="replace")[-2000:]
            assert host.process.returncode is None, f"the host ended with {host.process.returncode}:\n{text}"
            assert loop.time() < end_s, f"the host does not come up:\n{text}"
            await asyncio.sleep(0.05)
        else:
            return
