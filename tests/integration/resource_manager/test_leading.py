"""Real etcd, registry, resource managers and model hosts: who leads, and what becomes of the hosts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import psutil
import pytest

from modelyard.registry.v1 import objects_pb2, registry_pb2, registry_pb2_grpc
from modelyard.resource.v1 import resource_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.chassis.channels import open_channel
from services.chassis.etcd import EtcdClient
from services.chassis.object_codec import object_to
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.domain.errors import StaleFencingToken
from services.domain.host import HostRecord
from services.domain.model import ModelKey
from services.resource_manager.actuator import Actuator
from services.resource_manager.launchers.run_directory import RunDirectory, RunFile
from services.resource_manager.reconciler import Plan
from tests.fakes.objects import a_host, a_model, a_pool, a_version
from tests.support.etcd import EtcdProcess
from tests.support.manager import Manager, until
from tests.support.ports import free_ports

KEY = ModelKey("m", "1.0.0")


class Yard:
    """A registry on real etcd, resource managers that launch hosts, and one directory for all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.etcd = EtcdProcess(directory / "etcd")
        self.registry_address = f"127.0.0.1:{free_ports(1)[0]}"
        self.registry: subprocess.Popen[bytes] | None = None
        self.managers: list[Manager] = []
        self.host_base_port = free_ports(8)[0]

    def start(self) -> None:
        self.etcd.start()
        self.start_registry()

    def start_registry(self) -> None:
        command = [sys.executable, "-m", "services.registry", "--address", self.registry_address]
        command += ["--etcd", self.etcd.endpoint, "--metrics-port", "0"]
        with (self.directory / "registry.log").open("ab") as log:
            self.registry = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill_registry(self) -> None:
        assert self.registry is not None
        self.registry.kill()
        self.registry.wait(10)

    def manager(self) -> Manager:
        flags = ("--launch", "--host-base-port", str(self.host_base_port))
        made = Manager(self.directory, registry=self.registry_address, etcd=self.etcd.endpoint, flags=flags)
        made.start()
        self.managers.append(made)
        return made

    def runs(self) -> dict[str, RunFile]:
        return {name: run for name, run in RunDirectory(self.directory).hosts().items() if alive(run)}

    async def apply(self, *objects: objects_pb2.Object, deletes: tuple[objects_pb2.ObjectKey, ...] = ()) -> int:
        async with grpc.aio.insecure_channel(self.registry_address) as channel:
            request = registry_pb2.ApplyRequest(objects=objects, deletes=deletes, reason="test")
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            return (await stub.Apply(request, timeout=20, wait_for_ready=True)).revision

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        async with grpc.aio.insecure_channel(self.registry_address) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            listed = await stub.ListHosts(registry_pb2.ListHostsRequest(), timeout=20, wait_for_ready=True)
            return list(listed.hosts)

    async def ready(self) -> dict[str, int]:
        """Hosts that run and have the version ready, with their pids."""
        pids = {run.pid for run in self.runs().values()}
        return {
            host.host_id: host.pid
            for host in await self.hosts()
            if host.pid in pids
            and any(one.key.model == "m" and one.state == model_pb2.MODEL_STATE_READY for one in host.models)
        }

    async def until_ready(self, *host_ids: str) -> dict[str, int]:
        async def as_wanted() -> dict[str, int] | None:
            found = await self.ready()
            return found if set(found) == set(host_ids) else None

        return await until(as_wanted, f"ready on {host_ids}", within_s=60.0)

    def end(self) -> None:
        for manager in self.managers:
            manager.end(signal.SIGKILL)
        for run in RunDirectory(self.directory).hosts().values():
            if alive(run):
                process = psutil.Process(run.pid)
                process.kill()
                process.wait(10)
        if self.registry is not None:
            self.kill_registry()
        self.etcd.stop()


def alive(run: RunFile) -> bool:
    try:
        process = psutil.Process(run.pid)
        return abs(process.create_time() - run.create_time) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    made.start()
    yield made
    made.end()


@pytest.fixture
async def actuator(yard: Yard) -> AsyncIterator[Actuator]:
    channel = open_channel(yard.registry_address)
    telemetry = Telemetry(service="test", instance="test", otlp_endpoint=None, sample_ratio=0.0)
    yield Actuator(registry=channel, telemetry=telemetry)
    await channel.close()
    await telemetry.shutdown()


async def test_killing_the_leader_makes_the_other_lead_and_fences_the_old_one_off(
    yard: Yard, actuator: Actuator
) -> None:
    first = yard.manager()
    old = await until(first.leads, "the first leads")
    second = yard.manager()
    await yard.apply(object_to(a_pool(hosts=2)), object_to(a_model("m")), object_to(a_version("m", replicas=2)))
    before = await yard.until_ready("cpu-0", "cpu-1")
    waiting = await until(second.plan, "the second answers")
    assert not waiting.leading
    old_key = await _election_key(yard, old.fencing_token)

    start_s = time.monotonic()
    first.end(signal.SIGKILL)
    new = await until(second.leads, "the second leads", within_s=15.0)
    print(f"a new leader {time.monotonic() - start_s:.2f} s after SIGKILL")

    assert new.fencing_token > old.fencing_token

    # It works: one replica less, ordered with its token.
    await yard.apply(object_to(a_version("m", replicas=1)))
    left = await yard.until_ready("cpu-0")
    assert left == {"cpu-0": before["cpu-0"]}, "the hosts are the same processes"
    assert {name: run.pid for name, run in yard.runs().items()} == before

    # What the old leader would still send is refused by both.
    stale = Plan(1, "old", 0.0, (), ())
    with pytest.raises(StaleFencingToken):
        await actuator.publish(stale, election_key=old_key, fencing_token=old.fencing_token)
    addresses = {host.host_id: host.address for host in await yard.hosts()}
    token = old.fencing_token
    # The unload of cpu-1 carried the new token, so this host knows it.
    record: HostRecord = a_host("cpu-1", address=addresses["cpu-1"])
    with pytest.raises(StaleFencingToken):
        await actuator.load(record, a_version("m"), a_model("m"), decision_id="stale", fencing_token=token)
    with pytest.raises(StaleFencingToken):
        await actuator.unload(record, KEY, decision_id="stale", fencing_token=token)
    with pytest.raises(StaleFencingToken):
        await actuator.drain(addresses["cpu-1"], fencing_token=token)
    assert await yard.ready() == left


