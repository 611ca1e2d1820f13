"""A host that is killed costs its callers nothing: what it had goes elsewhere inside the deadline."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.yard import Load, until, yard

ROUNDS = 20
HOSTS = 4
"""Each is killed five times: a host that crashes again and again is restarted ever later."""
CALLS_BETWEEN = 50
"""Answers that must come before and after each kill; a round without traffic would prove nothing."""


@pytest.mark.timeout(240)
async def test_no_call_fails_when_hosts_are_killed_twenty_times(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=HOSTS) as running:
        load = Load(running.mesh.addresses.router, callers=8)
        kills: Counter[str] = Counter()

        async def traffic() -> None:
            seen = load.answered
            await until(lambda: load.answered >= seen + CALLS_BETWEEN, "traffic", seen=lambda: load.failures)

        async with load.running():
            for _ in range(ROUNDS):
                victim = min(await running.wait_ready(2), key=lambda host_id: kills[host_id])
                await traffic()
                running.mesh.kill_host(victim)
                kills[victim] += 1
                await traffic()

        assert load.failures == {}
        assert load.wrong == 0
        assert load.retried > 0, "no call was hit by any kill: the run proves nothing"
        print(f"{kills.total()} kills, {load.answered} calls, {load.retried} retried, 0 failed")
