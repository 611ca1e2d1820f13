"""Candidates of many elections in one process, which is frozen and thawed: leaders that do not know what they missed.

Each leader writes all the time, by the ways that the product's leaders write: the collector's fenced transaction and
the publishing of a plan. Right after a pause it writes once more by each, without asking whether it still leads, and
says what became of it; only then does it look, and campaigns anew.

`python -m tests.chaos.registry.sleeper WHO ELECTIONS TTL_S BUG ENDPOINT...`; BUG may be `none`. On stdout, a line each:
`leads ELECTION TOKEN` and, after a pause, `woke ELECTION TOKEN COLLECTED PUBLISHED HOLDS`, where the second and third
are `accepted`, `refused` or `unknown`.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.election import Election, Leadership
from services.chassis.etcd import EtcdClient, RangeResult, put_op
from services.domain.clock import SystemClock
from services.domain.errors import StaleFencingToken, StoreUnavailable
from services.registry import layout
from services.registry.collecting import fenced
from services.registry.host_orders import HostOrders
from services.registry.leases import HostLeases
from services.registry.values import Values
from tests.chaos.registry.faulty import without_fencing
from tests.chaos.registry.fencing import LED

GAP_S = 1.0
"""A longer gap in the process's own time was a pause."""

WRITE_EVERY_S = 0.1
WRITE_S = 1.0


class Renamed:
    """etcd, where the resource managers' election and the plan have other names: so that there can be many."""

    def __init__(self, client: EtcdClient, election: str) -> None:
        """Let `election` be that of the resource managers."""
        self._client = client
        self._names = {
            layout.PLANNER_ELECTION: f"{layout.PREFIX}elections/{election}/",
            layout.PLAN: f"{LED}{election}/plan",
        }

    async def range_prefix(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, timeout_s: float = WRITE_S
    ) -> RangeResult:
        """As EtcdClient's."""
        found = await self._client.range_prefix(
            self._there(prefix), revision=revision, keys_only=keys_only, timeout_s=timeout_s
        )
        for kv in found.kvs:
            kv.key = self.here(kv.key.decode()).encode()
        return found

    async def txn(
        self,
        compares: Sequence[etcd.Compare],
        success: Sequence[etcd.RequestOp],
        failure: Sequence[etcd.RequestOp] = (),
        *,
        timeout_s: float = WRITE_S,
    ) -> etcd.TxnResponse:
        """As EtcdClient's."""
        for compare in compares:
            compare.key = self._there(compare.key.decode()).encode()
        for op in success:
            op.request_put.key = self._there(op.request_put.key.decode()).encode()
        return await self._client.txn(compares, success, failure, timeout_s=timeout_s)

    def _there(self, key: str) -> str:
        return next(
            (there + key.removeprefix(here) for here, there in self._names.items() if key.startswith(here)), key
        )

    def here(self, key: str) -> str:
        """What the product calls a key."""
        return next(
            (here + key.removeprefix(there) for here, there in self._names.items() if key.startswith(there)), key
        )


class Candidate:
    """One candidate in one election."""

    def __init__(self, number: int, who: str, ttl_s: int, endpoints: Sequence[str], client: EtcdClient) -> None:
        """Campaign in election `number` as `who`."""
        clock = SystemClock()
        self._number = number
        self._name = f"chaos-{number}"
        self._clock = clock
        self._election = Election(endpoints=endpoints, name=self._name, candidate=who, ttl_s=ttl_s, clock=clock)
        self._values = Values(client=client, clock=clock)
        self._renamed = Renamed(client, self._name)
        orders = HostOrders(client=client, clock=clock)
        self._leases = HostLeases(client=self._renamed, clock=clock, orders=orders)  # type: ignore[arg-type]

    async def run(self) -> None:
        """Lead whenever it is its turn, until cancelled."""
        try:
            while True:
                leadership = await self._election.campaign()
                print("leads", self._number, leadership.fencing_token, flush=True)
                await self._lead(leadership)
        finally:
            await self._election.close()

    async def _lead(self, leadership: Leadership) -> None:
        while leadership.holds():
            before_s = self._clock.now_s()
            await self._collect(leadership)
            await self._publish(leadership)
            await self._clock.sleep(WRITE_EVERY_S)
            if self._clock.now_s() - before_s > GAP_S + WRITE_EVERY_S:
                collected, published = await self._collect(leadership), await self._publish(leadership)
                print(
                    *("woke", self._number, leadership.fencing_token, collected, published),
                    "holds" if leadership.holds() else "lost",
                    flush=True,
                )
                return

    async def _collect(self, leadership: Leadership) -> str:
        """Write as the collector does."""
        write = put_op(f"{LED}{self._name}/collected", str(leadership.fencing_token).encode())
        return await _outcome(lambda: fenced(self._values, leadership, [], [write]))

    async def _publish(self, leadership: Leadership) -> str:
        """Publish a plan as the registry does for its maker."""
        plan = pb.Plan(leader_id=str(leadership.fencing_token)).SerializeToString()
        return await _outcome(
            lambda: self._leases.publish(
                plan,
                election_key=self._renamed.here(leadership.key),
                fencing_token=leadership.fencing_token,
                timeout_s=WRITE_S,
            )
        )


async def _outcome(write: Callable[[], Awaitable[object]]) -> str:
    try:
        await write()
    except StaleFencingToken:
        return "refused"
    except StoreUnavailable:
        return "unknown"
    return "accepted"


async def main(who: str, elections: int, ttl_s: int, bug: str, endpoints: Sequence[str]) -> None:
    """Campaign in every election until stdin ends."""
    made: Callable[..., EtcdClient] = without_fencing if bug == "no-fencing" else EtcdClient
    client = made(endpoints)
    candidates = [Candidate(number, who, ttl_s, endpoints, client) for number in range(elections)]
    tasks = [asyncio.create_task(candidate.run()) for candidate in candidates]
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    with contextlib.suppress(StoreUnavailable):
        await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]))
