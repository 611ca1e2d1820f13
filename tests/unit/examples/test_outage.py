"""The stream through a kill: it counts every call, and kills the process that the host record names."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from examples import outage
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.type.v1 import model_pb2, resources_pb2
from services.domain.clock import ManualClock
from services.domain.errors import HostUnavailable, StoreUnavailable

REQUESTS = [pb.InferRequest(model_name="digits"), pb.InferRequest(model_name="embed")]


@pytest.fixture
def victim() -> Iterator["subprocess.Popen[bytes]"]:
    """A process to be killed in place of a host."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


class Yard:
    """Two hosts and a router in one: it answers from whichever host lives, and fails as it is told."""

    def __init__(self, victim: "subprocess.Popen[bytes]", *, retries: bool = True, returns: bool = True) -> None:
        self._victim = victim
        self._retries = retries
        self._returns = returns
        self._listings = 0
        self._noticed = False
        self.asked: set[str] = set()

    async def infer_untraced(self, request: pb.InferRequest) -> pb.InferResponse:
        await asyncio.sleep(0)
        self.asked.add(request.model_name)
        attempts = [pb.Attempt(host="local-0", status="OK")]
        if self._victim.poll() is not None:
            first_to_notice, self._noticed = not self._noticed, True
            if first_to_notice and not self._retries:
                raise HostUnavailable("local-0 went away")
            attempts = [pb.Attempt(host="local-1", status="OK")]
            if first_to_notice:
                attempts.insert(0, pb.Attempt(host="local-0", status="UNAVAILABLE"))
        return pb.InferResponse(decision=pb.Decision(host=attempts[-1].host, attempts=attempts))

    async def hosts(self) -> list[resources_pb2.HostRecord]:
        self._listings += 1
        if self._listings == 2:
            raise StoreUnavailable("just now not")
        ready = resources_pb2.HostedModel(state=model_pb2.MODEL_STATE_READY)
        pid = self._victim.pid
        if self._victim.poll() is not None:
            if not self._returns:
                return []
            pid += 100_000
        return [resources_pb2.HostRecord(host_id="local-0", pid=pid, models=[ready])]


class WaitingClock(ManualClock):
    """Moves at once, but lets the other tasks make some calls in a long wait."""

    async def sleep(self, duration_s: float) -> None:
        for _ in range(50 if duration_s >= 1.0 else 1):
            await asyncio.sleep(0)
        self.advance(duration_s)


async def run(yard: Yard) -> outage.Outage:
    said: list[str] = []
    seen = await outage.stream_through_a_kill(yard, REQUESTS, yard, said.append, clock=WaitingClock())
    assert said == [
        f"SIGKILL to local-0 (pid {seen.killed.pid}), which had answered most of {seen.killed.calls_before} calls"
    ]
    return seen


async def test_the_host_that_answers_is_killed_and_calls_go_on_without_a_failure(
    victim: "subprocess.Popen[bytes]",
) -> None:
    yard = Yard(victim)

    seen = await run(yard)

    assert victim.wait(timeout=10) == -signal.SIGKILL
    assert seen.killed.pid == victim.pid
    assert seen.tally.failures == []
    assert seen.tally.retried == 1
    assert seen.tally.hosts["local-1"] > 0
    assert sum(seen.tally.hosts.values()) == seen.tally.calls > seen.killed.calls_before > 0
    assert yard.asked == {"digits", "embed"}
    assert seen.back is not None
    assert seen.back.pid != victim.pid


async def test_a_call_that_fails_is_counted_with_its_cause(victim: "subprocess.Popen[bytes]") -> None:
    seen = await run(Yard(victim, retries=False))

    assert seen.tally.failures == ["HOST_UNAVAILABLE: local-0 went away"]
    assert seen.tally.calls == sum(seen.tally.hosts.values()) + 1


async def test_a_host_that_does_not_return_is_said_not_to(victim: "subprocess.Popen[bytes]") -> None:
    seen = await run(Yard(victim, returns=False))

    assert seen.back is None
