"""The engine that batches sequences, step by step, with a toy model whose tokens are easy to tell."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from services.domain.clock import ManualClock
from services.domain.errors import (
    BudgetExhausted,
    HostUnavailable,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    YardError,
)
from services.domain.model import ModelKey
from services.model_host.generation import Done, Generation
from services.model_host.sequence_entrance import PROBE_EVERY
from services.model_host.sequences import Advance, Bounds, Prompt, Request, Stepped, Totals, Work
from services.model_host.statistics import LaneStatistics
from services.policy.iterating import IterationTimes

KEY = ModelKey("toy", "1.0.0")
STEP_S = 0.010
TOKEN_S = 0.001
CHUNK = 16


@dataclass
class Answering:
    name: str
    left: int
    most: int
    told: int = 0


class Toy:
    """Answers NAME0 NAME1 ..., until it has given as many tokens as were asked for."""

    def __init__(self) -> None:
        self.slots: dict[int, Answering] = {}
        self.broken: set[str] = set()

    def leave(self, slot: int) -> None:
        del self.slots[slot]

    def join(self, slot: int, prompt: Prompt) -> None:
        assert slot not in self.slots, "the slot is taken"
        self.slots[slot] = Answering(str(prompt.content), prompt.tokens, prompt.most)

    def step(self, prefill: Sequence[tuple[int, int]], decode: Sequence[int]) -> dict[int, Advance]:
        advances = {}
        for slot, count in prefill:
            sequence = self.slots[slot]
            sequence.left -= count
            assert sequence.left >= 0, "more was computed than there is of the prompt"
            advances[slot] = self.token(sequence) if sequence.left == 0 else Advance(0, None, "")
        for slot in decode:
            assert self.slots[slot].left == 0, "the prompt is not computed yet"
            advances[slot] = self.token(self.slots[slot])
        return advances

    def token(self, sequence: Answering) -> Advance:
        text = f"{sequence.name}{sequence.told}"
        sequence.told += 1
        return Advance(1, {"text": text}, "length" if sequence.told == sequence.most else "")


class ManualSteps:
    """Computes a step when the test says so, and moves the clock by what it takes."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.toy = Toy()
        self.done_work: list[Work] = []
        self._waiting: tuple[Work, Done] | None = None

    def start(self, model: object, work: Work, *, done: Done) -> None:
        assert model is self.toy
        assert self._waiting is None, "a step begins before the last one has ended"
        self._waiting = (work, done)

    @property
    def idle(self) -> bool:
        return self._waiting is None

    async def run(self, *, error: BaseException | None = None) -> Work:
        """Compute the step that waits."""
        await settle()
        assert self._waiting is not None, "no step was begun"
        work, done = self._waiting
        self._waiting = None
        self.done_work.append(work)
        for slot in work.leaves:
            self.toy.leave(slot)
        for slot, prompt in work.joins:
            self.toy.join(slot, prompt)
        failing = {slot for slot, sequence in self.toy.slots.items() if sequence.name in self.toy.broken}
        prefill = [(slot, count) for slot, count in work.prefill if slot not in failing]
        decode = [slot for slot in work.decode if slot not in failing]
        took_s = STEP_S * bool(work.prefill or work.decode) + sum(count for _, count in work.prefill) * TOKEN_S
        self.clock.advance(took_s)
        if error is not None:
            done(None, error)
        else:
            failures: dict[int, YardError] = {slot: ModelFailed("broken") for slot in failing}
            done(Stepped(self.toy.step(prefill, decode), failures, took_s), None)
        await settle()
        return work

    async def run_all(self) -> None:
        """Compute until nothing is left."""
        await settle()
        while not self.idle:
            await self.run()


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@dataclass
class Heard:
    """A listener, and what it was told."""

    pieces: list[str] = field(default_factory=list)
    totals: Totals | None = None
    error: YardError | None = None

    def piece(self, outputs: Mapping[str, object]) -> None:
        assert self.totals is None
        assert self.error is None
        self.pieces.append(str(outputs["text"]))

    def ended(self, totals: Totals, outputs: Mapping[str, object] | None) -> None:
        if outputs is not None:
            self.piece(outputs)
        self.totals = totals

    def failed(self, error: YardError) -> None:
        assert self.totals is None
        self.error = error


