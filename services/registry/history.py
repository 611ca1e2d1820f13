"""All of the history at once: as a file, from a file, and checked link by link.

Reads the store below the memory of `object_store`, so that what it says is what is stored now.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.etcd import compare_create, put_op
from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import Fault, Internal, InvalidRequest, RevisionMoved
from services.domain.objects import Object
from services.registry import bundle, layout, tree, wire
from services.registry.apply import Applied, Applier, Command
from services.registry.chain import Broken, Completion, head_of, walk
from services.registry.layout import Draft, Entry, State
from services.registry.values import TXN_BYTES, TXN_OPS, Values

STEP_TIMEOUT_S = 3.0
"""How long etcd may leave one step unanswered."""

MAX_STATE_BYTES = 1 << 30
"""Most bytes of the objects of an imported state, which are held in memory."""

TELL_S = 0.5
"""Time between two answers of a verification."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    applied: Applied
    revisions: int = 0
    """Those that a history brought."""


class History:
    """Export, import and verification for one replica."""

    def __init__(self, *, values: Values, applier: Applier[State, Entry, Draft], clock: Clock) -> None:
        """Store the arguments.

        Args:
            values: Where everything is stored.
            applier: Changes desired state.
            clock: Time.
        """
        self._values = values
        self._applier = applier
        self._clock = clock

    async def verify(self) -> AsyncGenerator[pb.VerifyResponse, None]:
        """Recompute the chain; see `RegistryService.Verify`. Close it (`aclosing`).

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        head = await head_of(self._values, STEP_TIMEOUT_S)
        said = pb.VerifyResponse(head=head.revision, oldest=head.revision)
        told_s = self._clock.now_s()
        try:
            async with aclosing(walk(self._values, head, timeout_s=STEP_TIMEOUT_S)) as links:
                async for link in links:
                    said.oldest = link.revision
                    match link.kind:
                        case "revision":
                            said.revisions += 1
                        case "tree":
                            said.trees += 1
                        case "object":
                            said.objects += 1
                    if self._clock.now_s() - told_s >= TELL_S:
                        told_s = self._clock.now_s()
                        yield said
        except Broken as broken:
            said.broken.CopyFrom(pb.BrokenLink(revision=broken.revision, key=broken.key, what=broken.what))
        said.done = True
        yield said

    async def export(self) -> AsyncGenerator[bytes, None]:
        """The file of the whole history, record by record. Close it (`aclosing`).

        Raises:
            StoreUnavailable: etcd does not answer.
            Internal: The history is broken; `verify` says where.
        """
        head = await head_of(self._values, STEP_TIMEOUT_S)
        yield bundle.header(head.digest, history=True)
        records = 1
        try:
            async with aclosing(walk(self._values, head, timeout_s=STEP_TIMEOUT_S)) as links:
                async for link in links:
                    records += 1
                    match link.kind:
                        case "revision":
                            yield bundle.framed(pb.Bundle(revision=link.raw))
                        case "tree":
                            yield bundle.framed(pb.Bundle(tree=link.raw))
                        case "object":
                            yield bundle.framed(pb.Bundle(object=link.raw))
        except Broken as broken:
            raise Internal(f"the history is broken and cannot be exported: {broken}") from broken
        yield bundle.end(records)

    async def take(self, options: pb.ImportOptions, parts: AsyncIterator[bytes], deadline: Deadline) -> Imported:
        """Import a file; see `RegistryService.Import`.

        Raises:
            InvalidRequest: The file is damaged, or holds what is not allowed.
            RevisionMoved: The head is not the one expected; or a history came, and there is one already.
            StoreUnavailable: Not done; or not known, and then the message says so.
            BudgetExhausted: The deadline came first.
        """
        reader = bundle.Reader()
        state: list[bytes] = []
        size = 0
        taker: _HistoryTaker | None = None
        async for part in parts:
            records = reader.feed(part)
            if reader.header is not None and reader.header.history:
                taker = taker or await self._history_taker(options, reader.header.digest)
                await taker.take(records)
                continue
            state += (record.object for record in records)
            size += len(part)
            if size > MAX_STATE_BYTES:
                raise bundle.damaged(f"holds a state of more than {MAX_STATE_BYTES} bytes")
        reader.finish()
        assert reader.header is not None
        if taker is not None:
            return await taker.finish()
        command = await asyncio.to_thread(_state_command, options, state, reader.header.digest)
        return Imported(await self._applier.apply(command, deadline))

    async def _history_taker(self, options: pb.ImportOptions, digest: str) -> "_HistoryTaker":
        head = await head_of(self._values, STEP_TIMEOUT_S)
        if head.revision:
            raise _occupied(head.revision)
        return _HistoryTaker(self._values, digest, dry_run=options.dry_run)


class _HistoryTaker:
    """Writes a history where none is. Nothing names it until the last step, one transaction that makes the head."""

    def __init__(self, values: Values, head_digest: str, *, dry_run: bool) -> None:
        self._values = values
        self._head_digest = head_digest
        self._dry_run = dry_run
        self._chain = Completion(head_digest)
        self._blobs: dict[str, bytes] = {}
        self._size = 0
        self._records: dict[str, bytes] = {}

    async def take(self, records: Iterable[pb.Bundle]) -> None:
        for record in records:
            try:
                match record.WhichOneof("record"):
                    case "revision":
                        self._records[self._chain.take("revision", record.revision)] = record.revision
                    case "tree":
                        self._add(self._chain.take("tree", record.tree), record.tree)
                    case "object":
                        self._add(self._chain.take("object", record.object), record.object)
            except ValueError as error:
                raise bundle.damaged(str(error)) from None
        if self._size >= TXN_BYTES:
            await self._flush()

    def _add(self, key: str, raw: bytes) -> None:
        self._blobs[key] = raw
        self._size += len(raw)

    async def _flush(self) -> None:
        blobs, self._blobs, self._size = self._blobs, {}, 0
        if not self._dry_run:
            await self._values.write(blobs, STEP_TIMEOUT_S)

    async def finish(self) -> Imported:
        try:
            self._chain.finish()
        except ValueError as error:
            raise bundle.damaged(str(error)) from None
        await self._flush()
        head = self._chain.head
        if head and not self._dry_run:
            await self._write_records()
            await self._set_head()
        return Imported(Applied(0 if self._dry_run else head, ()), len(self._records))

    async def _write_records(self) -> None:
        """Write the revisions where none are; those of an import that was cut off may be there.

        While there is no head, and the oldest first: from the first transaction on a first apply finds its place taken,
        by revision 1 or by the mark of a later oldest one; and where it came before, nothing is left in its way.
        """
        keys = list(reversed(self._records))
        for start in range(0, len(keys), TXN_OPS):
            some = keys[start : start + TXN_OPS]
            there = {key: kv for key, kv in zip(some, await self._values.read(some, STEP_TIMEOUT_S), strict=True) if kv}
            if any(kv.value != self._records[key] for key, kv in there.items()):
                raise _occupied(0)
            absent = [key for key in some if key not in there]
            writes = [put_op(key, self._records[key]) for key in absent]
            if self._chain.oldest > 1 and not start:
                writes.append(put_op(layout.OLDEST, str(self._chain.oldest).encode()))
            await self._while_headless([compare_create(key, 0) for key in absent], writes)

    async def _set_head(self) -> None:
        head = pb.Head(revision=self._chain.head, digest=self._head_digest)
        # Nothing is collected while there is no head, so that all that was written is there still.
        await self._while_headless([], [put_op(layout.HEAD, layout.raw_of(head))])

    async def _while_headless(self, compares: Sequence[etcd.Compare], writes: Sequence[etcd.RequestOp]) -> None:
        headless = compare_create(layout.HEAD, 0)
        reply = await self._values.client.txn([headless, *compares], writes, timeout_s=STEP_TIMEOUT_S)
        if not reply.succeeded:
            raise _occupied((await head_of(self._values, STEP_TIMEOUT_S)).revision)


def _occupied(head: int) -> RevisionMoved:
    return RevisionMoved(
        "a history can be imported only where nothing is stored yet, and here "
        + (f"the head is revision {head}" if head else "other revisions are stored")
        + ": export and import a state without its history instead, or start from an empty etcd",
        metadata={"head": str(head), "expected": "0"},
    )


def _state_command(options: pb.ImportOptions, raws: Sequence[bytes], digest: str) -> Command:
    """The command that makes the state that of the file.

    Raises:
        InvalidRequest: The objects are not those that the file's header names.
    """
    messages: list[objects_pb2.Object] = []
    for index, raw in enumerate(raws):
        try:
            messages.append(objects_pb2.Object.FromString(raw))
        except DecodeError:
            raise bundle.damaged(f"has an object that cannot be read, after {index} that can") from None
    command = wire.import_from(options, messages)
    items = [entry.item for entry in command.submitted]
    if any(item is None for item in items):
        return command  # what cannot be read has faults, and these say more
    if _tree_digest([item for item in items if item is not None], raws) != digest:
        raise bundle.damaged("holds objects other than those that its header names")
    faults = [
        Fault(f"objects[{index}]", "was written by a later release, with fields that this one would lose")
        for index, (item, raw) in enumerate(zip(items, raws, strict=True))
        if item is not None and layout.entry_to(item).raw != raw
    ]
    if faults:
        raise InvalidRequest.of(faults)
    return command


def _tree_digest(items: Sequence[Object], raws: Sequence[bytes]) -> str:
    return tree.digest_of({item.key: layout.digest_of(raw) for item, raw in zip(items, raws, strict=True)})
