"""Calls of different lengths in one batch: which may share one, how they are filled up, and cut back."""

from collections.abc import Mapping, Sequence

from services.domain.errors import ModelFailed
from services.domain.model import TensorSpec
from services.domain.objects import Model, Padding
from services.model_host.tensors import NDArray
from services.policy.batch_times import bucket_of


class PaddedShapes:
    """The paddings of one version."""

    def __init__(self, paddings: Sequence[Padding], model: Model) -> None:
        """Hold the paddings to the schema.

        Raises:
            ModelFailed: They speak of dimensions that there are not, or that are not free.
        """
        self._of_input: dict[str, dict[int, float]] = {}
        self._of_output: dict[str, list[tuple[int, str, int]]] = {}
        inputs = {spec.name: spec for spec in model.inputs}
        outputs = {spec.name: spec for spec in model.outputs}
        for padding in paddings:
            _check(inputs, "input", padding.input, padding.dimension)
            if inputs[padding.input].datatype == "BYTES":
                raise ModelFailed(f"padding: input '{padding.input}' is BYTES, which cannot be filled up")
            self._of_input.setdefault(padding.input, {})[padding.dimension] = padding.value
            for name, dimension in padding.outputs.items():
                _check(outputs, "output", name, dimension)
                self._of_output.setdefault(name, []).append((dimension, padding.input, padding.dimension))

    def bucket(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What calls have in common that may share a batch: the shape of a row, padded sizes by powers of two."""
        padded = self._of_input.get(name)
        if not padded:
            return shape[1:]
        return tuple(
            bucket_of(size) if dimension in padded else size for dimension, size in enumerate(shape[1:], start=1)
        )

    def common(self, name: str, arrays: Sequence[NDArray]) -> tuple[int, ...]:
        """The shape of a row that holds each of these."""
        first = arrays[0].shape[1:]
        if name not in self._of_input:
            return first
        return tuple(max(array.shape[1 + index] for array in arrays) for index in range(len(first)))

    def fill(self, name: str, target: NDArray, array: NDArray) -> None:
        """Put `array` into `target`, which has as many rows, and fill what is left over."""
        shape = target.shape
        if array.shape == shape:
            target[...] = array
            return
        target[tuple(slice(0, size) for size in array.shape)] = array
        # One dimension after the other: what lies beyond the array in this one, within it in the earlier ones.
        inside: list[slice] = [slice(0, array.shape[0])]
        for dimension, value in sorted(self._of_input[name].items()):
            while len(inside) < dimension:
                inside.append(slice(0, array.shape[len(inside)]))
            target[(*inside, slice(array.shape[dimension], shape[dimension]))] = value
            inside.append(slice(0, array.shape[dimension]))

    def cut(self, name: str, output: NDArray, inputs: Mapping[str, NDArray]) -> NDArray:
        """The rows of an output as they would be if the call had come alone."""
        for dimension, source, source_dimension in self._of_output.get(name, ()):
            given = inputs.get(source)
            if given is not None and given.shape[source_dimension] < output.shape[dimension]:
                output = output[(slice(None),) * dimension + (slice(0, given.shape[source_dimension]),)]
        return output


def _check(specs: Mapping[str, TensorSpec], kind: str, name: str, dimension: int) -> None:
    if name not in specs:
        raise ModelFailed(f"padding: the model has no {kind} '{name}'")
    shape = specs[name].shape
    if not 1 <= dimension < len(shape) or shape[dimension] != -1:
        raise ModelFailed(f"padding: dimension {dimension} of {kind} '{name}', {list(shape)}, is not a free one")
