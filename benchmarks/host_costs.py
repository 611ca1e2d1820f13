"""What a request costs the host besides computing: CPU by size and batch, copies of a tensor, memory over time."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio

from benchmarks.host_figures import Figures
from benchmarks.host_load import Source
from benchmarks.host_models import Subject, waiting
from benchmarks.host_process import Host
from benchmarks.host_stream import Saturation, open_line
from benchmarks.measuring import cpu_s
from benchmarks.places import ROOT
from benchmarks.soak import Sample, growth, portions_of, sample
from modelyard.host.v1 import host_pb2
from services.domain.clock import SystemClock

BATCHES = (1, 8, 32)
SMALL_BYTES, LARGE_BYTES = 200, 600_000
SIZES = {"200b": SMALL_BYTES, "600kb": LARGE_BYTES}
WAIT_MS = {SMALL_BYTES: 0.15, LARGE_BYTES: 2.5}
"""For each row that a batch may have the device waits so long, by size: meanwhile the next batch fills."""

LEAST_MS = 5.0

EXECUTE = "/modelyard.host.v1.ModelHostService/Execute"
CALL_S = 30.0
SETTLE_S = 0.5
IN_FLIGHT = 64
CANCEL_EVERY = 10
REQUESTS, WARM_UP = 1_000_000, 50_000
QUICK_REQUESTS, QUICK_WARM_UP = 100_000, 10_000
_CLOCK = SystemClock()


async def cpu(folder: Path, *, quick: bool, tell: Callable[[str], None]) -> Figures:
    """CPU microseconds of the host a request, by size of the tensor and by batch."""
    seconds = 0.5 if quick else 3.0
    figures: Figures = {}
    async with Host(folder / "cpu") as host:
        for size, row_bytes in SIZES.items():
            for rows in BATCHES:
                wait_ms = max(LEAST_MS, WAIT_MS[row_bytes] * rows)
                subject = waiting(f"cpu-{size}-{rows}", base_ms=wait_ms, batch=rows, row_bytes=row_bytes)
                await host.load(subject.model, subject.version)
                load = _by_stream if row_bytes == SMALL_BYTES else _by_execute
                await load(host, subject, 2 * rows, seconds / 3)
                before, before_s = await host.done(subject.name), cpu_s(host.process)
                await load(host, subject, 2 * rows, seconds)
                used_s, after = cpu_s(host.process) - before_s, await host.done(subject.name)
                answered, batches = after.answered - before.answered, after.batches - before.batches
                figures[f"host_cpu_us_{size}_b{rows}"] = 1e6 * used_s / max(1, answered)
                figures[f"host_cpu_batch_{size}_b{rows}"] = answered / max(1, batches)
    tell("  ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    return figures


async def _by_stream(host: Host, subject: Subject, in_flight: int, seconds: float) -> None:
    """As routers send what is small."""
    async with open_line(host.channel) as line:
        source = Source("all", 0.0, CALL_S, subject.key, subject.requests)
        await Saturation(line, source, in_flight=in_flight).run(seconds=seconds)


async def _by_execute(host: Host, subject: Subject, in_flight: int, seconds: float) -> None:
    """As routers send what is large: each request in a call of its own."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = host.channel.unary_unary(EXECUTE)
    head = host_pb2.ExecuteRequest(key=subject.key)
    head.request.ParseFromString(subject.requests[0])
    raw = head.SerializeToString()
    end_s = _CLOCK.now_s() + seconds

    async def caller() -> None:
        while _CLOCK.now_s() < end_s:
            await call(raw, timeout=CALL_S)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def copies(tell: Callable[[str], None]) -> Figures:
    """Copies of a large tensor on its way from the wire into torch, seen in a process of their own."""
    command = (sys.executable, "-m", "benchmarks.host_copies")
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
    figures: Figures = json.loads(done.stdout)
    tell("  ".join(f"{name} {value:g}" for name, value in figures.items()))
    return figures


async def memory(folder: Path, *, quick: bool, tell: Callable[[str], None]) -> Figures:
    """Memory of a host over many requests, a tenth of which is cancelled."""
    requests, warm_up = (QUICK_REQUESTS, QUICK_WARM_UP) if quick else (REQUESTS, WARM_UP)
    subject = waiting("soak", batch=32)
    samples: list[Sample] = []
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(Host(folder / "soak"))
        await host.load(subject.model, subject.version)
        line = await stack.enter_async_context(open_line(host.channel))
        source = Source("all", 0.0, CALL_S, subject.key, subject.requests)
        began_s = _CLOCK.now_s()
        load = Saturation(line, source, in_flight=IN_FLIGHT, cancel_every=CANCEL_EVERY)
        await load.run(calls=warm_up)
        done = answered = cancelled = failed = 0
        for portion in (0, *portions_of(requests)):
            load = Saturation(line, source, in_flight=IN_FLIGHT, cancel_every=CANCEL_EVERY)
            if portion:
                await load.run(calls=portion)
            done += portion
            answered, cancelled, failed = answered + load.answered, cancelled + load.cancelled, failed + load.failed
            await _CLOCK.sleep(SETTLE_S / 10 if quick else SETTLE_S)
            samples.append(sample(host.process, done))
        took_s = _CLOCK.now_s() - began_s
    grown = growth(samples)
    figures = {
        "rss_growth_mb": grown.rss_mb_delta,
        "rss_slope_mb_per_million": grown.rss_mb_per_million,
        "rss_slope_later_mb_per_million": grown.rss_mb_per_million_later,
        "rss_requests": float(done),
        "rss_cancelled_share": cancelled / done,
        "rss_failed": float(failed),
    }
    tell(f"{done:,} requests in {took_s:.0f} s, {answered:,} answered: {grown}")
    return figures
