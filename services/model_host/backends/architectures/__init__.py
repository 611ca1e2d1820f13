"""Torch architectures by name: the code that weights are poured into.

An artifact of the torch backend is data only, so the code that gives it meaning must be registered
here, or by an installed package under the entry point group `modelyard.torch_architectures`
(entry: a factory with the signature of `Factory`).
"""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray

from services.domain.errors import ArtifactRejected
from services.domain.objects import Generation
from services.model_host.backends.architectures import bert_encoder, efficientnet_lite, llama_decoder, mlp, small_cnn
from services.model_host.backends.base import GenerativeModel

ENTRY_POINT_GROUP = "modelyard.torch_architectures"


class Architecture(Protocol):
    """A module, and how tensors on the wire become its arguments and results."""

    @property
    def module(self) -> torch.nn.Module:
        """What takes the state dict, strictly."""
        ...

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """Compute one batch.

        Args:
            inputs: Writable arrays by the names of the model's inputs, batch dimension first.
            device: Where `module` lives.

        Returns:
            Arrays by output name, batch dimension first. A version may declare fewer.
        """
        ...


@runtime_checkable
class Generative(Protocol):
    """An architecture that answers in pieces, if its version says how."""

    def generator(self, settings: Generation, device: torch.device) -> GenerativeModel:
        """The module, with its weights, as a model that generates.

        Args:
            settings: What the version says of it.
            device: Where `module` lives.
        """
        ...


Factory = Callable[[Mapping[str, str], Mapping[str, Path]], Architecture]
"""Makes an architecture from a version's backend options and further files."""

BUILTIN: dict[str, Factory] = {
    "bert_encoder": bert_encoder.build,
    "efficientnet_lite": efficientnet_lite.build,
    "llama_decoder": llama_decoder.build,
    "mlp": mlp.build,
    "small_cnn": small_cnn.build,
}
"""The architectures that come with modelyard."""


def build(name: str, options: Mapping[str, str], files: Mapping[str, Path]) -> Architecture:
    """Make an architecture, with weights yet to be loaded.

    Args:
        name: `backend.architecture` of the version.
        options: `backend.options` of the version.
        files: The version's further files, fetched and verified, by name.

    Raises:
        ArtifactRejected: The name is not registered, or the options or files do not fit.
    """
    factory = BUILTIN.get(name) or _installed(name)
    return factory(options, files)


def _installed(name: str) -> Factory:
    points: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        known = ", ".join(sorted({*BUILTIN, *points}))
        raise ArtifactRejected(
            f"architecture '{name}' is not registered; known: {known}",
            metadata={"architecture": name},
        )
    try:
        factory: Factory = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ArtifactRejected(
            f"architecture '{name}' is installed as '{points[name].value}', which cannot be imported: {error}",
            metadata={"architecture": name},
        ) from error
    return factory
