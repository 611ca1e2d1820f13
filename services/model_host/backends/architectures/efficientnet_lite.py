"""EfficientNet-Lite: classes of pictures on small devices.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019), in the
Lite form published with TensorFlow's reference code: ReLU6 instead of swish, no squeeze-and-excitation,
and neither stem nor head scaled with the rest.

State dict: `_conv_stem`, `_bn0`, `_blocks.<n>._expand_conv|_bn0|_depthwise_conv|_bn1|_project_conv|_bn2`,
`_conv_head`, `_bn1`, `_fc`.
Options: `variant` (`lite0` to `lite4`), `classes` (1000), `input` (`image`).
Input: UINT8 [batch, height, width, 3], RGB, any size: the largest square in the middle is taken as the
reference evaluation does, resized and normalised here. Outputs: as `classify.answers`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.model_host.backends.architectures import classify, options
from services.model_host.backends.torch_tensors import to_device

STAGES = (
    # repeats, kernel, stride, expansion, channels in, channels out: table 1 of the paper
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
VARIANTS = {
    # width, depth, pixels of a side
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
HEAD_CHANNELS = 1280
STEM_CHANNELS = 32
CROP_MARGIN = 32
"""The square is side / (side + margin) of the shorter edge, as in the reference evaluation."""
MEAN, SCALE = 127.0, 128.0
"""Pixels become (p - MEAN) / SCALE."""
NORM_EPSILON = 1e-3


def scaled_channels(channels: int, width: float) -> int:
    """Channels times `width`, to the nearest multiple of 8 that loses at most a tenth."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class SameConv(torch.nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding: where it is odd, the extra is right and below."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, in, h, w] to [batch, out, ceil(h / stride), ceil(w / stride)]."""
        across, down = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in (
                (image.shape[3], self.stride[1], self.kernel_size[1]),
                (image.shape[2], self.stride[0], self.kernel_size[0]),
            )
        )
        if across % 2 == 0 and down % 2 == 0:
            padding = (down // 2, across // 2)
            return torch.nn.functional.conv2d(image, self.weight, self.bias, self.stride, padding, groups=self.groups)
        left, top = across // 2, down // 2
        return super().forward(torch.nn.functional.pad(image, (left, across - left, top, down - top)))


class Block(torch.nn.Module):
    """An inverted residual: widen, filter each channel, narrow (MobileNetV2, CVPR 2018)."""

    def __init__(self, have: int, want: int, *, kernel: int, stride: int, expansion: int) -> None:
        """Parts under the names of the state dict."""
        super().__init__()
        wide = have * expansion
        self.widens = expansion > 1
        self.adds = stride == 1 and have == want
        if self.widens:
            self._expand_conv = SameConv(have, wide, 1, bias=False)
            self._bn0 = torch.nn.BatchNorm2d(wide, eps=NORM_EPSILON)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = torch.nn.BatchNorm2d(wide, eps=NORM_EPSILON)
        self._project_conv = SameConv(wide, want, 1, bias=False)
        self._bn2 = torch.nn.BatchNorm2d(want, eps=NORM_EPSILON)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, have, h, w] to [batch, want, h / stride, w / stride]."""
        came_in = image
        relu6 = torch.nn.functional.relu6
        if self.widens:
            image = relu6(self._bn0(self._expand_conv(image)))
        image = relu6(self._bn1(self._depthwise_conv(image)))
        image = self._bn2(self._project_conv(image))
        return image + came_in if self.adds else image


class EfficientNetLite(torch.nn.Module):
    """Stem, blocks, head, mean over places, one linear layer."""

    def __init__(self, width: float, depth: float, classes: int) -> None:
        """Scale the baseline by `width` and `depth`."""
        super().__init__()
        self._conv_stem = SameConv(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = torch.nn.BatchNorm2d(STEM_CHANNELS, eps=NORM_EPSILON)
        self._blocks = torch.nn.ModuleList(_blocks(width, depth))
        last = scaled_channels(STAGES[-1][5], width)
        self._conv_head = SameConv(last, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = torch.nn.BatchNorm2d(HEAD_CHANNELS, eps=NORM_EPSILON)
        self._fc = torch.nn.Linear(HEAD_CHANNELS, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[batch, 3, side, side] to [batch, classes]."""
        relu6 = torch.nn.functional.relu6
        image = relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            image = block(image)
        image = relu6(self._bn1(self._conv_head(image)))
        logits: torch.Tensor = self._fc(image.mean(dim=(2, 3)))
        return logits


def _blocks(width: float, depth: float) -> list[Block]:
    blocks: list[Block] = []
    for number, (repeats, kernel, stride, expansion, came_in, out) in enumerate(STAGES):
        have = STEM_CHANNELS if number == 0 else scaled_channels(came_in, width)
        want = scaled_channels(out, width)
        # Lite keeps the first and the last stage as deep as the baseline's.
        times = repeats if number in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
        blocks += [
            Block(want if again else have, want, kernel=kernel, stride=1 if again else stride, expansion=expansion)
            for again in range(times)
        ]
    return blocks


def prepared(images: torch.Tensor, side: int) -> torch.Tensor:
    """What the network takes.

    Args:
        images: UINT8 [batch, height, width, 3].
        side: Pixels of a side of the result.

    Returns:
        FP32 [batch, 3, side, side], normalised.
    """
    height, width = images.shape[1:3]
    square = max(1, int(side / (side + CROP_MARGIN) * min(height, width)))
    top, left = (height - square + 1) // 2, (width - square + 1) // 2
    middle = images[:, top : top + square, left : left + square].permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(
        middle, (side, side), mode="bicubic", align_corners=False, antialias=square > side
    )
    return (resized.clamp(0.0, 255.0) - MEAN) / SCALE


@dataclass(frozen=True, slots=True)
class EfficientNetLiteArchitecture:
    """The network on the wire."""

    module: EfficientNetLite
    side: int
    input_name: str

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """Classes of pictures."""
        images = to_device(inputs[self.input_name], device)
        return classify.answers(self.module(prepared(images, self.side)))


def build(settings: Mapping[str, str], files: Mapping[str, Path]) -> EfficientNetLiteArchitecture:
    """Make it from a version's options; it needs no files."""
    width, depth, side = VARIANTS[options.choice(settings, "variant", tuple(VARIANTS))]
    module = EfficientNetLite(width, depth, options.integer(settings, "classes", 1000))
    return EfficientNetLiteArchitecture(module.eval(), side, settings.get("input", "image"))
