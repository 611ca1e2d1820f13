"""An etcd in memory, with revisions, leases and watches, that can be away or lose answers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis.etcd import Compacted, LeaseGone, RangeResult, WatchBatch
from services.domain.errors import StoreUnavailable


class FakeEtcd:
    """One member. Calls take no time; nothing happens but by a call or by a test's hand."""

    def __init__(self) -> None:
        """Empty, at revision 1 as a real one is."""
        self.revision = 1
        self.keys: dict[str, pb.KeyValue] = {}
        self.leases: set[int] = set()
        self.keepalives: list[int] = []
        self.txns: list[pb.TxnRequest] = []
        self.away = False
        self.compacted = 0
        self.before_txn: Callable[[pb.TxnRequest], None] | None = None
        """Called once, before the next transaction that writes; may raise, or write something itself."""
        self.lose_answer: Callable[[pb.TxnRequest], bool] = lambda _: False
        """Whether a transaction is done, but its answer lost."""
        self._history: list[tuple[int, list[pb.Event]]] = []
        self._changed = asyncio.Event()
        self._last_lease = 100

    async def get(self, key: str) -> bytes | None:
        """A value, for a test to look at."""
        kv = self.keys.get(key)
        return None if kv is None else kv.value

    async def range_prefix(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, timeout_s: float = 0.0
    ) -> RangeResult:
        """As EtcdClient's."""
        del revision, keys_only, timeout_s
        self._reach()
        kvs = tuple(_copy(self.keys[key]) for key in sorted(self.keys) if key.startswith(prefix))
        return RangeResult(self.revision, kvs)

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout_s: float = 0.0) -> int:
        """As EtcdClient's."""
        del timeout_s
        self._reach()
        self._check_lease(lease)
        self._commit([self._put(key, value, lease)])
        return self.revision

    async def txn(
        self,
        compares: Sequence[pb.Compare],
        success: Sequence[pb.RequestOp],
        failure: Sequence[pb.RequestOp] = (),
        *,
        timeout_s: float = 0.0,
    ) -> pb.TxnResponse:
        """As EtcdClient's, with etcd's own limits."""
        del timeout_s
        self._reach()
        request = pb.TxnRequest(compare=compares, success=success, failure=failure)
        assert len(success) <= 128, "etcd takes 128 operations"
        assert request.ByteSize() <= 1.5 * (1 << 20), "etcd takes 1.5 MiB"
        if self.before_txn is not None and any(op.HasField("request_put") for op in success):
            hook, self.before_txn = self.before_txn, None
            hook(request)
        answer = self.commit(request)
        if self.lose_answer(request):
            raise StoreUnavailable("the answer was lost", metadata={"outcome": "unknown"})
        return answer

    def commit(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Do a transaction; also one that was held back."""
        self.txns.append(request)
        holds = all(self._holds(compare) for compare in request.compare)
        responses, events = [], []
        for op in request.success if holds else request.failure:
            response = pb.ResponseOp()
            if op.HasField("request_put"):
                self._check_lease(op.request_put.lease)
                events.append(self._put(op.request_put.key.decode(), op.request_put.value, op.request_put.lease))
                response.response_put.SetInParent()
            elif op.HasField("request_delete_range"):
                key = op.request_delete_range.key.decode()
                response.response_delete_range.deleted = int(key in self.keys)
                events += [self._delete(key)] if key in self.keys else []
            else:
                response.response_range.SetInParent()
                if (kv := self.keys.get(op.request_range.key.decode())) is not None:
                    response.response_range.kvs.append(kv)
            responses.append(response)
        self._commit(events)
        return pb.TxnResponse(header=pb.ResponseHeader(revision=self.revision), succeeded=holds, responses=responses)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = 0.0) -> int:
        """As EtcdClient's."""
        del ttl_s, timeout_s
        self._reach()
        self._last_lease += 1
        self.leases.add(self._last_lease)
        return self._last_lease

    async def lease_keep_alive(self, lease: int, *, timeout_s: float = 0.0) -> int:
        """As EtcdClient's."""
        del timeout_s
        self._reach()
        self.keepalives.append(lease)
        return 10 if lease in self.leases else 0

    async def lease_revoke(self, lease: int, *, timeout_s: float = 0.0) -> None:
        """As EtcdClient's."""
        del timeout_s
        self._reach()
        self.expire(lease)

    def expire(self, lease: int) -> None:
        """Let a lease run out."""
        self.leases.discard(lease)
        self._commit([self._delete(key) for key, kv in list(self.keys.items()) if kv.lease == lease])

    def empty(self) -> None:
        """Lose everything, as if its data directory were removed."""
        self.__init__()  # type: ignore[misc]

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """As EtcdClient's."""
        at = start_revision
        while True:
            if at <= self.compacted:
                raise Compacted(self.compacted)
            for revision, events in list(self._history):
                mine = tuple(event for event in events if event.kv.key.decode().startswith(prefix))
                if revision >= at and mine:
                    yield WatchBatch(revision, mine)
                at = max(at, revision + 1)
            if at > self.revision:
                # Whoever waits has seen everything, so that one event serves all watches.
                self._changed.clear()
                await self._changed.wait()

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("etcd is away", retry_after_s=1.0, metadata={"outcome": "none"})

    def _check_lease(self, lease: int) -> None:
        if lease and lease not in self.leases:
            raise LeaseGone("etcdserver: requested lease not found")

    def _holds(self, compare: pb.Compare) -> bool:
        kv = self.keys.get(compare.key.decode(), pb.KeyValue())
        if compare.target == pb.Compare.MOD:
            return kv.mod_revision == compare.mod_revision
        assert compare.target == pb.Compare.CREATE
        return kv.create_revision == compare.create_revision

    def _put(self, key: str, value: bytes, lease: int) -> pb.Event:
        old = self.keys.get(key)
        kv = pb.KeyValue(
            key=key.encode(),
            value=value,
            lease=lease,
            create_revision=self.revision + 1 if old is None else old.create_revision,
            mod_revision=self.revision + 1,
        )
        self.keys[key] = kv
        return pb.Event(type=pb.Event.PUT, kv=kv)

    def _delete(self, key: str) -> pb.Event:
        del self.keys[key]
        return pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key.encode(), mod_revision=self.revision + 1))

    def _commit(self, events: list[pb.Event]) -> None:
        if events:
            self.revision += 1
            self._history.append((self.revision, events))
            self._changed.set()


def _copy(kv: pb.KeyValue) -> pb.KeyValue:
    copied = pb.KeyValue()
    copied.CopyFrom(kv)
    return copied
