"""Elections on real etcd, with candidates that die, freeze, resign and lose their store."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from services.chassis.election import ELECTIONS, Election, Leadership
from services.chassis.etcd import EtcdClient, compare_create, put_op
from services.chassis.instruments import REGISTRY
from services.domain.clock import SystemClock
from services.domain.errors import StoreUnavailable
from tests.support.etcd import EtcdProcess

WAIT_S = 30.0
LONG_TTL_S = 300
"""So long that nobody leads within the test by waiting for a lease to run out."""

T = TypeVar("T")
Stand = Callable[..., Election]
_names = itertools.count()


@pytest.fixture
def name() -> str:
    return f"test-{next(_names)}"


@pytest.fixture
async def client(etcd_endpoint: str) -> AsyncIterator[EtcdClient]:
    made = EtcdClient([etcd_endpoint])
    yield made
    await made.close()


@pytest.fixture
async def stand(etcd_endpoint: str, name: str) -> AsyncIterator[Stand]:
    """Makes candidates of one election, closed at the end."""
    made: list[Election] = []

    def candidate(who: str, *, ttl_s: int = LONG_TTL_S, endpoint: str = etcd_endpoint) -> Election:
        made.append(Election(endpoints=[endpoint], name=name, candidate=who, ttl_s=ttl_s, clock=SystemClock()))
        return made[-1]

    yield candidate
    for election in made:
        await election.close()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd to break."""
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.stop()


