"""The control plane may die and come back under load: no call fails, and routers start without it."""

from pathlib import Path

import pytest

from services.domain.model import ModelState
from services.router import snapshot_file
from tests.support.yard import Load, until, yard

APPLIED = 2
"""Revision of the model: the first one is the mesh's own pool."""

CALLS = 100
"""Answers that must come in each phase; a phase without traffic would prove nothing."""


def ready_on_disk(snapshot: Path) -> bool:
    """Whether a router that starts from the disk would find the model, and ready; it is written once a second."""
    found = snapshot_file.read(snapshot)
    if found is None or found.revision < APPLIED:
        return False
    return any(hosted.state is ModelState.READY for host in found.hosts.values() for hosted in host.models)


@pytest.mark.timeout(240)
async def test_no_call_fails_while_the_control_plane_dies_and_returns(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=2) as running:
        mesh = running.mesh
        load = Load(mesh.addresses.router, callers=4)

        async def traffic(phase: str) -> None:
            seen = load.answered
            await until(lambda: load.answered >= seen + CALLS, f"traffic {phase}")

        pids = {name: record.pid for name, record in mesh.hosts().items()}
        async with load.running():
            for parts in (["registry"], ["resource-manager"], ["etcd"], ["etcd", "registry", "resource-manager"]):
                for part in reversed(parts):
                    await mesh.kill_part(part)
                await traffic(f"without {parts}")
                for part in parts:
                    mesh.start_part(part)
                    await mesh.wait_healthy(part)
                await traffic(f"after {parts} came back")

        assert load.failures == {}
        assert load.wrong == 0
        assert {name: record.pid for name, record in mesh.hosts().items()} == pids, "a healthy host was touched"
        await running.wait_ready(2)
        print(f"{load.answered} calls, {load.retried} retried, 0 failed")


@pytest.mark.timeout(120)
async def test_a_router_restarted_during_an_outage_serves_from_its_snapshot(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=1) as running:
        mesh = running.mesh
        before = Load(mesh.addresses.router, callers=2)
        async with before.running():
            pass
        await until(lambda: ready_on_disk(mesh.layout.router_snapshot), "the router's snapshot")
        for part in ("resource-manager", "registry", "etcd", "router"):
            await mesh.kill_part(part)

        mesh.start_part("router")
        await mesh.wait_healthy("router")
        after = Load(mesh.addresses.router, callers=2)
        async with after.running():
            await until(lambda: after.answered >= CALLS, "traffic from the snapshot")

        assert after.failures == {}
        assert after.wrong == 0
