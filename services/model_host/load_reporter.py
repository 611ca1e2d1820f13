"""Keeps the host listed at the registry, for as long as its loops make progress.

The registry may be away for any time: the host serves on, and is listed again within about a second
of the registry's return.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeAlias

import grpc
import grpc.aio

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.registry.v1 import registry_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.codec import record_to
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.deadline import LONGEST_S
from services.domain.host import HostRecord

REPORT_EVERY_S = 1.0
"""A tenth of the lease: several reports may be lost before the listing is."""

SILENCE_S = 5.0
"""A registry that acknowledges nothing for this long is asked anew: another replica may answer."""

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 1.0
"""Pauses between attempts double from the first to the last."""

FAREWELL_S = 1.0
"""How long the registry may take to hear that the host is gone."""

_Stream: TypeAlias = grpc.aio.StreamStreamCall[pb.RegisterHostRequest, pb.RegisterHostResponse]


class _Silent(Exception):
    """The registry acknowledges nothing any more."""


class LoadReporter:
    """The host's stream to the registry."""

    def __init__(
        self,
        *,
        registry: str,
        record: Callable[[], HostRecord],
        progressing: Callable[[], bool],
        drain_ordered: Callable[[], None],
        clock: Clock,
    ) -> None:
        """Report once `run` runs.

        Args:
            registry: `host:port`.
            record: The host's record now.
            progressing: Whether the compute thread works or could; that the event loop does, shows by
                the report itself.
            drain_ordered: Called when an operator wants the host to end.
            clock: Time.
        """
        self._registry = registry
        self._record = record
        self._progressing = progressing
        self._drain_ordered = drain_ordered
        self._clock = clock
        self._progress = 0
        self._changed = asyncio.Event()
        self._stopping = False
        self._ended = asyncio.Event()
        self._heard_s = 0.0
        self._listed = False

    def changed(self) -> None:
        """The record is another one; the registry is told at once."""
        self._changed.set()

    async def run(self) -> None:
        """Report until `stop`, or until cancelled."""
        try:
            pause_s = FIRST_RETRY_S
            while not self._stopping:
                self._listed = False
                channel = open_channel(self._registry)
                try:
                    await self._report(registry_pb2_grpc.RegistryServiceStub(channel))
                except (grpc.aio.AioRpcError, _Silent) as error:
                    self._complain(error)
                finally:
                    await channel.close()
                if self._listed:
                    pause_s = FIRST_RETRY_S
                if not self._stopping:
                    await self._clock.sleep(pause_s)
                pause_s = min(LAST_RETRY_S, 2.0 * pause_s)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """End the listing now, by closing the stream."""
        self._stopping = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), FAREWELL_S)

    async def _report(self, stub: "registry_pb2_grpc.RegistryServiceAsyncStub") -> None:
        stream = stub.RegisterHost(timeout=LONGEST_S)
        self._heard_s = self._clock.now_s()
        listening = asyncio.create_task(self._listen(stream))
        try:
            await self._write(stream, listening)
        finally:
            listening.cancel()
            stream.cancel()

    async def _write(self, stream: _Stream, listening: "asyncio.Task[None]") -> None:
        sent: HostRecord | None = None
        while not listening.done():
            self._changed.clear()
            if self._progressing():
                self._progress += 1
            record = self._record()
            request = pb.RegisterHostRequest(progress=self._progress)
            if record != sent:
                request.record.CopyFrom(record_to(record))
                sent = record
            await stream.write(request)
            if self._stopping:
                await stream.done_writing()
                await asyncio.wait({listening}, timeout=FAREWELL_S)
                return
            await self._until_due(listening)
            if self._clock.now_s() - self._heard_s > SILENCE_S:
                raise _Silent
        listening.result()

    async def _until_due(self, listening: "asyncio.Task[None]") -> None:
        """Wait for a change, for the end of the stream, or for the time of the next report."""
        change = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({change, listening}, timeout=REPORT_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    async def _listen(self, stream: _Stream) -> None:
        while (answer := await stream.read()) is not grpc.aio.EOF:
            assert isinstance(answer, pb.RegisterHostResponse)
            self._heard_s = self._clock.now_s()
            if not self._listed:
                self._listed = True
                logger().info("listed at the registry", registry=self._registry)
            if answer.drain:
                self._drain_ordered()

    def _complain(self, error: Exception) -> None:
        if self._stopping:
            return
        said = error.details() if isinstance(error, grpc.aio.AioRpcError) else f"silent for {SILENCE_S} s"
        # One line per outage at warning; the attempts in between are worth debug.
        log = logger().warning if self._listed or self._progress <= 1 else logger().debug
        log("registry away, serving on", registry=self._registry, cause=said)
