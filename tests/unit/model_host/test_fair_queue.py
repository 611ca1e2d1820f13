"""Whose call goes next, who has to make room, and that nobody gets another's answer."""

import asyncio
import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.errors import BudgetExhausted, Overloaded, YardError
from services.domain.model import ModelKey
from services.domain.service_class import ServiceClass
from tests.fakes.device_yard import Yard, running, settle, until

GOLD = ServiceClass("g", "gold", band=1)
SILVER = ServiceClass("s", "silver", band=4)
BRONZE = ServiceClass("b", "bronze", band=8)
OTHER = ModelKey("other", "1.0.0")


def flat(yard: Yard) -> list[object]:
    return [payload for payloads, _ in yard.device.ran for payload in payloads]


def ran_more_than(yard: Yard, number: int) -> bool:
    return len(yard.device.ran) > number


async def test_a_later_call_of_an_earlier_band_goes_first_whatever_the_deadlines() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls.append(yard.submit(lane, "bronze", of=BRONZE, within_s=1.0))
        calls.append(yard.submit(lane, "silver", of=SILVER, within_s=5.0))
        calls.append(yard.submit(lane, "gold", of=GOLD, within_s=9.0))
        await settle()
        for _ in calls:
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert flat(yard) == ["first", "gold", "silver", "bronze"]


async def test_a_batch_takes_calls_of_later_bands_where_room_is_left() -> None:
    async with running() as yard:
        lane = yard.lane(batch=4)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls += [yard.submit(lane, f"b{number}", of=BRONZE) for number in range(5)]
        calls += [yard.submit(lane, f"g{number}", of=GOLD) for number in range(2)]
        await settle()
        for _ in range(3):
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert [payloads for payloads, _ in yard.device.ran[1:]] == [["g0", "g1", "b0", "b1"], ["b2", "b3", "b4"]]


async def test_tenants_share_the_device_by_its_time_over_all_models() -> None:
    """One floods with a slow model; the other's fast one gets as much time, so many more calls."""
    async with running(max_queued=500) as yard:
        slow = yard.lane(0.100, batch=1)
        fast = yard.lane(0.010, batch=1, key=OTHER)
        flood, other = ServiceClass("flood"), ServiceClass("other")
        calls = [yard.submit(slow, "slow", of=flood, within_s=1000.0) for _ in range(100)]
        calls += [yard.submit(fast, "fast", of=other, within_s=1000.0) for _ in range(300)]
        await settle()
        had_s: Counter[object] = Counter()
        for number in range(220):
            await until(partial(ran_more_than, yard, number))
            payloads = yard.device.ran[-1][0]
            yard.device.takes_s = 0.100 if payloads[0] == "slow" else 0.010
            # What does not batch goes to the device several at once where that is short.
            had_s[payloads[0]] += yard.device.takes_s * len(payloads)  # type: ignore[assignment]
            yard.device.gate.release()
            await settle()
        assert had_s["slow"] == pytest.approx(had_s["fast"], abs=0.2)
        for call in calls:
            call.cancel()


async def test_the_earliest_deadline_of_a_tenant_goes_first_over_all_its_models() -> None:
    async with running() as yard:
        lane, other = yard.lane(batch=1), yard.lane(batch=1, key=OTHER)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls.append(yard.submit(lane, "later", of=SILVER, within_s=5.0))
        calls.append(yard.submit(other, "sooner", of=SILVER, within_s=2.0))
        await settle()
        for _ in calls:
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert flat(yard) == ["first", "sooner", "later"]


async def test_a_full_queue_makes_room_for_an_earlier_band_by_the_last_call_of_the_latest() -> None:
    async with running(max_queued=3) as yard:
        lane = yard.lane(batch=1)
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        silver = yard.submit(lane, "silver", of=SILVER)
        soon, late = (yard.submit(lane, f"b{s}", of=BRONZE, within_s=s) for s in (2.0, 3.0))
        await settle()
        gold = yard.submit(lane, "gold", of=GOLD)
        with pytest.raises(Overloaded, match="earlier band") as pushed:
            await late
        assert pushed.value.retry_after_s is not None
        with pytest.raises(Overloaded, match="no more are taken"):
            await yard.submit(lane, "b4", of=BRONZE)
        for _ in range(4):
            yard.device.gate.release()
        await asyncio.gather(first, silver, soon, gold)
        assert flat(yard) == ["first", "gold", "silver", "b2.0"]
        assert yard.notes.causes == ["preempted", "full"]
        assert lane.statistics.of(8).drops == {"preempted": 1, "full": 1}


async def test_a_class_that_may_not_push_others_out_is_refused_instead() -> None:
    async with running(max_queued=1) as yard:
        lane = yard.lane(batch=1)
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        bronze = yard.submit(lane, "bronze", of=BRONZE)
        await settle()
        with pytest.raises(Overloaded, match="no more are taken"):
            await yard.submit(lane, "meek", of=ServiceClass("m", "meek", band=1, preempts=False))
        for _ in range(2):
            yard.device.gate.release()
        await asyncio.gather(first, bronze)


