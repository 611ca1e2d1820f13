"""Who leads: one of several candidates at a time, by a key under a lease in etcd.

The candidate with the lowest create_revision leads, and that revision is its fencing token: every write
of a leader compares it (`compare_create(leadership.key, leadership.fencing_token)`), so that one that has
lost its place without knowing changes nothing. What a leader does is its own business.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis import instruments
from services.chassis.etcd import Compacted, EtcdClient, LeaseGone, compare_create, get_op, put_op
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import StoreUnavailable

ELECTIONS = "/modelyard/v1/elections"
"""Prefix of all elections."""

ACT_SHARE = 0.7
"""A leader stops acting after this share of its time to live: the rest covers clocks that run apart and
writes under way."""

BEATS_PER_TTL = 5
"""Keepalives sent in one time to live."""

RETRY_S = 0.1
"""Wait after a failed keepalive or step of a campaign."""

RESIGN_S = 0.25
"""Most time that resigning takes; if etcd does not answer the lease runs out by itself."""

_log = logger()


class Leadership:
    """The right to act, for as long as `holds()` says so."""

    def __init__(self, *, key: str, fencing_token: int, candidate: str, session: "_Session") -> None:
        """Made by `Election.campaign`.

        Args:
            key: The candidate's key in etcd.
            fencing_token: The key's create_revision; later leaders have higher ones.
            candidate: Who leads.
            session: The lease behind it.
        """
        self.key = key
        self.fencing_token = fencing_token
        self.candidate = candidate
        self.lost = session.ended
        self._session = session

    def holds(self) -> bool:
        """Whether to act now; ask before each act. Once False, it stays so: campaign again."""
        return self._session.holds()


class Election:
    """One candidate in one election."""

    def __init__(self, *, endpoints: Sequence[str], name: str, candidate: str, ttl_s: int = 5, clock: Clock) -> None:
        """Store the arguments.

        Args:
            endpoints: `host:port` of etcd's members.
            name: What is led.
            candidate: Who this is; `leader()` of any candidate tells it.
            ttl_s: Seconds after which a leader that died is replaced; at least 2.
            clock: Time.
        """
        self._client = EtcdClient(endpoints, clock=clock)
        self._name = name
        self._prefix = f"{ELECTIONS}/{name}/"
        self._candidate = candidate
        self._ttl_s = ttl_s
        self._clock = clock
        self._session: _Session | None = None
        self._closed = False

    async def campaign(self) -> Leadership:
        """Wait until this candidate leads, over outages of etcd.

        Cancelling it withdraws the candidate. A leadership held before is given up first.

        Raises:
            StoreUnavailable: The election was closed.
        """
        await self._withdraw()
        while not self._closed:
            session: _Session | None = None
            try:
                session = self._session = await self._join()
                leadership = await _unless(session.ended, self._win(session))
                if leadership is not None and session.lead(leadership.key, leadership.fencing_token):
                    instruments.LEADING.labels(self._name).set(1)
                    _log.info("leads", election=self._name, fencing_token=leadership.fencing_token)
                    return leadership
            except (StoreUnavailable, LeaseGone) as error:
                _log.debug("campaign goes on", election=self._name, cause=str(error))
            except BaseException:
                await self._withdraw()
                raise
            await self._withdraw()
            await self._clock.sleep(RETRY_S)
        raise StoreUnavailable("the election is closed")

    async def leader(self) -> str | None:
        """Who leads now; None if nobody does.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found = await self._client.range_prefix(self._prefix)
        first = min(found.kvs, key=lambda kv: kv.create_revision, default=None)
        return None if first is None else first.value.decode()

    async def close(self) -> None:
        """Resign at once and close the connections; a `campaign` under way fails."""
        self._closed = True
        await self._withdraw()
        await self._client.close()

    async def _join(self) -> "_Session":
        """Take a lease and keep it."""
        sent_s = self._clock.now_s()
        lease = await self._client.lease_grant(self._ttl_s)
        session = _Session(
            self._client, election=self._name, lease=lease, ttl_s=self._ttl_s, sent_s=sent_s, clock=self._clock
        )
        session.start()
        return session

    async def _win(self, session: "_Session") -> Leadership:
        """Put the key and wait until those before it are gone."""
        key = f"{self._prefix}{session.lease:016x}"
        mine = await self._enlist(key, session.lease)
        while True:
            found = await self._client.range_prefix(self._prefix)
            if not any(kv.create_revision == mine for kv in found.kvs):
                raise LeaseGone(f"the candidate's key {key} was deleted")
            before = [kv for kv in found.kvs if kv.create_revision < mine]
            if not before:
                return Leadership(key=key, fencing_token=mine, candidate=self._candidate, session=session)
            # Only the last one before: each departure then wakes one candidate, not all.
            await self._gone(max(before, key=lambda kv: kv.create_revision).key.decode(), found.revision)

    async def _enlist(self, key: str, lease: int) -> int:
        """Put the key unless it is there already: an answer may have been lost."""
        put = put_op(key, self._candidate.encode(), lease)
        while True:
            try:
                reply = await self._client.txn([compare_create(key, 0)], [put], [get_op(key)])
            except StoreUnavailable:
                await self._clock.sleep(RETRY_S)
                continue
            if reply.succeeded:
                return reply.header.revision
            return reply.responses[0].response_range.kvs[0].create_revision

    async def _gone(self, key: str, revision: int) -> None:
        """Wait until `key`, which was there at `revision`, is deleted; or may have been."""
        with contextlib.suppress(Compacted):
            async with contextlib.aclosing(self._client.watch(key, start_revision=revision + 1)) as batches:
                async for batch in batches:
                    if any(event.type == pb.Event.DELETE for event in batch.events):
                        return

    async def _withdraw(self) -> None:
        """Give up the lease, and with it the candidate's key."""
        session, self._session = self._session, None
        if session is not None:
            await session.stop()


