"""A candidate in a process of its own; says on stdout what it sees, one line each.

`leads TOKEN` once it leads; then it writes its token to a key, fenced, as fast as etcd lets it. `paused HOLDS`
after each gap of `GAP_S` or more in its own time; `refused` for a write that was fenced off; `lost` once it
holds no longer; `done` at its end.
"""

import asyncio
import contextlib
import sys

from services.chassis.election import Election, Leadership
from services.chassis.etcd import EtcdClient, compare_create, put_op
from services.domain.clock import SystemClock
from services.domain.errors import StoreUnavailable

GAP_S = 1.5


def say(*words: object) -> None:
    """One line."""
    print(*words, flush=True)


async def act(client: EtcdClient, leadership: Leadership, key: str) -> None:
    """Write until the place is lost; after a pause say at once whether it still holds."""
    clock = SystemClock()
    fence = compare_create(leadership.key, leadership.fencing_token)
    last_s = clock.now_s()
    holds = True
    while holds:
        with contextlib.suppress(StoreUnavailable):
            reply = await client.txn([fence], [put_op(key, b"%d" % leadership.fencing_token)])
            if not reply.succeeded:
                say("refused")
        await clock.sleep(0.01)
        holds = leadership.holds()
        now_s = clock.now_s()
        if now_s - last_s >= GAP_S:
            say("paused", holds)
        last_s = now_s


async def main(endpoint: str, name: str, candidate: str, ttl_s: int) -> None:
    """Campaign once, lead until it is lost or stdin ends."""
    election = Election(endpoints=[endpoint], name=name, candidate=candidate, ttl_s=ttl_s, clock=SystemClock())
    client = EtcdClient([endpoint])
    leadership = await election.campaign()
    say("leads", leadership.fencing_token)
    acting = asyncio.create_task(act(client, leadership, f"/test_election/{name}/written-by"))
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([acting, ended], return_when=asyncio.FIRST_COMPLETED)
    if leadership.lost.is_set():
        say("lost")
    acting.cancel()
    await election.close()
    await client.close()
    say("done")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
