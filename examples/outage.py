"""A stream of calls, in the middle of which a host is killed: does a caller notice?"""

import asyncio
import os
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.type.v1 import model_pb2, resources_pb2
from services.domain.clock import Clock, SystemClock
from services.domain.errors import YardError
from yardctl.errors import CommandError

CALLERS = 12
BEFORE_S = 2.0
AFTER_S = 4.0
BACK_WITHIN_S = 60.0
POLL_S = 0.1
_CLOCK: Clock = SystemClock()

Report = Callable[[str], None]


class Calls(Protocol):
    """What the calls are made with."""

    async def infer_untraced(self, request: pb.InferRequest) -> pb.InferResponse:
        """One inference; raises YardError."""
        ...


class Hosts(Protocol):
    """Who knows the hosts."""

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        """The hosts listed now; raises YardError or CommandError."""
        ...


@dataclass
class Tally:
    """What became of the calls."""

    durations_s: list[float] = field(default_factory=list)
    hosts: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """All of them."""
        return len(self.durations_s) + len(self.failures)

    def percentile_s(self, percent: int) -> float:
        """Seconds that `percent` of the answered calls took at most; at least two were answered."""
        return statistics.quantiles(self.durations_s, n=100)[percent - 1]


@dataclass(frozen=True, slots=True)
class Killed:
    """The host that was killed."""

    host_id: str
    pid: int
    calls_before: int
    """Calls answered before the kill."""


@dataclass(frozen=True, slots=True)
class Back:
    """The same host, started again."""

    pid: int
    after_s: float
    """Seconds from the kill until a model was ready on it."""


@dataclass(frozen=True, slots=True)
class Outage:
    """What happened."""

    tally: Tally
    killed: Killed
    back: Back | None
    """None if the host did not come back in time."""


async def stream_through_a_kill(
    caller: Calls, requests: Sequence[pb.InferRequest], registry: Hosts, report: Report, *, clock: Clock = _CLOCK
) -> Outage:
    """Send `requests` over and over from many callers at once, and kill the host that answers most.

    Args:
        caller: Calls the router.
        requests: Taken in turn.
        registry: Knows the hosts' process ids.
        report: Told of the kill.
        clock: Time.
    """
    tally = Tally()
    stopping = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(_call_on(caller, requests, number, tally=tally, stopping=stopping, clock=clock))
        for number in range(CALLERS)
    ]
    try:
        await clock.sleep(BEFORE_S)
        busiest = tally.hosts.most_common(1)[0][0]
        record = next(host for host in await registry.hosts() if host.host_id == busiest)
        killed = Killed(busiest, record.pid, tally.calls)
        os.kill(record.pid, signal.SIGKILL)
        killed_s = clock.now_s()
        report(f"SIGKILL to {busiest} (pid {record.pid}), which had answered most of {tally.calls} calls")
        returning = asyncio.create_task(_wait_back(registry, killed, clock))
        tasks.append(returning)
        await clock.sleep(AFTER_S)
        stopping.set()
        pid = await returning
        after_s = clock.now_s() - killed_s
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Outage(tally, killed, None if pid is None else Back(pid, after_s))


async def _call_on(
    caller: Calls,
    requests: Sequence[pb.InferRequest],
    number: int,
    *,
    tally: Tally,
    stopping: asyncio.Event,
    clock: Clock,
) -> None:
    turn = number
    while not stopping.is_set():
        start_s = clock.now_s()
        try:
            response = await caller.infer_untraced(requests[turn % len(requests)])
        except YardError as error:
            tally.failures.append(f"{error.reason}: {error.message}")
            await clock.sleep(POLL_S)
        else:
            tally.durations_s.append(clock.now_s() - start_s)
            tally.hosts[response.decision.host] += 1
            tally.retried += len(response.decision.attempts) > 1
        turn += 1


async def _wait_back(registry: Hosts, killed: Killed, clock: Clock) -> int | None:
    """Wait until the killed host is listed again with a model ready; the pid of its new process."""
    until_s = clock.now_s() + BACK_WITHIN_S
    while clock.now_s() < until_s:
        try:
            hosts = await registry.hosts()
        except (YardError, CommandError):
            hosts = []
        for host in hosts:
            ready = any(each.state == model_pb2.MODEL_STATE_READY for each in host.models)
            if host.host_id == killed.host_id and host.pid != killed.pid and ready:
                return host.pid
        await clock.sleep(POLL_S)
    return None
