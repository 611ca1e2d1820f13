"""Metrics and spans of what the batch queue did."""

from dataclasses import dataclass
from typing import Protocol

from services.chassis import instruments
from services.chassis.telemetry import Telemetry, TraceContext
from services.domain.clock import Clock
from services.domain.model import ModelKey, ModelState
from services.domain.service_class import DEFAULT_BAND
from services.model_host.calls import Step
from services.model_host.devices.base import Usage
from services.model_host.lifecycle import Lifecycle


class Observes(Protocol):
    """A metric's child, of one version."""

    def observe(self, amount: float) -> None:
        """Count `amount` in."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """Children of one version: looking them up costs more than counting."""

    batch_size: Observes
    compute_s: Observes
    queue_s: dict[int, Observes]
    """By band."""


class Observing:
    """Watches the batch queue of one host."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        """Send spans to `telemetry`."""
        self._telemetry = telemetry
        self._clock = clock
        self._kept: dict[ModelKey, _Kept] = {}

    def step_done(self, key: ModelKey, step: Step) -> None:
        """Calls of `key` were computed."""
        kept = self._kept.get(key) or self._keep(key)
        kept.batch_size.observe(len(step.calls))
        kept.compute_s.observe(step.compute_s)
        sampled = False
        for call in step.calls:
            share = call.share
            band = DEFAULT_BAND if share is None else share.tier.band
            queue_s = kept.queue_s.get(band) or self._keep_queue(key, kept, band)
            queue_s.observe(step.started_s - call.arrived_s)
            trace = call.trace
            sampled = sampled or (isinstance(trace, TraceContext) and trace.sampled)
        if sampled:
            self._record(key, step)

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        """A call ended before it was computed."""
        instruments.HOST_DROPPED.labels(key.model, str(band), cause).inc()

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        """The device computed for nothing."""
        instruments.HOST_WASTED_SECONDS.labels(key.model).inc(device_s)

    def refresh_device(self, usage: Usage | None, utilization: float) -> None:
        """Set the gauges of the device itself."""
        instruments.HOST_DEVICE_UTILIZATION.set(utilization)
        if usage is None:
            return
        instruments.HOST_MEMORY_BYTES.labels("free").set(usage.free_bytes)
        instruments.HOST_MEMORY_BYTES.labels("process").set(usage.own_bytes)

    def refresh(self, lifecycle: Lifecycle, memory_bytes: int, cutoff: int) -> None:
        """Set the gauges."""
        instruments.HOST_CUTOFF.set(cutoff)
        hosted = lifecycle.hosted()
        for state in ModelState:
            instruments.HOST_MODELS.labels(state.value).set(sum(item.state is state for item in hosted))
        instruments.HOST_MEMORY_BYTES.labels("total").set(memory_bytes)
        instruments.HOST_MEMORY_BYTES.labels("models").set(lifecycle.used_bytes)
        for item in hosted:
            if item.lane is not None:
                queued = item.lane.queued_by_band()
                for band in {DEFAULT_BAND, *item.lane.statistics.bands, *queued}:
                    depth = instruments.HOST_QUEUE_DEPTH.labels(item.key.model, item.key.version, str(band))
                    depth.set(queued.get(band, 0))

    def _keep(self, key: ModelKey) -> _Kept:
        kept = self._kept[key] = _Kept(
            batch_size=instruments.HOST_BATCH_SIZE.labels(key.model, key.version),
            compute_s=instruments.HOST_COMPUTE_SECONDS.labels(key.model, key.version),
            queue_s={},
        )
        return kept

    def _keep_queue(self, key: ModelKey, kept: _Kept, band: int) -> Observes:
        queue_s = kept.queue_s[band] = instruments.HOST_QUEUE_SECONDS.labels(key.model, key.version, str(band))
        return queue_s

    def _record(self, key: ModelKey, step: Step) -> None:
        """One span for the batch, linked to every sampled call in it; for each of these its wait and its compute."""
        to_wall_s = self._clock.wall_s() - self._clock.now_s()
        started_s = step.started_s + to_wall_s
        ended_s = started_s + step.compute_s
        sampled = [
            (call, call.trace) for call in step.calls if isinstance(call.trace, TraceContext) and call.trace.sampled
        ]
        attributes: dict[str, str | int] = {
            "modelyard.model": key.model,
            "modelyard.version": key.version,
            "modelyard.batch_size": len(step.calls),
        }
        record = self._telemetry.record
        batch = record(
            "batch",
            parent=sampled[0][1],
            start_wall_s=started_s,
            end_wall_s=ended_s,
            attributes={**attributes, "modelyard.rows": sum(call.rows for call in step.calls)},
            links=[trace for _, trace in sampled],
        )
        for call, trace in sampled:
            arrived_s = call.arrived_s + to_wall_s
            record("queue", parent=trace, start_wall_s=arrived_s, end_wall_s=started_s, links=(batch,))
            record(
                "compute",
                parent=trace,
                start_wall_s=started_s,
                end_wall_s=ended_s,
                attributes={**attributes, "modelyard.rows": call.rows},
                links=(batch,),
            )
