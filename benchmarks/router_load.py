"""Calls to a router in open loop, what became of each, and what that says of a host that went wrong meanwhile.

Arrivals are Poisson and seeded; a call is timed from when it was to leave, and its deadline counts from then. How late
calls left is kept: a run whose generator was late is void.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from benchmarks.host_load import LATE_MS, Void
from benchmarks.load import quantile
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from services.chassis.codec import seconds_from
from services.chassis.errors import from_rpc_error
from services.domain.clock import SystemClock

WINDOW_S = 0.5
"""A host's share of calls is looked at over this long."""

DIVERTED = 0.1
"""Calls are off a host once it gets this part of its fair share."""

STEP_S = 0.01
LEAST_TIMEOUT_S = 0.001
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Sent:
    """An attempt at a host, as the answer tells of it."""

    at_s: float
    """From the start of the run. Of a call that failed, all but the first are known by host, not by time: they count
    from its end."""
    host: str
    """Empty if nobody told: the caller's own clock ended the call."""

    status: str = "UNKNOWN"
    """Canonical name of what it ended with, where the answer tells."""

    @property
    def lost(self) -> bool:
        """Whether it failed; one that another answer made needless did not."""
        return self.status not in ("OK", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Done:
    """A call that ended. Times count from the start of the run."""

    due_s: float
    left_s: float
    ended_s: float
    sent: tuple[Sent, ...]
    failure: str = ""
    """Empty if it was answered."""

    @property
    def took_s(self) -> float:
        """From when it was to leave."""
        return self.ended_s - self.due_s


@dataclass(slots=True)
class Load:
    """Calls of one route."""

    router: str
    request: inference_pb2.InferRequest
    """What is sent, without an id."""
    timeout_s: float
    done: list[Done] = field(default_factory=list)
    _began_s: float = 0.0
    _stopped: bool = False

    @property
    def now_s(self) -> float:
        """Since the run began."""
        return _CLOCK.now_s() - self._began_s

    async def run(self, per_s: float, seconds: float, *, seed: int) -> None:
        """Send calls for so long, or until `stop`, and wait for the last."""
        due = arrivals(per_s, seconds, seed=seed)
        async with grpc.aio.insecure_channel(self.router) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            self._began_s = _CLOCK.now_s()
            async with asyncio.TaskGroup() as group:
                for number, due_s in enumerate(due):
                    if (ahead_s := due_s - self.now_s) > 0:
                        await _CLOCK.sleep(ahead_s)
                    if self._stopped:
                        break
                    group.create_task(self._call(stub, due_s, f"{seed}-{number}"))

    def stop(self) -> None:
        """Send no more calls."""
        self._stopped = True

    async def keep_busy(self, callers: int, seconds: float) -> None:
        """Instead of that: let so many callers each send the next call when the last has ended."""
        async with grpc.aio.insecure_channel(self.router) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            self._began_s = _CLOCK.now_s()

            async def caller(name: int) -> None:
                number = 0
                while (now_s := self.now_s) < seconds:
                    number += 1
                    await self._call(stub, now_s, f"{name}-{number}")

            await asyncio.gather(*map(caller, range(callers)))

    async def at(self, at_s: float) -> None:
        """Wait until so long after the run began."""
        while not self._began_s:
            await _CLOCK.sleep(STEP_S)
        await _CLOCK.sleep(max(0.0, at_s - self.now_s))

    async def _call(self, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", due_s: float, request_id: str) -> None:
        left_s = self.now_s
        request = inference_pb2.InferRequest()
        request.CopyFrom(self.request)
        request.id = request_id
        timeout_s = max(LEAST_TIMEOUT_S, self.timeout_s - (left_s - due_s))
        try:
            answer = await stub.Infer(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            ended_s = self.now_s
            told = from_rpc_error(error)
            hosts = [host for host in told.metadata.get("hosts", "").split(",") if host]
            tried = tuple(Sent(ended_s if index else left_s, host) for index, host in enumerate(hosts or [""]))
            why = f"{error.code().name}: {told.message}"
            self.done.append(Done(due_s, left_s, ended_s, tried, why))
        else:
            self.done.append(Done(due_s, left_s, self.now_s, _sent(answer.decision, left_s)))

    def between(self, from_s: float, until_s: float) -> list[Done]:
        """Calls that were to leave then, in order."""
        return sorted((each for each in self.done if from_s <= each.due_s < until_s), key=lambda each: each.due_s)

    def check_generator(self) -> None:
        """Refuse a run whose generator was late.

        Raises:
            Void: It was, or nothing was sent.
        """
        late_ms = 1e3 * quantile(sorted(each.left_s - each.due_s for each in self.done), 0.99)
        if not self.done or late_ms > LATE_MS:
            raise Void(f"the generator was late: P99 {late_ms:.0f} ms of {len(self.done)} calls")


def _sent(decision: inference_pb2.Decision, left_s: float) -> tuple[Sent, ...]:
    """The attempts of an answered call, one after the other from when it left; or each step's host."""
    found, at_s = [Sent(left_s, step.host, step.status) for step in decision.steps if step.host], left_s
    for attempt in decision.attempts:
        found.append(Sent(at_s, attempt.host, attempt.status))
        at_s += seconds_from(attempt.duration)
    return tuple(found)


def arrivals(per_s: float, seconds: float, *, seed: int) -> list[float]:
    """When each call is to leave; the same for the same seed, and a faster stream is the slower one squeezed."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1.0, int(per_s * seconds + 8 * (per_s * seconds) ** 0.5) + 8)) / per_s
    return [float(each) for each in times[times < seconds]]


def diverted_after_s(calls: Iterable[Done], host: str, *, fault_s: float, until_s: float, hosts: int) -> float:
    """How long after a fault calls were off the host, for good; the time to `until_s` if they never were.

    Off: from then on its share of what is sent is at most `DIVERTED` of a fair one, in the first `WINDOW_S` as well as
    in all that follows. So one probe among many calls does not count as traffic, and a lull does not count as off.
    Calls of which nobody told where they were count as sent to it.

    Args:
        calls: What was sent.
        host: Where the fault is.
        fault_s: When it began.
        until_s: When it ended.
        hosts: Those that could get calls, this one included.
    """
    sent = sorted((each.at_s, each.host in (host, "")) for call in calls for each in call.sent)
    times = np.array([at_s for at_s, _ in sent])
    own = np.concatenate(([0], np.cumsum([hit for _, hit in sent])))
    most = DIVERTED / hosts

    def share(from_s: float, to_s: float) -> float:
        first, last = np.searchsorted(times, [from_s, to_s])
        return float(own[last] - own[first]) / max(1, int(last - first))

    for at_s in np.arange(fault_s, until_s - WINDOW_S, STEP_S):
        if share(at_s, at_s + WINDOW_S) <= most and share(at_s, until_s) <= most:
            return float(at_s - fault_s)
    return until_s - fault_s


def attempts_of(calls: Iterable[Done]) -> float:
    """Attempts by call."""
    found = list(calls)
    return sum(len(call.sent) for call in found) / max(1, len(found))


def p_ms(calls: Sequence[Done], share: float, *, timeout_s: float) -> float:
    """Within how many ms this share of calls was answered; one that failed counts as its whole deadline."""
    took = sorted(timeout_s if call.failure else min(timeout_s, call.took_s) for call in calls)
    return 1e3 * quantile(took, share)


def recovered_after_s(calls: Sequence[Done], *, healed_s: float, until_s: float, goodput: float) -> float:
    """How long after a fault's end this share of what was to leave was answered, in `WINDOW_S` and in all that follows.

    The time to `until_s` if it never was.
    """

    def answered(from_s: float, to_s: float) -> float:
        due = [call for call in calls if from_s <= call.due_s < to_s]
        return sum(not call.failure for call in due) / max(1, len(due))

    for at_s in np.arange(healed_s, until_s - WINDOW_S, 5 * STEP_S):
        if answered(at_s, at_s + WINDOW_S) >= goodput and answered(at_s, until_s) >= goodput:
            return float(at_s - healed_s)
    return until_s - healed_s
