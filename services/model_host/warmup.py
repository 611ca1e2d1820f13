"""Runs a version before it counts as ready: its answers are held to schema and smoke test, its batch times learned."""

from collections.abc import Iterator, Mapping

import numpy as np

from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected, ModelFailed
from services.domain.model import TensorMeta, TensorSpec, schema_faults
from services.domain.objects import Model, ModelVersion, WarmupTensor
from services.model_host.devices.base import ComputeDevice
from services.model_host.generator import Generator
from services.model_host.predictor import Predictor
from services.model_host.smoke import misfit_of
from services.model_host.tensors import BadTensor, NDArray, from_raw, zeros
from services.policy.batch_times import ServiceTimes
from services.policy.batching import batch_sizes

LONGEST_S = 20.0
"""Sizes that would come after this long are left to be learned in service."""

REPEAT_BELOW_S = 0.2
"""A batch faster than this is measured three times, and the least time counts: the rest is noise."""


def warm_up(
    predictor: Predictor, model: Model, version: ModelVersion, *, device: ComputeDevice, clock: Clock
) -> tuple[ServiceTimes, int]:
    """Run the version's samples and its smoke test, then every power-of-two batch size.

    Args:
        predictor: The version, loaded.
        model: Its model.
        version: The version; without samples of its own, zeros of the schema's shape stand in.
        device: Says which errors mean that a size is too large for it.
        clock: Measures.

    Returns:
        The batch times, and the largest size that fits the device if not all do, else 0.

    Raises:
        ArtifactRejected: A sample does not fit the schema.
        ModelFailed: It answers the smoke test otherwise than that says.
        WrongOutput: The model breaks its schema.
        Exception: Whatever the model raises.
    """
    times = ServiceTimes(version.service_time_s)
    samples = list(samples_of(model, version))
    for inputs in samples:
        predictor.predict(inputs, _rows(inputs))
    _smoke(predictor, model, version)
    deadline_s = clock.now_s() + LONGEST_S
    largest = 0
    for size in batch_sizes(version.max_batch_size):
        inputs = _tiled(samples[0], size) if predictor.batches else samples[0]
        try:
            time_s = _measure(predictor, inputs, size, clock)
        except Exception as error:
            if size == 1 or not device.is_out_of_memory(error):
                raise
            device.release()
            return times, largest
        elements = sum(array.size for array in inputs.values()) // size
        times.observe(size, elements, time_s)
        largest = size
        if clock.now_s() + 2.0 * time_s > deadline_s:
            break
    return times, 0


def warm_up_generator(generator: Generator, model: Model, version: ModelVersion, *, clock: Clock) -> ServiceTimes:
    """Run the samples and the smoke test of a version that generates, and measure its pace.

    Returns:
        The time to a first token, as that of a batch of as many sequences as there are.

    Raises:
        ArtifactRejected: A sample does not fit the schema.
        ModelFailed: It answers the smoke test otherwise than that says.
        WrongOutput: The model breaks its schema.
        Exception: Whatever the model raises.
    """
    times = ServiceTimes(version.service_time_s)
    first_s = generator.warm_up(list(samples_of(model, version)), clock=clock)
    for beside in (1, generator.settings.sequences):  # others beside it cost a newcomer little
        times.observe(beside, 1, first_s)
    _smoke(generator, model, version)
    return times


def _smoke(predictor: Predictor | Generator, model: Model, version: ModelVersion) -> None:
    """Ask what the version was asked when it landed: here, and after every restart, it must answer the same.

    Raises:
        ModelFailed: It does not.
    """
    if version.smoke is None:
        return
    inputs = _sample(version.smoke.inputs, model.inputs, "smoke test")
    misfit = misfit_of(model.outputs, version.smoke, predictor.predict(inputs, _rows(inputs)))
    if misfit:
        raise ModelFailed(f"{version.model_key} does not pass its smoke test here: it {misfit}")


def _measure(predictor: Predictor, inputs: Mapping[str, NDArray], rows: int, clock: Clock) -> float:
    """Least time of a few runs; the first one also allocates what the size needs."""
    least_s = float("inf")
    for _ in range(3):
        began_s = clock.now_s()
        predictor.predict(inputs, rows)
        took_s = clock.now_s() - began_s
        least_s = min(least_s, took_s)
        if took_s > REPEAT_BELOW_S:
            break
    return least_s


def samples_of(model: Model, version: ModelVersion) -> Iterator[dict[str, NDArray]]:
    """What to run before it counts as ready: the version's samples, else zeros of the schema's shape."""
    if not version.warmup:
        yield {
            spec.name: zeros(spec.datatype, [1 if size == -1 else size for size in spec.shape])
            for spec in model.inputs
            if not spec.optional
        }
    for index, sample in enumerate(version.warmup):
        yield _sample(sample, model.inputs, f"warm-up sample {index}")


def _sample(sample: Mapping[str, WarmupTensor], schema: tuple[TensorSpec, ...], what: str) -> dict[str, NDArray]:
    datatypes = {spec.name: spec.datatype for spec in schema}
    metas = [
        TensorMeta(name, datatypes.get(name, ""), tensor.shape, len(tensor.raw) if tensor.raw else None)
        for name, tensor in sample.items()
    ]
    faults = schema_faults(metas, schema)
    if faults:
        raise ArtifactRejected(f"{what}: " + "; ".join(fault.message for fault in faults))
    inputs: dict[str, NDArray] = {}
    for name, tensor in sample.items():
        try:
            inputs[name] = (
                from_raw(datatypes[name], tensor.shape, tensor.raw)
                if tensor.raw
                else zeros(datatypes[name], tensor.shape)
            )
        except BadTensor as error:
            raise ArtifactRejected(f"{what}: input '{name}': {error}") from error
    return inputs


def _rows(inputs: Mapping[str, NDArray]) -> int:
    first = next(iter(inputs.values()))
    return first.shape[0] if first.ndim else 1


def _tiled(inputs: Mapping[str, NDArray], rows: int) -> dict[str, NDArray]:
    """`inputs` with exactly `rows` rows, repeating those there are."""
    return {name: np.take(array, np.arange(rows) % array.shape[0], axis=0) for name, array in inputs.items()}
