"""Versions that come and go: what a call brings in, what leaves for it, and what never does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.domain.errors import BudgetExhausted, InsufficientMemory, ModelFailed, Overloaded, YardError
from services.domain.host import DeviceKind
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion
from services.model_host.calls import Call
from services.model_host.hosted import Loaded
from services.model_host.lane import Lane
from services.model_host.lifecycle import Lifecycle
from services.model_host.orders import LoadOrder
from services.policy.batch_times import ServiceTimes
from tests.fakes.device_yard import Yard, running, settle, until
from tests.fakes.objects import MIB, a_model, a_version


class Loader:
    """Takes its time to load, on the yard's clock."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.brought: list[str] = []
        self.gate: asyncio.Semaphore | None = None
        self.fails: YardError | None = None
        self.in_memory: set[str] = set()
        self.takes_s = 0.5

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        self.in_memory.add(version.metadata.name)
        return Loaded(version.metadata.name, object(), version.memory_bytes, ServiceTimes(0.01), 0, load_s=self.takes_s)

    async def bring(self, model: Model, version: ModelVersion) -> object:
        if self.gate is not None:
            await self.gate.acquire()
        if self.fails is not None:
            raise self.fails
        self.yard.clock.advance(self.takes_s)
        self.brought.append(version.metadata.name)
        return version.metadata.name

    async def leave(self, model: object) -> None: ...

    async def trim(self) -> None: ...

    async def release(self) -> None: ...

    @asynccontextmanager
    async def unloading(self, key: ModelKey) -> AsyncIterator[None]:
        yield


class Host:
    """A lifecycle over a real queue over a device that computes when told to."""

    def __init__(self, yard: Yard, *, mib: int) -> None:
        self.yard = yard
        self.loader = Loader(yard)
        self.lifecycle = Lifecycle(
            loader=self.loader,
            serving=yard.queue,
            device_kind=DeviceKind.CPU,
            memory_bytes=mib * MIB,
            trusts_artifacts=False,
            clock=yard.clock,
            changed=lambda: None,
        )

    async def load(self, name: str, *, mib: int = 10, on_demand: bool = True) -> Lane:
        version = replace(a_version(name, mib=mib), on_demand=on_demand)
        self.lifecycle.order_load(LoadOrder(a_model(name), version, "d1", 1))
        await until(lambda: self.state(name) is not ModelState.LOADING)
        return self.lane(name)

    def lane(self, name: str) -> Lane:
        lane = next(each for each in self.lifecycle.hosted() if each.key.model == name).lane
        assert lane is not None
        return lane

    def state(self, name: str) -> ModelState:
        return next(each.state for each in self.lifecycle.models() if each.key.model == name)

    def resident(self) -> set[str]:
        return {each.key.model for each in self.lifecycle.hosted() if each.lane is not None and each.lane.resident}

    def call(self, name: str, *, within_s: float = 100.0) -> "asyncio.Future[object]":
        lane = self.lane(name)
        call = Call(name, self.yard.clock.now_s() + within_s)
        return asyncio.ensure_future(self.yard.queue.submit(lane, call))

    async def served(self, name: str) -> None:
        """Call it, and let it be computed."""
        call = self.call(name)
        self.yard.device.gate.release()
        await call


@asynccontextmanager
async def a_host(*, mib: int = 30) -> AsyncIterator[Host]:
    async with running() as yard:
        host = Host(yard, mib=mib)
        task = asyncio.ensure_future(host.lifecycle.run())
        try:
            yield host
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_more_versions_than_fit_are_all_ready_and_memory_is_never_exceeded() -> None:
    async with a_host(mib=30) as host:
        for number in range(10):
            await host.load(f"m{number}")
            assert host.lifecycle.used_bytes <= 30 * MIB
        assert {each.state for each in host.lifecycle.models()} == {ModelState.READY}
        assert len(host.resident()) == 3


async def test_a_call_brings_its_version_in_and_waits_for_it() -> None:
    async with a_host(mib=20) as host:
        for name in ("a", "b", "c"):
            await host.load(name)
        assert host.resident() == {"b", "c"}
        host.yard.clock.advance(10.0)
        await host.served("a")
        assert host.loader.brought == ["a"]
        assert "a" in host.resident()
        assert host.lifecycle.used_bytes == 20 * MIB
        assert host.lane("a").statistics.cold == 1
        assert host.lane("a").statistics.loads == 2
        assert sum(host.lane(name).statistics.evictions for name in ("b", "c")) == 1


