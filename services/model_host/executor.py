"""The device's one compute thread: runs what the batch queue hands it, and says what went wrong.

An exception that the model raises stays in the log; its text may hold a payload, so that the caller
is told only which model failed.
"""

from collections.abc import Sequence
from functools import partial

from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import BudgetExhausted, ModelFailed, Overloaded
from services.model_host.calls import Call, Step
from services.model_host.computing import DeviceBroken, Done, OutOfDeviceMemory
from services.model_host.devices.base import ComputeDevice
from services.model_host.predictor import Predictor
from services.model_host.tensors import NDArray
from services.model_host.wire import Tensors
from services.model_host.worker import Worker

STUCK_FLOOR_S = 10.0
"""A batch is not called stuck before this."""

STUCK_FACTOR = 20.0
"""A batch that takes this many times as long as predicted is stuck."""

RETRY_AFTER_S = 0.010
"""A single call that found no memory may come again after this, when a smaller neighbour is done."""


class Executor:
    """The compute thread of one device."""

    def __init__(self, *, worker: Worker, device: ComputeDevice, clock: Clock) -> None:
        """Compute on `worker`, which is started elsewhere."""
        self._worker = worker
        self._device = device
        self._clock = clock
        self._predicted_s = 0.0
        self._seen = (0.0, 0.0)
        self._utilization = 0.0

    def start(self, model: object, calls: Sequence[Call], *, together: bool, predicted_s: float, done: Done) -> None:
        """Compute `calls` of the Predictor `model`; see `batch_queue.Compute`."""
        assert isinstance(model, Predictor)
        self._predicted_s = predicted_s
        self._worker.post(partial(self._compute, model, calls, together), done)

    def progressing(self, now_s: float) -> bool:
        """Whether the thread computes or could; false once it hangs."""
        stalled_s = self._worker.stalled_s(now_s)
        return stalled_s < max(STUCK_FLOOR_S, STUCK_FACTOR * self._predicted_s)

    def utilization(self, now_s: float) -> float:
        """Share of about the last second that the device computed."""
        then_s, busy_then_s = self._seen
        if now_s - then_s >= 1.0:
            busy_s = self._worker.busy_s(now_s)
            self._utilization = min(1.0, max(0.0, (busy_s - busy_then_s) / (now_s - then_s)))
            self._seen = (now_s, busy_s)
        return self._utilization

    # --- on the compute thread ------------------------------------------------------------------

    def _compute(self, model: Predictor, calls: Sequence[Call], together: bool) -> list[Step]:
        if together:
            started_s = self._clock.now_s()
            try:
                outcomes = model.predict_batch([_inputs(call) for call in calls], [call.rows for call in calls])
            except BaseException as error:  # a panic in Rust is no Exception, and nobody interrupts this thread
                if self._device.is_out_of_memory(error):
                    logger().warning("no memory for a batch", model=str(model.key), calls=len(calls))
                    self._device.release()
                    raise OutOfDeviceMemory from None
                self._raise_if_broken(model, error)
                logger().warning(
                    "a batch failed, its calls are computed one by one", model=str(model.key), calls=len(calls)
                )
            else:
                return [Step(calls, outcomes, started_s, self._clock.now_s() - started_s)]
        return [self._one(model, call) for call in calls]

    def _one(self, model: Predictor, call: Call) -> Step:
        started_s = self._clock.now_s()
        outcome: object
        if call.abandoned or started_s > call.deadline_at_s:
            outcome = BudgetExhausted(f"the deadline passed before {model.key} could compute")
            return Step((call,), (outcome,), started_s, 0.0)
        try:
            outcome = model.predict(_inputs(call), call.rows)
        except BaseException as error:
            if self._device.is_out_of_memory(error):
                logger().warning("no memory for a call", model=str(model.key))
                self._device.release()
                text = f"the device had no memory to compute {model.key}"
                outcome = Overloaded(text, retry_after_s=RETRY_AFTER_S)
            else:
                self._raise_if_broken(model, error)
                logger().error("model failed", model=str(model.key), exc_info=error)
                outcome = ModelFailed(f"model {model.key} failed on this input", metadata={"model": str(model.key)})
        return Step((call,), (outcome,), started_s, self._clock.now_s() - started_s)

    def _raise_if_broken(self, model: Predictor, error: BaseException) -> None:
        if self._device.is_broken(error):
            logger().critical("the device is broken", model=str(model.key), exc_info=error)
            raise DeviceBroken from error


def _inputs(call: Call) -> dict[str, NDArray]:
    tensors = call.payload
    assert isinstance(tensors, Tensors)
    return tensors.inputs
