"""Starts and ends the servers that the mesh is compared with, and finds ports for all."""

import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import psutil

from benchmarks.places import ROOT
from services.domain.clock import SystemClock
from yardctl.layout import free_base_port

READY_WITHIN_S = 20.0
END_WITHIN_S = 5.0
_CLOCK = SystemClock()


def free_base_ports(count: int) -> list[int]:
    """As many base ports, each with a range of its own."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_base_port())
    return list(found)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(list(command), cwd=ROOT, stdin=quiet, stdout=quiet, stderr=quiet)


@asynccontextmanager
async def running(*commands: Sequence[str]) -> AsyncIterator[list[psutil.Process]]:
    """Processes of these commands, for as long as the context lasts."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.extend(map(_start, commands))
        yield [psutil.Process(each.pid) for each in started]
    finally:
        for each in started:
            each.terminate()
        for each in started:
            try:
                each.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


async def until_echoed(target: str, method: str) -> bool:
    """Whether an echo at `target` answers within a while."""
    end_s = _CLOCK.now_s() + READY_WITHIN_S
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        while _CLOCK.now_s() < end_s:
            try:
                if await call(b"ready?", timeout=1.0, wait_for_ready=True) == b"ready?":
                    return True
            except grpc.aio.AioRpcError:
                await _CLOCK.sleep(0.1)
    return False