async def test_the_least_worth_leaves() -> None:
    async with a_host(mib=20) as host:
        for name in ("often", "seldom", "new"):
            await host.load(name)
        host.yard.clock.advance(10.0)
        for name in ("often", "often", "often", "seldom", "often"):
            await host.served(name)
            host.yard.clock.advance(10.0)
        await host.served("new")
        assert host.resident() == {"often", "new"}


async def test_a_version_with_calls_does_not_leave_and_the_call_waits_for_its_place() -> None:
    async with a_host(mib=10) as host:
        await host.load("a")
        await host.load("b")
        host.yard.clock.advance(10.0)
        busy = host.call("b")
        await until(lambda: len(host.yard.device.ran) == 1)
        waits = host.call("a")
        await settle()
        assert host.resident() == {"b"}
        host.yard.device.gate.release()
        await busy
        host.yard.clock.advance(1.0)
        host.yard.device.gate.release()
        await waits
        assert host.resident() == {"a"}


async def test_a_pinned_version_never_leaves() -> None:
    async with a_host(mib=30) as host:
        await host.load("pinned", mib=20, on_demand=False)
        for name in ("a", "b", "c"):
            await host.load(name)
            host.yard.clock.advance(10.0)
        for name in ("a", "b", "c", "a"):
            await host.served(name)
            host.yard.clock.advance(10.0)
            assert host.resident() == {"pinned", name}


async def test_a_pinned_version_makes_others_leave_and_must_leave_room_for_the_largest() -> None:
    async with a_host(mib=30) as host:
        for name in ("a", "b", "c"):
            await host.load(name)
        await host.load("pinned", mib=20, on_demand=False)
        assert len(host.resident()) == 2
        with pytest.raises(InsufficientMemory):
            host.lifecycle.order_load(LoadOrder(a_model("more"), a_version("more", mib=1), "d1", 1))


async def test_a_call_that_cannot_wait_for_its_version_is_refused_at_once_and_brings_it_in_all_the_same() -> None:
    async with a_host(mib=10) as host:
        await host.load("a")
        await host.load("b")
        host.yard.clock.advance(10.0)
        with pytest.raises(Overloaded, match="would answer in about") as refused:
            await host.call("a", within_s=0.1)
        assert refused.value.retry_after_s == pytest.approx(0.5)
        await until(lambda: host.resident() == {"a"})
        call = host.call("a", within_s=0.1)
        host.yard.device.gate.release()
        await call


async def test_calls_that_wait_too_long_for_a_place_are_dropped_in_time() -> None:
    async with a_host(mib=10) as host:
        await host.load("a")
        await host.load("b")
        host.yard.clock.advance(10.0)
        busy = host.call("b", within_s=1000.0)
        await until(lambda: len(host.yard.device.ran) == 1)
        waits = host.call("a", within_s=1.0)
        await settle()
        host.yard.clock.advance(2.0)
        host.yard.device.gate.release()
        await busy
        with pytest.raises((BudgetExhausted, Overloaded)):
            await waits


async def test_a_version_that_cannot_be_brought_back_fails_its_calls_and_says_so() -> None:
    async with a_host(mib=10) as host:
        await host.load("a")
        await host.load("b")
        host.yard.clock.advance(10.0)
        host.loader.fails = ModelFailed("its file is gone")
        with pytest.raises(ModelFailed, match="its file is gone"):
            await host.call("a")
        assert host.state("a") is ModelState.FAILED
        assert host.lifecycle.used_bytes == 0


async def test_unloading_a_version_that_is_away_ends_its_calls_and_leaves_nothing() -> None:
    async with a_host(mib=10) as host:
        await host.load("a")
        await host.load("b")
        host.yard.clock.advance(10.0)
        host.loader.gate = asyncio.Semaphore(0)
        waits = host.call("a")
        await settle()
        host.lifecycle.order_unload(ModelKey("a", "1.0.0"), "d2", 1)
        with pytest.raises(YardError):
            await waits
        host.loader.gate.release()
        await settle()
        assert [each.key.model for each in host.lifecycle.models()] == ["b"]
        assert host.lifecycle.used_bytes == 0
