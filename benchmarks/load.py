"""A load generator in a process of its own: closed loop (callers) or open loop (rate).

Requests go out and answers come in as raw bytes, so that the generator's own cost is that of
grpc.aio alone. Prints one line of JSON. In open loop a request is timed from when it was to
be sent, not from when it was, so that a stalled server cannot hide (coordinated omission).
"""

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path

import grpc
import uvloop

TIMEOUT_S = 10.0
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie; 0 for no values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def closed_loop(call: Call, payload: bytes, callers: int, seconds: float) -> tuple[list[float], int]:
    """Each of `callers` sends its next request when its last one is answered."""
    latencies: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal failed
        while (started := time.perf_counter()) < end:
            try:
                await call(payload, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError:
                failed += 1
            else:
                latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies, failed


async def open_loop(call: Call, payload: bytes, rate_per_s: float, seconds: float) -> tuple[list[float], int]:
    """Requests leave at a fixed rate, whatever comes back."""
    latencies: list[float] = []
    failed = 0
    started = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal failed
        try:
            await call(payload, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            failed += 1
        else:
            latencies.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate_per_s * seconds)):
            due = started + number / rate_per_s
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            group.create_task(one(due))
    return latencies, failed


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement, after a warm-up of the connection."""
    payload = arguments.payload.read_bytes()
    async with grpc.aio.insecure_channel(arguments.target) as channel:
        call: Call = channel.unary_unary(arguments.method)
        await call(payload, timeout=TIMEOUT_S, wait_for_ready=True)
        cpu_before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        if arguments.rate:
            latencies, failed = await open_loop(call, payload, arguments.rate, arguments.seconds)
        else:
            latencies, failed = await closed_loop(call, payload, arguments.callers, arguments.seconds)
        elapsed = time.perf_counter() - started
    cpu_after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = cpu_after.ru_utime + cpu_after.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime
    latencies.sort()
    return {
        "answered": len(latencies),
        "failed": failed,
        "per_s": len(latencies) / elapsed,
        "p50_ms": quantile(latencies, 0.50) * 1e3,
        "p99_ms": quantile(latencies, 0.99) * 1e3,
        "generator_cpu_us": cpu_s * 1e6 / max(1, len(latencies)),
    }


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--method", required=True, help="full method path")
    parser.add_argument("--payload", type=Path, required=True, help="file with the request's bytes")
    parser.add_argument("--callers", type=int, default=1, help="callers in closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; above 0 means open loop")
    parser.add_argument("--seconds", type=float, required=True)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