async def until(what: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    async with asyncio.timeout(WAIT_S):
        while True:
            value = await what()
            if wanted(value):
                return value
            await asyncio.sleep(0.02)


async def enlisted(client: EtcdClient, name: str, count: int) -> None:
    """Wait until so many candidates stand."""
    await until(lambda: client.range_prefix(f"{ELECTIONS}/{name}/"), lambda found: len(found.kvs) == count)


async def fenced_write(client: EtcdClient, leadership: Leadership, key: str) -> bool:
    fence = compare_create(leadership.key, leadership.fencing_token)
    return (await client.txn([fence], [put_op(key, b"")])).succeeded


async def test_first_candidate_leads_and_all_know_it(stand: Stand, client: EtcdClient, name: str) -> None:
    first, second = stand("first"), stand("second")
    assert await first.leader() is None

    leadership = await first.campaign()

    waiting = asyncio.create_task(second.campaign())
    await enlisted(client, name, 2)
    assert leadership.holds()
    assert leadership.candidate == "first"
    assert leadership.key.startswith(f"{ELECTIONS}/{name}/")
    assert await first.leader() == await second.leader() == "first"
    assert not waiting.done()
    assert await fenced_write(client, leadership, f"/{name}")
    assert REGISTRY.get_sample_value("modelyard_leading", {"election": name}) == 1
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_leader_that_resigns_hands_over_without_waiting_for_its_lease(
    stand: Stand, client: EtcdClient, name: str
) -> None:
    first, second = stand("first"), stand("second")
    old = await first.campaign()
    waiting = asyncio.create_task(second.campaign())
    await enlisted(client, name, 2)

    await first.close()

    async with asyncio.timeout(WAIT_S):
        new = await waiting
    assert new.fencing_token > old.fencing_token
    assert new.holds()
    assert old.lost.is_set()
    assert not old.holds()
    assert await second.leader() == "second"
    assert not await fenced_write(client, old, f"/{name}")
    assert await fenced_write(client, new, f"/{name}")


async def test_candidates_lead_in_the_order_they_came(stand: Stand, client: EtcdClient, name: str) -> None:
    candidates = [stand(str(n)) for n in range(4)]
    await candidates[0].campaign()
    waiting = []
    for n, candidate in enumerate(candidates[1:], start=2):
        waiting.append(asyncio.create_task(candidate.campaign()))
        await enlisted(client, name, n)

    await candidates[2].close()
    assert not waiting[0].done()
    for who, (task, before) in {"1": (waiting[0], candidates[0]), "3": (waiting[2], candidates[1])}.items():
        await before.close()
        async with asyncio.timeout(WAIT_S):
            assert (await task).candidate == who
    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting[1]


async def test_candidate_that_gives_up_leaves_no_trace(stand: Stand, client: EtcdClient, name: str) -> None:
    await stand("first").campaign()
    waiting = asyncio.create_task(stand("second").campaign())
    await enlisted(client, name, 2)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    await enlisted(client, name, 1)


async def test_leader_whose_key_is_deleted_leads_no_longer(stand: Stand, client: EtcdClient) -> None:
    election = stand("first", ttl_s=5)
    leadership = await election.campaign()

    await client.delete(leadership.key)

    async with asyncio.timeout(WAIT_S):
        await leadership.lost.wait()
    assert not leadership.holds()
    again = await election.campaign()
    assert again.holds()
    assert again.fencing_token > leadership.fencing_token


async def test_leader_whose_lease_is_revoked_leads_no_longer(stand: Stand, client: EtcdClient) -> None:
    leadership = await stand("first", ttl_s=5).campaign()

    await client.lease_revoke(int(leadership.key.rpartition("/")[2], 16))

    async with asyncio.timeout(WAIT_S):
        await leadership.lost.wait()
    assert not leadership.holds()


async def test_waiting_candidate_that_loses_its_lease_stands_again(stand: Stand, client: EtcdClient, name: str) -> None:
    first = stand("first")
    await first.campaign()
    waiting = asyncio.create_task(stand("second", ttl_s=5).campaign())
    await enlisted(client, name, 2)
    prefix = f"{ELECTIONS}/{name}/"
    theirs = [kv for kv in (await client.range_prefix(prefix)).kvs if kv.value == b"second"]

    await client.lease_revoke(theirs[0].lease)
    await enlisted(client, name, 1)
    await enlisted(client, name, 2)
    await first.close()

    async with asyncio.timeout(WAIT_S):
        leadership = await waiting
    assert await fenced_write(client, leadership, f"/{name}")


async def test_short_outage_of_etcd_costs_no_leadership(stand: Stand, own_etcd: EtcdProcess) -> None:
    leadership = await stand("first", ttl_s=30, endpoint=own_etcd.endpoint).campaign()
    client = EtcdClient([own_etcd.endpoint])

    own_etcd.kill()
    own_etcd.start()

    await until(lambda: writes(client, leadership), bool)
    assert leadership.holds()
    await client.close()


async def writes(client: EtcdClient, leadership: Leadership) -> bool:
    try:
        return await fenced_write(client, leadership, "/a")
    except StoreUnavailable:
        return False


async def test_leader_cut_off_from_etcd_stops_and_can_lead_again(stand: Stand, own_etcd: EtcdProcess) -> None:
    election = stand("first", ttl_s=2, endpoint=own_etcd.endpoint)
    leadership = await election.campaign()

    own_etcd.pause()
    async with asyncio.timeout(WAIT_S):
        await leadership.lost.wait()
    assert not leadership.holds()
    campaign = asyncio.create_task(election.campaign())
    own_etcd.resume()

    async with asyncio.timeout(WAIT_S):
        again = await campaign
    assert again.holds()
    assert again.fencing_token > leadership.fencing_token
    assert not leadership.holds()


class Candidate:
    """`candidate.py` in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, first_word: str) -> str:
        """The next line that begins so; other lines before it, but for a refused write, fail the test."""
        assert self.process.stdout is not None
        line = "refused"
        async with asyncio.timeout(WAIT_S):
            while line == "refused":
                line = (await self.process.stdout.readline()).decode().strip()
        assert line.split(" ")[0] == first_word, f"said {line!r}"
        return line.partition(" ")[2]

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@pytest.fixture
async def start(etcd_endpoint: str, name: str) -> AsyncIterator[Callable[[str, int], Awaitable[Candidate]]]:
    """Starts candidates in processes of their own, ended at the end."""
    started: list[Candidate] = []

    async def candidate(who: str, ttl_s: int) -> Candidate:
        module = "tests.integration.chassis.candidate"
        started.append(
            Candidate(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module, etcd_endpoint, name, who, str(ttl_s)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )
            )
        )
        return started[-1]

    yield candidate
    for one in started:
        await one.end()


async def written_by(client: EtcdClient, name: str) -> int:
    kv = await client.get(f"/test_election/{name}/written-by")
    return 0 if kv is None else int(kv.value)


async def test_killed_leader_is_replaced_once_its_lease_has_run_out(
    start: Callable[[str, int], Awaitable[Candidate]], stand: Stand, client: EtcdClient, name: str
) -> None:
    victim = await start("victim", 2)
    token = int(await victim.says("leads"))
    heir = asyncio.create_task(stand("heir", ttl_s=2).campaign())
    await enlisted(client, name, 2)

    victim.process.kill()

    async with asyncio.timeout(WAIT_S):
        leadership = await heir
    assert leadership.fencing_token > token


async def test_leader_in_another_process_hands_over_when_asked_to_end(
    start: Callable[[str, int], Awaitable[Candidate]], stand: Stand, client: EtcdClient, name: str
) -> None:
    first = await start("first", LONG_TTL_S)
    await first.says("leads")
    heir = asyncio.create_task(stand("heir").campaign())
    await enlisted(client, name, 2)

    assert first.process.stdin is not None
    first.process.stdin.close()

    async with asyncio.timeout(WAIT_S):
        assert (await heir).candidate == "heir"
    await first.says("done")


async def test_leader_that_wakes_from_a_pause_knows_and_changes_nothing(
    start: Callable[[str, int], Awaitable[Candidate]], stand: Stand, client: EtcdClient, name: str
) -> None:
    sleeper = await start("sleeper", 2)
    old_token = int(await sleeper.says("leads"))
    await until(lambda: written_by(client, name), lambda token: token == old_token)
    heir = asyncio.create_task(stand("heir", ttl_s=5).campaign())
    await enlisted(client, name, 2)

    sleeper.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(WAIT_S):
        leadership = await heir
    fence = compare_create(leadership.key, leadership.fencing_token)
    key = f"/test_election/{name}/written-by"
    assert (await client.txn([fence], [put_op(key, b"%d" % leadership.fencing_token)])).succeeded
    sleeper.process.send_signal(signal.SIGCONT)

    assert await sleeper.says("paused") == "False"
    await sleeper.says("lost")
    await sleeper.says("done")
    assert await written_by(client, name) == leadership.fencing_token
