import asyncio

import pytest

from services.domain.errors import (
    BudgetExhausted,
    Draining,
    HostUnavailable,
    Internal,
    ModelFailed,
    ModelNotReady,
    Overloaded,
)
from services.domain.model import ModelKey
from services.model_host.calls import Call
from services.model_host.computing import DeviceBroken, OutOfDeviceMemory
from services.model_host.entrance import PROBE_EVERY
from services.model_host.lane import CEILING_S
from tests.fakes.device_yard import Yard, running, settle, until


async def test_a_batch_is_what_queued_while_the_one_before_ran() -> None:
    async with running() as yard:
        lane = yard.lane()
        first = yard.submit(lane, "a")
        await until(lambda: len(yard.device.ran) == 1)
        rest = [yard.submit(lane, name) for name in "bcd"]
        await settle()
        assert lane.load().queued == 3
        assert lane.load().running == 1
        yard.device.gate.release()
        yard.device.gate.release()
        assert await asyncio.gather(first, *rest) == [(name, name) for name in "abcd"]
    assert yard.device.ran == [(["a"], False), (["b", "c", "d"], True)]
    assert yard.notes.sizes == [1, 3]
    assert lane.statistics.batches == {1: 1, 3: 1}


async def test_the_earliest_deadline_goes_first_within_and_between_versions() -> None:
    async with running() as yard:
        one, other = yard.lane(batch=1), yard.lane(batch=1, key=ModelKey("n", "1.0.0"))
        blocker = yard.submit(one, "first")
        await until(lambda: len(yard.device.ran) == 1)
        calls = [
            yard.submit(one, "late", within_s=9.0),
            yard.submit(other, "soon", within_s=3.0),
            yard.submit(one, "sooner", within_s=2.0),
        ]
        await settle()
        for _ in range(4):
            yard.device.gate.release()
        await asyncio.gather(blocker, *calls)
    assert [names for names, _ in yard.device.ran] == [["first"], ["sooner"], ["soon"], ["late"]]


async def test_groups_and_rows_part_batches() -> None:
    async with running() as yard:
        lane = yard.lane()
        blocker = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        calls = [
            yard.submit(lane, "a1", group="a", rows=5),
            yard.submit(lane, "b1", group="b", rows=2),
            yard.submit(lane, "a2", group="a", rows=3),
            yard.submit(lane, "a3", group="a", rows=1),
        ]
        await settle()
        for _ in range(4):
            yard.device.gate.release()
        await asyncio.gather(blocker, *calls)
    assert [names for names, _ in yard.device.ran] == [["first"], ["a1", "a2"], ["b1"], ["a3"]]


async def test_a_version_that_does_not_batch_is_never_computed_together() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=0.0001, batch=1)
        calls = [yard.submit(lane, number) for number in range(5)]
        yard.device.gate.release()
        yard.device.gate.release()
        await asyncio.gather(*calls)
    assert not any(together for _, together in yard.device.ran)
    assert set(yard.notes.sizes) == {1}


async def test_a_cancelled_call_leaves_before_its_turn() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        gone, stays = yard.submit(lane, "gone"), yard.submit(lane, "stays")
        await settle()
        gone.cancel()
        yard.device.gate.release()
        yard.device.gate.release()
        await asyncio.gather(first, stays)
    assert [names for names, _ in yard.device.ran] == [["first"], ["stays"]]
    assert yard.notes.causes == ["cancelled"]
    assert lane.statistics.total().dropped == 1
    assert gone.cancelled()


async def test_what_cannot_be_in_time_is_refused_with_the_prediction() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=0.100, batch=1)
        with pytest.raises(BudgetExhausted, match=r"takes about 100\.0 ms .* leaves 50\.0 ms"):
            await yard.submit(lane, "short", within_s=0.050)
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        with pytest.raises(Overloaded, match="behind what waits") as refused:
            await yard.submit(lane, "behind", within_s=0.150)
        assert refused.value.retry_after_s == pytest.approx(0.100)
        yard.device.gate.release()
        await first
    assert lane.statistics.total().dropped == 2
    assert yard.notes.causes == ["deadline", "deadline"]


async def test_a_call_that_became_late_while_it_waited_is_dropped_and_not_computed() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=0.010, batch=1)
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        waits = yard.submit(lane, "waits", within_s=0.050)
        await settle()
        yard.clock.advance(0.045)  # the first one takes longer than predicted
        yard.device.gate.release()
        await first
        with pytest.raises(BudgetExhausted):
            await waits
    assert len(yard.device.ran) == 1


async def test_one_slow_spell_is_unlearned_although_every_call_looks_hopeless() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=5.0, batch=1)
        refused = 0
        for _ in range(10 * PROBE_EVERY):
            yard.device.takes_s = 0.001
            yard.device.gate.release()
            try:
                await yard.submit(lane, "x", within_s=0.100)
            except BudgetExhausted:
                refused += 1
                await yard.device.gate.acquire()
        assert refused < 10 * PROBE_EVERY
        assert lane.seconds_of(Call("x", 0.0)) < 5.0 * 0.8**5


