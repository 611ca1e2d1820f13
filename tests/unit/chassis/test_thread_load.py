"""The load of a thread, and what a message does about it."""

import asyncio

from services.chassis.outbox import FEW, Outbox
from services.chassis.thread_load import WINDOW_S, ThreadLoad
from services.domain.clock import ManualClock


class Worked(ManualClock):
    """A clock of a thread that computes as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s = 0.0

    def thread_s(self) -> float:
        return self.cpu_s

    def work(self, share: float) -> None:
        self.advance(WINDOW_S)
        self.cpu_s += share * WINDOW_S


def test_a_thread_is_saturated_by_what_it_did_in_the_last_window() -> None:
    clock = Worked()
    load = ThreadLoad(clock)
    seen = []
    for share in (0.0, 0.9, 0.5, 1.0):
        clock.work(share)
        seen.append(load.saturated)

    assert seen == [False, True, False, True]


async def sent_together(load_share: float, first: int) -> int:
    """Items in the first message, when another one comes a few turns of the loop later."""
    clock = Worked()
    load = ThreadLoad(clock)
    clock.work(load_share)
    outbox: Outbox[list[int]] = Outbox(list, most_bytes=1 << 20, load=load)
    for number in range(first):
        outbox.message(1).append(number)
    messages: list[list[int]] = []

    async def write(message: list[int]) -> None:
        messages.append(message)

    sending = asyncio.ensure_future(outbox.send(write))
    for _ in range(3):
        await asyncio.sleep(0)
    outbox.message(1).append(-1)
    await sending
    return len(messages[0])


async def test_a_small_message_waits_for_company_on_a_saturated_thread_only() -> None:
    assert await sent_together(0.9, first=1) == 2
    assert await sent_together(0.3, first=1) == 1


async def test_a_message_that_has_company_does_not_wait() -> None:
    assert await sent_together(0.9, first=FEW) == FEW
