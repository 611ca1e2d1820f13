"""The compute thread, the predictor, warm-up and the memory meter, on a device that does as told."""

import asyncio
import contextlib
import mmap
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.domain.clock import ManualClock, SystemClock
from services.domain.errors import ArtifactRejected, BudgetExhausted, ModelFailed, Overloaded
from services.domain.model import ModelKey, TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion, SmokeTest, WarmupTensor
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Call, Step
from services.model_host.devices import cpu
from services.model_host.devices.cpu import CpuDevice
from services.model_host.executor import STUCK_FLOOR_S, Executor
from services.model_host.lane import Lane
from services.model_host.predictor import Predictor, WrongOutput, gather
from services.model_host.smoke import misfit_of
from services.model_host.tensors import NDArray, to_raw, zeros
from services.model_host.warmup import warm_up
from services.model_host.wire import Tensors
from services.model_host.worker import Worker
from services.policy.batch_times import ServiceTimes
from services.policy.batching import batch_sizes
from tests.fakes.simulated_device import Fault, SimulatedDevice

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))


ROW_BYTES = 1 << 20
"""What one row takes while it is computed."""


def room_for(rows: int) -> SimulatedDevice:
    """A device whose memory holds so many rows at once."""
    return SimulatedDevice(memory_bytes=rows * ROW_BYTES)


