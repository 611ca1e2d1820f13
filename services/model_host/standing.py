"""What the host says of itself: its record, which changes seldom, and its load, which rides on every result."""

from collections.abc import Iterable
from dataclasses import replace

from modelyard.type.v1 import resources_pb2
from services.chassis.codec import key_to
from services.domain.host import HostRecord
from services.domain.service_class import OPEN
from services.model_host.batch_queue import BatchQueue
from services.model_host.device_watch import DeviceWatch
from services.model_host.lane import Lane
from services.model_host.lifecycle import Lifecycle


class Standing:
    """The host as others see it."""

    def __init__(
        self,
        *,
        record: HostRecord,
        lifecycle: Lifecycle,
        queue: BatchQueue,
        watch: DeviceWatch,
    ) -> None:
        """Speak for these.

        Args:
            record: What stays as it is: ids, address, device, process.
            lifecycle: The versions here.
            queue: Where calls wait for it.
            watch: The device, and how busy it is.
        """
        self._record = record
        self._lifecycle = lifecycle
        self._queue = queue
        self._watch = watch
        self._sequence = 0

    def bound(self, port: int) -> None:
        """The server listens on `port`: its address, should it have asked for any."""
        host, _, _ = self._record.address.rpartition(":")
        self._record = replace(self._record, address=f"{host}:{port}")

    def record(self) -> HostRecord:
        """The record now."""
        return replace(
            self._record,
            device=replace(self._record.device, used_bytes=self._lifecycle.used_bytes),
            models=self._lifecycle.models(),
            draining=self._lifecycle.draining,
        )

    def fill_load(self, load: resources_pb2.HostLoad, lanes: Iterable[Lane]) -> None:
        """Put the load now into `load`, with that of `lanes`.

        The message is filled in place: it is part of every answer, and the domain's form would only be
        taken apart again.
        """
        self._sequence += 1
        load.host_id = self._record.host_id
        load.sequence = self._sequence
        load.used_bytes = self._lifecycle.used_bytes
        load.utilization = self._watch.utilization
        load.draining = self._lifecycle.draining
        if self._queue.cutoff < OPEN:
            load.cutoff = self._queue.cutoff
        for lane in lanes:
            base_s, per_item_s = lane.times.overall.line()
            load.models.add(
                key=key_to(lane.key),
                queued=lane.queued,
                running=lane.running,
                batch_cap=lane.cap,
                base_s=base_s,
                per_item_s=per_item_s,
                queued_up_to=lane.queued_up_to(),
                absent_s=lane.absent_s,
            )

    def load(self, lanes: Iterable[Lane]) -> resources_pb2.HostLoad:
        """The load now, with that of `lanes`."""
        load = resources_pb2.HostLoad()
        self.fill_load(load, lanes)
        return load
