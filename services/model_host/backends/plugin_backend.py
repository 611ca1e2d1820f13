"""Plug-ins: models of a class that an installed package brings, by an entry point of the group `modelyard.models`.

    [project.entry-points."modelyard.models"]
    my-model = "my_package.serving:MyModel"

A version names it with `backend: {name: plugin, architecture: my-model, executes_code: true}`. The class needs nothing
of modelyard; `Plugin` says what it must have. Only hosts that trust their artifacts load one: what the package does
with the artifact is its own affair, and it runs in the host's process.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from services.domain.errors import ArtifactRejected
from services.domain.objects import Model, ModelVersion
from services.model_host.devices.base import ComputeDevice
from services.model_host.tensors import NDArray

GROUP = "modelyard.models"
"""The entry points that are plug-ins."""


class Plugin(Protocol):
    """What a plug-in's class must have. It is made without arguments, once for each version that is loaded."""

    def load(self, artifact: Path | None, files: Mapping[str, Path], options: Mapping[str, str]) -> None:
        """Make ready to predict. Called once, on the thread that loads; what it raises fails the load.

        Args:
            artifact: The version's artifact, a file whose digest was checked; None if it has none.
            files: Its further files, checked likewise, by name.
            options: Its backend's options.
        """
        ...

    def predict(self, inputs: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """Compute one batch. Called by one thread at a time; what it raises fails the call.

        Args:
            inputs: Arrays by the names of the model's inputs; the batch dimension first where the version batches.
                They may be read-only. BYTES are object arrays of bytes, BF16 its bits in uint16.

        Returns:
            Arrays by the names of the model's outputs, of exactly the declared types and shapes.
        """
        ...


class PluginModel:
    """A plug-in that has loaded."""

    def __init__(self, plugin: Plugin) -> None:
        """Predict with `plugin`."""
        self._plugin = plugin

    def predict(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Have it computed."""
        return dict(self._plugin.predict(inputs))


class PluginBackend:
    """Loads plug-ins."""

    def __init__(self, *, trusts_artifacts: bool) -> None:
        """Load any only if `trusts_artifacts`."""
        self._trusts_artifacts = trusts_artifacts

    def prepare(self, device: ComputeDevice) -> None:
        """Nothing: which package is needed, a version says."""

    def load(
        self,
        artifact: Path | None,
        files: Mapping[str, Path],
        version: ModelVersion,
        model: Model,
        device: ComputeDevice,
    ) -> PluginModel:
        """Make the class that the version names, and let it load.

        Raises:
            ArtifactRejected: Code is not allowed here, or no package brings such a class.
            Exception: Whatever the plug-in raises.
        """
        del model, device
        backend = version.backend
        if not backend.executes_code or not self._trusts_artifacts:
            raise ArtifactRejected(
                f"plug-in '{backend.architecture}' is code: it needs backend.executes_code and a pool that trusts its "
                "artifacts"
            )
        plugin = cast("Plugin", _class_of(backend.architecture)())
        plugin.load(artifact, files, backend.options)
        return PluginModel(plugin)


def _class_of(name: str) -> type:
    """The class of the entry point `name`.

    Raises:
        ArtifactRejected: There is none, or several, or what it names is no plug-in.
    """
    found = sorted({point.value: point for point in entry_points(group=GROUP, name=name)}.items())
    if not found:
        known = ", ".join(sorted({point.name for point in entry_points(group=GROUP)})) or "none"
        raise ArtifactRejected(f"no package that is installed here brings the plug-in '{name}'; there are: {known}")
    if len(found) > 1:
        raise ArtifactRejected(f"several packages bring a plug-in '{name}': {', '.join(value for value, _ in found)}")
    value, point = found[0]
    named = point.load()
    missing = [method for method in ("load", "predict") if not callable(getattr(named, method, None))]
    if not isinstance(named, type) or missing:
        raise ArtifactRejected(f"plug-in '{name}' ({value}) must be a class with the methods load and predict")
    return named
