import asyncio

import numpy as np

from services.domain.clock import ManualClock
from services.domain.model import ModelKey
from services.model_host.devices.cpu import CpuDevice
from services.model_host.recycling import BETWEEN_LOOKS_S, LOOKS, Recycling

MIB = 1 << 20
A, B = ModelKey("a", "1.0.0"), ModelKey("b", "1.0.0")


class Memory:
    """What the process holds, as a test says it: one answer after another, and the last one ever after."""

    def __init__(self, *held_mib: int) -> None:
        self.answers = [mib * MIB for mib in held_mib]
        self.asked = 0
        self.released = 0

    async def held_bytes(self) -> int:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def release(self) -> None:
        self.released += 1


class Yard:
    """What a recycling speaks to."""

    def __init__(self, memory: Memory, *, budget_mib: int = 1000) -> None:
        self.clock = ManualClock()
        self.began_s = self.clock.now_s()
        self.memory = memory
        self.versions = 1
        self.recycled = 0
        self.recycling = Recycling(
            held_bytes=memory.held_bytes,
            release=memory.release,
            budget_bytes=budget_mib * MIB,
            versions=lambda: self.versions,
            recycle=self.count,
            clock=self.clock,
        )

    def count(self) -> None:
        self.recycled += 1

    async def unload(self, key: ModelKey = A) -> None:
        async with self.recycling.unloading(key):
            pass
        self.recycling.consider()


async def test_memory_that_came_back_is_looked_for_once() -> None:
    yard = Yard(Memory(500, 100))
    yard.recycling.loaded(A, 400 * MIB)
    await yard.unload()
    assert (yard.recycling.lost_bytes, yard.memory.asked, yard.recycled) == (0, 2, 0)


async def test_memory_that_comes_back_late_is_not_lost() -> None:
    yard = Yard(Memory(500, 500, 110))
    yard.recycling.loaded(A, 400 * MIB)
    await yard.unload()
    assert (yard.recycling.lost_bytes, yard.memory.asked) == (0, 3)
    assert yard.clock.now_s() - yard.began_s == BETWEEN_LOOKS_S


async def test_lost_memory_ends_the_host_once_it_is_empty_and_only_once() -> None:
    yard = Yard(Memory(500, 300))
    yard.recycling.loaded(A, 400 * MIB)
    await yard.unload()
    assert (yard.recycling.lost_bytes, yard.memory.asked, yard.recycled) == (200 * MIB, 1 + LOOKS, 0)
    yard.versions = 0
    yard.recycling.consider()
    yard.recycling.consider()
    assert yard.recycled == 1


async def test_losses_add_up_until_they_are_too_much_to_go_on_with() -> None:
    yard = Yard(Memory(500, 300, 300, 300, 700, 500))
    yard.recycling.loaded(A, 400 * MIB)
    yard.recycling.loaded(B, 400 * MIB)
    await yard.unload(A)
    assert yard.recycled == 0
    await yard.unload(B)
    assert (yard.recycling.lost_bytes, yard.recycled) == (400 * MIB, 1)


async def test_nothing_is_concluded_from_an_unload_beside_which_another_version_came() -> None:
    yard = Yard(Memory(500, 600))
    yard.recycling.loaded(A, 400 * MIB)
    async with yard.recycling.unloading(A):
        yard.recycling.loaded(B, 500 * MIB)
    assert yard.recycling.lost_bytes == 0


async def test_a_version_that_left_the_device_is_not_looked_for_when_it_is_unloaded() -> None:
    yard = Yard(Memory(100))
    yard.recycling.loaded(A, 400 * MIB)
    yard.recycling.left(A)
    await yard.unload()
    assert yard.recycling.lost_bytes == 0
    yard.recycling.loaded(A, 400 * MIB)
    await yard.unload()
    assert yard.recycling.lost_bytes == 400 * MIB


async def test_a_cancelled_unload_concludes_nothing() -> None:
    yard = Yard(Memory(500))
    yard.recycling.loaded(A, 400 * MIB)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def unload() -> None:
        async with yard.recycling.unloading(A):
            await never

    task = asyncio.ensure_future(unload())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (yard.recycling.lost_bytes, yard.memory.asked) == (0, 1)


async def test_the_memory_of_a_process_is_seen_to_come_back_or_not() -> None:
    device = CpuDevice(name="cpu", memory_bytes=1 << 40)

    async def held_bytes() -> int:
        return device.held_bytes()

    async def release() -> None:
        device.release()

    lost = []
    for leaks in (False, True):
        recycling = Recycling(
            held_bytes=held_bytes,
            release=release,
            budget_bytes=1 << 40,
            versions=lambda: 1,
            recycle=lambda: None,
            clock=ManualClock(),
        )
        with device.measure() as peak:
            weights = [np.ones(200 * MIB, np.uint8)]
            _ = np.ones(100 * MIB, np.uint8)
            del _
        assert 190 * MIB < peak.kept_bytes < 250 * MIB < peak.peak_bytes
        recycling.loaded(A, peak.kept_bytes)
        async with recycling.unloading(A):
            leaked = weights if leaks else []
            del weights
        lost.append(recycling.lost_bytes)
    assert lost[0] == 0
    assert lost[1] > 150 * MIB
    assert leaked
