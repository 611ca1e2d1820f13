"""The reference beside the mesh: a grpc.aio server that hands raw bytes on, or answers them.

Two of these in a row (`--to` on the first) are the least any two-hop grpc.aio path costs: no
message is parsed, nothing is decided.
"""

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable

import grpc
import uvloop

METHOD = "/bare.Echo/Call"
Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


def handler_of(next_hop: str | None) -> Handler:
    """What the server does with a request: send it on, or send it back."""
    if next_hop is None:

        async def echo(request: bytes, _: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            return request

        return echo
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = grpc.aio.insecure_channel(next_hop).unary_unary(METHOD)

    async def forward(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return await call(request, timeout=context.time_remaining())

    return forward


async def serve(port: int, next_hop: str | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(handler_of(next_hop))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Echo", {"Call": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    await server.stop(grace=None)


def main() -> None:
    """Run one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", help="host:port of the next hop; without it the server answers")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.to))


if __name__ == "__main__":
    main()
