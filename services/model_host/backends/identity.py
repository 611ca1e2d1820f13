"""Answers its inputs: for measuring the mesh around it, and with a set batch time for testing how it paces.

Each declared output is the input of the same name, else the input at the same place. Options:
`base_ms` and `per_row_ms`, the time that a batch takes (default 0), spent asleep as if on a device.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

from services.domain.errors import ArtifactRejected
from services.domain.objects import Model, ModelVersion
from services.model_host.devices.base import ComputeDevice
from services.model_host.tensors import NDArray


class IdentityModel:
    """Gives back what it is given."""

    def __init__(self, sources: Mapping[str, str], *, base_s: float, per_row_s: float) -> None:
        """Answer for each output the input that `sources` names; a batch of b rows takes base + per_row * b."""
        self._sources = sources
        self._base_s = base_s
        self._per_row_s = per_row_s
        self._never = threading.Event()

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The inputs, under the names of the outputs."""
        if self._base_s or self._per_row_s:
            first = next(iter(inputs.values()))
            self._never.wait(self._base_s + self._per_row_s * (first.shape[0] if first.ndim else 1))
        return {output: inputs[source] for output, source in self._sources.items()}


class IdentityBackend:
    """Needs no artifact and no framework."""

    def prepare(self, device: ComputeDevice) -> None:
        """Nothing."""

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> IdentityModel:
        """Pair outputs with inputs.

        Raises:
            ArtifactRejected: An output has no input to be answered with, or an option is no number.
        """
        del artifact, files, device
        names = [spec.name for spec in model.inputs]
        sources: dict[str, str] = {}
        for index, spec in enumerate(model.outputs):
            if spec.name not in names and index >= len(names):
                raise ArtifactRejected(f"identity: output '{spec.name}' has no input of its name or place")
            sources[spec.name] = spec.name if spec.name in names else names[index]
        options = version.backend.options
        return IdentityModel(sources, base_s=_seconds(options, "base_ms"), per_row_s=_seconds(options, "per_row_ms"))


def _seconds(options: Mapping[str, str], name: str) -> float:
    try:
        value = float(options.get(name, "0")) / 1e3
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 3600.0:
        raise ArtifactRejected(f"identity: option '{name}' must be milliseconds, '{options[name]}' came")
    return value
