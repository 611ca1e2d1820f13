"""Wires one model host."""

import asyncio
import os
from typing import cast

from google.protobuf.message import Message

from modelyard.host.v1 import host_pb2, opaque_pb2
from services.chassis.instruments import serve_metrics
from services.chassis.process import FAILED, Process
from services.chassis.server import DeadlineRule, Server
from services.chassis.telemetry import Telemetry
from services.domain.clock import Clock, SystemClock
from services.domain.host import Device, HostRecord
from services.domain.model import ModelKey, ModelState
from services.model_host.artifacts import ArtifactStore
from services.model_host.batch_queue import BatchQueue
from services.model_host.config import Config
from services.model_host.device import ComputeDevice, choose
from services.model_host.dispatching import Dispatching
from services.model_host.execution import Command
from services.model_host.executor import Executor
from services.model_host.lane import Step
from services.model_host.lifecycle import Lifecycle
from services.model_host.load_reporter import LoadReporter
from services.model_host.loading import Loading, backends
from services.model_host.observing import Observing
from services.model_host.servicer import ModelHostServicer
from services.model_host.standing import Standing
from services.model_host.worker import Worker

SERVICE = host_pb2.DESCRIPTOR.services_by_name["ModelHostService"]

REFRESH_EVERY_S = 1.0
"""How often gauges are set."""

GRACE_S = 10.0
"""Calls in progress may take this long after a SIGTERM."""

LAME_DUCK_S = 0.5
"""How long calls are still taken after the host said that it ends: routers hear it in a fraction of that."""


class Host:
    """One model host: what its parts tell each other."""

    def __init__(self, config: Config, process: Process, device: ComputeDevice, clock: Clock) -> None:
        """Make the parts; nothing runs yet."""
        self._process = process
        self.telemetry = Telemetry(
            service="model_host",
            instance=config.name,
            otlp_endpoint=config.otlp_endpoint,
            sample_ratio=config.trace_ratio,
        )
        self.store = ArtifactStore(config.cache_dir, max_bytes=config.max_artifact_bytes)
        self.compute_worker = Worker("compute", clock)
        self.load_worker = Worker("load", clock)
        self.observing = Observing(telemetry=self.telemetry, clock=clock)
        self.executor = Executor(worker=self.compute_worker, device=device, clock=clock)
        self.queue = BatchQueue(
            compute=self.executor,
            observer=self,
            clock=clock,
            max_queued=config.max_queued,
            max_queued_bytes=config.max_queued_bytes,
        )
        loading = Loading(
            worker=self.load_worker,
            store=self.store,
            device=device,
            backends=backends(trusts_artifacts=config.trusts_artifacts, torch_threads=config.torch_threads),
            clock=clock,
        )
        self.lifecycle = Lifecycle(
            loader=loading,
            serving=self.queue,
            device_kind=device.kind,
            memory_bytes=device.memory_bytes,
            trusts_artifacts=config.trusts_artifacts,
            clock=clock,
            changed=self.changed,
        )
        self.server = Server(address=config.address, telemetry=self.telemetry, insecure=config.insecure)
        self.reporter: LoadReporter | None = None
        self.dispatching: Dispatching | None = None
        self._device = device
        self._clock = clock
        self._known_models: set[str] = set()
        self._draining = False

    # --- what the parts report ------------------------------------------------------------------

    def changed(self) -> None:
        """The versions here, or their states, are others."""
        serving = (
            {hosted.key.model for hosted in self.lifecycle.hosted() if hosted.state is ModelState.READY}
            if not self.lifecycle.draining
            else set()
        )
        self._known_models |= serving
        for model in self._known_models:
            self.server.set_serving(model, model in serving)
        if self.reporter is not None:
            self.reporter.changed()

    def step_done(self, key: ModelKey, step: Step) -> None:
        """Calls were computed."""
        self.observing.step_done(key, step)

    def call_dropped(self, key: ModelKey, cause: str) -> None:
        """A call ended before it was computed."""
        self.observing.call_dropped(key, cause)

    def device_broken(self) -> None:
        """Nothing will compute here again: end, so that another process takes this one's place."""
        self.lifecycle.announce_end()
        self._process.request_stop("the device is broken", exit_code=FAILED)

    def drain_ordered(self) -> None:
        """End the process once its calls are answered."""
        if not self._draining:
            self._draining = True
            self._process.spawn("drain", self._drain())

    def progressing(self) -> bool:
        """Whether the compute thread works or could."""
        return self.executor.progressing(self._clock.now_s())

    # --- what runs ------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Set the gauges every second."""
        while True:
            self.observing.refresh(self.lifecycle, self._device.memory_bytes)
            await self._clock.sleep(REFRESH_EVERY_S)

    async def stop_workers(self) -> None:
        """Let the threads end. One that hangs does not keep the process."""
        self.compute_worker.stop()
        self.load_worker.stop()

    async def end(self) -> None:
        """Say that the host ends, go on for the lame-duck time, and finish what came."""
        self.lifecycle.announce_end()
        wind_down = None if self.dispatching is None else self.dispatching.wind_down
        await self.server.drain(lame_duck_s=LAME_DUCK_S, grace_s=GRACE_S, wind_down=wind_down)

    async def _drain(self) -> None:
        await self.lifecycle.finish()
        self._process.request_stop("drained")


async def start(config: Config, process: Process) -> None:
    """Begin to serve and to report."""
    clock = SystemClock()
    device = await asyncio.to_thread(choose, config.device, config.memory_bytes)
    host = Host(config, process, device, clock)
    process.on_stop("telemetry", host.telemetry.shutdown)
    stop_metrics = serve_metrics(config.metrics_port)
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))
    host.store.prepare()
    host.compute_worker.start()
    host.load_worker.start()
    process.on_stop("threads", host.stop_workers)
    process.spawn("batch queue", host.queue.run())
    process.spawn("lifecycle", host.lifecycle.run())
    process.spawn("gauges", host.refresh())

    record = HostRecord(
        host_id=config.host_id,
        address=config.address,
        pool=config.pool,
        zone=config.zone,
        device=Device(device.kind, device.name, device.memory_bytes),
        pid=os.getpid(),
        trusts_artifacts=config.trusts_artifacts,
    )
    standing = Standing(record=record, lifecycle=host.lifecycle, executor=host.executor, clock=clock)
    host.dispatching = Dispatching(
        lifecycle=host.lifecycle,
        queue=host.queue,
        standing=standing,
        telemetry=host.telemetry,
        clock=clock,
        reserve_s=config.reserve_s,
    )
    servicer = ModelHostServicer(
        lifecycle=host.lifecycle,
        queue=host.queue,
        dispatching=host.dispatching,
        standing=standing,
        clock=clock,
        reserve_s=config.reserve_s,
        drain_ordered=host.drain_ordered,
    )
    host.server.add(
        SERVICE,
        servicer,
        deadline=DeadlineRule.REQUIRED,
        messages={
            "modelyard.host.v1.DispatchRequest": opaque_pb2.OpaqueDispatchRequest,
            "modelyard.host.v1.ExecuteRequest": cast("type[Message]", Command),
        },
    )
    standing.bound(await host.server.start())
    if config.registry:
        host.reporter = LoadReporter(
            registry=config.registry,
            record=standing.record,
            progressing=host.progressing,
            drain_ordered=host.drain_ordered,
            clock=clock,
        )
        process.spawn("load reporter", host.reporter.run())
        process.on_stop("listing", host.reporter.stop)
    process.on_stop("server", host.end, timeout_s=LAME_DUCK_S + GRACE_S + 2.0)
