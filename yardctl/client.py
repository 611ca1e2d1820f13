"""Calls to the parts of a mesh, with errors that say what to do when nobody answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO, TypeVar

import grpc.aio

from modelyard.inference.v1 import inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2, registry_pb2, registry_pb2_grpc
from modelyard.resource.v1 import resource_pb2_grpc
from modelyard.type.v1 import resources_pb2
from services.chassis import channels
from services.domain.errors import BudgetExhausted, HostUnavailable
from services.domain.objects import ObjectKey
from yardctl.errors import CommandError

Req = TypeVar("Req")
Res = TypeVar("Res")

TIMEOUT_S = 5.0
"""For calls that read or change state; each is a few milliseconds of work."""

LONG_S = 30.0
"""For calls that may touch every object."""

GATED_S = 300.0
"""For changes, which may have to wait for a smoke test."""

FILE_S = 600.0
"""For calls that move or read everything there is."""

PAGE = 1000

PART_BYTES = 1 << 20
"""A file's bytes in one message."""


async def call(method: channels.Method[Req, Res], request: Req, *, who: str, timeout_s: float = TIMEOUT_S) -> Res:
    """Call a part.

    Args:
        method: A method of a generated stub.
        request: Its request.
        who: The part and its address, for the error when it does not answer.
        timeout_s: Seconds the call may take.

    Raises:
        CommandError: The part cannot be reached or does not answer in time.
        YardError: It refused or failed.
    """
    try:
        return await channels.call(method, request, timeout_s=timeout_s)
    except (HostUnavailable, BudgetExhausted) as error:
        raise _silent(error, who, timeout_s) or error from error


async def read(
    method: grpc.aio.UnaryStreamMultiCallable[Req, Res], request: Req, *, who: str, timeout_s: float
) -> AsyncIterator[Res]:
    """Call a part that answers a stream; as `call`.

    Raises:
        CommandError: The part cannot be reached or does not answer in time.
        YardError: It refused or failed.
    """
    try:
        async for answer in channels.read(method, request, timeout_s=timeout_s):
            yield answer
    except (HostUnavailable, BudgetExhausted) as error:
        raise _silent(error, who, timeout_s) or error from error


def _silent(error: HostUnavailable | BudgetExhausted, who: str, timeout_s: float) -> CommandError | None:
    """What to say when nobody spoke; None if it was the part itself."""
    cause = error.__cause__
    # With details it is the part itself that speaks; without, gRPC says that nobody does.
    if not isinstance(cause, grpc.aio.AioRpcError) or _is_ours(cause):
        return None
    what = "cannot be reached" if isinstance(error, HostUnavailable) else f"gave no answer in {timeout_s:g} s"
    return CommandError(f"the {who} {what}: see 'yardctl status', or start a mesh with 'yardctl up'")


def _is_ours(error: grpc.aio.AioRpcError) -> bool:
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


