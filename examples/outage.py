"""A stream of calls, in the middle of which a host is killed: does a caller notice?"""

import asyncio
import os
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from examples.caller import Caller
from modelyard.inference.v1 import inference_pb2
from modelyard.type.v1 import model_pb2, resources_pb2
from services.domain.clock import SystemClock
from services.domain.errors import YardError
from yardctl import client
from yardctl.errors import CommandError

CALLERS = 12
BEFORE_S = 2.0
AFTER_S = 4.0
BACK_WITHIN_S = 60.0
POLL_S = 0.1
_CLOCK = SystemClock()

Report = Callable[[str], None]


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


async def stream_through_a_kill(
    caller: Caller, requests: Sequence[inference_pb2.InferRequest], registry: client.RegistryClient, report: Report
) -> tuple[Tally, Killed]:
    """Send `requests` over and over from many callers at once, and kill the host that answers most.

    Args:
        caller: Calls the router.
        requests: Taken in turn.
        registry: Knows the hosts' process ids.
        report: Told of what happens.
    """
    tally = Tally()
    stopping = asyncio.Event()
    callers = [
        asyncio.create_task(_call_on(caller, requests, number, tally, stopping), name=f"caller-{number}")
        for number in range(CALLERS)
    ]
    try:
        await _CLOCK.sleep(BEFORE_S)
        busiest = tally.hosts.most_common(1)[0][0]
        record = next(host for host in await registry.hosts() if host.host_id == busiest)
        killed = Killed(busiest, record.pid, tally.calls)
        os.kill(record.pid, signal.SIGKILL)
        report(
            f"SIGKILL to {killed.host_id} (pid {killed.pid}), which had answered most of {killed.calls_before} calls"
        )
        await _CLOCK.sleep(AFTER_S)
        stopping.set()
        await asyncio.gather(*callers)
    finally:
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return tally, killed


async def _call_on(
    caller: Caller,
    requests: Sequence[inference_pb2.InferRequest],
    number: int,
    tally: Tally,
    stopping: asyncio.Event,
) -> None:
    turn = number
    while not stopping.is_set():
        start_s = _CLOCK.now_s()
        try:
            response = await caller.infer_untraced(requests[turn % len(requests)])
        except YardError as error:
            tally.failures.append(f"{error.reason}: {error.message}")
            await _CLOCK.sleep(POLL_S)
        else:
            tally.durations_s.append(_CLOCK.now_s() - start_s)
            tally.hosts[response.decision.host] += 1
            tally.retried += len(response.decision.attempts) > 1
        turn += 1


async def wait_back(registry: client.RegistryClient, killed: Killed) -> tuple[resources_pb2.HostRecord, float] | None:
    """Wait until the killed host is listed again, as another process, with a model ready.

    Returns:
        Its record and the seconds that it took from now; None if it did not come back.
    """
    start_s = _CLOCK.now_s()
    while (waited_s := _CLOCK.now_s() - start_s) < BACK_WITHIN_S:
        try:
            hosts = await registry.hosts()
        except (YardError, CommandError):
            hosts = []
        for host in hosts:
            ready = [each for each in host.models if each.state == model_pb2.MODEL_STATE_READY]
            if host.host_id == killed.host_id and host.pid != killed.pid and ready:
                return host, waited_s
        await _CLOCK.sleep(POLL_S)
    return None
