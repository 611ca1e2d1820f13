"""Bugs that the tests plant, to see that the checker finds them. Nothing of this is in the product.

`python -m tests.chaos.registry.faulty BUG ARGUMENT...` is `python -m services.registry ARGUMENT...` with a bug.
"""

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal, get_args
from unittest import mock

from modelyard.etcd.v3 import rpc_pb2 as pb
from services.chassis.election import ELECTIONS
from services.chassis.etcd import TIMEOUT_S, EtcdClient
from services.chassis.etcd_endpoint import Endpoint
from services.chassis.etcd_watch import WatchBatch, follow
from services.chassis.process import main
from services.registry import app, layout
from services.registry.config import Config

Bug = Literal["no-compare", "no-fencing", "created-header", "no-memory"]
BUGS: tuple[Bug, ...] = get_args(Bug)


class Careless(EtcdClient):
    """Leaves comparisons out of its transactions."""

    def __init__(self, endpoints: Sequence[str], *, prefixes: tuple[str, ...], **options: Any) -> None:
        """Leave out comparisons of keys that begin with one of `prefixes`."""
        super().__init__(endpoints, **options)
        self._prefixes = prefixes

    async def txn(
        self,
        compares: Sequence[pb.Compare],
        success: Sequence[pb.RequestOp],
        failure: Sequence[pb.RequestOp] = (),
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> pb.TxnResponse:
        """As EtcdClient's, less some comparisons."""
        kept = [compare for compare in compares if not compare.key.decode().startswith(self._prefixes)]
        return await super().txn(kept, success, failure, timeout_s=timeout_s)


def without_compare(endpoints: Sequence[str], **options: Any) -> EtcdClient:
    """A client that moves the head wherever it was."""
    return Careless(endpoints, prefixes=(layout.HEAD, layout.REVISIONS), **options)


def without_fencing(endpoints: Sequence[str], **options: Any) -> EtcdClient:
    """A client that does not compare a leader's place."""
    return Careless(endpoints, prefixes=(ELECTIONS,), **options)


def without_memory(endpoints: Sequence[str], **options: Any) -> EtcdClient:
    """A client that takes each request for a new one, and does not find what was noted of it."""

    class Forgetful(Careless):
        async def txn(
            self,
            compares: Sequence[pb.Compare],
            success: Sequence[pb.RequestOp],
            failure: Sequence[pb.RequestOp] = (),
            *,
            timeout_s: float = TIMEOUT_S,
        ) -> pb.TxnResponse:
            reply = await super().txn(compares, success, failure, timeout_s=timeout_s)
            for op, response in zip(success, reply.responses, strict=False):
                if op.request_range.key.decode().startswith(layout.REQUESTS):
                    response.response_range.ClearField("kvs")
            return reply

    return Forgetful(endpoints, prefixes=(layout.REQUESTS,), **options)


class _Noting:
    """An endpoint whose watches note the header of the answer that opens them, as the place to resume from."""

    def __init__(self, endpoint: Endpoint, request: pb.WatchCreateRequest) -> None:
        self._endpoint = endpoint
        self._request = request
        self.unary = endpoint.unary

    def stream(self, method: str, reply: Any) -> Callable[..., Any]:
        return lambda **options: _NotingCall(self._endpoint.stream(method, reply)(**options), self._request)


class _NotingCall:
    def __init__(self, call: Any, request: pb.WatchCreateRequest) -> None:
        self._call = call
        self._request = request
        self.write, self.cancel = call.write, call.cancel

    async def read(self) -> Any:
        response = await self._call.read()
        if isinstance(response, pb.WatchResponse) and response.created:
            self._request.start_revision = response.header.revision + 1
        return response


def _follow_carelessly(endpoint: Endpoint, request: pb.WatchCreateRequest) -> AsyncGenerator[WatchBatch, None]:
    """As the product's, but that a watch resumes from the created header if nothing came after it."""
    return follow(_Noting(endpoint, request), request)  # type: ignore[arg-type]


def planted(bug: Bug) -> contextlib.AbstractContextManager[object]:
    """A bug in this process for a while."""
    match bug:
        case "no-compare":
            return mock.patch("services.registry.app.EtcdClient", without_compare)
        case "no-fencing":
            return mock.patch("services.registry.app.EtcdClient", without_fencing)
        case "no-memory":
            return mock.patch("services.registry.app.EtcdClient", without_memory)
        case "created-header":
            return mock.patch("services.chassis.etcd.follow", _follow_carelessly)


if __name__ == "__main__":
    name = sys.argv.pop(1)
    with planted(next(bug for bug in BUGS if bug == name)):
        sys.exit(main("registry", Config, app.start))
