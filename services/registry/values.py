"""Values in etcd, by key: read together, written in transactions that etcd takes, tried again where that does no harm.

Knows nothing of revisions. What keys and values look like is in `layout`.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from modelyard.etcd.v3 import rpc_pb2 as etcd
from services.chassis.etcd import RangeResult, WatchBatch, get_op, put_op
from services.domain.clock import Clock
from services.domain.errors import Internal, StoreUnavailable
from services.registry import layout

TXN_OPS = 100
"""Most operations of a transaction; etcd takes 128."""

TXN_BYTES = 1 << 20
"""Most bytes of a transaction with more than one write; etcd takes 1.5 MiB in a request."""

PARALLEL = 4
"""Transactions under way at once for many values."""

RETRY_S = 0.05
"""Wait before a read is tried again."""


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


class Values:
    """Reads and writes that may be done twice.

    A `timeout_s` is how long etcd may leave one step unanswered. Many values take many steps; how long
    they take together is bounded by the caller's own deadline, which cancels them.
    """

    def __init__(self, *, client: Etcd, clock: Clock) -> None:
        """Store the arguments.

        Args:
            client: etcd.
            clock: Time.
        """
        self.client = client
        self._clock = clock

    async def read(self, keys: Sequence[str], timeout_s: float) -> list[etcd.KeyValue | None]:
        """Read keys, at one moment if they are at most `TXN_OPS`; tries again until the deadline.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found: list[etcd.KeyValue | None] = []
        for start in range(0, len(keys), TXN_OPS):
            reply = await self.look(keys[start : start + TXN_OPS], timeout_s)
            found += [first(response) for response in reply.responses]
        return found

    async def look(self, keys: Sequence[str], timeout_s: float) -> etcd.TxnResponse:
        """Read at most `TXN_OPS` keys at one moment, with etcd's own answer.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        return await self._repeat([get_op(key) for key in keys], timeout_s)

    async def blobs(self, wanted: Sequence[tuple[str, str]], timeout_s: float) -> list[bytes]:
        """Immutable values that must be there, by key and digest.

        Raises:
            StoreUnavailable: etcd does not answer.
            Internal: One is missing, or is not what its digest says.
        """
        raws = []
        kvs = await self.read([key for key, _ in wanted], timeout_s)
        for kv, (key, digest) in zip(kvs, wanted, strict=True):
            if kv is None:
                raise Internal(f"the store has lost {key}")
            layout.check_digest(kv.value, digest)
            raws.append(kv.value)
        return raws

    async def write(self, values: Mapping[str, bytes], timeout_s: float) -> None:
        """Write values that nothing names yet.

        Raises:
            StoreUnavailable: etcd does not answer; some may be written.
        """
        await each(self._repeat(batch, timeout_s) for batch in _batches(values))

    async def _repeat(self, ops: Sequence[etcd.RequestOp], timeout_s: float) -> etcd.TxnResponse:
        """Do what does no harm when done twice; one step of possibly many."""
        deadline_s = self._clock.now_s() + timeout_s
        while True:
            left_s = max(0.001, deadline_s - self._clock.now_s())
            try:
                return await self.client.txn([], ops, timeout_s=left_s)
            except StoreUnavailable:
                if deadline_s - self._clock.now_s() <= RETRY_S:
                    raise
                await self._clock.sleep(RETRY_S)


def first(response: etcd.ResponseOp) -> etcd.KeyValue | None:
    """The key that a read found, if it is there."""
    kvs = response.response_range.kvs
    return kvs[0] if kvs else None


def _batches(values: Mapping[str, bytes]) -> Iterator[list[etcd.RequestOp]]:
    """Writes, cut into transactions that etcd takes."""
    batch: list[etcd.RequestOp] = []
    size_bytes = 0
    for key, raw in values.items():
        cost = len(key) + len(raw)
        if batch and (len(batch) == TXN_OPS or size_bytes + cost > TXN_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(put_op(key, raw))
        size_bytes += cost
    if batch:
        yield batch


async def each(steps: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run steps, `PARALLEL` at a time; the first that fails ends the others."""
    rest = iter(steps)

    async def work() -> None:
        for step in rest:
            await step

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
