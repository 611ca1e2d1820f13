"""Steps on the real compute thread over a simulated device: what one sequence costs the others when it fails."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.domain.clock import SystemClock
from services.domain.errors import InvalidRequest, ModelFailed, Overloaded
from services.domain.model import TensorSpec
from services.domain.objects import Backend, Generation, Metadata, Model, ModelVersion
from services.model_host.computing import DeviceBroken
from services.model_host.generator import Generator
from services.model_host.predictor import WrongOutput
from services.model_host.sequences import Advance, Prompt, Stepped, Wish, Work
from services.model_host.stepping import Stepping
from services.model_host.worker import Worker
from tests.fakes.simulated_device import Fault, SimulatedDevice

MODEL = Model(Metadata("toy"), (TensorSpec("text", "BYTES", (1,)),), (TensorSpec("text", "BYTES", (1,)),))
VERSION = ModelVersion(
    Metadata("toy"), "1.0.0", Backend("torch"), generation=Generation(sequences=3, max_tokens=64, prefill_tokens=4)
)


class Counting:
    """Answers a prompt by its tokens counted on; one of `b"bad"` fails, one of `b"wrong"` breaks the schema."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.slots: dict[int, tuple[bytes, int]] = {}
        self.need_bytes = 0

    def read(self, inputs: Mapping[str, NDArray[Any]], wishes: Mapping[str, Wish]) -> Prompt:
        text = bytes(inputs["text"][0])
        if text == b"unreadable":
            raise InvalidRequest("unreadable")
        return Prompt(max(1, len(text)), int(wishes.get("max_tokens", 3)), text)

    def join(self, slot: int, prompt: Prompt) -> None:
        assert isinstance(prompt.content, bytes)
        self.slots[slot] = (prompt.content, 0)

    def step(self, prefill: Sequence[tuple[int, int]], decode: Sequence[int]) -> dict[int, Advance]:
        slots = [*(slot for slot, _ in prefill), *decode]
        self.device.run(self.need_bytes * len(slots), lambda: None)
        if any(self.slots[slot][0] == b"bad" for slot in slots):
            raise ValueError("a payload that must not be told")
        return {slot: self.advance(slot) for slot in slots}

    def advance(self, slot: int) -> Advance:
        text, count = self.slots[slot]
        self.slots[slot] = (text, count + 1)
        said: NDArray[Any] = np.array([b"%s%d" % (text, count)], np.object_)
        outputs: dict[str, object] = {"text": said if text != b"wrong" else said.reshape(1, 1)}
        return Advance(1, outputs, "length" if count == 4 else "")

    def leave(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def collect(self, pieces: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        return {"text": np.array([b" ".join(piece["text"][0] for piece in pieces)], np.object_)}


class Yard:
    """A compute thread, and a version on it."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.device = SimulatedDevice(memory_bytes=1000)
        self.worker = Worker("compute", clock)
        self.stepping = Stepping(worker=self.worker, device=self.device, clock=clock)
        self.model = Counting(self.device)
        self.generator = Generator(self.model, MODEL, VERSION)

    def join(self, *texts: bytes) -> Work:
        """Work in which all of these join and have their prompts computed."""
        joins = tuple((slot, Prompt(1, 9, text)) for slot, text in enumerate(texts))
        return Work((), joins, tuple((slot, 1) for slot, _ in joins))

    async def step(self, work: Work) -> Stepped:
        done: asyncio.Future[Stepped] = asyncio.get_running_loop().create_future()

        def ended(stepped: Stepped | None, error: BaseException | None) -> None:
            if stepped is not None:
                done.set_result(stepped)
            else:
                assert error is not None
                done.set_exception(error)

        self.stepping.start(self.generator, work, done=ended)
        return await asyncio.wait_for(done, 10)


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    made = Yard()
    made.worker.start()
    yield made
    made.worker.stop()


def said(stepped: Stepped) -> dict[int, bytes]:
    found = {}
    for slot, advance in stepped.advances.items():
        assert advance.outputs is not None
        text: Any = advance.outputs["text"]
        found[slot] = text[0]
    return found


async def test_a_step_computes_everybody(yard: Yard) -> None:
    first = await yard.step(yard.join(b"a", b"b"))
    second = await yard.step(Work(decode=(0, 1)))

    assert (said(first), said(second)) == ({0: b"a0", 1: b"b0"}, {0: b"a1", 1: b"b1"})
    assert first.compute_s > 0.0


async def test_one_that_fails_does_not_fail_the_others_and_its_words_stay_here(yard: Yard) -> None:
    stepped = await yard.step(yard.join(b"a", b"bad", b"c"))

    assert said(stepped) == {0: b"a0", 2: b"c0"}
    assert isinstance(stepped.failures[1], ModelFailed)
    assert "payload" not in stepped.failures[1].message


async def test_a_piece_that_breaks_the_schema_fails_its_sequence_alone_and_nobody_steps_twice(yard: Yard) -> None:
    stepped = await yard.step(yard.join(b"a", b"wrong"))

    assert said(stepped) == {0: b"a0"}
    assert isinstance(stepped.failures[1], ModelFailed)
    assert said(await yard.step(Work(leaves=(1,), decode=(0,)))) == {0: b"a1"}


async def test_what_has_no_memory_together_is_computed_one_by_one(yard: Yard) -> None:
    yard.model.need_bytes = 600

    stepped = await yard.step(yard.join(b"a", b"b"))

    assert said(stepped) == {0: b"a0", 1: b"b0"}


async def test_what_has_no_memory_alone_may_come_again(yard: Yard) -> None:
    yard.model.need_bytes = 2000

    stepped = await yard.step(yard.join(b"a"))

    assert isinstance(stepped.failures[0], Overloaded)
    assert stepped.failures[0].retry_after_s is not None


async def test_a_broken_device_ends_it(yard: Yard) -> None:
    yard.device.inject(Fault.LAUNCH_FAILURE)

    with pytest.raises(DeviceBroken):
        await yard.step(yard.join(b"a"))


class TestGenerator:
    def test_its_pace_is_measured_and_its_slots_are_free_again(self, yard: Yard) -> None:
        samples: list[dict[str, NDArray[Any]]] = [{"text": np.array([b"ten tokens"], np.object_)}]

        first_s = yard.generator.warm_up(samples, clock=SystemClock())

        assert first_s > 0.0
        assert yard.generator.pace.step_s > 0.0
        assert yard.generator.pace.prompt_token_s >= 0.0
        assert yard.model.slots == {}

    def test_a_whole_answer_can_be_had_without_an_engine(self, yard: Yard) -> None:
        answer = yard.generator.predict({"text": np.array([b"a"], np.object_)}, 1)

        assert answer["text"].tolist() == [b"a0 a1 a2 a3 a4"]
        assert yard.model.slots == {}

    def test_warming_up_holds_it_to_its_schema(self, yard: Yard) -> None:
        with pytest.raises(WrongOutput, match=r"'text' is declared BYTES \[1\]"):
            yard.generator.warm_up([{"text": np.array([b"wrong"], np.object_)}], clock=SystemClock())