async def test_a_leader_paused_beyond_its_term_does_nothing_when_it_resumes(yard: Yard) -> None:
    first = yard.manager()
    old = await until(first.leads, "the first leads")
    second = yard.manager()
    await yard.apply(object_to(a_pool(hosts=1)), object_to(a_model("m")), object_to(a_version("m")))
    before = await yard.until_ready("cpu-0")
    done = len(await first.decisions())

    first.send(signal.SIGSTOP)
    new = await until(second.leads, "the second leads", within_s=15.0)
    await yard.apply(object_to(a_pool(hosts=2)), object_to(a_version("m", replicas=2)))
    now = await yard.until_ready("cpu-0", "cpu-1")
    first.send(signal.SIGCONT)

    async def follows() -> bool:
        plan = await first.plan()
        return plan is not None and not plan.leading and plan.leader_id == second.candidate

    await until(follows, "the first knows who leads")
    assert new.fencing_token > old.fencing_token
    assert now["cpu-0"] == before["cpu-0"]
    assert len(await first.decisions()) == done
    assert await yard.ready() == now
    assert len(yard.runs()) == 2


async def test_hosts_outlive_their_managers_and_are_adopted_restarted_and_scaled_down(yard: Yard) -> None:
    first = yard.manager()
    await yard.apply(object_to(a_pool(hosts=2)), object_to(a_model("m")), object_to(a_version("m", replicas=2)))
    pids = await yard.until_ready("cpu-0", "cpu-1")

    # A good-bye leaves them; so does the registry's absence.
    assert first.end() == 0
    assert {name: run.pid for name, run in yard.runs().items()} == pids
    second = yard.manager()
    await until(second.leads, "the second leads")
    yard.kill_registry()
    yard.start_registry()
    assert await yard.until_ready("cpu-0", "cpu-1") == pids
    assert {name: run.pid for name, run in yard.runs().items()} == pids

    # A host that is killed comes back under its name and port, with its version.
    address = yard.runs()["cpu-0"].address
    start_s = time.monotonic()
    os.kill(pids["cpu-0"], signal.SIGKILL)

    async def again() -> RunFile | None:
        run = yard.runs().get("cpu-0")
        return run if run is not None and run.pid != pids["cpu-0"] else None

    run = await until(again, "cpu-0 is started again")
    print(f"started again {time.monotonic() - start_s:.2f} s after SIGKILL")
    assert run.address == address
    assert await yard.until_ready("cpu-0", "cpu-1") == {"cpu-0": run.pid, "cpu-1": pids["cpu-1"]}
    print(f"ready again {time.monotonic() - start_s:.2f} s after SIGKILL")

    # The pool is made smaller: one host goes, the other stays.
    await yard.apply(object_to(a_pool(hosts=1)), object_to(a_version("m")))

    async def one() -> bool:
        return list(yard.runs()) == ["cpu-0"]

    await until(one, "cpu-1 has ended")
    assert await yard.ready() == {"cpu-0": run.pid}

    async def closed() -> bool:
        stops = [one for one in await second.decisions() if one.action == resource_pb2.PLACEMENT_ACTION_STOP_HOST]
        return [(one.host_id, one.outcome) for one in stops] == [("cpu-1", "OK")]

    await until(closed, "the decision is told")


async def test_a_pool_that_goes_has_its_versions_moved_before_its_hosts_end(yard: Yard) -> None:
    yard.manager()
    await yard.apply(object_to(a_pool("old")), object_to(a_model("m")), object_to(a_version("m")))
    await yard.until_ready("old-0")
    await yard.apply(object_to(a_pool("new")))

    await yard.apply(deletes=(objects_pb2.ObjectKey(kind="Pool", name="old"),))
    gaps = 0

    async def moved() -> bool:
        nonlocal gaps
        ready = await yard.ready()
        gaps += not ready
        return set(ready) == {"new-0"} and set(yard.runs()) == {"new-0"}

    await until(moved, "the version is on the new pool alone", within_s=60.0)
    assert gaps == 0


async def _election_key(yard: Yard, token: int) -> str:
    """Key of the candidate that leads with this token."""
    client = EtcdClient([yard.etcd.endpoint], clock=SystemClock())
    found = await client.range_prefix("/modelyard/v1/elections/resource-manager/")
    await client.close()
    (key,) = [kv.key.decode() for kv in found.kvs if kv.create_revision == token]
    return key
