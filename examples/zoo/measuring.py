"""Measures versions where they will run: in a model host, started for it and ended after it.

What a manifest says of quality, time and memory is so what the host's own code gives, and not that
of some other program. The host stands alone: it needs no registry to be given a version by hand.
"""

import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from examples.tensors import Arrays, infer_request, outputs
from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import call, open_channel
from services.domain.clock import SystemClock
from yardctl import processes
from yardctl.health import grpc_fault
from yardctl.layout import LOOPBACK, Layout, free_base_port
from yardctl.logs import last_words
from yardctl.mesh import end_everything

HOST_ID = "measuring-0"
HOST_MEMORY_BYTES = 3 << 30
START_WITHIN_S = 60.0
LOAD_WITHIN_S = 60.0
CALL_WITHIN_S = 60.0
POLL_S = 0.05
TIMED_CALLS = 15
_CLOCK = SystemClock()


class MeasuringError(Exception):
    """The host did not start, or a version did not load; the text says why and where to look."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one version takes."""

    memory_bytes: int
    """Peak while it was loaded and warmed up, as the host measured it."""
    compute_s: float
    """Median time of a batch of one."""


class MeasuringHost:
    """A host that holds one version at a time."""

    def __init__(self, stub: "host_pb2_grpc.ModelHostServiceAsyncStub", log: Path) -> None:
        """Store the stub, and the log to name in errors."""
        self._stub = stub
        self._log = log

    @asynccontextmanager
    async def loaded(self, model: objects_pb2.Object, version: objects_pb2.Object) -> AsyncIterator["LoadedVersion"]:
        """Load a version, and unload it at the end.

        Raises:
            MeasuringError: It did not load.
        """
        key = model_pb2.ModelKey(model=model.metadata.name, version=version.model_version.version)
        order = host_pb2.LoadModelRequest(model=model, version=version, decision_id="measure", fencing_token=1)
        await call(self._stub.LoadModel, order, timeout_s=CALL_WITHIN_S)
        hosted = await self._settled(key)
        yield LoadedVersion(self._stub, key, hosted.memory_bytes)
        unload = host_pb2.UnloadModelRequest(key=key, decision_id="measured", fencing_token=1)
        await call(self._stub.UnloadModel, unload, timeout_s=CALL_WITHIN_S)
        await self._gone(key)

    async def _settled(self, key: model_pb2.ModelKey) -> resources_pb2.HostedModel:
        until_s = _CLOCK.now_s() + LOAD_WITHIN_S
        while _CLOCK.now_s() < until_s:
            hosted = await self._hosted(key)
            if hosted is not None and hosted.state == model_pb2.MODEL_STATE_READY:
                return hosted
            if hosted is not None and hosted.state == model_pb2.MODEL_STATE_FAILED:
                raise MeasuringError(f"{key.model}:{key.version} did not load: {hosted.message}")
            await _CLOCK.sleep(POLL_S)
        raise MeasuringError(f"{key.model}:{key.version} is not ready after {LOAD_WITHIN_S:g} s; see {self._log}")

    async def _gone(self, key: model_pb2.ModelKey) -> None:
        until_s = _CLOCK.now_s() + LOAD_WITHIN_S
        while await self._hosted(key) is not None and _CLOCK.now_s() < until_s:
            await _CLOCK.sleep(POLL_S)

    async def _hosted(self, key: model_pb2.ModelKey) -> resources_pb2.HostedModel | None:
        status = await call(self._stub.GetStatus, host_pb2.GetStatusRequest(), timeout_s=CALL_WITHIN_S)
        return next((hosted for hosted in status.record.models if hosted.key == key), None)


class LoadedVersion:
    """One version that is ready on the host."""

    def __init__(
        self, stub: "host_pb2_grpc.ModelHostServiceAsyncStub", key: model_pb2.ModelKey, memory_bytes: int
    ) -> None:
        """Store which one, and the peak that the host measured."""
        self._stub = stub
        self._key = key
        self._memory_bytes = memory_bytes

    async def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Its answer."""
        return outputs((await self._execute(inputs)).response)

    async def footprint(self, inputs: Arrays) -> Footprint:
        """What it takes to answer `inputs`, a batch of one."""
        times = [(await self._execute(inputs)).compute.ToNanoseconds() * 1e-9 for _ in range(TIMED_CALLS)]
        return Footprint(self._memory_bytes, statistics.median(times))

    async def _execute(self, inputs: Arrays) -> host_pb2.ExecuteResponse:
        request = host_pb2.ExecuteRequest(key=self._key, request=infer_request(self._key.model, inputs))
        return await call(self._stub.Execute, request, timeout_s=CALL_WITHIN_S)


@asynccontextmanager
async def measuring_host(folder: Path) -> AsyncIterator[MeasuringHost]:
    """A model host of one compute thread, its cache and its log in `folder`.

    Raises:
        MeasuringError: It does not start.
    """
    layout = Layout.of(folder)
    layout.create()
    await end_everything(layout)  # what a run that was itself killed has left behind
    port = free_base_port()
    address = f"{LOOPBACK}:{port}"
    argv = (
        *(sys.executable, "-m", "services.model_host"),
        *("--address", address),
        *("--metrics-port", "0"),
        *("--host-id", HOST_ID),
        *("--pool", "measuring"),
        *("--registry", f"{LOOPBACK}:{port + 1}"),
        *("--cache-dir", str(layout.directory / "cache")),
        *("--device", "cpu"),
        *("--memory-bytes", str(HOST_MEMORY_BYTES)),
    )
    process = processes.start(HOST_ID, argv, layout=layout, address=address)
    try:
        await _wait_healthy(process, address, layout.log_file(HOST_ID))
        async with open_channel(address) as channel:
            yield MeasuringHost(host_pb2_grpc.ModelHostServiceStub(channel), layout.log_file(HOST_ID))
    finally:
        await end_everything(layout, handles={process.pid: process})
        process.wait()


async def _wait_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    until_s = _CLOCK.now_s() + START_WITHIN_S
    while True:
        if process.poll() is not None:
            words = last_words(log)
            said = f": {words}" if words else ""
            raise MeasuringError(f"the model host ended with code {process.returncode}{said} (see {log})")
        fault = await grpc_fault(address)
        if not fault:
            return
        if _CLOCK.now_s() >= until_s:
            raise MeasuringError(f"the host at {address} {fault} after {START_WITHIN_S:g} s: see {log}")
        await _CLOCK.sleep(POLL_S)
