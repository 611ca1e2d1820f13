"""A hundred thousand decisions of a random world, logged as a router logs them, and decided again from the log.

The world is that of the tests of replay: hosts that answer, fail and report by chance, in zones; routes that choose and
routes that lead over others; tenants, tiers and wishes; fleets and revisions that change while calls run.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from services.domain.clock import SystemClock
from tests.unit.router.logged import LoggedWorld

CALLS = 84_000
"""Each chooses once or more: some are retried, and some lead over others."""

HOSTS = 9

EXPLAINED: Mapping[str, str] = {
    "replay_choices": "logged choices that were decided again",
    "replay_differences": "of these, and of what was settled for their calls, those that came out otherwise in any bit",
    "replay_per_s": "choices decided again in a second, reading included",
    "replay_bytes": "bytes of log for each choice",
}

GOALS: Mapping[str, tuple[str, float]] = {
    "replay_choices": (">=", 100_000.0),
    "replay_differences": ("<=", 0.0),
}

_CLOCK = SystemClock()


async def figures(*, seed: int) -> dict[str, float]:
    """Measure; see `EXPLAINED`."""
    with tempfile.TemporaryDirectory(prefix="replay-") as name:
        world = LoggedWorld(Path(name), hosts=HOSTS, seed=seed)
        await world.run(CALLS)
        size = sum(path.stat().st_size for path in world.files.kept())
        began_s = _CLOCK.now_s()
        found = world.replay()
        took_s = _CLOCK.now_s() - began_s
    return {
        "replay_choices": float(found.choices),
        "replay_differences": float(found.differences + sum(found.unknown_revisions.values()) + found.dropped),
        "replay_per_s": found.choices / took_s,
        "replay_bytes": size / found.choices,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(figures(seed=1))))
