"""Hosts killed one after the other under load, each brought back: what callers see of it.

Calls leave in open loop, whatever comes back.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host_load import Void
from benchmarks.host_models import Subject, waiting
from benchmarks.router_load import Load, p_ms
from benchmarks.router_yard import FaultyYard
from modelyard.inference.v1 import inference_pb2
from services.domain.clock import SystemClock

SUBJECT = waiting("device", base_ms=30.0, batch=8)
HOSTS = ("host-0", "host-1", "host-2", "host-3")
DOWN = 2
"""Hosts that may be down at once."""

PER_S = 100.0
TIMEOUT_S = 5.0
"""Of each call: far more than twice the P99, on a busy machine too."""

CALLS_BETWEEN = 40
"""Calls that end between two kills."""

LONGEST_S = 3600.0
POLL_S = 0.02
HIT_SHARE = 0.25
"""A run with fewer calls hit, by kill, is void."""

_CLOCK = SystemClock()


@dataclass
class Kills:
    """What became of the calls."""

    kills: int = 0
    calls: int = 0
    hit: int = 0
    """Calls that a host had and lost."""
    extra_ms: float = 0.0
    """The longest of those, beyond the P99 of the others."""
    failures: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Refuse a run that proves nothing.

        Raises:
            Void: Too few calls, or too few hit.
        """
        if self.calls < CALLS_BETWEEN * self.kills or self.hit < max(1.0, HIT_SHARE * self.kills):
            raise Void(f"{self.calls} calls, {self.hit} hit by {self.kills} kills")


def load_of(yard: FaultyYard, name: str, subject: Subject = SUBJECT) -> Load:
    """Calls of a model or a route."""
    request = inference_pb2.InferRequest.FromString(subject.requests[0])
    request.model_name = name
    return Load(yard.router, request, TIMEOUT_S)


def judged(load: Load, kills: int) -> Kills:
    """What its calls say."""
    hit = [call for call in load.done if any(each.lost for each in call.sent)]
    p99_ms = p_ms([call for call in load.done if not any(each.lost for each in call.sent)], 0.99, timeout_s=TIMEOUT_S)
    return Kills(
        kills=kills,
        calls=len(load.done),
        hit=len(hit),
        extra_ms=max(0.0, max((1e3 * call.took_s for call in hit), default=0.0) - p99_ms),
        failures=Counter(call.failure for call in load.done if call.failure),
    )


async def kill_in_turn(
    yard: FaultyYard, load: Load, victims: Sequence[str], *, kills: int, down: int, tell: Callable[[str], None]
) -> None:
    """Kill one victim after the other, always the one that is up for longest, and bring each back.

    Args:
        yard: Whose hosts they are.
        load: What runs meanwhile.
        victims: Host ids.
        kills: How many.
        down: Most that may be down at once.
        tell: Told of progress.
    """
    up = list(victims)
    returning: dict[asyncio.Task[None], str] = {}
    for number in range(kills):
        while len(returning) >= down or not up:
            ended, _ = await asyncio.wait(returning, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                await task
                up.append(returning.pop(task))
        seen = len(load.done)
        while len(load.done) < seen + CALLS_BETWEEN:
            await _CLOCK.sleep(POLL_S)
        victim = up.pop(0)
        yard.kill(victim)
        returning[asyncio.create_task(yard.heal(victim))] = victim
        if number % 10 == 9:
            tell(f"{number + 1} kills, {len(load.done)} calls, {sum(bool(call.failure) for call in load.done)} failed")
    await asyncio.gather(*returning)


async def run(folder: Path, *, kills: int, seed: int, tell: Callable[[str], None] = lambda _: None) -> Kills:
    """All of it."""
    placed = dict.fromkeys(HOSTS, (SUBJECT.name,))
    async with FaultyYard(folder, [SUBJECT], placed=placed) as yard, asyncio.TaskGroup() as group:
        load = load_of(yard, SUBJECT.name)
        group.create_task(load.run(PER_S, LONGEST_S, seed=seed))
        await kill_in_turn(yard, load, HOSTS, kills=kills, down=DOWN, tell=tell)
        load.stop()
    return judged(load, kills)
