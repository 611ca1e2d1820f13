"""Wires one model host."""

import asyncio
import os
from collections.abc import Mapping
from typing import cast

from google.protobuf.message import Message

from modelyard.host.v1 import host_pb2, opaque_pb2
from services.chassis.instruments import export, serve_metrics
from services.chassis.process import FAILED, RECYCLE, Process
from services.chassis.server import DeadlineRule, Server
from services.chassis.telemetry import Telemetry, logger
from services.domain.clock import Clock, SystemClock
from services.domain.host import Device, HostRecord
from services.domain.model import ModelKey, ModelState
from services.model_host.artifacts import ArtifactStore
from services.model_host.backends.base import Backend
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Step
from services.model_host.config import Config
from services.model_host.device_watch import DeviceWatch
from services.model_host.devices.affinity import pin, processors_of
from services.model_host.devices.base import ComputeDevice
from services.model_host.devices.choosing import choose
from services.model_host.devices.self_test import self_test
from services.model_host.dispatching import Dispatching
from services.model_host.execution import Command
from services.model_host.executor import Executor
from services.model_host.fetching import sources_of
from services.model_host.forwarding import Forwardings
from services.model_host.generating import Engines
from services.model_host.lane import Lane
from services.model_host.lifecycle import Lifecycle
from services.model_host.load_reporter import LoadReporter
from services.model_host.loading import Loading, backends
from services.model_host.observing import Observing
from services.model_host.recycling import Recycling
from services.model_host.servicer import ModelHostServicer
from services.model_host.standing import Standing
from services.model_host.stepping import Stepping
from services.model_host.token_observing import TokenObserving
from services.model_host.triton_metrics import TritonMetrics
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

    def __init__(
        self, config: Config, process: Process, device: ComputeDevice, frameworks: Mapping[str, Backend], clock: Clock
    ) -> None:
        """Make the parts; nothing runs yet."""
        self._process = process
        self.telemetry = Telemetry(
            service="model_host",
            instance=config.name,
            otlp_endpoint=config.otlp_endpoint,
            sample_ratio=config.trace_ratio,
        )
        self.store = ArtifactStore(
            config.cache_dir, sources=sources_of(config, clock), max_bytes=config.max_artifact_bytes
        )
        self.compute_worker = Worker("compute", clock)
        self.load_worker = Worker("load", clock)
        self.watch_worker = Worker("device watch", clock)
        self.observing = Observing(telemetry=self.telemetry, clock=clock)
        self.executor = Executor(worker=self.compute_worker, device=device, clock=clock)
        self.queue = BatchQueue(
            compute=self.executor,
            observer=self,
            clock=clock,
            max_queued=config.max_queued,
            max_queued_bytes=config.max_queued_bytes,
        )
        self.engines = Engines(
            queue=self.queue,
            steps=Stepping(worker=self.compute_worker, device=device, clock=clock),
            observer=TokenObserving(
                telemetry=self.telemetry,
                dropped=self.call_dropped,
                wasted=self.device_wasted,
                device_broken=self.device_broken,
                clock=clock,
            ),
            clock=clock,
        )
        self.watch = DeviceWatch(
            worker=self.watch_worker,
            device=device,
            computed=lambda: self.executor.utilization(clock.now_s()),
            broken=self.device_broken,
        )
        self.recycling = Recycling(
            held_bytes=lambda: self.load_worker.run(device.held_bytes),
            release=lambda: self.load_worker.run(device.release),
            budget_bytes=device.memory_bytes,
            versions=lambda: len(self.lifecycle.hosted()),
            recycle=self.recycle,
            clock=clock,
        )
        loading = Loading(
            worker=self.load_worker,
            store=self.store,
            device=device,
            backends=frameworks,
            recycling=self.recycling,
            device_broken=self.device_broken,
            warm_bytes=config.warm_bytes,
            clock=clock,
        )
        self.lifecycle = Lifecycle(
            loader=loading,
            serving=Forwardings(self.engines, observer=self.observing, clock=clock),
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
        self.recycling.consider()
        if self.reporter is not None:
            self.reporter.changed()

    def step_done(self, key: ModelKey, step: Step) -> None:
        """Calls were computed."""
        self.observing.step_done(key, step)

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A call ended before it was computed."""
        self.observing.call_dropped(key, band, cause)

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        """The device computed for nothing."""
        self.observing.device_wasted(key, device_s)

    def device_broken(self) -> None:
        """Nothing will compute here again: end, so that another process takes this one's place."""
        self.lifecycle.announce_end()
        self._process.request_stop("the device is broken", exit_code=FAILED)

    def drain_ordered(self) -> None:
        """End the process once its calls are answered."""
        self._begin_drain("drained", 0)

    def recycle(self) -> None:
        """End the process once its calls are answered, for whoever keeps it running to start it again."""
        self.lifecycle.order_drain(0)
        self._begin_drain("lost memory", RECYCLE)

    def progressing(self) -> bool:
        """Whether the compute thread works or could."""
        return self.executor.progressing(self._clock.now_s())

    def lanes(self) -> list[Lane]:
        """Where calls wait."""
        return [hosted.lane for hosted in self.lifecycle.hosted() if hosted.lane is not None]

    # --- what runs ------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Set the gauges every second."""
        while True:
            await self.watch.look()
            self.observing.refresh_device(self.watch.usage, self.watch.utilization)
            self.observing.refresh(self.lifecycle, self._device.memory_bytes, self.queue.cutoff)
            await self._clock.sleep(REFRESH_EVERY_S)

    async def stop_workers(self) -> None:
        """Let the threads end. One that hangs does not keep the process."""
        self.compute_worker.stop()
        self.load_worker.stop()
        self.watch_worker.stop()

    async def end(self) -> None:
        """Say that the host ends, go on for the lame-duck time, and finish what came."""
        self.lifecycle.announce_end()
        wind_down = None if self.dispatching is None else self.dispatching.wind_down
        await self.server.drain(lame_duck_s=LAME_DUCK_S, grace_s=GRACE_S, wind_down=wind_down)

    def _begin_drain(self, why: str, exit_code: int) -> None:
        if not self._draining:
            self._draining = True
            self._process.spawn("drain", self._drain(why, exit_code))

    async def _drain(self, why: str, exit_code: int) -> None:
        await self.lifecycle.finish()
        self._process.request_stop(why, exit_code=exit_code)


async def start(config: Config, process: Process) -> None:
    """Begin to serve and to report, on the device that the configuration asks for."""
    pin(processors_of(config.cpus))
    device = await asyncio.to_thread(choose, config.device, config.memory_bytes)
    frameworks = backends(
        trusts_artifacts=config.trusts_artifacts,
        torch_threads=config.torch_threads,
        onnx_threads=config.onnx_threads,
        remote_addresses=config.remote_addresses,
        ca_file=config.ca_file,
    )
    await serve(config, process, device, frameworks)


async def serve(config: Config, process: Process, device: ComputeDevice, frameworks: Mapping[str, Backend]) -> None:
    """Begin to serve and to report on `device`, once it has shown that it computes right."""
    clock = SystemClock()
    began_s = clock.now_s()
    await asyncio.to_thread(self_test, device)
    logger().info("the device computes right", device=device.name, took_s=round(clock.now_s() - began_s, 3))
    host = Host(config, process, device, frameworks, clock)
    process.on_stop("telemetry", host.telemetry.shutdown)
    stop_metrics = serve_metrics(config.metrics_port)
    process.on_stop("metrics", lambda: asyncio.to_thread(stop_metrics))
    export(TritonMetrics(host.queue.statistics, host.lanes))
    host.store.prepare()
    host.compute_worker.start()
    host.load_worker.start()
    host.watch_worker.start()
    process.on_stop("threads", host.stop_workers)
    await asyncio.gather(host.compute_worker.run(device.adopt_thread), host.load_worker.run(device.adopt_thread))
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
    standing = Standing(record=record, lifecycle=host.lifecycle, queue=host.queue, watch=host.watch)
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
            "modelyard.host.v1.ExecuteStreamRequest": cast("type[Message]", Command),
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
