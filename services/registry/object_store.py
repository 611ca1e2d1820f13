"""Revisions in etcd: what is immutable is written first, then one transaction moves the head.

Owns the order of writes, reading back, and the memory of the last states read. What the keys and
values look like is in `layout`; what may be applied, in `apply`. Several replicas share one store.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2
from services.chassis.etcd import Compacted, compare_create, compare_mod, get_op, put_op
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import Internal, RevisionNotFound, StoreUnavailable
from services.domain.objects import Object, ObjectKey
from services.policy.tree_diff import Change
from services.registry import layout
from services.registry.chain import oldest_kept
from services.registry.layout import Draft, Entry, State
from services.registry.ports import Done, Found, Note, Outcome
from services.registry.tree import Reading
from services.registry.values import TXN_OPS, Etcd, Values, each, first

KEPT_STATES = 8
"""States of older revisions kept in memory; they share their objects."""

MANY = 200
"""Objects that are put together to a state in the event loop at most: about 10 ms."""

OUTAGE_S = 1.0
"""How long a read of the head waits for etcd before it takes what is known, and how long the next ones do not."""

RELIST_S = 0.5
"""Wait before the head is listed again after etcd did not answer."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Keys read at one moment, the head first."""

    kvs: list[etcd.KeyValue | None]
    revision: int
    """The store's revision at that moment."""
    went_back: bool
    """Whether the store was emptied or restored: it is behind what it had said before."""

    @property
    def mark(self) -> int:
        return _mod(self.kvs[0])


