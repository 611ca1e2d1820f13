"""The registry's RPCs: deadline, convert, delegate, convert."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import grpc.aio

from modelyard.registry.v1 import registry_pb2 as pb
from modelyard.registry.v1 import registry_pb2_grpc
from services.chassis.codec import duration_to
from services.chassis.instruments import REGISTRY_APPLY_SECONDS
from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.deadline import Deadline
from services.domain.errors import Fault, InvalidRequest, RevisionNotFound
from services.domain.objects import ObjectKey
from services.domain.texts import name_faults
from services.registry import bundle, lookup, wire
from services.registry.apply import Applied, Applier, Command, changes_between
from services.registry.attempt_log import AttemptLog
from services.registry.history import History
from services.registry.host_memory import HostMemory
from services.registry.host_orders import HostOrders
from services.registry.layout import Draft, Entry, State, raw_of
from services.registry.leases import HostLeases
from services.registry.listing import TTL_S, Listing
from services.registry.object_store import ObjectStore
from services.registry.watch_hub import WatchHub

RESERVE_S = 0.02
"""Seconds kept back from each deadline to carry the answer home."""

BREAK_S = 0.1
"""How long after the last report a break may take to be told from a half-close."""

DEFAULT_REVISIONS = 50
MAX_REVISIONS = 1000

MANY = 200
"""Objects that are converted in the event loop at most: about 10 ms."""

TEMPLATE_BYTES = 256
"""Bytes of a template that cost as much as one object: most is text to look through."""

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """`modelyard.registry.v1.RegistryService`."""

    def __init__(
        self,
        *,
        applier: Applier[State, Entry, Draft],
        store: ObjectStore,
        hub: WatchHub,
        leases: HostLeases,
        orders: HostOrders,
        memory: HostMemory,
        history: History,
        attempts: AttemptLog,
        clock: Clock,
    ) -> None:
        """Store the arguments.

        Args:
            applier: Changes desired state.
            store: Reads it.
            hub: Tells who watches.
            leases: Lists hosts.
            orders: Knows what operators want of them.
            memory: Remembers those that are gone.
            history: Exports, imports and verifies all of it.
            attempts: Knows what gates kept out.
            clock: Time.
        """
        self._applier = applier
        self._store = store
        self._hub = hub
        self._leases = leases
        self._orders = orders
        self._memory = memory
        self._history = history
        self._attempts = attempts
        self._clock = clock

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        """Create, update and delete, all or nothing."""
        command = await _apart(len(request.objects), lambda: wire.command_from(request))
        applied = await self._apply(command, context)
        return await _apart(len(applied.changes), lambda: wire.applied_to(applied))

    async def Instantiate(self, request: pb.InstantiateRequest, context: Context) -> pb.InstantiateResponse:
        """Make the objects of a template, and apply them."""
        if faults := name_faults(request.template, "template"):
            raise InvalidRequest.of(faults)
        template = lookup.get(await self._state(0, context), ObjectKey("Template", request.template))
        weight = template.size_bytes // TEMPLATE_BYTES
        made = await _apart(weight, lambda: wire.made_from(request, template.message, template.digest))
        command = await _apart(weight, lambda: wire.instantiation_from(request, made))
        applied = await self._apply(command, context)
        return pb.InstantiateResponse(
            revision=applied.revision,
            changes=wire.changes_to(applied.changes),
            findings=wire.findings_to(applied.findings),
            objects=made,
        )

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Read one object."""
        key = wire.lookup_key_from(request.key)
        state = await self._state(request.revision, context, at_least=request.at_least_revision)
        entry = lookup.get(state, key)
        return pb.GetResponse(object=entry.message, revision=state.revision, digest=entry.digest)

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """Read a page of objects."""
        query = lookup.query(
            request.kind, dict(request.labels), request.revision, request.page_size, request.page_token
        )
        at_least = 0 if request.page_token else request.at_least_revision
        state = await self._state(query.revision, context, at_least=at_least)
        page = await _apart(len(state.entries) // 10, lambda: lookup.page(state, query))
        return pb.ListResponse(
            objects=[entry.message for entry in page.entries],
            revision=state.revision,
            next_page_token=page.next_token,
        )

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        """Read a page of the history."""
        size = wire.page_size_from(request.page_size, default=DEFAULT_REVISIONS, most=MAX_REVISIONS)
        deadline = self._deadline(context)
        if request.page_token:
            newest = wire.revision_token_from(request.page_token)
        else:
            newest = (await self._store.head(timeout_s=deadline.for_hop(reserve_s=RESERVE_S))).revision
        found = await self._store.revisions(newest, size, timeout_s=deadline.for_hop(reserve_s=RESERVE_S))
        older = newest - size
        more = older > 0 and len(found) == size  # else the rest was collected
        return pb.ListRevisionsResponse(revisions=found, next_page_token=wire.token_to(older) if more else "")

    async def GetRevision(self, request: pb.GetRevisionRequest, context: Context) -> pb.GetRevisionResponse:
        """Read one revision, and what it changed."""
        after = await self._state(request.revision, context)
        if after.revision == 0:
            raise RevisionNotFound("nothing was ever applied: there is no revision yet", metadata={"head": "0"})
        timeout_s = self._deadline(context).for_hop(reserve_s=RESERVE_S)
        record, _ = await self._store.record(after.revision, timeout_s)
        answer = pb.GetRevisionResponse(revision=record, digest=after.digest)
        try:
            before = await self._store.at(after.revision - 1, timeout_s=timeout_s)
        except RevisionNotFound:
            answer.oldest = True
            return answer
        answer.changes.extend(await _changes(before, after))
        return answer

    async def Diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        """Compare two revisions."""
        if faults := lookup.count_faults(request.from_revision, "from_revision"):
            raise InvalidRequest.of(faults)
        after = await self._state(request.to_revision, context, "to_revision")
        timeout_s = self._deadline(context).for_hop(reserve_s=RESERVE_S)
        before = await self._store.at(request.from_revision, timeout_s=timeout_s)
        return pb.DiffResponse(
            from_revision=before.revision, to_revision=after.revision, changes=await _changes(before, after)
        )

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Take an older revision's state over."""
        applied = await self._apply(wire.rollback_from(request), context)
        return pb.RollbackResponse(
            revision=applied.revision,
            changes=wire.changes_to(applied.changes),
            findings=wire.findings_to(applied.findings),
        )

    async def ListAttempts(self, request: pb.ListAttemptsRequest, context: Context) -> pb.ListAttemptsResponse:
        """Read what gates kept out."""
        limit = wire.page_size_from(request.limit, default=DEFAULT_REVISIONS, most=MAX_REVISIONS, path="limit")
        timeout_s = self._deadline(context).for_hop(reserve_s=RESERVE_S)
        return pb.ListAttemptsResponse(attempts=await self._attempts.attempts(limit, timeout_s=timeout_s))

    async def Approve(self, request: pb.ApproveRequest, context: Context) -> pb.ApproveResponse:
        """Approve of a change that was kept out."""
        approval = await self._attempts.approve(request, timeout_s=self._deadline(context).for_hop(reserve_s=RESERVE_S))
        logger().info("a change is approved", attempt=approval.attempt_id, author=approval.author)
        return pb.ApproveResponse(approval=approval)

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.ExportResponse]:
        """Give the state, or all of the history, as a file."""
        if request.history:
            if request.revision:
                raise InvalidRequest.of([Fault("revision", "must be 0 with history, which is of every revision")])
            async with aclosing(self._history.export()) as pieces:
                waiting: list[bytes] = []
                async for piece in pieces:
                    waiting.append(piece)
                    if sum(map(len, waiting)) >= bundle.PART_BYTES:
                        yield pb.ExportResponse(data=b"".join(waiting))
                        waiting = []
                yield pb.ExportResponse(data=b"".join(waiting))
            return
        state = await self._state(request.revision, context)
        await _apart(len(state.entries), lambda: state.ordered)
        for part in bundle.parts(bundle.of_state(state)):
            yield pb.ExportResponse(data=part)

    async def Import(self, request_iterator: AsyncIterator[pb.ImportRequest], context: Context) -> pb.ImportResponse:
        """Take a file over."""
        options = await anext(request_iterator, pb.ImportRequest())
        if options.WhichOneof("part") != "options":
            raise InvalidRequest.of([Fault("options", "must be the first message")])
        start_s = self._clock.now_s()
        done = await self._history.take(options.options, _data(request_iterator), self._deadline(context))
        self._note(done.applied, options.options.dry_run, start_s)
        return pb.ImportResponse(
            revision=done.applied.revision,
            changes=await _apart(len(done.applied.changes), lambda: wire.changes_to(done.applied.changes)),
            revisions=done.revisions,
            findings=wire.findings_to(done.applied.findings),
        )

    async def Verify(self, request: pb.VerifyRequest, context: Context) -> AsyncIterator[pb.VerifyResponse]:
        """Recompute the chain of digests."""
        del request, context
        async with aclosing(self._history.verify()) as answers:
            async for answer in answers:
                yield answer

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """Tell the state, then what changes."""
        del context
        if faults := lookup.count_faults(request.from_revision, "from_revision"):
            raise InvalidRequest.of(faults)
        async with aclosing(self._hub.watch(request.from_revision, include_hosts=request.include_hosts)) as responses:
            async for response in responses:
                yield response

    async def RegisterHost(
        self, request_iterator: AsyncIterator[pb.RegisterHostRequest], context: Context
    ) -> AsyncIterator[pb.RegisterHostResponse]:
        """List a host while it reports; a stream that breaks leaves it to its lease."""
        del context
        listing: Listing | None = None
        host_id = ""
        try:
            async for request in request_iterator:
                record = wire.record_from(request, host_id)
                if listing is None:
                    assert record is not None
                    host_id = record.host_id
                    listing = self._leases.open(record)
                    listing.start()
                progress = listing.report(request.progress, record)
                yield pb.RegisterHostResponse(lease_ttl=duration_to(TTL_S), progress=progress, drain=listing.drain)
            if listing is not None:
                # A stream that broke ends its requests too, at times before this call is cancelled.
                await self._clock.sleep(BREAK_S)
                await listing.end()
        finally:
            if listing is not None:
                await listing.leave()

    async def ListHosts(self, request: pb.ListHostsRequest, context: Context) -> pb.ListHostsResponse:
        """Read who is listed now."""
        timeout_s = self._deadline(context).for_hop(reserve_s=RESERVE_S)
        hosts = await self._hub.listed(timeout_s=timeout_s)
        gone = await self._memory.gone(timeout_s=timeout_s) if request.include_gone else ()
        return pb.ListHostsResponse(hosts=hosts, gone=gone, orders=self._orders.in_force)

    async def OrderHost(self, request: pb.OrderHostRequest, context: Context) -> pb.OrderHostResponse:
        """Cordon, uncordon or drain a host."""
        order = await self._orders.give(request, timeout_s=self._deadline(context).for_hop(reserve_s=RESERVE_S))
        action = pb.HostAction.Name(request.action)
        logger().info("a host is ordered", host=order.host_id, action=action, author=order.author, reason=order.reason)
        return pb.OrderHostResponse(order=order)

    async def PublishPlan(self, request: pb.PublishPlanRequest, context: Context) -> pb.PublishPlanResponse:
        """Write the leader's plan."""
        await self._leases.publish(
            raw_of(wire.plan_from(request)),
            election_key=request.election_key,
            fencing_token=request.fencing_token,
            timeout_s=self._deadline(context).for_hop(reserve_s=RESERVE_S),
        )
        return pb.PublishPlanResponse()

    async def _apply(self, command: Command, context: Context) -> Applied:
        start_s = self._clock.now_s()
        applied = await self._applier.apply(command, self._deadline(context))
        self._note(applied, command.dry_run, start_s)
        return applied

    def _note(self, applied: Applied, dry_run: bool, start_s: float) -> None:
        how = "dry run" if dry_run else "changed" if applied.changes else "unchanged"
        REGISTRY_APPLY_SECONDS.labels(how).observe(self._clock.now_s() - start_s)
        logger().info("applied", how=how, revision=applied.revision, changes=len(applied.changes))

    def _deadline(self, context: Context) -> Deadline:
        return Deadline.from_remaining(context.time_remaining(), self._clock)

    async def _state(self, revision: int, context: Context, path: str = "revision", *, at_least: int = 0) -> State:
        """The state to read from: at a revision, or at the head for 0; `at_least` lets that be a while ago."""
        faults = lookup.count_faults(revision, path) + lookup.count_faults(at_least, "at_least_revision")
        if revision and at_least:
            faults.append(Fault("at_least_revision", f"must be 0 with {path}, which says exactly which"))
        if faults:
            raise InvalidRequest.of(faults)
        remembered = self._store.in_memory(at_least) if at_least else None
        if remembered is not None:
            return remembered
        timeout_s = self._deadline(context).for_hop(reserve_s=RESERVE_S)
        if revision == 0:
            state = await self._store.head_or_last(timeout_s=timeout_s)
            if state.revision < at_least:
                raise RevisionNotFound(
                    f"there is no revision {at_least} yet; the head is {state.revision}",
                    metadata={"revision": str(at_least), "head": str(state.revision)},
                    retry_after_s=0.1,
                )
            return state
        return await self._store.at(revision, timeout_s=timeout_s)


async def _changes(before: State, after: State) -> list[pb.Change]:
    """What leads from one state to another."""
    count = len(after.differing(before))
    return await _apart(count, lambda: wire.changes_to(changes_between(before, after)))


async def _data(requests: AsyncIterator[pb.ImportRequest]) -> AsyncIterator[bytes]:
    """The file that an import brings."""
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidRequest.of([Fault("data", "must follow the options, which come once")])
        yield request.data


async def _apart(count: int, convert: Callable[[], T]) -> T:
    """Convert `count` objects; many of them in a thread, so that other calls go on meanwhile."""
    return await asyncio.to_thread(convert) if count > MANY else convert()
