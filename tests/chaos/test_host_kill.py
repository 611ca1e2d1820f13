"""A host that is killed costs its callers nothing: what it had goes elsewhere inside the deadline."""

from pathlib import Path

import pytest

from tests.support.yard import Load, until, yard

ROUNDS = 20
CALLS_BETWEEN = 50
"""Answers that must come between two kills; a round without traffic would prove nothing."""


@pytest.mark.timeout(240)
async def test_no_call_fails_when_hosts_are_killed_twenty_times(tmp_path: Path) -> None:
    async with yard(tmp_path / "mesh", hosts=2) as running:
        load = Load(running.mesh.addresses.router, callers=8)
        async with load.running():
            for round_number in range(ROUNDS):
                before = load.answered
                await until(lambda seen=before: load.answered >= seen + CALLS_BETWEEN, "traffic before the kill")  # type: ignore[misc]

                running.mesh.kill_host(f"local-{round_number % 2}")

                before = load.answered
                await until(lambda seen=before: load.answered >= seen + CALLS_BETWEEN, "traffic after the kill")  # type: ignore[misc]
                await running.wait_ready(2)

        assert load.failures == {}
        assert load.wrong == 0
        assert load.retried > 0, "no call was hit by any kill: the run proves nothing"
        print(f"{ROUNDS} kills, {load.answered} calls, {load.retried} retried, 0 failed")