@dataclass
class Noted:
    """An observer, and what it was told."""

    firsts_s: list[float] = field(default_factory=list)
    nexts_s: list[float] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    load: tuple[int, int] = (0, 0)
    device_s: dict[str, float] = field(default_factory=dict)
    broken: bool = False

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        (self.firsts_s if first else self.nexts_s).append(after_s)

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        self.ended.append(str(request.prompt.content))

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        self.drops.append(cause)

    def device_used(self, request: Request, device_s: float) -> None:
        name = str(request.prompt.content)
        self.device_s[name] = self.device_s.get(name, 0.0) + device_s

    def load_changed(self, waiting: int, active: int) -> None:
        self.load = (waiting, active)

    def device_broken(self) -> None:
        self.broken = True


class World:
    """An engine and all that it needs."""

    def __init__(self, *, sequences: int = 2, max_waiting: int = 8) -> None:
        self.clock = ManualClock()
        self.steps = ManualSteps(self.clock)
        self.noted = Noted()
        self.statistics = LaneStatistics()
        self.engine = Generation(
            KEY,
            self.steps.toy,
            steps=self.steps,
            observer=self.noted,
            clock=self.clock,
            bounds=Bounds(sequences, CHUNK, max_waiting),
            times=IterationTimes(STEP_S, TOKEN_S, 10.0),
            statistics=self.statistics,
        )

    def request(
        self, name: str, *, tokens: int = 4, prompt: int = 3, within_s: float = 100.0, band: int = 4
    ) -> tuple[Request, Heard]:
        heard = Heard()
        return Request(Prompt(prompt, tokens, name), self.clock.now_s() + within_s, heard, band), heard

    def enter(self, name: str, **more: float) -> tuple[Request, Heard]:
        request, heard = self.request(name, **more)  # type: ignore[arg-type]
        self.engine.enter(request)
        return request, heard


async def test_an_answer_comes_token_by_token_with_its_totals() -> None:
    world = World()
    _, heard = world.enter("a", tokens=3, prompt=20)

    await world.steps.run_all()

    assert heard.pieces == ["a0", "a1", "a2"]
    assert heard.totals is not None
    assert (heard.totals.prompt_tokens, heard.totals.tokens, heard.totals.finished) == (20, 3, "length")
    assert heard.totals.first_token_s == pytest.approx(2 * STEP_S + 20 * TOKEN_S)
    assert heard.totals.compute_s == pytest.approx(4 * STEP_S + 20 * TOKEN_S)
    assert world.noted.nexts_s == pytest.approx([STEP_S, STEP_S])
    assert world.engine.quiet
    assert world.steps.toy.slots == {}


async def test_a_newcomer_joins_between_two_steps_of_another_and_leaves_before_it() -> None:
    world = World()
    _, long = world.enter("a", tokens=8)
    await world.steps.run()
    await world.steps.run()

    _, short = world.enter("b", tokens=2)
    await world.steps.run()  # the step under way was planned without it
    joined = await world.steps.run()
    after = await world.steps.run()

    assert [prompt.content for _, prompt in joined.joins] == ["b"]
    assert joined.decode == (0,)
    assert after.decode == (0, 1)
    assert short.pieces == ["b0", "b1"]
    assert long.totals is None
    await world.steps.run_all()
    assert long.pieces == [f"a{number}" for number in range(8)]


async def test_a_slot_is_used_again_in_the_step_after_its_sequence_ended() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=2)
    _, waiting = world.enter("b", tokens=2)
    await world.steps.run()
    await world.steps.run()

    work = await world.steps.run()

    assert (work.leaves, [slot for slot, _ in work.joins]) == ((0,), [0])
    assert waiting.pieces == ["b0"]