class ObjectStore:
    """Desired state in etcd; `ports.Store` for one replica.

    A `timeout_s` is how long etcd may leave one step unanswered. A large state takes many steps; how long
    they take together is bounded by the caller's own deadline, which cancels them.
    """

    def __init__(self, *, client: Etcd, clock: Clock) -> None:
        """Store the arguments.

        Args:
            client: etcd.
            clock: Time.
        """
        self._client = client
        self._values = Values(client=client, clock=clock)
        self._clock = clock
        self._head = State()
        self._known = False
        self._older: OrderedDict[int, State] = OrderedDict()
        self._loading = asyncio.Lock()
        self._away_until_s = 0.0

    async def head(self, *, timeout_s: float) -> State:
        """The state at the head now.

        Raises:
            StoreUnavailable: etcd does not answer.
            Internal: What is stored cannot be right.
        """
        return await self._load(await self._look([layout.HEAD], timeout_s), timeout_s)

    async def head_or_last(self, *, timeout_s: float) -> State:
        """The state at the head now; while etcd does not answer, as it was last read.

        Raises:
            StoreUnavailable: etcd does not answer and never did.
            Internal: What is stored cannot be right.
        """
        if not self._known:
            return await self.head(timeout_s=timeout_s)
        if self._clock.now_s() >= self._away_until_s:
            try:
                # Half of the time at most, so that the rest is enough to answer from memory.
                return await self.head(timeout_s=min(OUTAGE_S, timeout_s / 2))
            except StoreUnavailable:
                self._away_until_s = self._clock.now_s() + OUTAGE_S
        return self._head

    def in_memory(self, at_least: int) -> State | None:
        """The newest state read, if it includes a revision."""
        return self._head if self._known and self._head.revision >= at_least else None

    async def prepare(self) -> None:
        """Find out what the first apply would have to wait for, in a thread; ends once that is at hand."""
        while not self._head.knows_users:
            await asyncio.to_thread(self._head.index.prepare)

    async def find(self, request_id: str, *, timeout_s: float) -> Found[State]:
        """Read the head, and how the request ended if it was carried out; see `ports.Store`."""
        while True:
            look = await self._look([layout.HEAD, layout.request_key(request_id), layout.SWEEP], timeout_s)
            state = await self._load(look, timeout_s)
            if state.mark == look.mark:
                break
            # The head moved on meanwhile, perhaps by this very request through another replica: look again.
        _, noted, sweep = look.kvs
        state = replace(state, sweep=_mod(sweep))
        if noted is None:
            return Found(state, None)
        at = registry_pb2.Head.FromString(noted.value)
        if at.revision == 0:
            return Found(state, Done(0, False))
        record, _ = await self.record(at.revision, timeout_s)
        return Found(state, Done(at.revision, record.request_id == request_id))

    async def at(self, revision: int, *, timeout_s: float) -> State:
        """The state at a revision.

        Raises:
            RevisionNotFound: There is none, or not any more.
            StoreUnavailable: etcd does not answer.
            Internal: What is stored cannot be right.
        """
        async with self._loading:
            if self._known and self._head.revision == revision:
                return self._head
            older = self._older.get(revision)
            return older if older is not None else await self._derive(revision, timeout_s)

    async def revisions(self, newest: int, count: int, *, timeout_s: float) -> list[registry_pb2.Revision]:
        """Records of at most `count` revisions, from `newest` down."""
        numbers = range(newest, max(0, newest - count), -1)
        kvs = await self._values.read([layout.revision_key(number) for number in numbers], timeout_s)
        return [registry_pb2.Revision.FromString(kv.value) for kv in kvs if kv is not None]

    def encode(self, item: Object) -> Entry:
        """The stored form of an object."""
        return layout.entry_to(item)

    def draft(self, base: State, upserts: Mapping[ObjectKey, Entry], changes: Sequence[Change], note: Note) -> Draft:
        """The revision that follows `base` by `changes`; without any, a mere note that the request is done."""
        return layout.draft(base, upserts, changes, note)

    async def write(self, draft: Draft, *, timeout_s: float) -> None:
        """Write the objects and trees of a draft, which nothing names yet; writing them again does no harm."""
        await self._values.write(draft.blobs, timeout_s)

    async def advance(self, draft: Draft, *, timeout_s: float) -> Outcome:
        """Move the head to a draft, if it is where the draft was made from; see `ports.Store`.

        Raises:
            StoreUnavailable: Surely not done.
            Internal: The history has the next revision already, although no head names it.
        """
        base, state = draft.base, draft.state
        changed = state is not base
        request = layout.request_key(draft.request_id)
        head = registry_pb2.Head(revision=state.revision, digest=state.digest)
        compares = [
            compare_mod(layout.HEAD, base.mark),
            compare_create(request, 0),
            compare_mod(layout.SWEEP, base.sweep),
        ]
        writes = [put_op(request, layout.raw_of(head))]
        if changed:
            record_key = layout.revision_key(state.revision)
            compares.append(compare_create(record_key, 0))
            if base.revision == 0:
                # Where a history is being imported that begins later, the first revision's place is taken.
                compares.append(compare_create(layout.OLDEST, 0))
            writes += [put_op(layout.HEAD, layout.raw_of(head)), put_op(record_key, draft.record)]
        try:
            reply = await self._client.txn(
                compares, writes, [get_op(layout.HEAD), get_op(request), get_op(layout.SWEEP)], timeout_s=timeout_s
            )
        except StoreUnavailable as error:
            if error.metadata.get("outcome") == "none":
                raise
            return Outcome.UNKNOWN
        if reply.succeeded:
            if changed and reply.header.revision > self._head.mark:
                self._take(replace(state, mark=reply.header.revision))
            return Outcome.MOVED
        head_now, noted, sweep = (first(response) for response in reply.responses)
        if noted is None and (_mod(head_now), _mod(sweep)) == (base.mark, base.sweep):
            raise Internal(
                f"revision {state.revision}, or a later one, is stored already although the head is {base.revision}: "
                "if the import of a history was cut off, import it again"
            )
        return Outcome.CONFLICT

    async def moves(self) -> AsyncGenerator[None, None]:
        """Yield at once, and whenever the head has moved since; goes on over outages. Close it (`aclosing`)."""
        while True:
            try:
                listed = await self._client.range_prefix(layout.HEAD)
            except StoreUnavailable as error:
                logger().warning("the store cannot be reached", cause=error.message)
                await self._clock.sleep(RELIST_S)
                continue
            yield
            with contextlib.suppress(Compacted):
                batches = self._client.watch(layout.HEAD, start_revision=listed.revision + 1)
                async with contextlib.aclosing(batches):
                    async for _ in batches:
                        yield

    async def _look(self, keys: Sequence[str], timeout_s: float) -> "_Look":
        """Read the head key and others, at one moment."""
        held = self._head.mark
        reply = await self._values.look(keys, timeout_s)
        self._away_until_s = 0.0
        kvs = [first(response) for response in reply.responses]
        return _Look(kvs, reply.header.revision, went_back=reply.header.revision < held)

    async def _load(self, look: "_Look", timeout_s: float) -> State:
        """The state that the head key names, or a later one."""
        async with self._loading:
            if self._known and (look.mark == self._head.mark or self._outdated(look)):
                return self._head
            state, found = State(), look.kvs[0]
            if found is not None:
                head = registry_pb2.Head.FromString(found.value)
                state = replace(await self._derive(head.revision, timeout_s), mark=found.mod_revision)
                if state.digest != head.digest:
                    raise Internal(f"the record of revision {head.revision} is not the one that the head names")
            self._take(state)
            return state

    def _outdated(self, look: "_Look") -> bool:
        """Whether somebody else has read or moved the head since."""
        return self._known and not look.went_back and look.revision < self._head.mark

    def _take(self, state: State) -> None:
        """Hold `state` as the head."""
        held = self._head
        if self._known and held.revision and state.revision <= held.revision and state.digest != held.digest:
            logger().error("the store went back", seen_revision=held.revision, now_revision=state.revision)
            self._older.clear()
        elif held.revision:
            self._keep(held)
        self._head, self._known = state, True

    def _keep(self, state: State) -> None:
        self._older[state.revision] = state
        self._older.move_to_end(state.revision)
        while len(self._older) > KEPT_STATES:
            self._older.popitem(last=False)

    async def _derive(self, revision: int, timeout_s: float) -> State:
        """Read a revision, taking from the nearest known state what it shares with it."""
        if revision == 0:
            return State()
        try:
            return await self._read(revision, timeout_s)
        except Internal:
            if revision < await oldest_kept(self._values, timeout_s):
                raise await self._not_found(revision, timeout_s) from None  # collected meanwhile
            raise

    async def _read(self, revision: int, timeout_s: float) -> State:
        record, raw = await self.record(revision, timeout_s)
        known = (self._head, *self._older.values())
        base = min(known, key=lambda state: abs(state.revision - revision))
        reading: Reading[Entry] = Reading(record.tree_digest, base.entries)
        while reading.nodes:
            reading.take(await self._fetch([(layout.tree_key(digest), digest) for digest in reading.nodes], timeout_s))
        found = await self._entries(reading.objects, timeout_s)

        def put_together() -> State:
            entries = reading.finish(found)
            return base.followed_by(
                revision=revision,
                digest=layout.digest_of(raw),
                entries=entries,
                changed=entries.differing(base.entries),
                parent_digest=record.parent_digest,
            )

        state = await asyncio.to_thread(put_together) if len(found) > MANY else put_together()
        self._keep(state)
        return state

    async def record(self, revision: int, timeout_s: float) -> tuple[registry_pb2.Revision, bytes]:
        """A revision's record, and its stored form.

        Raises:
            RevisionNotFound: There is none, or not any more.
            StoreUnavailable: etcd does not answer.
        """
        (kv,) = await self._values.read([layout.revision_key(revision)], timeout_s)
        if kv is None:
            raise await self._not_found(revision, timeout_s)
        return registry_pb2.Revision.FromString(kv.value), kv.value

    async def _not_found(self, revision: int, timeout_s: float) -> RevisionNotFound:
        """Why there is no such revision."""
        newest, oldest = self._head.revision, await oldest_kept(self._values, timeout_s)
        what = f"the oldest kept is {oldest}" if revision < oldest else f"the head is {newest}"
        return RevisionNotFound(
            f"there is no revision {revision}; {what}",
            metadata={"revision": str(revision), "head": str(newest), "oldest": str(oldest)},
        )

    async def _fetch(self, wanted: Sequence[tuple[str, str]], timeout_s: float) -> list[bytes]:
        """Immutable values, by key and digest; several transactions at once."""
        parts = [wanted[start : start + TXN_OPS] for start in range(0, len(wanted), TXN_OPS)]
        found: list[list[bytes]] = [[] for _ in parts]

        async def fetch(number: int) -> None:
            found[number] = await self._values.blobs(parts[number], timeout_s)

        await each(fetch(number) for number in range(len(parts)))
        return [raw for part in found for raw in part]

    async def _entries(self, digests: Mapping[ObjectKey, str], timeout_s: float) -> dict[ObjectKey, Entry]:
        entries: dict[ObjectKey, Entry] = {}

        async def fetch(keys: Sequence[ObjectKey]) -> None:
            raws = await self._values.blobs(
                [(layout.object_key(digests[key]), digests[key]) for key in keys], timeout_s
            )
            for key, raw in zip(keys, raws, strict=True):
                entries[key] = layout.entry_from(key, digests[key], raw)

        keys = list(digests)
        await each(fetch(keys[start : start + TXN_OPS]) for start in range(0, len(keys), TXN_OPS))
        return entries


def _mod(kv: etcd.KeyValue | None) -> int:
    return 0 if kv is None else kv.mod_revision
