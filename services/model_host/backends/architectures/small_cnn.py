"""A small convolutional network for small pictures.

After LeNet-5 (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998), with
ReLU, batch normalisation (Ioffe and Szegedy, ICML 2015) and a mean over places (Lin et al., ICLR 2014) instead
of the fully connected hidden layers.

State dict: `blocks.<n>.conv|norm.*`, `head.weight`, `head.bias`.
Options: `height`, `width`, `classes`, `channels` (default 1), `widths` (default `32,64`), `input`
(default `pixels`), `scale` (pixels are divided by it; default 1).
Input: any dtype, [batch, channels * height * width] (channels first) or [batch, channels, height, width].
Outputs: as `classify.answers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.model_host.backends.architectures import classify, options
from services.model_host.backends.torch_tensors import to_device


class Block(torch.nn.Module):
    """Convolution, normalisation, ReLU, and half the height and width where `halve` is set."""

    def __init__(self, have: int, want: int, *, halve: bool) -> None:
        """`have` channels to `want`."""
        super().__init__()
        self.conv = torch.nn.Conv2d(have, want, kernel_size=3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(want)
        self.halve = halve

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, have, h, w] to [batch, want, h or h/2, w or w/2]."""
        image = torch.relu(self.norm(self.conv(image)))
        return torch.nn.functional.max_pool2d(image, 2) if self.halve else image


class SmallCnn(torch.nn.Module):
    """Blocks that halve all but the last, a mean over places, and one linear layer."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        """A block per entry of `widths`."""
        super().__init__()
        steps = list(pairwise((channels, *widths)))
        self.blocks = torch.nn.ModuleList(
            Block(have, want, halve=index < len(steps) - 1) for index, (have, want) in enumerate(steps)
        )
        self.head = torch.nn.Linear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] to [batch, classes]."""
        for block in self.blocks:
            image = block(image)
        logits: torch.Tensor = self.head(image.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True, slots=True)
class SmallCnnArchitecture:
    """The network on the wire."""

    module: SmallCnn
    shape: tuple[int, int, int]
    input_name: str
    scale: float

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """Classes of pictures."""
        pixels = to_device(inputs[self.input_name], device, torch.float32)
        return classify.answers(self.module(pixels.reshape(-1, *self.shape) / self.scale))


def build(settings: Mapping[str, str], files: Mapping[str, Path]) -> SmallCnnArchitecture:
    """Make it from a version's options; it needs no files."""
    shape = (
        options.integer(settings, "channels", 1),
        options.integer(settings, "height"),
        options.integer(settings, "width"),
    )
    module = SmallCnn(shape[0], options.integers(settings, "widths", (32, 64)), options.integer(settings, "classes"))
    scale = options.integer(settings, "scale", 1)
    return SmallCnnArchitecture(module.eval(), shape, settings.get("input", "pixels"), float(scale))
