"""Calls of a version that generates: as a whole through the queue, in pieces, and by the rules that hold for all."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.domain.clock import SystemClock
from services.domain.errors import InvalidRequest, ModelFailed, ModelNotReady, Overloaded, YardError
from services.domain.model import ModelKey
from services.domain.service_class import ServiceClass
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Call, Step
from services.model_host.computing import Done
from services.model_host.generating import Engine, Engines
from services.model_host.generator import Generator
from services.model_host.lane import Lane
from services.model_host.sequences import Request, Totals
from services.model_host.stepping import Stepping
from services.model_host.wire import Tensors
from services.model_host.worker import Worker
from services.policy.batch_times import ServiceTimes
from tests.fakes.simulated_device import SimulatedDevice
from tests.unit.model_host.test_stepping import MODEL, VERSION, Counting


class NoBatches:
    """A device for batches, of which none may come."""

    def start(self, model: object, calls: Sequence[Call], *, together: bool, predicted_s: float, done: Done) -> None:
        raise AssertionError("a call of a version that generates came into a batch")


class Notes:
    """What the queue and the engines report."""

    def __init__(self) -> None:
        self.drops: list[str] = []
        self.wasted_s = 0.0
        self.tokens = 0
        self.failed: list[Exception] = []
        self.load: tuple[int, int] = (0, 0)

    def step_done(self, key: ModelKey, step: Step) -> None:
        raise AssertionError("no batch was computed")

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None:
        self.drops.append(cause)

    def device_wasted(self, key: ModelKey, device_s: float) -> None:
        self.wasted_s += device_s

    def device_broken(self) -> None:
        raise AssertionError("the device is sound")

    def token_came(self, key: ModelKey, after_s: float, *, first: bool) -> None:
        self.tokens += 1

    def sequence_ended(self, key: ModelKey, request: Request, *, ended_s: float) -> None:
        pass

    def sequences(self, key: ModelKey, *, waiting: int, active: int) -> None:
        self.load = (waiting, active)

    def answer_failed(self, key: ModelKey, error: Exception) -> None:
        self.failed.append(error)


class Yard:
    """A queue, and beside it the engine of one version on a real compute thread."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        device = SimulatedDevice()
        self.worker = Worker("compute", self.clock)
        self.model = Counting(device)
        self.notes = Notes()
        self.queue = BatchQueue(
            compute=NoBatches(), observer=self.notes, clock=self.clock, max_queued=10, max_queued_bytes=1 << 20
        )
        self.engines = Engines(
            queue=self.queue,
            steps=Stepping(worker=self.worker, device=device, clock=self.clock),
            observer=self.notes,
            clock=self.clock,
        )
        generator = Generator(self.model, MODEL, VERSION)
        self.lane: Lane = self.engines.open(
            generator.key, generator, max_batch_size=1, max_wait_s=0.0, slo_s=None, times=ServiceTimes(0.001)
        )

    def call(self, text: bytes, **wishes: int) -> Call:
        array: NDArray[Any] = np.array([text], np.object_)
        tensors = Tensors({"text": array}, 1, 1, (), len(text), wishes)
        return Call(tensors, self.clock.now_s() + 30.0)

    @property
    def engine(self) -> Engine:
        assert isinstance(self.lane.detour, Engine)
        return self.lane.detour


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    made = Yard()
    made.worker.start()
    yield made
    made.worker.stop()


class Heard:
    """A listener."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.over = asyncio.Event()

    def piece(self, outputs: Mapping[str, object]) -> None:
        text: Any = outputs["text"]
        self.pieces.append(text[0])

    def ended(self, totals: Totals, outputs: Mapping[str, object] | None) -> None:
        assert outputs is not None
        self.piece(outputs)
        self.over.set()

    def failed(self, error: YardError) -> None:
        raise AssertionError(error)


async def test_a_call_of_the_queue_gets_its_answer_as_a_whole(yard: Yard) -> None:
    answers = await asyncio.gather(*(yard.queue.submit(yard.lane, yard.call(text)) for text in (b"a", b"b")))

    assert [answer.value["text"].tolist() for answer in answers] == [  # type: ignore[index]
        [b"a0 a1 a2 a3 a4"],
        [b"b0 b1 b2 b3 b4"],
    ]
    assert {answer.batch_size for answer in answers} <= {1, 2}
    assert yard.notes.tokens == 10
    done = yard.queue.statistics[yard.lane.key].total()
    assert (done.success, done.dropped) == (2, 0)
    assert done.device_s > 0.0


async def test_a_listener_gets_it_in_pieces(yard: Yard) -> None:
    heard = Heard()

    yard.engine.stream(yard.call(b"a"), heard)
    await asyncio.wait_for(heard.over.wait(), 10)

    assert heard.pieces == [b"a0", b"a1", b"a2", b"a3", b"a4"]


async def test_who_gives_up_waiting_frees_the_slot(yard: Yard) -> None:
    waiting = asyncio.ensure_future(yard.queue.submit(yard.lane, yard.call(b"a")))
    await asyncio.sleep(0)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(yard.engines.close(yard.lane), 10)

    assert yard.model.slots == {}
    assert yard.notes.load == (0, 0)


async def test_the_load_of_the_lane_is_that_of_the_engine(yard: Yard) -> None:
    assert yard.lane.cap == 3
    heard = [Heard() for _ in range(4)]

    for listener in heard:
        yard.engine.stream(yard.call(b"a"), listener)
    assert yard.lane.queued == 4
    await asyncio.gather(*(asyncio.wait_for(each.over.wait(), 10) for each in heard))

    await asyncio.wait_for(yard.engines.close(yard.lane), 10)
    assert yard.lane.idle


async def test_what_cannot_be_read_is_refused(yard: Yard) -> None:
    with pytest.raises(InvalidRequest):
        await yard.queue.submit(yard.lane, yard.call(b"unreadable"))


async def test_a_class_that_is_cut_off_is_refused(yard: Yard) -> None:
    yard.queue._cutoff.value = ServiceClass(band=3).level
    call = yard.call(b"a")
    call.share = yard.queue.share_of(ServiceClass(band=5))

    with pytest.raises(Overloaded, match="band 5") as caught:
        await yard.queue.submit(yard.lane, call)

    assert caught.value.retry_after_s is not None
    assert yard.notes.drops == ["cutoff"]
    call.share = yard.queue.share_of(ServiceClass(band=1))
    assert (await yard.queue.submit(yard.lane, call)).value


async def test_the_devices_time_is_charged_to_whom_it_computed_for(yard: Yard) -> None:
    call = yard.call(b"a")
    call.share = yard.queue.share_of(ServiceClass(tenant="acme"))

    await yard.queue.submit(yard.lane, call)

    assert call.share.virtual_s == pytest.approx(yard.queue.statistics[yard.lane.key].total().device_s)


async def test_an_answer_that_cannot_be_put_together_fails_alone(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pieces: object) -> dict[str, NDArray[Any]]:
        raise ValueError("a payload that must not be told")

    with monkeypatch.context() as patched:
        patched.setattr(yard.model, "collect", broken)
        with pytest.raises(ModelFailed) as caught:
            await yard.queue.submit(yard.lane, yard.call(b"a"))

    assert "payload" not in caught.value.message
    assert len(yard.notes.failed) == 1
    assert (await yard.queue.submit(yard.lane, yard.call(b"b"))).value


async def test_after_the_close_nothing_is_taken(yard: Yard) -> None:
    await yard.engines.close(yard.lane)

    with pytest.raises(ModelNotReady):
        await yard.queue.submit(yard.lane, yard.call(b"a"))
