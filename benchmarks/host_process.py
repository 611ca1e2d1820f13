"""A model host in a process of its own: started without a registry, given versions by hand, asked what it has done."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc.aio
import psutil

from benchmarks.places import ROOT
from benchmarks.servers import free_base_ports
from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import open_channel
from services.domain.clock import SystemClock

START_WITHIN_S = 60.0
LOAD_WITHIN_S = 120.0
END_WITHIN_S = 15.0
CALL_S = 10.0
POLL_S = 0.02
HOST = ("services.model_host",)
_CLOCK = SystemClock()


class HostError(Exception):
    """A host did not start, or a version did not load; the text says why."""


@dataclass(frozen=True, slots=True)
class Done:
    """What one version has done since its process started, all bands together."""

    answered: int
    dropped: int
    batches: int
    device_s: float
    wasted_s: float
    drops: Mapping[str, int]
    """By cause."""


class Host:
    """One host. An async context manager; what is started here is ended here."""

    def __init__(
        self,
        folder: Path,
        *,
        program: Sequence[str] = HOST,
        flags: Sequence[str] = (),
        memory_bytes: int = 2 << 30,
        host_id: str = "bench-0",
        registry: str = "",
        address: str = "",
    ) -> None:
        """Keep cache and log in `folder`.

        Args:
            folder: Of this host alone.
            program: The module that is run, and its arguments before those of a host.
            flags: More arguments of a host.
            memory_bytes: What versions may take.
            host_id: Its id.
            registry: HOST:PORT of whom it reports to; empty: nobody.
            address: HOST:PORT to serve on; empty: a free one, another at each start.
        """
        self._folder = folder
        self._fixed_address = address
        self._killed = False
        self._program = program
        self._flags = (*flags, "--memory-bytes", str(memory_bytes))
        self._named = ("--host-id", host_id, "--pool", "bench", "--registry", registry)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.aio.Channel | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        """Start it, and wait until it serves."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.address = self._fixed_address or f"127.0.0.1:{free_base_ports(1)[0]}"
        command = [
            *(sys.executable, "-m", *self._program),
            *(*self._named, "--address", self.address),
            *("--metrics-port", "0", "--cache-dir", str(self._folder / "cache"), "--device", "cpu"),
            *self._flags,
        ]
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
        with self._log.open("ab") as log:
            quiet = subprocess.DEVNULL
            self._killed = False
            self._process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=quiet, stdout=log, stderr=log)
        try:
            await self._serving()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it: at once, for nothing is left in it that anybody wants."""
        await self.close()

    async def close(self) -> None:
        """End it; it may be started again."""
        if self._channel is not None:
            await self._channel.close()
        self.kill()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, END_WITHIN_S)

    def kill(self) -> None:
        """Send it SIGKILL, as a crash, and do not wait: whoever loads it meanwhile has calls to send."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    @property
    def ended(self) -> bool:
        """Whether its process was killed, has ended, or was not started."""
        return self._killed or self._process is None or self._process.poll() is not None

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to it."""
        assert self._channel is not None
        return self._channel

    @property
    def stub(self) -> "host_pb2_grpc.ModelHostServiceAsyncStub":
        """Its service."""
        return host_pb2_grpc.ModelHostServiceStub(self.channel)

    @property
    def process(self) -> psutil.Process:
        """Its process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    async def load(self, model: objects_pb2.Object, version: objects_pb2.Object) -> resources_pb2.HostedModel:
        """Load a version, and wait until it is READY.

        Raises:
            HostError: It is not.
        """
        request = host_pb2.LoadModelRequest(model=model, version=version, decision_id="bench", fencing_token=1)
        await self.stub.LoadModel(request, timeout=CALL_S)
        key = model_pb2.ModelKey(model=model.metadata.name, version=version.model_version.version)
        end_s = _CLOCK.now_s() + LOAD_WITHIN_S
        while True:
            status = await self.status()
            for hosted in status.record.models:
                if hosted.key == key and hosted.state == model_pb2.MODEL_STATE_READY:
                    return hosted
                if hosted.key == key and hosted.state == model_pb2.MODEL_STATE_FAILED:
                    raise HostError(f"{key.model} does not load: {hosted.message}")
            if _CLOCK.now_s() > end_s:
                raise HostError(f"{key.model} is not ready after {LOAD_WITHIN_S:g} s: {self._last_words()}")
            await _CLOCK.sleep(POLL_S)

    async def status(self) -> host_pb2.GetStatusResponse:
        """What it says of itself."""
        return await self.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=CALL_S)

    async def done(self, model: str) -> Done:
        """What a model's version has done."""
        status = await self.status()
        (found,) = [each for each in status.statistics if each.key.model == model]
        drops: dict[str, int] = {}
        for band in found.bands:
            for cause, count in band.drop_counts.items():
                drops[cause] = drops.get(cause, 0) + count
        return Done(
            answered=found.success_count,
            dropped=found.dropped_count,
            batches=found.execution_count,
            device_s=sum(band.device_total.ToNanoseconds() for band in found.bands) / 1e9,
            wasted_s=sum(band.wasted_total.ToNanoseconds() for band in found.bands) / 1e9,
            drops=drops,
        )

    @property
    def _log(self) -> Path:
        return self._folder / "host.log"

    async def _serving(self) -> None:
        """Wait until it serves. A channel that was refused once would wait before it connects again."""
        end_s = _CLOCK.now_s() + START_WITHIN_S
        while not await self._listens():
            assert self._process is not None
            if self._process.poll() is not None or _CLOCK.now_s() > end_s:
                raise HostError(f"a host does not come up: {self._last_words()}")
            await _CLOCK.sleep(POLL_S)
        self._channel = open_channel(self.address)
        await self.stub.GetStatus(host_pb2.GetStatusRequest(), timeout=START_WITHIN_S, wait_for_ready=True)

    async def _listens(self) -> bool:
        where, _, port = self.address.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(where, int(port))
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-1000:] if self._log.exists() else ""
