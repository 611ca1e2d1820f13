"""What waits to be sent: one message for all that is there, in order, and a bound on how much."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.chassis.outbox import MESSAGE_BYTES, Outbox

Message = list[int]


class Wire:
    """The other side, which takes a message when it is told to."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.beginning = asyncio.Event()
        self._may = asyncio.Semaphore(0)

    async def write(self, message: Message) -> None:
        """Begin to send, and go on once `take` allows it."""
        self.beginning.set()
        await self._may.acquire()
        self.taken.append(list(message))

    def take(self, messages: int = 1) -> None:
        """Let so many messages through."""
        for _ in range(messages):
            self._may.release()


def filled(*sizes: int, most_bytes: int = 1 << 40) -> "Outbox[Message]":
    outbox: Outbox[Message] = Outbox(list, most_bytes=most_bytes)
    for number, size in enumerate(sizes):
        outbox.message(size).append(number)
    return outbox


async def sent(outbox: "Outbox[Message]") -> list[Message]:
    wire = Wire()
    wire.take(1000)
    await outbox.send(wire.write)
    return wire.taken


async def test_everything_that_is_there_goes_into_one_message_in_order() -> None:
    outbox = filled(*[100] * 500)

    assert await sent(outbox) == [list(range(500))]


async def test_what_comes_while_a_message_is_sent_shares_the_next() -> None:
    outbox, wire = filled(10), Wire()

    sending = asyncio.ensure_future(outbox.send(wire.write))
    await wire.beginning.wait()
    for number in (1, 2, 3):
        outbox.message(10).append(number)
    wire.take(2)
    await sending

    assert wire.taken == [[0], [1, 2, 3]]
    assert outbox.empty


async def test_a_message_that_is_being_sent_is_not_added_to() -> None:
    outbox, wire = filled(10), Wire()
    first = outbox.message(0)

    sending = asyncio.ensure_future(outbox.send(wire.write))
    await wire.beginning.wait()

    assert outbox.message(0) is not first
    wire.take(2)
    await sending


async def test_contents_over_the_size_of_a_message_start_another() -> None:
    half = MESSAGE_BYTES // 2

    assert await sent(filled(half, half, 1)) == [[0, 1], [2]]


async def test_what_is_larger_than_a_message_goes_alone() -> None:
    assert await sent(filled(1, 3 * MESSAGE_BYTES, 1, 1)) == [[0], [1], [2, 3]]


async def test_a_message_after_a_sent_one_has_its_whole_size_again() -> None:
    outbox = filled(MESSAGE_BYTES)
    await sent(outbox)

    outbox.message(MESSAGE_BYTES // 2).append(1)
    outbox.message(MESSAGE_BYTES // 2).append(2)

    assert await sent(outbox) == [[1, 2]]


async def test_there_is_room_until_more_than_the_most_waits_and_again_once_it_is_sent() -> None:
    outbox, wire = filled(60, 40, most_bytes=100), Wire()
    assert outbox.room.is_set()

    outbox.message(1).append(2)
    assert not outbox.room.is_set()

    sending = asyncio.ensure_future(outbox.send(wire.write))
    await wire.beginning.wait()
    assert not outbox.room.is_set(), "what is being sent is held as well"
    wire.take()
    await sending
    assert outbox.room.is_set()
    assert outbox.waiting_bytes == 0


async def test_room_stays_away_while_what_came_meanwhile_is_too_much() -> None:
    outbox, wire = filled(101, most_bytes=100), Wire()
    sending = asyncio.ensure_future(outbox.send(wire.write))
    await wire.beginning.wait()
    outbox.message(101).append(1)

    wire.beginning.clear()
    wire.take()
    await wire.beginning.wait()
    assert (outbox.room.is_set(), outbox.waiting_bytes) == (False, 101)

    wire.take()
    await sending
    assert outbox.room.is_set()


async def test_whoever_sends_is_woken_by_what_comes_and_by_nothing_else() -> None:
    outbox = filled()
    assert (outbox.ready.is_set(), outbox.empty) == (False, True)

    outbox.message(0)  # without any contents, as what only cancels
    assert (outbox.ready.is_set(), outbox.empty) == (True, False)

    await sent(outbox)
    assert (outbox.ready.is_set(), outbox.empty) == (False, True)


async def test_it_is_not_empty_while_its_last_message_is_being_sent() -> None:
    outbox, wire = filled(10), Wire()
    sending = asyncio.ensure_future(outbox.send(wire.write))
    await wire.beginning.wait()

    assert not outbox.empty

    wire.take()
    await sending
    assert outbox.empty


@given(st.lists(st.integers(0, 3 * MESSAGE_BYTES), max_size=40), st.integers(0, 8 * MESSAGE_BYTES))
def test_whatever_the_sizes_all_arrive_once_in_order_in_messages_of_bounded_size(
    sizes: list[int], most_bytes: int
) -> None:
    async def arrive() -> list[Message]:
        outbox = filled(*sizes, most_bytes=most_bytes)
        assert outbox.waiting_bytes == sum(sizes)
        assert outbox.room.is_set() == (sum(sizes) <= most_bytes)
        return await sent(outbox)

    messages = asyncio.run(arrive())

    assert [number for message in messages for number in message] == list(range(len(sizes)))
    for message in messages:
        assert len(message) == 1 or sum(sizes[number] for number in message) <= MESSAGE_BYTES
