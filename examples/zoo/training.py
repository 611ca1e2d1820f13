"""Fits the small models of the zoo, in seconds, from data that scikit-learn carries.

Seeds and splits are fixed. A quarter of the rows is held out: no fit sees them, quality is measured on them, and the
demo asks the mesh about them.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skops.io
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

SEED = 20_260_401
HELD_OUT_SHARE = 0.25
CNN_WIDTHS = (16, 32, 64)
CNN_EPOCHS = 12
CNN_BATCH = 64
PIXEL_SCALE = 16.0
"""Pixels of the digits are 0 to 16."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows held out."""

    rows: NDArray[np.float64]
    labels: NDArray[np.int64]
    held_out_rows: NDArray[np.float64]
    held_out_labels: NDArray[np.int64]

    def save_held_out(self, path: Path) -> None:
        """Keep the rows that no fit saw."""
        np.savez_compressed(path, rows=self.held_out_rows, labels=self.held_out_labels)


def breast_cancer() -> Split:
    """569 tumours, 30 measurements each (Wolberg et al. 1995): 0 malignant, 1 benign."""
    return _split(*load_breast_cancer(return_X_y=True))


def digits() -> Split:
    """1,797 handwritten digits of 8 by 8 pixels (Alpaydin and Kaynak 1998)."""
    return _split(*load_digits(return_X_y=True))


def _split(rows: NDArray[np.float64], labels: NDArray[np.int64]) -> Split:
    kept, held, kept_labels, held_labels = train_test_split(
        rows, labels, test_size=HELD_OUT_SHARE, random_state=SEED, stratify=labels
    )
    return Split(kept, kept_labels.astype(np.int64), held, held_labels.astype(np.int64))


def fit_linear(split: Split, path: Path) -> None:
    """Standardised logistic regression, as skops."""
    _fit(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), split, path)


def fit_boosted(split: Split, path: Path) -> None:
    """Gradient boosted trees over histograms, as skops."""
    _fit(HistGradientBoostingClassifier(random_state=SEED), split, path)


def _fit(model: ClassifierMixin, split: Split, path: Path) -> None:
    # More threads only wait for each other on so little data, for seconds where others compute too.
    with threadpool_limits(limits=1):
        model.fit(split.rows, split.labels)
    skops.io.dump(model, path)


def digit_network() -> nn.Sequential:
    """The network that the host knows as `small_cnn`: the same names and shapes in its state dict."""
    blocks = nn.Sequential()
    have = 1
    for index, want in enumerate(CNN_WIDTHS):
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(have, want, 3, padding=1, bias=False), norm=nn.BatchNorm2d(want), relu=nn.ReLU()
        )
        if index < len(CNN_WIDTHS) - 1:
            parts["pool"] = nn.MaxPool2d(2)
        blocks.append(nn.Sequential(parts))
        have = want
    return nn.Sequential(
        OrderedDict(blocks=blocks, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(have, 10))
    )


def fit_cnn(split: Split, path: Path) -> None:
    """A small convolutional network on digits, as safetensors; the same bytes for the same seed and torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the result, must not depend on the machine's cores
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = _trained(digit_network(), split)
    finally:
        torch.set_num_threads(threads)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def _trained(network: nn.Sequential, split: Split) -> nn.Sequential:
    pixels = torch.from_numpy(split.rows).float().reshape(-1, 1, 8, 8) / PIXEL_SCALE
    labels = torch.from_numpy(split.labels)
    steps = CNN_EPOCHS * -(-len(labels) // CNN_BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    network.train()
    for _ in range(CNN_EPOCHS):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), CNN_BATCH):
            batch = order[start : start + CNN_BATCH]
            loss = nn.functional.cross_entropy(network(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()