class _Session:
    """A lease that is kept for as long as its holder lives."""

    def __init__(
        self, client: EtcdClient, *, election: str, lease: int, ttl_s: int, sent_s: float, clock: Clock
    ) -> None:
        self.lease = lease
        self.ended = asyncio.Event()
        self._client = client
        self._election = election
        self._ttl_s = ttl_s
        self._clock = clock
        self._act_until_s = sent_s + ACT_SHARE * ttl_s
        self._key: str | None = None
        self._fencing_token = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep the lease from now on."""
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"lease {self._election}")

    def lead(self, key: str, fencing_token: int) -> bool:
        """Begin to lead, if the lease is fresh enough."""
        self._key, self._fencing_token = key, fencing_token
        return self.holds()

    def holds(self) -> bool:
        """Whether the last keepalive that was answered was sent less than 0.7 of the time to live ago."""
        if not self.ended.is_set() and self._clock.now_s() >= self._act_until_s:
            # Also after a pause of the process: whatever the lease did meanwhile, the place is given up.
            self._end("no keepalive was answered in time")
        return not self.ended.is_set()

    async def stop(self) -> None:
        """End it, and let etcd know."""
        self._end(None)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with contextlib.suppress(StoreUnavailable):
            await self._client.lease_revoke(self.lease, timeout_s=RESIGN_S)

    async def _keep(self) -> None:
        """Send keepalives until the lease or the place is gone."""
        try:
            await self._beat()
        except Exception:
            _log.exception("the lease is kept no longer", election=self._election)
        finally:
            self._end("the lease is kept no longer")

    async def _beat(self) -> None:
        wait_s = self._ttl_s / BEATS_PER_TTL
        while not self.ended.is_set():
            await self._clock.sleep(wait_s)
            leads = self._key is not None
            if leads and not self.holds():
                return
            sent_s = self._clock.now_s()
            timeout_s = min(1.0, self._act_until_s - sent_s) if leads else 1.0
            try:
                ttl_s = await self._client.lease_keep_alive(self.lease, timeout_s=timeout_s)
                in_place = await self._in_place()
            except StoreUnavailable:
                wait_s = RETRY_S
                continue
            if ttl_s == 0 or not in_place:
                self._end("the lease has run out" if ttl_s == 0 else "the candidate's key was deleted")
            elif not leads or self.holds():
                self._act_until_s = sent_s + ACT_SHARE * self._ttl_s
            wait_s = self._ttl_s / BEATS_PER_TTL

    async def _in_place(self) -> bool:
        """Whether a leader's key is still its own."""
        if self._key is None:
            return True
        kv = await self._client.get(self._key, timeout_s=1.0)
        return kv is not None and kv.create_revision == self._fencing_token

    def _end(self, why: str | None) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        if self._key is not None:
            instruments.LEADING.labels(self._election).set(0)
            if why is not None:
                _log.warning("leads no longer", election=self._election, cause=why)


async def _unless(ended: asyncio.Event, work: Coroutine[Any, Any, Leadership]) -> Leadership | None:
    """The result of `work`; None if `ended` comes first."""
    task = asyncio.ensure_future(work)
    end = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        end.cancel()
        await asyncio.gather(task, end, return_exceptions=True)
