"""What every framework offers: to load an artifact, and to predict with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from services.domain.objects import Model, ModelVersion
from services.model_host.device import ComputeDevice
from services.model_host.tensors import NDArray


class LoadedModel(Protocol):
    """A model in memory. It is called from one thread at a time."""

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Compute.

        Args:
            inputs: Arrays by input name; batch dimension first where the version batches. They may
                be read-only. BYTES are object arrays of bytes, BF16 its bits in uint16.

        Returns:
            Arrays by output name, in the same conventions.
        """
        ...


class Backend(Protocol):
    """A framework."""

    def prepare(self, device: ComputeDevice) -> None:
        """Import and set up what loading needs, so that it does not count as a model's memory."""
        ...

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> LoadedModel:
        """Load a version.

        Args:
            artifact: The weights: a file whose digest was checked; None if the version has none.
            files: The version's further files, checked likewise, by name.
            version: The version.
            model: Its model, for the schema.
            device: Where it will compute.

        Raises:
            ArtifactRejected: The artifact is not of a format this backend takes, or not safe to load.
        """
        ...
