"""How a grpc.aio server stops without breaking off the calls that have just come.

gRPC ends what it has received and no handler has taken up yet as CANCELLED when it is told to stop (grpc/grpc#41785,
open as of 1.85.1), and it tells callers to go (GOAWAY) in the same breath: of 120 callers that asked on and on, 85
lost a call that way. So calls that come are held first, and the ends of those in progress, until no call comes any
more: whoever waits for its answers then has nothing under way that is not in a handler. Then the server is told to
stop, and once callers know, what was held goes on. Only callers that send without waiting for answers, and heed no
health, can still lose a call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio

Handlers: TypeAlias = "Mapping[str, Mapping[str, grpc.RpcMethodHandler[Any, Any]]]"
"""By full name of the service, then by name of the method; they take and give bytes."""

Function: TypeAlias = Callable[[Any, Any], Awaitable[Any]]

TICK_S = 0.01
"""Between two looks at whether calls have come. Looks are counted and not seconds, so that a process that was not
given the CPU does not take its own standstill for quiet."""

QUIET_TICKS = 20
"""As many without a call are quiet. From an answer to its next call a caller takes a fraction of one; up to 10 were
seen where ten processes shared two CPUs, and such a call may be lost."""

MOST_TICKS = 50
"""As many, half a second, and the server stops whatever comes: nothing is held longer."""

_KINDS = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class Intake:
    """What the calls of one server pass on their way to its handlers."""

    def __init__(self) -> None:
        """Let every call through."""
        self._let_go: asyncio.Future[None] | None = None
        """Done once calls need not be held any more; None before the stop."""
        self._came = 0

    def over(self, handlers: Handlers) -> Handlers:
        """The handlers, with this before them; coroutine functions all."""
        return {
            service: {name: self._before(handler) for name, handler in methods.items()}
            for service, methods in handlers.items()
        }

    async def stop(self, server: grpc.aio.Server, grace_s: float) -> None:
        """Stop `server`, whose handlers are behind this.

        Args:
            server: Takes no more calls.
            grace_s: Seconds that calls in progress may take, with the time that they are held.
        """
        if self._let_go is not None:
            await server.stop(grace_s)
            return
        self._let_go = asyncio.get_running_loop().create_future()
        try:
            ticks = await self._quiet(min(MOST_TICKS, int(grace_s / TICK_S)))
            stopping = asyncio.ensure_future(server.stop(max(0.0, grace_s - ticks * TICK_S)))
            await asyncio.sleep(0)  # it begins, and what follows comes to callers behind the GOAWAY
        finally:
            self._let_go.set_result(None)
        await stopping

    async def _quiet(self, most: int) -> int:
        """Wait until no calls come, `most` ticks at most; returns how many it were."""
        quiet = 0
        for tick in range(most):
            if quiet == QUIET_TICKS:
                return tick
            came = self._came
            await asyncio.sleep(TICK_S)
            quiet = quiet + 1 if self._came == came else 0
        return most

    def _before(self, handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
        kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
        function: Function = getattr(handler, kind)

        async def held(request: Any, context: Any) -> Any:
            if self._let_go is not None:
                self._came += 1
                await self._hold(context)
            answer = await function(request, context)
            if self._let_go is not None:  # its caller would ask again
                await self._hold(context)
            return answer

        made: grpc.RpcMethodHandler[Any, Any] = _KINDS[kind](
            held, handler.request_deserializer, handler.response_serializer
        )
        return made

    async def _hold(self, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Wait for the stop to be told; a call in a hurry waits for half of its time."""
        assert self._let_go is not None
        remaining_s = context.time_remaining()
        await asyncio.wait([self._let_go], timeout=None if remaining_s is None else remaining_s / 2)