async def test_a_call_is_refused_for_what_earlier_bands_have_waiting_and_not_for_later_ones() -> None:
    async with running() as yard:
        lane = yard.lane(0.100, batch=1)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls += [yard.submit(lane, number, of=SILVER) for number in range(10)]
        await settle()
        with pytest.raises(Overloaded, match="behind what waits here"):
            await yard.submit(lane, "bronze", of=BRONZE, within_s=1.0)
        calls.append(yard.submit(lane, "gold", of=GOLD, within_s=1.0))
        await settle()
        for _ in calls:
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert flat(yard)[1] == "gold"


async def test_a_flooding_tenant_does_not_get_another_ones_calls_refused() -> None:
    async with running() as yard:
        lane = yard.lane(0.100, batch=1)
        yard.device.takes_s = 0.100
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls += [yard.submit(lane, number, of=ServiceClass("flood")) for number in range(50)]
        await settle()
        calls.append(yard.submit(lane, "mine", of=ServiceClass("mine"), within_s=0.5))
        await settle()
        for _ in calls:
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert flat(yard).index("mine") <= 2


async def test_a_call_that_others_always_go_before_is_dropped_when_its_deadline_passes() -> None:
    async with running() as yard:
        lane = yard.lane(0.100, batch=1)
        yard.device.takes_s = 0.100
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        starved = yard.submit(lane, "starved", of=BRONZE, within_s=0.35)
        await settle()
        calls += [yard.submit(lane, number, of=GOLD) for number in range(8)]
        await settle()
        for _ in range(6):
            yard.device.gate.release()
            await settle()
        assert starved.done()
        with pytest.raises((BudgetExhausted, Overloaded)):
            await starved
        for _ in calls:
            yard.device.gate.release()
        await asyncio.gather(*calls)
        assert "starved" not in flat(yard)


async def test_time_spent_on_what_nobody_waits_for_is_counted_as_wasted() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        yard.device.takes_s = 0.010
        gone = yard.submit(lane, "gone")
        await until(lambda: len(yard.device.ran) == 1)
        gone.cancel()
        await settle()
        yard.device.gate.release()
        stays = yard.submit(lane, "stays")
        yard.device.gate.release()
        await stays
        assert lane.statistics.total().wasted_s == pytest.approx(0.010)
        assert lane.statistics.total().device_s == pytest.approx(0.020)
        assert yard.notes.wasted_s == pytest.approx(0.010)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_no_call_gets_the_answer_of_another_and_each_gets_exactly_one(seed: int) -> None:
    asyncio.run(_every_call_gets_its_own(random.Random(seed)))


async def _every_call_gets_its_own(rng: random.Random) -> None:
    async with running(max_queued=20) as yard:
        lanes = [yard.lane(batch=rng.choice((1, 4, 8)), key=ModelKey(f"m{number}", "1.0.0")) for number in range(3)]
        classes = [GOLD, SILVER, BRONZE, ServiceClass("x"), ServiceClass("r", "r", band=7, reserved_share=0.3)]
        yard.device.takes_s = 0.010
        calls: dict[str, asyncio.Task[object]] = {}
        for number in range(120):
            payload = f"call {number}"
            calls[payload] = yard.submit(
                rng.choice(lanes),
                payload,
                of=rng.choice([*classes, None]),
                within_s=rng.choice((0.02, 0.1, 1.0, 10.0)),
                rows=rng.choice((1, 1, 2)),
                group=rng.choice("ab"),
            )
            if rng.random() < 0.3:
                rng.choice(list(calls.values())).cancel()
            if rng.random() < 0.4:
                yard.device.gate.release()
                await settle()
        while not all(call.done() for call in calls.values()):
            yard.device.gate.release()
            await settle()
        for payload, call in calls.items():
            if not call.cancelled() and call.exception() is None:
                assert call.result() == (payload, payload)
            elif not call.cancelled():
                assert isinstance(call.exception(), YardError)
        computed = Counter(flat(yard))
        assert set(computed.values()) <= {1}
        assert yard.queue.quiet
        assert all(lane.idle and not lane.flows and lane.queued_rows == 0 for lane in lanes)


async def test_where_others_wait_a_call_that_only_the_mean_batch_would_make_is_dropped() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=0.010, batch=2)
        for number in range(60):
            yard.device.takes_s = 0.009 if number % 2 else 0.011
            pair = [yard.submit(lane, number, rows=1) for _ in range(2)]
            await until(partial(ran_more_than, yard, number))
            yard.device.gate.release()
            await asyncio.gather(*pair)
        yard.device.takes_s = 0.011
        first = yard.submit(lane, "first")
        await until(partial(ran_more_than, yard, 60))
        late = yard.submit(lane, "late", within_s=0.0215)
        others = [yard.submit(lane, number) for number in range(3)]
        await settle()
        for _ in range(3):
            yard.device.gate.release()
        await asyncio.gather(first, *others)
        with pytest.raises((BudgetExhausted, Overloaded)):
            await late
        assert yard.notes.wasted_s == 0.0
