"""What no client library sends: the server goes on, and nothing of it stays behind."""

import asyncio
import os
from pathlib import Path

import pytest

from services.chassis.channels import call
from tests.integration.chassis.conftest import Served
from tests.integration.chassis.notes import Note
from tests.support.h2_abuse import CASES
from tests.support.services import eventually

SPARE_DESCRIPTORS = 8
"""Connections that may still be closing."""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def answers(served: Served) -> bool:
    try:
        note = await call(served.stub.One, Note(number=1), timeout_s=1.0)
    except Exception:
        return False
    return bool(note == Note(number=2))


async def test_abused_in_every_way_it_goes_on_serving(served: Served) -> None:
    before = descriptors()
    for name, case in CASES.items():
        await case("127.0.0.1", served.port)
        await eventually(lambda: answers(served), f"a good call after {name}", 5.0)

    async def closed() -> bool:
        return descriptors() <= before + SPARE_DESCRIPTORS

    await eventually(closed, "every abused connection closed", 15.0)


@pytest.mark.parametrize("case", ["rapid_reset", "pings", "slow_loris"])
async def test_good_calls_are_answered_while_it_is_abused(served: Served, case: str) -> None:
    assert case in CASES
    abusing = asyncio.gather(*(CASES[case]("127.0.0.1", served.port) for _ in range(4)))
    answered = 0
    while not abusing.done() or not answered:
        assert await call(served.stub.One, Note(number=answered), timeout_s=5.0) == Note(number=answered + 1)
        answered += 1
    await abusing


def test_every_kind_of_abuse_is_here() -> None:
    assert len(CASES) >= 25
    assert Path("/proc/self/fd").exists()
