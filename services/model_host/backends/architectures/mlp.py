"""A multi-layer perceptron, as a classifier or a regressor.

Rumelhart, Hinton and Williams, "Learning Representations by Back-Propagating Errors" (Nature 1986), with ReLU
(Nair and Hinton, ICML 2010).

State dict: `layers.<n>.weight`, `layers.<n>.bias`, n from 0.
Options: `sizes` (features, hidden widths, outputs, such as `30,64,2`), `input` (default `features`),
`task` (`classify`, the default, or `regress`).
Input: FP32 [batch, features]. Outputs: as `classify.answers`, or `values` FP32 [batch, outputs].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.domain.errors import ArtifactRejected
from services.model_host.backends.architectures import classify, options
from services.model_host.backends.torch_tensors import to_arrays, to_device


class Mlp(torch.nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """Layers from each of `sizes` to the next."""
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(have, want) for have, want in pairwise(sizes))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[batch, sizes[0]] to [batch, sizes[-1]]."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            rows = layer(rows)
            if index < last:
                rows = torch.relu(rows)
        return rows


@dataclass(frozen=True, slots=True)
class MlpArchitecture:
    """The perceptron on the wire."""

    module: Mlp
    input_name: str
    task: str

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """Classes or values of rows of features."""
        values = self.module(to_device(inputs[self.input_name], device, torch.float32))
        return to_arrays({"values": values}) if self.task == "regress" else classify.answers(values)


def build(settings: Mapping[str, str], files: Mapping[str, Path]) -> MlpArchitecture:
    """Make it from a version's options; it needs no files."""
    sizes = options.integers(settings, "sizes")
    if len(sizes) < 2:
        raise ArtifactRejected("option 'sizes' must name at least the features and the outputs, such as '30,64,2'")
    task = options.choice(settings, "task", ("classify", "regress"), "classify")
    return MlpArchitecture(Mlp(sizes).eval(), settings.get("input", "features"), task)
