"""Hosts killed one after the other under load: `python -m tests.chaos.router_kills --kills 200 --seed 1`.

Calls leave in open loop, whatever comes back. Prints what goes on to stderr, and one line of JSON to stdout. Exits with
0 if no call failed, with 1 if one did, with 2 if the run is void: too few calls, or too few that a kill hit.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.host_load import Void
from benchmarks.host_models import Subject, waiting
from benchmarks.router_load import Load
from benchmarks.router_yard import FaultyYard
from modelyard.inference.v1 import inference_pb2
from tests.support.yard import until

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
HIT_SHARE = 0.25
"""A run with fewer calls hit, by kill, is void."""


@dataclass
class Kills:
    """What became of the calls."""

    kills: int = 0
    calls: int = 0
    hit: int = 0
    """Calls that were sent again."""
    longest_ms: float = 0.0
    """Of those, from when it was to leave."""
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
    again = [call for call in load.done if len(call.sent) > 1]
    return Kills(
        kills=kills,
        calls=len(load.done),
        hit=len(again),
        longest_ms=max((1e3 * call.took_s for call in again), default=0.0),
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
        await until(lambda seen=seen: len(load.done) >= seen + CALLS_BETWEEN, "calls between kills")  # type: ignore[misc]
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


def main() -> int:
    """Kill, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelyard-kills-") as name:
        told = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        found = asyncio.run(run(Path(name), kills=arguments.kills, seed=arguments.seed, tell=told))
    print(json.dumps({**vars(found), "longest_ms": round(found.longest_ms), "failures": dict(found.failures)}))
    try:
        found.check()
    except Void as void:
        print(f"void: {void}", file=sys.stderr)
        return 2
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