class RegistryClient:
    """The registry at one address."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        """Store the address, for errors, and the channel."""
        self._who = f"registry at {address}"
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)

    async def apply(self, request: registry_pb2.ApplyRequest) -> registry_pb2.ApplyResponse:
        """Apply objects and deletions."""
        return await call(self._stub.Apply, request, who=self._who, timeout_s=GATED_S)

    async def instantiate(self, request: registry_pb2.InstantiateRequest) -> registry_pb2.InstantiateResponse:
        """Make the objects of a template, and apply them."""
        return await call(self._stub.Instantiate, request, who=self._who, timeout_s=GATED_S)

    async def get(self, key: ObjectKey, revision: int = 0) -> registry_pb2.GetResponse:
        """One object."""
        wanted = objects_pb2.ObjectKey(kind=key.kind, name=key.name, version=key.version)
        return await call(self._stub.Get, registry_pb2.GetRequest(key=wanted, revision=revision), who=self._who)

    async def objects(self, kind: str = "", revision: int = 0) -> tuple[list[objects_pb2.Object], int]:
        """Every object of a kind, or of all kinds, and the revision they were read at."""
        found: list[objects_pb2.Object] = []
        request = registry_pb2.ListRequest(kind=kind, revision=revision, page_size=PAGE)
        while True:
            page = await call(self._stub.List, request, who=self._who)
            found += page.objects
            if not page.next_page_token:
                return found, page.revision
            request.page_token = page.next_page_token

    async def revisions(self, limit: int) -> list[registry_pb2.Revision]:
        """The newest revisions, newest first."""
        found: list[registry_pb2.Revision] = []
        request = registry_pb2.ListRevisionsRequest()
        while len(found) < limit:
            request.page_size = min(PAGE, limit - len(found))
            page = await call(self._stub.ListRevisions, request, who=self._who)
            found += page.revisions
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return found

    async def revision(self, number: int) -> registry_pb2.GetRevisionResponse:
        """One revision; 0 is the newest."""
        request = registry_pb2.GetRevisionRequest(revision=number)
        return await call(self._stub.GetRevision, request, who=self._who, timeout_s=LONG_S)

    async def diff(self, before: int, after: int) -> registry_pb2.DiffResponse:
        """What leads from one revision to another; `after` 0 is the newest."""
        request = registry_pb2.DiffRequest(from_revision=before, to_revision=after)
        return await call(self._stub.Diff, request, who=self._who, timeout_s=LONG_S)

    async def rollback(self, request: registry_pb2.RollbackRequest) -> registry_pb2.RollbackResponse:
        """Take an older state over."""
        return await call(self._stub.Rollback, request, who=self._who, timeout_s=GATED_S)

    async def export(self, revision: int, *, history: bool) -> AsyncIterator[bytes]:
        """The parts of an exported file."""
        request = registry_pb2.ExportRequest(revision=revision, history=history)
        async for answer in read(self._stub.Export, request, who=self._who, timeout_s=FILE_S):
            yield answer.data

    async def take(self, options: registry_pb2.ImportOptions, source: BinaryIO) -> registry_pb2.ImportResponse:
        """Import a file, and close it."""

        async def parts() -> AsyncIterator[registry_pb2.ImportRequest]:
            yield registry_pb2.ImportRequest(options=options)
            with source:
                while data := source.read(PART_BYTES):
                    yield registry_pb2.ImportRequest(data=data)

        return await call(self._stub.Import, parts(), who=self._who, timeout_s=FILE_S)

    async def verify(self) -> AsyncIterator[registry_pb2.VerifyResponse]:
        """How far a verification has come, until it is done."""
        async for answer in read(self._stub.Verify, registry_pb2.VerifyRequest(), who=self._who, timeout_s=FILE_S):
            yield answer

    async def attempts(self, limit: int) -> list[registry_pb2.Attempt]:
        """Changes that a gate kept out, newest first."""
        answer = await call(self._stub.ListAttempts, registry_pb2.ListAttemptsRequest(limit=limit), who=self._who)
        return list(answer.attempts)

    async def approve(self, request: registry_pb2.ApproveRequest) -> registry_pb2.Approval:
        """Approve of one."""
        return (await call(self._stub.Approve, request, who=self._who)).approval

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        """The hosts listed now."""
        return list((await self.host_list()).hosts)

    async def host_list(self, *, include_gone: bool = False) -> registry_pb2.ListHostsResponse:
        """The hosts listed now, what is ordered of them, and on demand those that are gone."""
        request = registry_pb2.ListHostsRequest(include_gone=include_gone)
        return await call(self._stub.ListHosts, request, who=self._who)

    async def order_host(self, request: registry_pb2.OrderHostRequest) -> registry_pb2.HostOrder:
        """Cordon, uncordon or drain a host."""
        answer = await call(self._stub.OrderHost, request, who=self._who)
        return answer.order


@asynccontextmanager
async def registry(address: str) -> AsyncIterator[RegistryClient]:
    """The registry at an address."""
    async with channels.open_channel(address) as channel:
        yield RegistryClient(address, channel)


@asynccontextmanager
async def resource_manager(address: str) -> "AsyncIterator[resource_pb2_grpc.ResourceManagerServiceAsyncStub]":
    """The resource manager at an address."""
    async with channels.open_channel(address) as channel:
        yield resource_pb2_grpc.ResourceManagerServiceStub(channel)


@asynccontextmanager
async def router(address: str) -> "AsyncIterator[inference_pb2_grpc.InferenceServiceAsyncStub]":
    """The router at an address."""
    async with channels.open_channel(address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
