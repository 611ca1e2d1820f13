"""Calls to the parts of a mesh, with errors that say what to do when nobody answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

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

PAGE = 1000


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Req, Res], request: Req, *, who: str, timeout_s: float = TIMEOUT_S
) -> Res:
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
        cause = error.__cause__
        # With details it is the part itself that speaks; without, gRPC says that nobody does.
        if isinstance(cause, grpc.aio.AioRpcError) and not _is_ours(cause):
            what = "cannot be reached" if isinstance(error, HostUnavailable) else f"gave no answer in {timeout_s:g} s"
            raise CommandError(f"the {who} {what}: see 'yardctl status', or start a mesh with 'yardctl up'") from error
        raise


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
        return await call(self._stub.Apply, request, who=self._who, timeout_s=30.0)

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

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        """The hosts listed now."""
        answer = await call(self._stub.ListHosts, registry_pb2.ListHostsRequest(), who=self._who)
        return list(answer.hosts)


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
