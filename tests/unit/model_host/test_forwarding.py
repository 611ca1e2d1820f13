"""Calls of remote versions: many at a time, beside a device that stands still."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.domain.clock import SystemClock
from services.domain.errors import BudgetExhausted, InvalidRequest, ModelFailed, ModelNotReady, Overloaded
from services.domain.model import TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion
from services.domain.service_class import DEFAULT_BAND
from services.model_host.backends.remote_backend import RemoteBackend
from services.model_host.batch_queue import BatchQueue
from services.model_host.calls import Call
from services.model_host.devices.cpu import CpuDevice
from services.model_host.forwarding import Forwardings
from services.model_host.lane import Lane
from services.model_host.predictor import Predictor
from services.model_host.wire import Tensors
from services.policy.batch_times import ServiceTimes
from tests.fakes.device_yard import Notes, ScriptedDevice
from tests.fakes.v2_server import FakeV2Server

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
SCHEMA = Model(Metadata("doubler"), (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
WITHIN_S = 20.0


@dataclass
class Post:
    """A lane whose version another server computes."""

    queue: BatchQueue
    serving: Forwardings
    lane: Lane
    notes: Notes
    clock: SystemClock = field(default_factory=SystemClock)

    def send(self, rows: np.ndarray = ROWS, *, within_s: float = WITHIN_S) -> "asyncio.Task[np.ndarray]":
        tensors = Tensors({"x": rows}, len(rows), 4, (), rows.nbytes)
        call = Call(tensors, self.clock.now_s() + within_s, rows=len(rows), elements=4)

        async def answered() -> np.ndarray:
            value = (await self.queue.submit(self.lane, call)).value
            assert isinstance(value, dict)
            return np.asarray(value["y"])

        return asyncio.ensure_future(answered())


def predictor_of(server: FakeV2Server, **options: str) -> Predictor:
    backend = Backend("remote", options={"address": server.address, **options})
    version = ModelVersion(Metadata("doubler"), "1.0.0", backend, None, max_batch_size=8)
    device = CpuDevice(name="test", memory_bytes=1 << 30)
    remote = RemoteBackend(addresses=(server.address,), ca_file=None).load(None, {}, version, SCHEMA, device)
    return Predictor(remote, SCHEMA, version)


@asynccontextmanager
async def post(server: FakeV2Server, **options: str) -> AsyncIterator[Post]:
    clock, notes = SystemClock(), Notes()
    queue = BatchQueue(
        compute=ScriptedDevice(None),  # type: ignore[arg-type]  # it is never asked
        observer=notes,
        clock=clock,
        max_queued=4,
        max_queued_bytes=1 << 20,
    )
    serving = Forwardings(queue, observer=notes, clock=clock)
    predictor = predictor_of(server, **options)
    lane = serving.open(
        predictor.key, predictor, max_batch_size=8, max_wait_s=0.0, slo_s=None, times=ServiceTimes(0.010)
    )
    running = asyncio.ensure_future(queue.run())
    await asyncio.sleep(0)
    try:
        yield Post(queue, serving, lane, notes)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextmanager
def holding(**more: object) -> Iterator[FakeV2Server]:
    """A server whose answers wait for its `hold`."""
    with FakeV2Server(hold=threading.Event(), **more) as server:  # type: ignore[arg-type]
        yield server


def let_go(server: FakeV2Server) -> None:
    assert server.hold is not None
    server.hold.set()


async def until(done: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + WITHIN_S
    while not done():
        assert loop.time() < end_s, "it did not come about"
        await asyncio.sleep(0.005)


async def seen(server: FakeV2Server, count: int) -> None:
    """Wait until the server has been asked so often."""
    await until(lambda: len(server.seen) == count)


async def test_calls_go_on_together_and_none_waits_for_the_device() -> None:
    with holding() as server:
        async with post(server) as made:
            calls = [made.send(ROWS + number) for number in range(4)]
            await seen(server, 4)
            assert made.lane.load().running == 4
            let_go(server)
            answers = await asyncio.gather(*calls)
    for number, answer in enumerate(answers):
        assert np.array_equal(answer, (ROWS + number) * 2)
    assert made.lane.load().running == 0
    assert made.notes.sizes == [1, 1, 1, 1]
    assert made.lane.statistics.of(DEFAULT_BAND).success == 4
    assert made.lane.statistics.executions == 4


async def test_more_calls_than_may_be_under_way_are_refused_at_once() -> None:
    with holding() as server:
        async with post(server, max_in_flight="2") as made:
            calls = [made.send() for _ in range(2)]
            await seen(server, 2)
            with pytest.raises(Overloaded, match=r"2 calls of doubler:1\.0\.0 are under way") as refused:
                await made.send()
            assert refused.value.retry_after_s is not None
            let_go(server)
            await asyncio.gather(*calls)
            await made.send()
    assert made.notes.causes == ["full"]


async def test_the_deadline_goes_along_and_the_shorter_bound_counts() -> None:
    with FakeV2Server() as server:
        async with post(server, timeout_ms="4000") as made:
            await made.send(within_s=2.0)
            await made.send(within_s=60.0)
            with pytest.raises(BudgetExhausted, match="nothing is left"):
                await made.send(within_s=-0.001)
    assert [round(left_s) for left_s in server.left_s] == [2, 4]
    assert made.notes.causes == ["deadline"]


async def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    with holding() as server:
        async with post(server) as made:
            with pytest.raises(BudgetExhausted, match="DEADLINE_EXCEEDED"):
                await made.send(within_s=0.2)
            assert made.lane.load().running == 0


async def test_a_call_that_nobody_waits_for_is_cancelled_there() -> None:
    with holding() as server:
        async with post(server) as made:
            call = made.send()
            await seen(server, 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert made.lane.load().running == 0
            await until(lambda: server.cancelled == 1)
            let_go(server)
            assert np.array_equal(await made.send(), ROWS * 2)
    assert made.notes.causes == ["cancelled"]


async def test_what_the_server_says_reaches_the_caller() -> None:
    with FakeV2Server() as server:
        async with post(server) as made:
            server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "x is no good")
            with pytest.raises(InvalidRequest, match="x is no good"):
                await made.send()
            server.failure = (grpc.StatusCode.UNAVAILABLE, "going away")
            with pytest.raises(ModelNotReady, match="going away"):
                await made.send()
            server.failure = None
            assert np.array_equal(await made.send(), ROWS * 2)
    assert made.lane.statistics.of(DEFAULT_BAND).failure == 2


async def test_an_answer_is_held_to_the_schema() -> None:
    def one_row(answer: v2.ModelInferResponse) -> None:
        answer.outputs[0].shape[0] = 1
        answer.raw_output_contents[0] = answer.raw_output_contents[0][:16]

    def another_name(answer: v2.ModelInferResponse) -> None:
        answer.outputs[0].name = "z"

    with FakeV2Server() as server:
        async with post(server) as made:
            for changed, said in ((one_row, "with 2 rows"), (another_name, "'y' is declared and not answered")):
                server.changed = changed
                with pytest.raises(ModelFailed, match=said):
                    await made.send()


async def test_unloading_waits_for_what_is_under_way_and_takes_nothing_more() -> None:
    with holding() as server:
        async with post(server) as made:
            call = made.send()
            await seen(server, 1)
            closing = asyncio.ensure_future(made.serving.close(made.lane))
            await asyncio.sleep(0)
            with pytest.raises(ModelNotReady, match="being unloaded"):
                await made.send()
            assert not closing.done()
            let_go(server)
            await closing
            assert np.array_equal(await call, ROWS * 2)


async def test_a_version_that_is_loaded_anew_is_asked_by_its_new_connection() -> None:
    with FakeV2Server() as old, FakeV2Server() as new:
        async with post(old) as made:
            await made.send()
            made.serving.arrived(made.lane, predictor_of(new))
            await made.send()
    assert (len(old.seen), len(new.seen)) == (1, 1)
