"""A load generator on grpc.aio: closed loop (callers) or open loop (rate).

Stands in for the compiled one, `benchmarks/generator`, where that cannot be built. Requests go out and answers come
in as raw bytes, so that its cost is that of grpc.aio alone. Prints one line of JSON. In open loop a request is timed
from when it was to be sent, not from when it was, so that a stalled server cannot hide (coordinated omission).
"""

import argparse
import asyncio
import json
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvloop

TIMEOUT_S = 10.0


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie; 0 for no values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(slots=True)
class Load:
    """Sends requests and counts what comes of them."""

    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    payload: bytes
    expect: bytes
    """Empty: any answer is right."""
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    async def one(self, due: float) -> None:
        """One request, timed from `due`."""
        try:
            answer = await self.call(self.payload, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            number: int = error.code().value[0]
            self.failures[str(number)] += 1
        else:
            if self.expect in answer:
                self.latencies_s.append(time.perf_counter() - due)
            else:
                self.failures["wrong answer"] += 1

    async def closed_loop(self, callers: int, seconds: float) -> None:
        """Each of `callers` sends its next request when its last one is answered."""
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < end:
                await self.one(started)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def open_loop(self, rate_per_s: float, seconds: float) -> None:
        """Requests leave at a fixed rate, whatever comes back."""
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate_per_s * seconds)):
                due = started + number / rate_per_s
                if (ahead := due - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                group.create_task(self.one(due))


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    """One measurement, after a warm-up of the connection."""
    payload = arguments.payload.read_bytes()
    expect = arguments.expect.read_bytes() if arguments.expect else b""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(arguments.target, options=options) as channel:
        load = Load(channel.unary_unary(arguments.method), payload, expect)
        await load.call(payload, timeout=TIMEOUT_S, wait_for_ready=True)
        cpu_before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        if arguments.rate:
            await load.open_loop(arguments.rate, arguments.seconds)
        else:
            await load.closed_loop(arguments.callers, arguments.seconds)
        elapsed_s = time.perf_counter() - started
    cpu_after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = cpu_after.ru_utime + cpu_after.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime
    ordered = sorted(load.latencies_s)
    return {
        "generator": "grpc.aio",
        "answered": len(ordered),
        "failed": load.failures.total(),
        "cancelled": 0,
        "per_s": len(ordered) / elapsed_s,
        "p50_ms": quantile(ordered, 0.50) * 1e3,
        "p99_ms": quantile(ordered, 0.99) * 1e3,
        "max_ms": quantile(ordered, 1.0) * 1e3,
        "generator_cpu_us": cpu_s * 1e6 / max(1, len(ordered)),
        "seconds": elapsed_s,
        "failures": dict(load.failures),
    }


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--method", required=True, help="full method path")
    parser.add_argument("--payload", type=Path, required=True, help="file with the request's bytes")
    parser.add_argument("--expect", type=Path, help="file with bytes that every right answer contains")
    parser.add_argument("--callers", type=int, default=1, help="callers in closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; above 0 means open loop")
    parser.add_argument("--seconds", type=float, required=True)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
