"""A real resource manager and etcd, before a registry and hosts that say what a test wants."""

import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from modelyard.resource.v1 import resource_pb2
from services.domain.model import ModelKey
from services.resource_manager.fleet_view import GRACE_S
from tests.fakes.host_server import FakeHost
from tests.fakes.objects import a_model, a_version
from tests.fakes.registry_server import FakeRegistry
from tests.support.etcd import EtcdProcess
from tests.support.manager import Manager, until
from tests.support.ports import free_ports

KEY = ModelKey("m", "1.0.0")


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    made = FakeRegistry(free_ports(1)[0])
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def host(registry: FakeRegistry) -> AsyncIterator[FakeHost]:
    made = FakeHost("a", registry)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def manager(tmp_path: Path, own_etcd: EtcdProcess, registry: FakeRegistry) -> Iterator[Manager]:
    made = Manager(tmp_path, registry=registry.address, etcd=own_etcd.endpoint)
    made.start()
    yield made
    made.end()


async def loaded(host: FakeHost) -> bool:
    return KEY in host.models


async def test_a_version_is_loaded_the_plan_published_and_the_decision_told(
    manager: Manager, registry: FakeRegistry, host: FakeHost
) -> None:
    await registry.say(1, a_model("m"), a_version("m"))
    await until(lambda: loaded(host), "the version is loaded")

    (order,) = host.loads
    leading = await until(manager.leads, "it leads")
    assert order.fencing_token == leading.fencing_token > 0
    assert leading.leader_id == manager.candidate
    assert [(one.key.model, one.host_id) for one in leading.plan.placements] == [("m", "a")]

    async def published() -> bool:
        return any(request.plan.placements for request in registry.plans)

    await until(published, "the plan is published")
    assert {request.fencing_token for request in registry.plans} == {order.fencing_token}
    assert registry.plans[-1].election_key.startswith("/modelyard/v1/elections/resource-manager/")

    async def done() -> bool:
        return [one.outcome for one in await manager.decisions()] == ["OK"]

    await until(done, "the decision is carried out")
    (decision,) = await manager.decisions()
    assert decision.decision_id == order.decision_id
    assert decision.action == resource_pb2.PLACEMENT_ACTION_LOAD
    assert (decision.key.model, decision.host_id, decision.revision) == ("m", "a", 1)
    assert decision.reason.startswith("replica 1 of 1")


async def test_nothing_is_taken_away_while_the_registry_is_away_or_comes_back_empty(
    manager: Manager, registry: FakeRegistry, host: FakeHost
) -> None:
    await registry.say(41, a_model("m"), a_version("m"))
    await until(lambda: loaded(host), "the version is loaded")

    await registry.stop()
    registry.revision, registry.objects = 0, []
    await registry.start()
    watched = registry.watches
    plans = len(registry.plans)

    async def heard_again() -> bool:
        return registry.watches > watched and "the registry is behind what it said before" in manager.log

    await until(heard_again, "the manager hears the registry again")
    for _ in range(3):
        await registry.list_host(host.record())
    decisions = await manager.decisions()
    assert [one.action for one in decisions] == [resource_pb2.PLACEMENT_ACTION_LOAD]
    assert host.unloads == []
    assert len(registry.plans) == plans

    # The same emptiness under a later revision is somebody's wish.
    await registry.say(42)

    async def gone() -> bool:
        return KEY not in host.models

    await until(gone, "the version is unloaded")
    assert host.unloads[0].fencing_token == host.loads[0].fencing_token


async def test_a_host_is_replaced_only_after_the_grace_time(
    manager: Manager, registry: FakeRegistry, host: FakeHost
) -> None:
    other = FakeHost("b", registry)
    await registry.say(1, a_model("m"), a_version("m"))
    await until(lambda: loaded(host), "the version is loaded")
    await other.start()

    start_s = time.monotonic()
    await registry.unlist_host("a")
    await until(lambda: loaded(other), "the other host has it", within_s=GRACE_S + 15)

    assert time.monotonic() - start_s >= GRACE_S - 0.5
    await other.stop()


async def test_a_restart_touches_no_healthy_host(
    tmp_path: Path, own_etcd: EtcdProcess, manager: Manager, registry: FakeRegistry, host: FakeHost
) -> None:
    await registry.say(1, a_model("m"), a_version("m"))
    await until(lambda: loaded(host), "the version is loaded")
    manager.end(signal.SIGKILL)

    again = Manager(tmp_path, registry=registry.address, etcd=own_etcd.endpoint)
    again.start()
    try:
        leading = await until(again.leads, "the new one leads")

        async def planned() -> bool:
            plan = await again.plan()
            return plan is not None and len(plan.plan.placements) == 1

        await until(planned, "it has a plan")
        assert leading.fencing_token > host.loads[0].fencing_token
        assert len(host.loads) == 1
        assert host.unloads == []
        assert await again.decisions() == []
    finally:
        assert again.end() == 0


async def test_a_good_bye_hands_over_at_once_and_the_candidate_has_a_plan_before(
    tmp_path: Path, own_etcd: EtcdProcess, manager: Manager, registry: FakeRegistry, host: FakeHost
) -> None:
    await registry.say(1, a_model("m"), a_version("m"))
    await until(manager.leads, "the first leads")
    second = Manager(tmp_path, registry=registry.address, etcd=own_etcd.endpoint)
    second.start()
    try:

        async def ready() -> bool:
            plan = await second.plan()
            return plan is not None and plan.leader_id == manager.candidate and len(plan.plan.placements) == 1

        await until(ready, "the candidate knows the leader and the plan")
        waiting = await second.plan()
        assert waiting is not None
        assert not waiting.leading
        assert waiting.fencing_token == 0

        start_s = time.monotonic()
        manager.send(signal.SIGTERM)
        await until(second.leads, "the second leads", within_s=4.0)
        print(f"handed over in {time.monotonic() - start_s:.2f} s")  # a figure to read; `until` bounds it
        assert manager.end(None) == 0
        assert len(host.loads) == 1
    finally:
        assert second.end() == 0


async def test_a_call_without_a_deadline_or_with_a_negative_limit_is_refused(
    manager: Manager, registry: FakeRegistry
) -> None:
    await until(manager.plan, "it answers")
    async with manager.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetPlan(resource_pb2.GetPlanRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as negative:
            await stub.ListDecisions(resource_pb2.ListDecisionsRequest(limit=-1), timeout=5)
    assert negative.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "limit" in (negative.value.details() or "")