async def test_a_long_prompt_delays_nobody_by_more_than_a_chunk() -> None:
    world = World()
    world.enter("a", tokens=60)
    await world.steps.run()

    world.enter("long", prompt=160, tokens=1)
    await world.steps.run()
    works = [await world.steps.run() for _ in range(10)]

    assert [sum(count for _, count in work.prefill) for work in works] == [CHUNK] * 10
    assert all(work.decode == (0,) for work in works)
    assert max(world.noted.nexts_s) == pytest.approx(STEP_S + CHUNK * TOKEN_S)


async def test_a_short_prompt_does_not_wait_for_a_long_one_to_be_computed() -> None:
    world = World()
    _, long = world.enter("long", prompt=400, tokens=1)
    await world.steps.run()

    _, short = world.enter("short", prompt=5, tokens=1)
    await world.steps.run()
    await world.steps.run()
    await world.steps.run()

    assert short.pieces == ["short0"]
    assert long.pieces == []
    await world.steps.run_all()
    assert long.pieces == ["long0"]


async def test_the_prompts_of_many_take_turns() -> None:
    world = World(sequences=3)
    for name in "abc":
        world.enter(name, prompt=2 * CHUNK, tokens=1)

    works = [await world.steps.run() for _ in range(6)]

    assert [work.prefill[0][0] for work in works] == [0, 1, 2, 0, 1, 2]


async def test_who_vanishes_frees_the_slot_at_the_next_step() -> None:
    world = World(sequences=1)
    request, heard = world.enter("a", tokens=50)
    _, waiting = world.enter("b", tokens=1)
    await world.steps.run()
    await world.steps.run()

    world.engine.leave(request)
    await world.steps.run()  # under way when it left
    work = await world.steps.run()

    assert (work.leaves, [prompt.content for _, prompt in work.joins]) == ((0,), ["b"])
    assert waiting.pieces == ["b0"]
    assert heard.pieces == ["a0", "a1"]
    assert world.noted.drops == []
    assert world.statistics.of(4).wasted_s == pytest.approx(STEP_S)


async def test_who_vanishes_while_waiting_costs_nothing() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=3)
    request, heard = world.enter("b")
    await settle()

    world.engine.leave(request)
    world.engine.leave(request)

    await world.steps.run_all()
    assert heard == Heard()
    assert world.noted.drops == ["cancelled"]
    assert world.noted.ended == ["a"]


async def test_the_earlier_band_gets_the_free_slot_then_the_earlier_deadline() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=1)
    await settle()
    world.enter("later", tokens=1, within_s=90.0)
    world.enter("sooner", tokens=1, within_s=80.0)
    world.enter("urgent", tokens=1, within_s=95.0, band=1)

    await world.steps.run_all()

    assert world.noted.ended[1:] == ["urgent", "sooner", "later"]


async def test_a_deadline_that_the_prompt_alone_breaks_is_refused_with_the_forecast() -> None:
    world = World()
    request, _ = world.request("a", prompt=100, within_s=0.1)

    with pytest.raises(BudgetExhausted, match=r"170\.0 ms to the first token.*100\.0 ms"):
        world.engine.enter(request)

    assert world.noted.drops == ["deadline"]
    assert world.statistics.of(4).drops == {"deadline": 1}


async def test_one_that_others_are_in_the_way_of_is_refused_and_told_when_to_come_again() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=200)
    await world.steps.run()
    request, _ = world.request("b", within_s=0.05)

    with pytest.raises(Overloaded, match="behind what is here") as caught:
        world.engine.enter(request)

    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0.05


async def test_no_more_wait_than_may() -> None:
    world = World(sequences=1, max_waiting=2)
    for name in "abc":
        world.enter(name)
        await settle()
    request, _ = world.request("d")

    with pytest.raises(Overloaded, match="2 sequences wait"):
        world.engine.enter(request)

    assert world.noted.drops == ["full"]


