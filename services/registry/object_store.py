"""Revisions in etcd: what is immutable is written first, then one transaction moves the head.

Owns the order of writes, reading back, and the memory of the last states read. What the keys and
values look like is in `layout`; what may be applied, in `apply`. Several replicas share one store.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2
from services.chassis.etcd import Compacted, RangeResult, WatchBatch, compare_create, compare_mod, get_op, put_op
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import Internal, RevisionNotFound, StoreUnavailable
from services.domain.objects import Object, ObjectKey
from services.policy.tree_diff import Change
from services.registry import layout
from services.registry.apply import Done, Found, Note, Outcome
from services.registry.layout import Draft, Entry, Shard, State, changed_keys

TXN_OPS = 100
"""Most operations of a transaction; etcd takes 128."""

TXN_BYTES = 1 << 20
"""Most bytes of a transaction with more than one write; etcd takes 1.5 MiB in a request."""

PARALLEL = 4
"""Transactions under way at once for many values."""
KEPT_STATES = 8
"""States of older revisions kept in memory; they share their objects."""

RETRY_S = 0.05
"""Wait before a read is tried again."""

OUTAGE_S = 1.0
"""How long a read of the head waits for etcd before it takes what is known, and how long the next ones do not."""

RELIST_S = 0.5
"""Wait before the head is listed again after etcd did not answer."""


class Etcd(Protocol):
    """What is called of etcd's client."""

    async def range_prefix(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, timeout_s: float = ...
    ) -> RangeResult:
        """Read every key that begins with `prefix`."""
        ...

    async def txn(
        self,
        compares: Sequence[etcd.Compare],
        success: Sequence[etcd.RequestOp],
        failure: Sequence[etcd.RequestOp] = (),
        *,
        timeout_s: float = ...,
    ) -> etcd.TxnResponse:
        """Do one transaction."""
        ...

    def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Follow every key that begins with `prefix`."""
        ...


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
        head = self.kvs[0]
        return 0 if head is None else head.mod_revision


class ObjectStore:
    """Desired state in etcd; `apply.Store` for one replica.

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

    async def find(self, request_id: str, *, timeout_s: float) -> Found[State]:
        """Read the head, and how the request ended if it was carried out; see `apply.Store`."""
        while True:
            look = await self._look([layout.HEAD, layout.request_key(request_id)], timeout_s)
            state = await self._load(look, timeout_s)
            if state.mark == look.mark:
                break
            # The head moved on meanwhile, perhaps by this very request through another replica: look again.
        noted = look.kvs[1]
        if noted is None:
            return Found(state, None)
        at = registry_pb2.Head.FromString(noted.value)
        if at.revision == 0:
            return Found(state, Done(0, False))
        record, _ = await self._record(at.revision, timeout_s)
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
        kvs = await self._read([layout.revision_key(number) for number in numbers], timeout_s)
        return [registry_pb2.Revision.FromString(kv.value) for kv in kvs if kv is not None]

    def encode(self, item: Object) -> Entry:
        """The stored form of an object."""
        return layout.entry_to(item)

    def draft(self, base: State, upserts: Mapping[ObjectKey, Entry], changes: Sequence[Change], note: Note) -> Draft:
        """The revision that follows `base` by `changes`; without any, a mere note that the request is done."""
        return layout.draft(base, upserts, changes, note)

    async def write(self, draft: Draft, *, timeout_s: float) -> None:
        """Write the objects and trees of a draft, which nothing names yet; writing them again does no harm."""
        await _each(self._repeat(batch, timeout_s) for batch in _batches(draft.blobs))

    async def advance(self, draft: Draft, *, timeout_s: float) -> Outcome:
        """Move the head to a draft, if it is where the draft was made from; see `apply.Store`.

        Raises:
            StoreUnavailable: Surely not done.
            Internal: The history has the next revision already, although no head names it.
        """
        base, state = draft.base, draft.state
        changed = state is not base
        request = layout.request_key(draft.request_id)
        head = registry_pb2.Head(revision=state.revision, digest=state.digest)
        compares = [compare_mod(layout.HEAD, base.mark), compare_create(request, 0)]
        writes = [put_op(request, layout.raw_of(head))]
        if changed:
            record_key = layout.revision_key(state.revision)
            compares.append(compare_create(record_key, 0))
            writes += [put_op(layout.HEAD, layout.raw_of(head)), put_op(record_key, draft.record)]
        try:
            reply = await self._client.txn(
                compares, writes, [get_op(layout.HEAD), get_op(request)], timeout_s=timeout_s
            )
        except StoreUnavailable as error:
            if error.metadata.get("outcome") == "none":
                raise
            return Outcome.UNKNOWN
        if reply.succeeded:
            if changed and reply.header.revision > self._head.mark:
                self._take(replace(state, mark=reply.header.revision))
            return Outcome.MOVED
        head_now, noted = (_first(response) for response in reply.responses)
        if noted is None and (0 if head_now is None else head_now.mod_revision) == base.mark:
            raise Internal(f"revision {state.revision} is stored already although the head is {base.revision}")
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
        reply = await self._repeat([get_op(key) for key in keys], timeout_s)
        self._away_until_s = 0.0
        kvs = [_first(response) for response in reply.responses]
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
        record, raw = await self._record(revision, timeout_s)
        known = (self._head, *self._older.values())
        base = min(known, key=lambda state: abs(state.revision - revision))
        shards = await self._shards(record.tree_digest, base, timeout_s)
        upserts, deletes = changed_keys(base, State(shards=shards))
        digests = {key: shards[layout.shard_of(key)].digests[key] for key in upserts}
        state = base.followed_by(
            revision=revision,
            digest=layout.digest_of(raw),
            shards=shards,
            upserts=await self._entries(digests, timeout_s),
            deletes=deletes,
            parent_digest=record.parent_digest,
        )
        self._keep(state)
        return state

    async def _record(self, revision: int, timeout_s: float) -> tuple[registry_pb2.Revision, bytes]:
        (kv,) = await self._read([layout.revision_key(revision)], timeout_s)
        if kv is None:
            newest = self._head.revision
            raise RevisionNotFound(
                f"there is no revision {revision}; the head is {newest}",
                metadata={"revision": str(revision), "head": str(newest)},
            )
        return registry_pb2.Revision.FromString(kv.value), kv.value

    async def _shards(self, tree_digest: str, base: State, timeout_s: float) -> dict[int, Shard]:
        root = (await self._blobs([(layout.tree_key(tree_digest), tree_digest)], timeout_s))[0]
        shards: dict[int, Shard] = {}
        wanted: list[tuple[int, str]] = []
        for ref in registry_pb2.Tree.FromString(root).shards:
            held = base.shards.get(ref.number)
            if held is not None and held.digest == ref.digest:
                shards[ref.number] = held
            else:
                wanted.append((ref.number, ref.digest))
        raws = await self._blobs([(layout.tree_key(digest), digest) for _, digest in wanted], timeout_s)
        for (number, digest), raw in zip(wanted, raws, strict=True):
            shards[number] = layout.shard_from(digest, raw)
        return shards

    async def _entries(self, digests: Mapping[ObjectKey, str], timeout_s: float) -> dict[ObjectKey, Entry]:
        entries: dict[ObjectKey, Entry] = {}

        async def fetch(keys: Sequence[ObjectKey]) -> None:
            raws = await self._blobs([(layout.object_key(digests[key]), digests[key]) for key in keys], timeout_s)
            for key, raw in zip(keys, raws, strict=True):
                entries[key] = layout.entry_from(digests[key], raw)

        keys = list(digests)
        await _each(fetch(keys[start : start + TXN_OPS]) for start in range(0, len(keys), TXN_OPS))
        return entries

    async def _blobs(self, wanted: Sequence[tuple[str, str]], timeout_s: float) -> list[bytes]:
        """Immutable values that must be there, by key and digest."""
        raws = []
        kvs = await self._read([key for key, _ in wanted], timeout_s)
        for kv, (key, digest) in zip(kvs, wanted, strict=True):
            if kv is None:
                raise Internal(f"the store has lost {key}")
            layout.check_digest(kv.value, digest)
            raws.append(kv.value)
        return raws

    async def _read(self, keys: Sequence[str], timeout_s: float) -> list[etcd.KeyValue | None]:
        """Read keys, at one moment if they are at most `TXN_OPS`; tries again until the deadline."""
        found: list[etcd.KeyValue | None] = []
        for start in range(0, len(keys), TXN_OPS):
            ops = [get_op(key) for key in keys[start : start + TXN_OPS]]
            reply = await self._repeat(ops, timeout_s)
            found += [_first(response) for response in reply.responses]
        return found

    async def _repeat(self, ops: Sequence[etcd.RequestOp], timeout_s: float) -> etcd.TxnResponse:
        """Do what does no harm when done twice; one step of possibly many."""
        deadline_s = self._clock.now_s() + timeout_s
        while True:
            left_s = max(0.001, deadline_s - self._clock.now_s())
            try:
                return await self._client.txn([], ops, timeout_s=left_s)
            except StoreUnavailable:
                if deadline_s - self._clock.now_s() <= RETRY_S:
                    raise
                await self._clock.sleep(RETRY_S)


def _first(response: etcd.ResponseOp) -> etcd.KeyValue | None:
    kvs = response.response_range.kvs
    return kvs[0] if kvs else None


def _batches(blobs: Mapping[str, bytes]) -> Iterator[list[etcd.RequestOp]]:
    """Writes, cut into transactions that etcd takes."""
    batch: list[etcd.RequestOp] = []
    size_bytes = 0
    for key, raw in blobs.items():
        cost = len(key) + len(raw)
        if batch and (len(batch) == TXN_OPS or size_bytes + cost > TXN_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(put_op(key, raw))
        size_bytes += cost
    if batch:
        yield batch


async def _each(steps: Iterator[Coroutine[Any, Any, object]]) -> None:
    """Run steps, `PARALLEL` at a time; the first that fails ends the others."""

    async def work() -> None:
        for step in steps:
            await step

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
