"""What is asked of a registry, and how long it takes: reads, applies, cold starts, fan-out, the way to a router."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
import psutil

from benchmarks import registry_objects as objects_of
from benchmarks.measuring import cpu_s
from benchmarks.registry_yard import CALL_S, Yard
from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.clock import SystemClock
from yardctl.parts import REGISTRY

BATCH = 1000
"""Objects of a large change, and of each step by which the registry is filled."""

LAST_STEPS = 5

PAGE = 500
SETTLE_S = 3.0
"""Time after a start before memory is looked at."""

WATCHERS_A_CHANNEL = 125
_CLOCK = SystemClock()
_WATCH = "/modelyard.registry.v1.RegistryService/Watch"
_DELTA = b"\x12"
"""How a WatchResponse with a delta begins: field 2."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that the same thing took, each time, and CPU seconds of the registry for it."""

    seconds: Sequence[float]
    cpu_s: float = 0.0

    def ms(self, share: float) -> float:
        """The time within which this share of them was done, in milliseconds."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for each."""
        return 1e3 * self.cpu_s / len(self.seconds)


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started cold."""

    seconds: float
    """Until it served."""
    cpu_s: float
    """What of it the process computed."""
    rss_mb: float


async def timed(yard: Yard, count: int, step: Callable[[int], Awaitable[object]], *, pause_s: float = 0.0) -> Times:
    """Do a step `count` times, one after the other."""
    process = yard.process(REGISTRY)
    before_s, seconds = cpu_s(process), []
    for number in range(count):
        began_s = _CLOCK.now_s()
        await step(number)
        seconds.append(_CLOCK.now_s() - began_s)
        if pause_s:
            await _CLOCK.sleep(pause_s)
    return Times(seconds, cpu_s(process) - before_s)


async def started(yard: Yard, name: str) -> Started:
    """Start a part that does not run, and look at its memory once it has settled."""
    seconds = await yard.start(name)
    process = yard.process(name)
    computed_s = cpu_s(process)
    await _CLOCK.sleep(SETTLE_S)
    return Started(seconds, computed_s, process.memory_info().rss / 1e6)


@dataclass(slots=True)
class Filled:
    """A registry with the first `len(objects)` objects of the sequence."""

    yard: Yard
    objects: list[objects_pb2.Object] = field(default_factory=list)
    _build: int = 0

    async def grow(self, count: int) -> Times:
        """Apply until there are `count` objects; returns the times of the last steps."""
        wanted = objects_of.first(count)
        steps = [wanted[start : start + BATCH] for start in range(len(self.objects), count, BATCH)]
        times = await timed(self.yard, len(steps), lambda number: self.yard.apply(steps[number]))
        self.objects = wanted
        return Times(times.seconds[-LAST_STEPS:])

    def spread(self, count: int, offset: int = 0) -> list[objects_pb2.Object]:
        """`count` objects from all over."""
        step = len(self.objects) // count
        return [self.objects[(offset + index * step) % len(self.objects)] for index in range(count)]

    def edited(self, count: int) -> list[objects_pb2.Object]:
        """`count` objects from all over, other ones each time, as they never were before."""
        self._build += 1
        return [objects_of.updated(item, self._build) for item in self.spread(count, self._build)]

    async def change(self, count: int) -> Times:
        """Time one change of `count` objects."""
        changed = self.edited(count)
        return await timed(self.yard, 1, lambda _: self.yard.apply(changed))

    async def changes(self, count: int, times: int) -> Times:
        """Time several changes of `count` objects each."""
        found = [await self.change(count) for _ in range(times)]
        return Times([each.seconds[0] for each in found], sum(each.cpu_s for each in found))

    async def gets(self, times: int) -> Times:
        """Time reads of single objects."""
        keys = [objects_of.key_of(item) for item in self.spread(times)]
        return await timed(self.yard, times, lambda number: self.yard.get(keys[number]))

    async def misses(self, times: int) -> Times:
        """Time reads of objects that are not there, though others of nearly that name are."""

        async def ask(number: int) -> None:
            try:
                await self.yard.get(objects_pb2.ObjectKey(kind="Model", name=f"{objects_of.name_of(number)}x"))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise

        return await timed(self.yard, times, ask)

    async def pages(self, times: int) -> Times:
        """Time pages of a list, one after the other."""
        token = ""

        async def turn(_: int) -> None:
            nonlocal token
            token = (await self.yard.page(PAGE, token)).next_page_token

        return await timed(self.yard, times, turn)

    async def first_pages(self, times: int) -> Times:
        """Time the first page of a list after a change."""
        found = []
        for _ in range(times):
            await self.change(1)
            found.append(await timed(self.yard, 1, lambda _: self.yard.page(PAGE)))
        return Times([each.seconds[0] for each in found])


# --- fan-out ---------------------------------------------------------------------------------------


class Watchers:
    """Readers of one registry's watch, which count the deltas that they get."""

    def __init__(self, count: int) -> None:
        """As many readers."""
        self._count = count
        self._heard = 0
        self._all = asyncio.Event()
        self._up = asyncio.Semaphore(0)

    @asynccontextmanager
    async def up(self, yard: Yard, revision: int) -> AsyncIterator[None]:
        """Have them follow from `revision`, over a few connections."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks = []
            channels = [
                await stack.enter_async_context(yard.open(REGISTRY))
                for _ in range(-(-self._count // WATCHERS_A_CHANNEL))
            ]
            for number in range(self._count):
                follow = self._follow(channels[number % len(channels)], revision)
                tasks.append(group.create_task(follow))
            for _ in range(self._count):
                await self._up.acquire()
            yield
            for task in tasks:
                task.cancel()

    async def _follow(self, channel: grpc.aio.Channel, revision: int) -> None:
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_WATCH)
        call = watch(pb.WatchRequest(from_revision=revision).SerializeToString(), timeout=3600.0)
        is_up = False
        async for raw in call:
            if not is_up:
                is_up = True
                self._up.release()
            if raw.startswith(_DELTA):
                self._heard += 1
                if self._heard == self._count:
                    self._all.set()

    async def time(self, filled: Filled, deltas: int, pause_s: float) -> Times:
        """Time from the sending of an apply of one object until the last reader has it."""
        process = filled.yard.process(REGISTRY)
        before_s, seconds = cpu_s(process), []
        for _ in range(deltas):
            self._heard = 0
            self._all.clear()
            changed = filled.edited(1)
            began_s = _CLOCK.now_s()
            apply = asyncio.create_task(filled.yard.apply(changed))
            await asyncio.wait_for(self._all.wait(), CALL_S)
            seconds.append(_CLOCK.now_s() - began_s)
            await apply
            await _CLOCK.sleep(pause_s)
        return Times(seconds, cpu_s(process) - before_s)


# --- from an apply to a router ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Routed:
    """How long it took until a router went by what was applied."""

    from_answer: Times
    from_send: Times


async def routed(filled: Filled, prefix: str, times: int, pause_s: float) -> Routed:
    """Apply a new route, and ask the router for it from the answer on until it knows it."""
    from_answer, from_send = [], []
    for number in range(times):
        name = f"new-{prefix}-{number}"
        route = objects_of.a_route(name, objects_of.name_of(number % 100))
        sent_s = _CLOCK.now_s()
        await filled.yard.apply([route])
        answered_s = _CLOCK.now_s()
        while not await filled.yard.routes(name):
            await _CLOCK.sleep(0.001)
        known_s = _CLOCK.now_s()
        from_answer.append(known_s - answered_s)
        from_send.append(known_s - sent_s)
        await _CLOCK.sleep(pause_s)
    return Routed(Times(from_answer), Times(from_send))


def own_cpu_s() -> float:
    """CPU seconds of this process."""
    return cpu_s(psutil.Process())