async def test_an_idle_engine_tries_again_what_looked_hopeless() -> None:
    world = World()
    refused = 0
    for _ in range(PROBE_EVERY):
        request, heard = world.request("a", prompt=100, tokens=1, within_s=0.1)
        try:
            world.engine.enter(request)
        except BudgetExhausted:
            refused += 1

    await world.steps.run_all()

    assert refused == PROBE_EVERY - 1
    assert heard.pieces == ["a0"]


async def test_a_deadline_ends_an_answer_after_what_it_has_and_before_it_passes() -> None:
    world = World()
    _, heard = world.enter("a", tokens=50, prompt=1, within_s=0.055)

    await world.steps.run_all()

    assert heard.pieces == ["a0", "a1", "a2", "a3", "a4"]
    assert isinstance(heard.error, BudgetExhausted)
    assert heard.error.metadata == {"tokens": "5"}
    assert world.clock.now_s() - 1_000.0 == pytest.approx(0.051)
    assert world.statistics.of(4).failure == 1
    assert world.engine.quiet


async def test_one_that_waited_too_long_is_dropped_before_it_computes() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=8)
    await settle()
    _, heard = world.enter("b", within_s=0.125)
    for _ in range(4):
        await world.steps.run()
        world.clock.advance(0.030)  # steps take longer than they did

    assert isinstance(heard.error, BudgetExhausted)
    assert heard.pieces == []
    assert not any(prompt.content == "b" for work in world.steps.done_work for _, prompt in work.joins)


async def test_one_that_fails_takes_nobody_with_it() -> None:
    world = World()
    world.steps.toy.broken.add("bad")
    _, bad = world.enter("bad")
    _, good = world.enter("good")

    await world.steps.run_all()

    assert isinstance(bad.error, ModelFailed)
    assert len(good.pieces) == 4
    assert world.engine.quiet
    assert world.steps.toy.slots == {}


async def test_a_broken_device_fails_all_and_takes_no_more() -> None:
    world = World(sequences=1)
    _, active = world.enter("a")
    _, waiting = world.enter("b")

    await world.steps.run(error=RuntimeError("the device fell off the bus"))

    assert isinstance(active.error, HostUnavailable)
    assert isinstance(waiting.error, HostUnavailable)
    assert world.noted.broken
    request, _ = world.request("c")
    with pytest.raises(HostUnavailable):
        world.engine.enter(request)


async def test_closing_waits_for_the_last_answer_and_takes_no_new_one() -> None:
    world = World()
    _, heard = world.enter("a", tokens=2)
    closing = asyncio.ensure_future(world.engine.close())
    await settle()

    request, _ = world.request("b")
    with pytest.raises(ModelNotReady):
        world.engine.enter(request)
    assert not closing.done()
    await world.steps.run_all()

    await asyncio.wait_for(closing, 1)
    assert heard.totals is not None
    assert world.steps.toy.slots == {}


async def test_the_load_is_told() -> None:
    world = World(sequences=1)
    world.enter("a", tokens=2)
    world.enter("b", tokens=1)
    await settle()
    assert world.noted.load == (1, 1)

    await world.steps.run_all()

    assert world.noted.load == (0, 0)


async def test_the_devices_time_is_charged_by_tokens() -> None:
    world = World()
    world.enter("a", tokens=3, prompt=1)
    await world.steps.run()
    world.enter("b", tokens=1, prompt=9)
    await world.steps.run_all()

    total_s = world.clock.now_s() - 1_000.0
    assert sum(world.noted.device_s.values()) == pytest.approx(total_s)
    assert world.noted.device_s["b"] == pytest.approx(0.9 * (STEP_S + 9 * TOKEN_S))
    assert world.statistics.of(4).device_s == pytest.approx(total_s)