class Doubling:
    """Doubles; fails on what it is told to."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.batches: list[int] = []
        self.poison: dict[float, BaseException] = {}

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        rows = inputs["x"]
        self.batches.append(len(rows))
        for value, error in self.poison.items():
            if value in rows:
                raise error
        outputs: dict[str, NDArray] = self.device.run(ROW_BYTES * len(rows), lambda: {"y": rows * 2})
        return outputs


def a_model(*, inputs: tuple[TensorSpec, ...] = (X,), outputs: tuple[TensorSpec, ...] = (Y,)) -> Model:
    return Model(Metadata("m"), inputs, outputs)


def a_version(batch: int = 8, warmup: tuple[Mapping[str, WarmupTensor], ...] = ()) -> ModelVersion:
    return ModelVersion(Metadata("m"), "1.0.0", Backend("identity"), max_batch_size=batch, warmup=warmup)


class Notes:
    """What the queue reported."""

    broken = False

    def step_done(self, key: ModelKey, step: Step) -> None: ...

    def call_dropped(self, key: ModelKey, band: int, cause: str) -> None: ...

    def device_wasted(self, key: ModelKey, device_s: float) -> None: ...

    def device_broken(self) -> None:
        self.broken = True


class Yard:
    """A queue over the real compute thread over a simulated device."""

    def __init__(self, rows: int) -> None:
        self.clock = SystemClock()
        self.device = room_for(rows)
        self.model = Doubling(self.device)
        self.worker = Worker("compute", self.clock)
        self.executor = Executor(worker=self.worker, device=self.device, clock=self.clock)
        self.notes = Notes()
        self.queue = BatchQueue(
            compute=self.executor, observer=self.notes, clock=self.clock, max_queued=1000, max_queued_bytes=1 << 30
        )
        self.predictor = Predictor(self.model, a_model(), a_version())

    def lane(self, batch: int = 8) -> Lane:
        times = ServiceTimes(0.01)
        for size in batch_sizes(batch):
            times.observe(size, 2, 0.001)
        return self.queue.open(
            ModelKey("m", "1.0.0"), self.predictor, max_batch_size=batch, max_wait_s=0.0, slo_s=None, times=times
        )

    async def ask(self, lane: Lane, *values: float) -> NDArray:
        rows = np.array([[value, value] for value in values], np.float32)
        tensors = Tensors({"x": rows}, len(values), 2, (), rows.nbytes)
        call = Call(tensors, self.clock.now_s() + 30.0, rows=len(values), elements=2)
        outputs = (await self.queue.submit(lane, call)).value
        assert isinstance(outputs, dict)
        answer: NDArray = outputs["y"]
        return answer


@contextlib.asynccontextmanager
async def running(rows: int = 8) -> AsyncIterator[Yard]:
    yard = Yard(rows)
    yard.worker.start()
    task = asyncio.ensure_future(yard.queue.run())
    try:
        yield yard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        yard.worker.stop()


async def test_every_call_gets_its_own_rows_of_the_batch() -> None:
    async with running() as yard:
        lane = yard.lane()
        answers = await asyncio.gather(*(yard.ask(lane, *range(n, n + 1 + n % 3)) for n in range(50)))
        for n, answer in enumerate(answers):
            assert answer.tolist() == [[2 * value] * 2 for value in range(n, n + 1 + n % 3)]
        assert max(yard.model.batches) > 1


async def test_a_bad_input_fails_only_itself_and_tells_nothing_of_it() -> None:
    async with running() as yard:
        lane = yard.lane()
        yard.model.poison[7.0] = ValueError("secret payload")
        results = await asyncio.gather(*(yard.ask(lane, float(n)) for n in range(20)), return_exceptions=True)
        for n, result in enumerate(results):
            if n == 7:
                assert isinstance(result, ModelFailed)
                assert result.message == "model m:1.0.0 failed on this input"
            else:
                assert isinstance(result, np.ndarray)
                assert result.tolist() == [[2.0 * n] * 2]


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("raised", [SystemExit(3), Panic("index out of bounds")])
async def test_a_model_that_exits_or_panics_fails_its_call_and_not_the_host(raised: BaseException) -> None:
    async with running() as yard:
        yard.model.poison[1.0] = raised
        lane = yard.lane()
        with pytest.raises(ModelFailed):
            await yard.ask(lane, 1.0)
        assert (await yard.ask(lane, 2.0)).tolist() == [[4.0, 4.0]]


async def test_out_of_memory_is_retryable_and_smaller_batches_then_fit() -> None:
    async with running(rows=2) as yard:
        lane = yard.lane(batch=8)
        refused = answered = 0
        for _ in range(6):
            results = await asyncio.gather(*(yard.ask(lane, float(n)) for n in range(16)), return_exceptions=True)
            for n, result in enumerate(results):
                if isinstance(result, Overloaded):
                    refused += 1
                    assert result.retry_after_s is not None
                else:
                    assert isinstance(result, np.ndarray)
                    assert result.tolist() == [[2.0 * n] * 2]
                    answered += 1
        assert refused >= 8
        assert answered > 60
        assert lane.cap <= 2
        assert yard.device.released > 0


async def test_a_broken_device_is_reported() -> None:
    async with running() as yard:
        yard.model.poison[1.0] = torch.AcceleratorError(Fault.ECC.value)
        with pytest.raises(Exception, match="broken"):
            await yard.ask(yard.lane(), 1.0)
        assert yard.notes.broken


async def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    clock = ManualClock()
    worker, model = Worker("compute", clock), Doubling(room_for(8))
    worker.start()
    executor = Executor(worker=worker, device=model.device, clock=clock)
    predictor = Predictor(model, a_model(), a_version(batch=1))
    tensors = Tensors({"x": np.ones((1, 2), np.float32)}, 1, 2, (), 8)
    gone, late, fine = Call(tensors, 2000.0, abandoned=True), Call(tensors, 999.0), Call(tensors, 2000.0)
    steps: asyncio.Future[Sequence[Step] | None] = asyncio.get_running_loop().create_future()
    executor.start(
        predictor,
        [gone, late, fine],
        together=False,
        predicted_s=0.001,
        done=lambda done, _: steps.set_result(done),
    )
    computed = await steps
    worker.stop()
    assert computed is not None
    assert [type(step.outcomes[0]) for step in computed] == [BudgetExhausted, BudgetExhausted, dict]
    assert model.batches == [1]


async def test_a_thread_that_hangs_makes_no_progress() -> None:
    clock = ManualClock()
    worker = Worker("compute", clock)
    worker.start()
    executor = Executor(worker=worker, device=room_for(1), clock=clock)
    assert executor.progressing(clock.now_s())
    begun, hang = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        hang.wait()

    job = asyncio.ensure_future(worker.run(stuck))
    await asyncio.to_thread(begun.wait)
    assert executor.progressing(clock.now_s() + STUCK_FLOOR_S / 2)
    assert not executor.progressing(clock.now_s() + STUCK_FLOOR_S + 1)
    hang.set()
    await job
    assert executor.progressing(clock.now_s() + STUCK_FLOOR_S + 1)
    worker.stop()


async def test_utilization_is_the_share_of_the_last_second_spent_computing() -> None:
    clock = ManualClock()
    worker = Worker("compute", clock)
    worker.start()
    executor = Executor(worker=worker, device=room_for(1), clock=clock)
    executor.utilization(clock.now_s())
    await worker.run(lambda: clock.advance(1.5))
    clock.advance(0.5)
    assert executor.utilization(clock.now_s()) == pytest.approx(0.75)
    worker.stop()


async def test_a_worker_returns_and_raises_what_the_job_does() -> None:
    worker = Worker("load", SystemClock())
    worker.start()
    assert await worker.run(lambda: 5) == 5
    with pytest.raises(KeyError):
        await worker.run(lambda: {"a": 1}["x"])
    assert await worker.run(threading.current_thread) is not threading.current_thread()
    worker.stop()


# --- predictor -----------------------------------------------------------------------------------


class Answers:
    """Answers what it is told, whatever it is asked."""

    def __init__(self, **outputs: NDArray) -> None:
        self.outputs = outputs

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return dict(self.outputs)


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        (Answers(z=np.zeros((2, 2), np.float32)), "'y' is declared and not answered; answered: z"),
        (Answers(y=np.zeros((2, 2))), "declared FP32, float64 came"),
        (Answers(y=np.zeros((3, 2), np.float32)), r"with 2 rows \[3, 2\] came"),
        (Answers(y=np.zeros((2, 3), np.float32)), r"\[2, 3\] came"),
        (Answers(y=np.zeros(2, np.float32)), r"\[2\] came"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_named(loaded: Answers, said: str) -> None:
    predictor = Predictor(loaded, a_model(), a_version())
    with pytest.raises(WrongOutput, match=said):
        predictor.predict_batch([{"x": np.zeros((1, 2), np.float32)}] * 2, [1, 1])


def test_gathering_copies_into_new_memory_in_order() -> None:
    many: Sequence[Mapping[str, NDArray]] = [
        {"x": np.array([[1, 1]], np.float32), "t": np.array([b"a"], np.object_)},
        {"x": np.array([[2, 2], [3, 3]], np.float32), "t": np.array([b"b", b"c"], np.object_)},
    ]
    batch = gather(many, [1, 2], 3)
    assert batch["x"].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert batch["t"].tolist() == [b"a", b"b", b"c"]
    assert not np.shares_memory(batch["x"], many[0]["x"])


def test_a_batch_is_gathered_in_the_memory_that_the_device_gives() -> None:
    given: list[NDArray] = []

    def staging(shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray:
        given.append(np.empty(shape, dtype))
        return given[-1]

    class Seeing:
        def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
            assert inputs["x"] is given[-1]
            return {"y": inputs["x"]}

    predictor = Predictor(Seeing(), a_model(), a_version(), staging)
    ones = np.ones((1, 2), np.float32)
    answers = predictor.predict_batch([{"x": ones}, {"x": 2 * ones}], [1, 1])
    assert [answer["y"].tolist() for answer in answers] == [[[1, 1]], [[2, 2]]]
    assert len(given) == 1


# --- warm-up -------------------------------------------------------------------------------------


def warmed(model: Doubling, version: ModelVersion, described: Model | None = None) -> tuple[ServiceTimes, int]:
    described = described or a_model()
    predictor = Predictor(model, described, version)
    return warm_up(predictor, described, version, device=model.device, clock=SystemClock())


def test_warm_up_runs_every_size_and_learns_its_time() -> None:
    model = Doubling(room_for(100))
    times, ceiling = warmed(model, a_version(batch=12))
    assert set(model.batches) == {1, 2, 4, 8, 12}
    assert ceiling == 0
    assert times.overall.measured


def test_warm_up_finds_the_largest_size_that_fits_the_device() -> None:
    model = Doubling(room_for(5))
    _, ceiling = warmed(model, a_version(batch=16))
    assert ceiling == 4
    with pytest.raises(torch.OutOfMemoryError):
        warmed(Doubling(room_for(0)), a_version(batch=16))


def test_samples_of_the_version_are_run_as_they_are() -> None:
    seen: list[list[list[float]]] = []

    class Seeing(Doubling):
        def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
            seen.append(inputs["x"].tolist())
            return super().predict(inputs)

    sample = {"x": WarmupTensor((2, 2), to_raw(np.array([[1, 2], [3, 4]], np.float32)))}
    warmed(Seeing(room_for(8)), a_version(batch=4, warmup=(sample,)))
    assert seen[0] == [[1, 2], [3, 4]]
    assert [1, 2] in seen[-1]
    assert len(seen[-1]) == 4

    wrong = {"x": WarmupTensor((2, 3), b"")}
    with pytest.raises(ArtifactRejected, match=r"warm-up sample 0: .*must have shape"):
        warmed(Doubling(room_for(8)), a_version(warmup=(wrong,)))


def smoke_of(*outputs: float, tolerance: float = 0.0) -> SmokeTest:
    """Expects so much of an input of 1, 2."""
    rows = np.array([outputs], np.float32)
    inputs = {"x": WarmupTensor((1, 2), to_raw(np.array([[1, 2]], np.float32)))}
    return SmokeTest(inputs, {"y": WarmupTensor(rows.shape, to_raw(rows))}, tolerance)


@pytest.mark.parametrize("smoke", [smoke_of(2, 4), smoke_of(2.1, 3.9, tolerance=0.2)])
def test_a_version_that_answers_as_when_it_landed_is_loaded(smoke: SmokeTest) -> None:
    model = Doubling(room_for(8))
    warmed(model, replace(a_version(batch=2), smoke=smoke))
    assert model.batches[:2] == [1, 1]


@pytest.mark.parametrize(
    ("smoke", "said"),
    [
        (smoke_of(2, 5), r"it answered 4 as element 1 of output 'y', expected 5 ± 0 \(1 of 2 differ\)"),
        (smoke_of(2.1, 3.9, tolerance=0.01), r"\(2 of 2 differ\)"),
        (smoke_of(2, 4, 6), r"it answered output 'y' in \[1, 2\], expected \[1, 3\]"),
    ],
)
def test_a_version_that_answers_otherwise_than_when_it_landed_is_not_loaded(smoke: SmokeTest, said: str) -> None:
    with pytest.raises(ModelFailed, match=f"m:1.0.0 does not pass its smoke test here: .*{said}"):
        warmed(Doubling(room_for(8)), replace(a_version(), smoke=smoke))


@pytest.mark.parametrize(
    ("datatype", "array", "other"),
    [
        ("BYTES", np.array([b"a", b"bc"], np.object_), np.array([b"a", b"bd"], np.object_)),
        ("BF16", np.array([0x3F80, 0x7FC0], np.uint16), np.array([0x3F80, 0x3F80], np.uint16)),
        ("INT64", np.array([1, -7]), np.array([1, -8])),
        ("BOOL", np.array([True, False]), np.array([True, True])),
        ("FP32", np.array([1.0, np.nan], np.float32), np.array([1.0, 0.0], np.float32)),
    ],
)
def test_a_smoke_test_compares_outputs_of_any_type(datatype: str, array: NDArray, other: NDArray) -> None:
    outputs = (TensorSpec("y", datatype, (-1,)), TensorSpec("free", "FP32", (-1,)))
    test = SmokeTest({}, {"y": WarmupTensor((2,), to_raw(array))})
    assert misfit_of(outputs, test, {"y": array, "free": np.zeros(1)}) == ""
    assert "of output 'y'" in misfit_of(outputs, test, {"y": other}) or datatype == "BYTES"
    assert misfit_of(outputs, test, {"y": other}) != ""
    zero = SmokeTest({}, {"y": WarmupTensor((2,))})
    assert misfit_of(outputs, zero, {"y": zeros(datatype, (2,))}) == ""
    short = SmokeTest({}, {"y": WarmupTensor((2,), b"x")})
    assert "cannot be held to output 'y'" in misfit_of(outputs, short, {"y": array})


# --- device --------------------------------------------------------------------------------------


def test_the_meter_sees_memory_that_was_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice(name="cpu", memory_bytes=1 << 40)
    with device.measure() as peak:
        block = mmap.mmap(-1, 40_000_000)  # not from the heap, which may still have as much from before
        np.frombuffer(block, np.uint8)[:] = 1
        del block
    if cpu._reset_peak():
        assert 35_000_000 < peak.peak_bytes < 80_000_000

    monkeypatch.setattr(cpu, "_reset_peak", lambda: False)  # not permitted here
    kept: list[NDArray] = []
    with device.measure() as peak:
        kept.append(np.frombuffer(mmap.mmap(-1, 40_000_000), np.uint8))
        kept[0][:] = 1
    assert 35_000_000 < peak.peak_bytes < 80_000_000
    kept.clear()
    device.release()


@pytest.mark.parametrize(
    ("make", "out_of_memory"),
    [
        (lambda: np.empty(1 << 60, np.uint8), True),
        (lambda: torch.empty(1 << 55), True),
        (lambda: np.zeros(2) @ np.zeros(3), False),
    ],
)
def test_a_cpu_knows_its_own_out_of_memory(make: Callable[[], object], out_of_memory: bool) -> None:
    device = CpuDevice(name="cpu", memory_bytes=1)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        make()
    assert device.is_out_of_memory(caught.value) is out_of_memory
    assert not device.is_broken(caught.value)
