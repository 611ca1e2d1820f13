"""Garbage: revisions beyond those that are kept, and what no kept revision names.

Only the leader collects, and every delete compares its place. An apply writes objects before a head names them, so
what looks like garbage may be about to be named. Therefore each collection first moves a mark: an apply that looked at
the store before then cannot move the head, and one that looks later writes its objects anew, later than the mark. So
whatever no kept revision names, and was last written before the mark, is garbage for good.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.etcd import compare_create, compare_mod, delete_op, get_op, put_op
from services.domain.clock import Clock
from services.domain.errors import StaleFencingToken
from services.registry import layout, tree
from services.registry.chain import Broken, head_of, oldest_kept
from services.registry.values import TXN_OPS, Values, first

STEP_TIMEOUT_S = 3.0
"""How long etcd may leave one step unanswered."""

PAUSE_S = 0.02
"""Between two deletes, which are writes: at most 50 a second."""


NOTES_S = 86_400.0
"""How long it is known how a request ended, at least; but no longer than the revision that it led to is kept."""


class Place(Protocol):
    """A leader's place; `election.Leadership` is one."""

    @property
    def key(self) -> str:
        """Its key in etcd."""
        ...

    @property
    def fencing_token(self) -> int:
        """That key's create_revision."""
        ...


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection deleted."""

    revisions: int = 0
    values: int = 0
    """Objects and trees."""
    requests: int = 0
    """Notes of how a request ended."""


class Collector:
    """Collects for the replica that leads."""

    def __init__(self, *, values: Values, clock: Clock, keep_revisions: int) -> None:
        """Keep so many revisions, the head included."""
        self._values = values
        self._clock = clock
        self._keep = keep_revisions
        self._marks: deque[tuple[float, int]] = deque()
        """When which mark was set, over the last day."""

    async def collect(self, place: Place) -> Collected:
        """Delete all garbage; ends early, and harmlessly, with an error.

        Raises:
            StaleFencingToken: The place was lost.
            StoreUnavailable: etcd does not answer.
            Broken: A kept revision is damaged: nothing is deleted that it might name.
        """
        head = await head_of(self._values, STEP_TIMEOUT_S)
        if head.revision == 0:
            return Collected()
        mark = await self._move_mark(place)
        head = await head_of(self._values, STEP_TIMEOUT_S)
        kept_from = max(1, head.revision - self._keep + 1)
        named = await self._named(kept_from, head.revision)
        revisions = await self._drop_revisions(place, kept_from)
        garbage = [
            kv
            for prefix in (layout.OBJECTS, layout.TREES)
            for kv in (await self._keys(prefix))
            if kv.mod_revision < mark and kv.key.decode().removeprefix(prefix) not in named
        ]
        values = await self._delete(place, garbage)
        requests = await self._delete(place, await self._old_requests(kept_from, mark))
        return Collected(revisions, values, requests)

    async def _move_mark(self, place: Place) -> int:
        """Make every apply under way look at the store again.

        Returns:
            The store's revision at the mark.
        """
        reply = await fenced(self._values, place, [], [put_op(layout.SWEEP, str(place.fencing_token).encode())])
        return reply.header.revision

    async def _named(self, oldest: int, newest: int) -> set[str]:
        """Digests of everything that the revisions from `oldest` to `newest` name."""
        named: set[str] = set()
        records = await self._read([layout.revision_key(number) for number in range(oldest, newest + 1)], oldest)
        level = dict.fromkeys((pb.Revision.FromString(raw).tree_digest for raw in records), True)
        while level:
            split, level = level, {}
            fresh = _fresh(split, named)
            for start in range(0, len(fresh), TXN_OPS):
                some = fresh[start : start + TXN_OPS]
                raws = await self._read([layout.tree_key(digest) for digest in some], oldest)
                for digest, raw in zip(some, raws, strict=True):
                    found = tree.listed(raw, split=split[digest])
                    level.update((ref.digest, ref.split) for ref in found.nodes.values())
                    named.update(found.objects.values())
        return named

    async def _read(self, keys: Sequence[str], oldest: int) -> list[bytes]:
        raws = []
        for kv, key in zip(await self._values.read(keys, STEP_TIMEOUT_S), keys, strict=True):
            if kv is None:
                raise Broken(oldest, key, "is missing")
            raws.append(kv.value)
        return raws

    async def _drop_revisions(self, place: Place, kept_from: int) -> int:
        """Forget the revisions before `kept_from`; first of all, say so."""
        if await oldest_kept(self._values, STEP_TIMEOUT_S) < kept_from:
            await fenced(self._values, place, [], [put_op(layout.OLDEST, str(kept_from).encode())])
        first_kept = layout.revision_key(kept_from)
        return await self._delete(
            place, [kv for kv in await self._keys(layout.REVISIONS) if kv.key.decode() < first_kept]
        )

    async def _keys(self, prefix: str) -> tuple[etcd.KeyValue, ...]:
        found = await self._values.client.range_prefix(prefix, keys_only=True, timeout_s=STEP_TIMEOUT_S)
        return found.kvs

    async def _old_requests(self, kept_from: int, mark: int) -> list[etcd.KeyValue]:
        """Notes of requests that led to revisions that are not kept, and those of changes of nothing after a day."""
        now_s = self._clock.now_s()
        self._marks.append((now_s, mark))
        while len(self._marks) > 1 and self._marks[1][0] <= now_s - NOTES_S:
            self._marks.popleft()
        at_s, old_mark = self._marks[0]
        if at_s > now_s - NOTES_S:
            old_mark = 0
        found = await self._values.client.range_prefix(layout.REQUESTS, timeout_s=STEP_TIMEOUT_S)
        return [
            kv
            for kv in found.kvs
            if kv.mod_revision < old_mark or 0 < pb.Head.FromString(kv.value).revision < kept_from
        ]

    async def _delete(self, place: Place, garbage: Sequence[etcd.KeyValue]) -> int:
        """Delete keys that nobody has written since they were listed."""
        count = 0
        for start in range(0, len(garbage), TXN_OPS):
            some = garbage[start : start + TXN_OPS]
            unmoved = [compare_mod(kv.key.decode(), kv.mod_revision) for kv in some]
            reply = await fenced(self._values, place, unmoved, [delete_op(kv.key.decode()) for kv in some])
            count += len(some) if reply.succeeded else 0  # else some were written again; the next time will do
            await self._clock.sleep(PAUSE_S)
        return count


async def fenced(
    values: Values, place: Place, compares: Iterable[etcd.Compare], writes: Sequence[etcd.RequestOp]
) -> etcd.TxnResponse:
    """Write as a leader, if all compares hold and the place is still the leader's.

    Raises:
        StaleFencingToken: It is not.
        StoreUnavailable: etcd does not answer.
    """
    reply = await values.client.txn(
        [compare_create(place.key, place.fencing_token), *compares],
        writes,
        [get_op(place.key)],
        timeout_s=STEP_TIMEOUT_S,
    )
    if not reply.succeeded:
        mine = first(reply.responses[0])
        if mine is None or mine.create_revision != place.fencing_token:
            raise StaleFencingToken(
                f"token {place.fencing_token} is not that of the registry that leads",
                metadata={"fencing_token": str(place.fencing_token)},
            )
    return reply


def _fresh(digests: Iterable[str], named: set[str]) -> list[str]:
    """Those that were not named yet; they are now."""
    found = list(dict.fromkeys(digest for digest in digests if digest not in named))
    named.update(found)
    return found