async def test_queues_are_bounded_in_calls_and_in_bytes() -> None:
    async with running(max_queued=2, max_queued_bytes=1000) as yard:
        lane, other = yard.lane(batch=1), yard.lane(batch=1, key=ModelKey("n", "1.0.0"))
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls += [yard.submit(lane, number, payload_bytes=400) for number in range(2)]
        await settle()
        with pytest.raises(Overloaded, match=r"2 calls wait for m:1\.0\.0"):
            await yard.submit(lane, "more")
        with pytest.raises(Overloaded, match="800 bytes of calls wait"):
            await yard.submit(other, "large", payload_bytes=300)
        for _ in range(4):
            yard.device.gate.release()
        await asyncio.gather(*calls)
        yard.device.gate.release()
        await yard.submit(other, "large", payload_bytes=1000)
    assert yard.notes.causes == ["full", "full"]


async def test_out_of_memory_is_retryable_and_halves_the_cap_for_a_while() -> None:
    async with running() as yard:
        lane = yard.lane(batch=32)
        assert lane.cap == 32
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        batch = [yard.submit(lane, number) for number in range(16)]
        await settle()
        yard.device.gate.release()
        await first
        yard.device.raises = OutOfDeviceMemory()
        yard.device.gate.release()
        for call in batch:
            with pytest.raises(Overloaded) as refused:
                await call
            assert refused.value.retry_after_s is not None
        assert lane.cap == 8
        assert lane.statistics.total().failure == 16

        yard.clock.advance(CEILING_S + 1)
        for number in range(2):
            yard.device.gate.release()
            assert await yard.submit(lane, number) == (number, number)
        assert lane.ceiling == 16


async def test_a_failed_call_fails_alone() -> None:
    async with running() as yard:
        lane = yard.lane()
        first = yard.submit(lane, "first")
        await until(lambda: len(yard.device.ran) == 1)
        yard.device.refuses["bad"] = ModelFailed("model m:1.0.0 failed on this input")
        good, bad = yard.submit(lane, "good"), yard.submit(lane, "bad")
        await settle()
        yard.device.gate.release()
        yard.device.gate.release()
        await first
        assert await good == ("good", "good")
        with pytest.raises(ModelFailed):
            await bad
    assert (lane.statistics.total().success, lane.statistics.total().failure) == (2, 1)


async def test_a_broken_device_fails_everything_and_says_so() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls.append(yard.submit(lane, "waits"))
        await settle()
        yard.device.raises = DeviceBroken()
        yard.device.gate.release()
        for call in calls:
            with pytest.raises(HostUnavailable):
                await call
        with pytest.raises(HostUnavailable):
            await yard.submit(lane, "after")
    assert yard.notes.broken


async def test_an_error_that_nobody_foresaw_ends_the_queue_and_is_not_lost() -> None:
    yard = Yard()
    serving = asyncio.ensure_future(yard.queue.run())
    await settle()
    lane = yard.lane(batch=1)
    calls = [yard.submit(lane, "first")]
    await until(lambda: len(yard.device.ran) == 1)
    calls.append(yard.submit(lane, "waits"))
    await settle()
    yard.device.raises = ZeroDivisionError("a bug")
    yard.device.gate.release()
    with pytest.raises(ZeroDivisionError):
        await serving
    for call in calls:
        with pytest.raises(Internal):
            await call


async def test_closing_a_lane_answers_what_waits_and_takes_nothing_new() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls.append(yard.submit(lane, "waits"))
        await settle()
        closing = asyncio.ensure_future(yard.queue.close(lane))
        await settle()
        with pytest.raises(ModelNotReady):
            await yard.submit(lane, "late")
        assert not closing.done()
        yard.device.gate.release()
        await settle()
        assert not closing.done()
        yard.device.gate.release()
        await asyncio.gather(*calls)
        await closing


async def test_a_lane_closes_also_when_its_last_waiting_call_is_cancelled() -> None:
    async with running() as yard:
        lane, other = yard.lane(batch=1), yard.lane(batch=1, key=ModelKey("n", "1.0.0"))
        blocker = yard.submit(other, "blocks")
        await until(lambda: len(yard.device.ran) == 1)
        waits = yard.submit(lane, "waits")
        await settle()
        closing = asyncio.ensure_future(yard.queue.close(lane))
        await settle()
        waits.cancel()
        await closing
        yard.device.gate.release()
        await blocker


async def test_stopping_the_queue_fails_what_it_holds_as_draining() -> None:
    async with running() as yard:
        lane = yard.lane(batch=1)
        calls = [yard.submit(lane, "first")]
        await until(lambda: len(yard.device.ran) == 1)
        calls.append(yard.submit(lane, "waits"))
        await settle()
    for call in calls:
        with pytest.raises(Draining):
            await call


async def test_an_idle_device_waits_for_company_only_as_long_as_the_version_allows() -> None:
    async with running() as yard:
        lane = yard.lane(base_s=0.010, wait_s=0.003)
        began_s = yard.clock.now_s()
        yard.device.gate.release()
        await yard.submit(lane, "a")
        assert yard.clock.now_s() - began_s == pytest.approx(0.003)


async def test_load_says_what_waits_what_runs_and_the_line() -> None:
    async with running() as yard:
        load = yard.lane(base_s=0.010, per_item_s=0.002).load()
    assert (load.queued, load.running) == (0, 0)
    assert load.base_s == pytest.approx(0.010)
    assert load.per_item_s == pytest.approx(0.002)
