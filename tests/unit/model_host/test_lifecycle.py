import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.domain.clock import ManualClock
from services.domain.errors import (
    ArtifactRejected,
    Draining,
    InsufficientMemory,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    StaleFencingToken,
    YardError,
)
from services.domain.host import DeviceKind
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion
from services.model_host.hosted import Loaded
from services.model_host.lane import Lane
from services.model_host.lifecycle import Lifecycle
from services.model_host.orders import LoadOrder
from services.policy.batch_times import ServiceTimes
from services.policy.batching import TightestBudget
from tests.fakes.objects import MIB, a_model, a_version

A, B = ModelKey("a", "1.0.0"), ModelKey("b", "1.0.0")


class HandLoader:
    """Loads when told to."""

    def __init__(self) -> None:
        self.gate = asyncio.Semaphore(0)
        self.loading: list[ModelKey] = []
        self.measured: dict[ModelKey, int] = {}
        self.fails: dict[ModelKey, YardError] = {}
        self.released = 0

    async def load(self, model: Model, version: ModelVersion) -> Loaded:
        key = version.model_key
        self.loading.append(key)
        await self.gate.acquire()
        if key in self.fails:
            raise self.fails[key]
        return Loaded(object(), object(), self.measured.get(key, version.memory_bytes), ServiceTimes(0.01), 0)

    async def bring(self, model: Model, version: ModelVersion) -> object:
        raise NotImplementedError

    async def leave(self, model: object) -> None:
        raise NotImplementedError

    async def trim(self) -> None: ...

    async def release(self) -> None:
        self.released += 1

    @asynccontextmanager
    async def unloading(self, key: ModelKey) -> AsyncIterator[None]:
        yield
        self.released += 1


class HandServing:
    """Lanes that close when told to."""

    def __init__(self) -> None:
        self.gate = asyncio.Semaphore(0)

    def open(
        self,
        key: ModelKey,
        model: object,
        *,
        max_batch_size: int,
        max_wait_s: float,
        slo_s: float | None,
        times: ServiceTimes,
        ceiling: int = 0,
    ) -> Lane:
        return Lane(key, model, max_batch_size, max_wait_s, slo_s, times, TightestBudget(), ceiling)

    async def close(self, lane: Lane) -> None:
        lane.closed = True
        await self.gate.acquire()

    def arrived(self, lane: Lane, model: object) -> None:
        raise NotImplementedError

    def refuse_all(self, lane: Lane, error: YardError) -> None:
        raise NotImplementedError


