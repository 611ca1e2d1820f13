"""A loaded version as something that computes: batches are gathered, answers split and held to the schema."""

from collections.abc import Mapping, Sequence

import numpy as np

from services.domain.model import ModelKey, TensorSpec
from services.domain.objects import Model, ModelVersion
from services.model_host.backends.base import LoadedModel, Parkable
from services.model_host.devices.base import Staging
from services.model_host.padded import PaddedShapes
from services.model_host.tensors import NUMPY, NDArray


class WrongOutput(Exception):
    """The model answered something else than its schema declares; the text holds no values."""


class Predictor:
    """One version, loaded."""

    def __init__(self, loaded: LoadedModel, model: Model, version: ModelVersion, staging: Staging = np.empty) -> None:
        """Hold answers of `loaded` to the outputs of `model`; gather batches in memory from `staging`.

        Raises:
            ModelFailed: The version's padding does not fit its model.
        """
        self.padded = PaddedShapes(version.padding, model) if version.padding else None
        self.key: ModelKey = version.model_key
        self.batches = version.max_batch_size > 1
        self._loaded = loaded
        self._staging = staging
        self._outputs = model.outputs

    @property
    def loaded(self) -> LoadedModel:
        """What computes it."""
        return self._loaded

    @property
    def parked_bytes(self) -> int | None:
        """What it takes of the host's memory while it is off the device; None if it cannot be."""
        return self._loaded.parked_bytes if isinstance(self._loaded, Parkable) else None

    def park(self) -> None:
        """Leave the device, if it can."""
        if isinstance(self._loaded, Parkable):
            self._loaded.park()

    def unpark(self) -> None:
        """Come back to the device."""
        if isinstance(self._loaded, Parkable):
            self._loaded.unpark()

    def predict(self, inputs: Mapping[str, NDArray], rows: int) -> dict[str, NDArray]:
        """Compute one set of inputs.

        Args:
            inputs: Arrays by input name.
            rows: Size of their batch dimension; ignored where the version does not batch.

        Returns:
            The declared outputs.

        Raises:
            WrongOutput: The model broke its schema.
            Exception: Whatever the model raises.
        """
        return self.held(self._loaded.predict(inputs), rows)

    def held(self, outputs: dict[str, NDArray], rows: int) -> dict[str, NDArray]:
        """`outputs`, if they are what the schema declares for so many rows.

        Raises:
            WrongOutput: They are not.
        """
        for spec in self._outputs:
            array = outputs.get(spec.name)
            if array is None:
                given = ", ".join(sorted(outputs)) or "none"
                raise WrongOutput(f"output '{spec.name}' is declared and not answered; answered: {given}")
            if array.dtype != NUMPY[spec.datatype]:
                raise WrongOutput(f"output '{spec.name}' is declared {spec.datatype}, {array.dtype} came")
            if not fits(array.shape, spec, rows if self.batches else None):
                said = f"with {rows} rows " if self.batches else ""
                raise WrongOutput(
                    f"output '{spec.name}' is declared {list(spec.shape)}, {said}{list(array.shape)} came"
                )
        return outputs

    def predict_batch(self, many: Sequence[Mapping[str, NDArray]], rows: Sequence[int]) -> list[dict[str, NDArray]]:
        """Compute several sets of inputs of one group as one batch.

        Args:
            many: The inputs; all with the same names, types and shapes but for the first dimension, and for those
                that are padded.
            rows: Rows of each.

        Returns:
            The outputs of each, as views of the batch's.

        Raises:
            WrongOutput: The model broke its schema, such as by answering another number of rows.
            Exception: Whatever the model raises.
        """
        if len(many) == 1:
            return [self.predict(many[0], rows[0])]
        total = sum(rows)
        padded = self.padded
        outputs = self.predict(gather(many, rows, total, self._staging, padded), total)
        split: list[dict[str, NDArray]] = []
        start = 0
        for inputs, count in zip(many, rows, strict=True):
            own = {spec.name: outputs[spec.name][start : start + count] for spec in self._outputs}
            if padded is not None:
                own = {name: padded.cut(name, array, inputs) for name, array in own.items()}
            split.append(own)
            start += count
        return split


def gather(
    many: Sequence[Mapping[str, NDArray]],
    rows: Sequence[int],
    total: int,
    staging: Staging = np.empty,
    padded: PaddedShapes | None = None,
) -> dict[str, NDArray]:
    """One batch of several sets of inputs, in memory that nobody else refers to: an answer may alias its input."""
    batch: dict[str, NDArray] = {}
    for name, first in many[0].items():
        row = first.shape[1:] if padded is None else padded.common(name, [inputs[name] for inputs in many])
        gathered = staging((total, *row), first.dtype)
        start = 0
        for inputs, count in zip(many, rows, strict=True):
            if padded is None:
                gathered[start : start + count] = inputs[name]
            else:
                padded.fill(name, gathered[start : start + count], inputs[name])
            start += count
        batch[name] = gathered
    return batch


def fits(shape: tuple[int, ...], spec: TensorSpec, rows: int | None) -> bool:
    """Whether an output of `shape` is as declared; with `rows`, its first dimension is exactly that."""
    declared = spec.shape
    if len(shape) != len(declared):
        return False
    if rows is None:
        return all(want in (-1, have) for want, have in zip(declared, shape, strict=True))
    return (
        bool(shape)
        and shape[0] == rows
        and all(want in (-1, have) for want, have in zip(declared[1:], shape[1:], strict=True))
    )
