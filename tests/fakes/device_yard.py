"""A batch queue on a device that computes when it is told to, on time that stands still."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from services.domain.clock import ManualClock
from services.domain.errors import YardError
from services.domain.model import ModelKey
from services.domain.service_class import ServiceClass
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Call, Step
from services.model_host.computing import Done
from services.model_host.lane import Lane
from services.policy.batch_times import ServiceTimes
from services.policy.batching import batch_sizes

KEY = ModelKey("m", "1.0.0")


class ScriptedDevice:
    """Computes when told to; answers each payload with itself, twice."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.ran: list[tuple[list[object], bool]] = []
        self.gate = asyncio.Semaphore(0)
        self.raises: Exception | None = None
        self.refuses: dict[object, YardError] = {}
        self.takes_s = 0.0
        self.jobs: list[asyncio.Task[None]] = []

    def start(self, model: object, calls: Sequence[Call], *, together: bool, predicted_s: float, done: Done) -> None:
        self.ran.append(([call.payload for call in calls], together))
        self.jobs.append(asyncio.ensure_future(self._run(calls, together, done)))

    async def _run(self, calls: Sequence[Call], together: bool, done: Done) -> None:
        started_s = self.clock.now_s()
        await self.gate.acquire()
        self.clock.advance(self.takes_s)
        if self.raises is not None:
            error, self.raises = self.raises, None
            done(None, error)
            return
        outcomes = [self.refuses.get(call.payload, (call.payload, call.payload)) for call in calls]
        if together:
            done([Step(calls, outcomes, started_s, self.takes_s)], None)
            return
        pairs = zip(calls, outcomes, strict=True)
        done([Step((call,), (outcome,), started_s, self.takes_s) for call, outcome in pairs], None)


class Notes:
    """What the queue reported."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.causes: list[str] = []
        self.broken = False
        self.wasted_s = 0.0

    def step_done(self, key: ModelKey, step: Step) -> None:
        self.sizes.append(len(step.calls))

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        self.causes.append(cause)

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        self.wasted_s += device_s

    def device_broken(self) -> None:
        self.broken = True


class Yard:
    """A queue, its device and its clock."""

    def __init__(self, *, max_queued: int = 100, max_queued_bytes: int = 1 << 20) -> None:
        self.clock = ManualClock()
        self.device = ScriptedDevice(self.clock)
        self.notes = Notes()
        self.queue = BatchQueue(
            compute=self.device,
            observer=self.notes,
            clock=self.clock,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
        )

    def lane(
        self,
        base_s: float = 0.010,
        per_item_s: float = 0.0,
        *,
        batch: int = 8,
        key: ModelKey = KEY,
        wait_s: float = 0.0,
    ) -> Lane:
        times = ServiceTimes(0.010)
        for size in batch_sizes(batch):
            times.observe(size, 1, base_s + per_item_s * size)
        return self.queue.open(key, None, max_batch_size=batch, max_wait_s=wait_s, slo_s=None, times=times)

    def submit(
        self,
        lane: Lane,
        payload: object,
        *,
        within_s: float = 10.0,
        of: ServiceClass | None = None,
        **more: object,
    ) -> "asyncio.Task[object]":
        call = Call(payload, self.clock.now_s() + within_s, **more)  # type: ignore[arg-type]
        if of is not None:
            call.share = self.queue.share_of(of)

        async def value() -> object:
            return (await self.queue.submit(lane, call)).value

        return asyncio.ensure_future(value())


@asynccontextmanager
async def running(**limits: int) -> AsyncIterator[Yard]:
    yard = Yard(**limits)
    task = asyncio.ensure_future(yard.queue.run())
    try:
        yield yard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for job in yard.device.jobs:
            job.cancel()
        await asyncio.gather(*yard.device.jobs, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until(done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if done():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come about")