class Host:
    """A lifecycle and its hands."""

    def __init__(self, *, mib: int, trusts: bool) -> None:
        self.loader, self.serving, self.clock = HandLoader(), HandServing(), ManualClock()
        self.changes = 0
        self.lifecycle = Lifecycle(
            loader=self.loader,
            serving=self.serving,
            device_kind=DeviceKind.CPU,
            memory_bytes=mib * MIB,
            trusts_artifacts=trusts,
            clock=self.clock,
            changed=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    def order(self, name: str, decision: str = "d1", token: int = 1, *, mib: int = 1) -> ModelState:
        version = a_version(name, mib=mib)
        return self.lifecycle.order_load(LoadOrder(a_model(name), version, decision, token))

    def states(self) -> dict[str, ModelState]:
        return {hosted.key.model: hosted.state for hosted in self.lifecycle.models()}

    async def loaded(self, name: str, decision: str = "d1", token: int = 1, *, mib: int = 1) -> None:
        self.order(name, decision, token, mib=mib)
        self.loader.gate.release()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(*, mib: int = 100, trusts: bool = False) -> AsyncIterator[Host]:
    host = Host(mib=mib, trusts=trusts)
    task = asyncio.ensure_future(host.lifecycle.run())
    await settle()
    try:
        yield host
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_order_is_answered_at_once_and_loads_go_one_by_one() -> None:
    async with running() as host:
        assert host.order("a") is ModelState.LOADING
        assert host.order("b", "d2") is ModelState.LOADING
        await settle()
        assert host.loader.loading == [A]
        host.clock.advance(2.0)
        host.loader.gate.release()
        await settle()
        assert host.loader.loading == [A, B]
        assert host.states() == {"a": ModelState.READY, "b": ModelState.LOADING}
        assert host.lifecycle.ready(A).load_time_s == pytest.approx(2.0)
        with pytest.raises(ModelNotReady, match=r"b:1\.0\.0 is LOADING"):
            host.lifecycle.ready(B)
        with pytest.raises(ModelNotReady, match="not loaded"):
            host.lifecycle.ready(ModelKey("c", "1.0.0"))


async def test_the_same_decision_twice_is_one_load_and_a_failed_one_is_not_tried_again_by_it() -> None:
    async with running() as host:
        host.loader.fails[A] = ModelFailed("it breaks")
        await host.loaded("a")
        assert host.states() == {"a": ModelState.FAILED}
        assert host.lifecycle.models()[0].message == "it breaks"
        assert host.order("a", "d1") is ModelState.FAILED
        del host.loader.fails[A]
        await host.loaded("a", "d2")
        assert host.states() == {"a": ModelState.READY}
        assert host.order("a", "d3") is ModelState.READY
        assert host.loader.loading == [A, A]


async def test_a_leader_that_lost_its_place_changes_nothing() -> None:
    async with running() as host:
        await host.loaded("a", token=5)
        with pytest.raises(StaleFencingToken):
            host.order("b", token=4)
        with pytest.raises(StaleFencingToken):
            host.lifecycle.order_unload(A, "u1", 4)
        with pytest.raises(StaleFencingToken):
            host.lifecycle.order_drain(4)
        assert host.states() == {"a": ModelState.READY}
        host.lifecycle.order_drain(0)  # the operator's own hand
        assert host.lifecycle.draining


async def test_declared_memory_is_reserved_before_and_measured_memory_counts_after() -> None:
    async with running(mib=10) as host:
        host.order("a", mib=6)
        with pytest.raises(InsufficientMemory, match=f"declares {5 * MIB} bytes, and {4 * MIB} of {10 * MIB} are free"):
            host.order("b", mib=5)
        host.loader.measured[A] = 2 * MIB
        host.loader.gate.release()
        await settle()
        assert host.lifecycle.used_bytes == 2 * MIB
        await host.loaded("b", "d2", mib=5)
        assert host.states() == {"a": ModelState.READY, "b": ModelState.READY}


async def test_a_version_that_takes_more_than_there_is_fails_and_is_freed() -> None:
    async with running(mib=10) as host:
        host.loader.measured[A] = 11 * MIB
        await host.loaded("a", mib=1)
        (hosted,) = host.lifecycle.models()
        assert hosted.state is ModelState.FAILED
        assert f"takes {11 * MIB} bytes as measured (declared: {MIB})" in hosted.message
        assert host.lifecycle.used_bytes == 0
        assert host.loader.released == 1


async def test_unloading_ends_its_calls_first_and_frees_last() -> None:
    async with running() as host:
        await host.loaded("a")
        lane = host.lifecycle.ready(A).lane
        assert host.lifecycle.order_unload(A, "u1", 1) is ModelState.UNLOADING
        await settle()
        assert lane is not None
        assert lane.closed
        assert host.loader.released == 0
        with pytest.raises(ModelNotReady):
            host.lifecycle.ready(A)
        assert host.lifecycle.order_unload(A, "u2", 1) is ModelState.UNLOADING
        host.serving.gate.release()
        await settle()
        assert lane.model is None
        assert host.loader.released == 1
        assert host.states() == {}
        assert host.lifecycle.order_unload(A, "u3", 1) is None


async def test_an_unload_that_comes_twice_does_not_undo_the_load_in_between() -> None:
    async with running() as host:
        await host.loaded("a")
        host.lifecycle.order_unload(A, "u1", 1)
        host.serving.gate.release()
        await settle()
        await host.loaded("a", "d2")
        assert host.lifecycle.order_unload(A, "u1", 1) is ModelState.READY


async def test_a_load_ordered_while_the_version_unloads_comes_after() -> None:
    async with running() as host:
        await host.loaded("a")
        host.lifecycle.order_unload(A, "u1", 1)
        assert host.order("a", "d2") is ModelState.UNLOADING
        host.serving.gate.release()
        host.loader.gate.release()
        await settle()
        assert host.states() == {"a": ModelState.READY}
        assert host.lifecycle.ready(A).order.decision_id == "d2"


async def test_unloading_what_loads_or_waits_to_load_keeps_it_out() -> None:
    async with running() as host:
        host.order("a")
        host.order("b", "d2")
        await settle()
        assert host.lifecycle.order_unload(B, "u1", 1) is None
        assert host.lifecycle.order_unload(A, "u2", 1) is ModelState.UNLOADING
        host.loader.gate.release()
        await settle()
        assert host.states() == {}
        assert host.loader.loading == [A]
        assert host.loader.released == 1


async def test_objects_that_do_not_hold_are_refused_with_every_fault() -> None:
    async with running() as host:
        version = replace(a_version("b", version="one"), device_kind=DeviceKind.CUDA)
        with pytest.raises(InvalidRequest) as refused:
            host.lifecycle.order_load(LoadOrder(a_model("a"), version, "d1", 1))
        assert [fault.path for fault in refused.value.faults] == [
            "version.model_version.version",
            "version.metadata.name",
            "version.model_version.resources.device_kind",
        ]
        assert host.states() == {}


async def test_a_version_that_changed_is_not_served_under_the_same_name() -> None:
    async with running() as host:
        await host.loaded("a")
        changed = replace(a_version("a"), max_batch_size=7)
        with pytest.raises(InvalidRequest, match="unload it first"):
            host.lifecycle.order_load(LoadOrder(a_model("a"), changed, "d2", 1))


async def test_code_in_artifacts_runs_only_where_artifacts_are_trusted() -> None:
    order = LoadOrder(a_model("a"), a_version("a", executes_code=True), "d1", 1)
    async with running() as host:
        with pytest.raises(ArtifactRejected, match="does not trust"):
            host.lifecycle.order_load(order)
    async with running(trusts=True) as host:
        assert host.lifecycle.order_load(order) is ModelState.LOADING


async def test_a_drain_refuses_calls_and_loads_and_ends_once_lanes_are_closed() -> None:
    async with running() as host:
        await host.loaded("a")
        host.lifecycle.order_drain(1)
        with pytest.raises(Draining):
            host.lifecycle.ready(A)
        with pytest.raises(Draining):
            host.order("b", "d2")
        ending = asyncio.ensure_future(host.lifecycle.finish())
        await settle()
        assert not ending.done()
        host.serving.gate.release()
        await ending


async def test_before_it_ends_a_host_says_so_and_still_takes_calls() -> None:
    async with running() as host:
        await host.loaded("a")
        changes = host.changes
        host.lifecycle.announce_end()
        assert host.lifecycle.draining
        assert host.changes == changes + 1
        assert host.lifecycle.ready(A).state is ModelState.READY


async def test_every_change_of_the_record_is_told() -> None:
    async with running() as host:
        await host.loaded("a")
        assert host.changes == 2  # LOADING, READY
        host.lifecycle.order_unload(A, "u1", 1)
        host.serving.gate.release()
        await settle()
        assert host.changes == 4  # UNLOADING, gone
