"""The compute thread's side of generation: runs steps between the batches of other versions, says what went wrong.

A step that fails is repeated sequence by sequence, so that one of them cannot fail the others. What a
model raises stays in the log; its text may hold a payload.
"""

from collections.abc import Sequence
from functools import partial

from services.chassis.telemetry import logger
from services.domain.clock import Clock
from services.domain.errors import ModelFailed, Overloaded, YardError
from services.model_host.computing import DeviceBroken
from services.model_host.devices.base import ComputeDevice
from services.model_host.generation import Done
from services.model_host.generator import Generator
from services.model_host.predictor import WrongOutput
from services.model_host.sequences import Advance, Stepped, Work
from services.model_host.worker import Worker

RETRY_AFTER_S = 0.100
"""A sequence that found no memory may come again after this, when another one has left."""


class Stepping:
    """Runs the steps of every engine on the device's one thread."""

    def __init__(self, *, worker: Worker, device: ComputeDevice, clock: Clock) -> None:
        """Compute on `worker`, which is started elsewhere."""
        self._worker = worker
        self._device = device
        self._clock = clock

    def start(self, model: object, work: Work, *, done: Done) -> None:
        """Compute `work` with the Generator `model`; see `generation.Steps`."""
        assert isinstance(model, Generator)
        self._worker.post(partial(self._step, model, work), done)

    # --- on the compute thread ------------------------------------------------------------------

    def _step(self, model: Generator, work: Work) -> Stepped:
        started_s = self._clock.now_s()
        failures: dict[int, YardError] = {}
        for slot in work.leaves:
            model.leave(slot)
        for slot, prompt in work.joins:
            try:
                model.join(slot, prompt)
            except BaseException as error:  # as in executor: a panic of a library in Rust is no Exception
                failures[slot] = self._failure(model, error)
        prefill = [item for item in work.prefill if item[0] not in failures]
        advances: dict[int, Advance] = {}
        if prefill or work.decode:
            try:
                advances = model.step(prefill, work.decode)
            except BaseException as error:  # as in executor: a panic of a library in Rust is no Exception
                self._raise_if_broken(model, error)
                if self._device.is_out_of_memory(error):
                    self._device.release()
                advances = self._each(model, prefill, work.decode, failures)
        for slot, advance in list(advances.items()):
            try:
                model.check(advance)
            except WrongOutput as error:
                failures[slot] = self._failure(model, error)
                del advances[slot]
        return Stepped(advances, failures, self._clock.now_s() - started_s)

    def _each(
        self,
        model: Generator,
        prefill: Sequence[tuple[int, int]],
        decode: Sequence[int],
        failures: dict[int, YardError],
    ) -> dict[int, Advance]:
        """The same step, sequence by sequence."""
        logger().warning("a step failed, it is repeated one by one", model=str(model.key))
        alone = [((item,), (), item[0]) for item in prefill] + [((), (slot,), slot) for slot in decode]
        advances: dict[int, Advance] = {}
        for chunk, token, slot in alone:
            try:
                advances |= model.step(chunk, token)
            except BaseException as error:  # as in executor: a panic of a library in Rust is no Exception
                failures[slot] = self._failure(model, error)
        return advances

    def _failure(self, model: Generator, error: BaseException) -> YardError:
        if self._device.is_out_of_memory(error):
            logger().warning("no memory for a sequence", model=str(model.key))
            self._device.release()
            return Overloaded(f"the device had no memory for this in {model.key}", retry_after_s=RETRY_AFTER_S)
        self._raise_if_broken(model, error)
        logger().error("model failed", model=str(model.key), exc_info=error)
        return ModelFailed(f"model {model.key} failed on this input", metadata={"model": str(model.key)})

    def _raise_if_broken(self, model: Generator, error: BaseException) -> None:
        if self._device.is_broken(error):
            logger().critical("the device is broken", model=str(model.key), exc_info=error)
            raise DeviceBroken from error
