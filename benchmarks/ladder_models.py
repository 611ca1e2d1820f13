"""A ladder of classifiers of handwritten digits, each dearer and better than the one before, and the rows to ask about.

scikit-learn's own digits (Alpaydin and Kaynak 1998: 1,797 of 8 by 8 pixels). Everything is fitted in a second or two.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

PRICES = {"small": 1, "medium": 6, "large": 40}
"""Microdollars of a call."""

TRAINED = 700
MEASURED = 500
"""Rows that tell how good each is, and what its confidence is worth; the rest is asked about."""

_MODEL = """\
kind: Model
metadata: {{ name: {name} }}
spec:
  inputs: [{{ name: pixels, datatype: FP32, shape: [-1, 64] }}]
  outputs:
    - {{ name: label, datatype: INT64, shape: [-1] }}
    - {{ name: probabilities, datatype: FP32, shape: [-1, 10] }}
---
kind: ModelVersion
metadata: {{ name: {name} }}
spec:
  version: 1.0.0
  backend: {{ name: sklearn }}
  artifact: {{ uri: {name}.skops }}
  batching: {{ max_batch_size: 64 }}
  min_replicas: 1
  cost_microusd: {cost}
  quality: {quality:.4f}
  service_time: 1ms
---
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Digits and what they are."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ladder:
    """What was fitted."""

    manifests: str
    """Of its models."""
    qualities: dict[str, float]
    samples: dict[str, list[tuple[float, bool]]]
    """Of each model: how sure it is of a measured row, and whether it is right."""
    asked: Rows
    """Rows that nothing has seen."""


def fitted(folder: Path, *, seed: int) -> Ladder:
    """Fit the models and write their artifacts into `folder`."""
    pixels, labels = load_digits(return_X_y=True)
    train, rest, train_labels, rest_labels = train_test_split(
        pixels, labels, train_size=TRAINED, random_state=seed, stratify=labels
    )
    measured, asked = rest[:MEASURED].astype(np.float32), rest[MEASURED:].astype(np.float32)
    known, wanted = rest_labels[:MEASURED], rest_labels[MEASURED:]
    network = MLPClassifier((24,), max_iter=1500, random_state=seed)
    models: dict[str, ClassifierMixin] = {
        "small": make_pipeline(StandardScaler(), PCA(5, random_state=seed), LogisticRegression(max_iter=2000)),
        "medium": make_pipeline(StandardScaler(), PCA(12, random_state=seed), network),
        "large": MLPClassifier((128,), max_iter=1500, random_state=seed),
    }
    qualities: dict[str, float] = {}
    samples: dict[str, list[tuple[float, bool]]] = {}
    with threadpool_limits(1):
        for name, model in models.items():
            model.fit(train, train_labels)
            said = model.predict_proba(measured)
            right = said.argmax(axis=1) == known
            qualities[name] = float(right.mean())
            samples[name] = [(float(sure), bool(each)) for sure, each in zip(said.max(axis=1), right, strict=True)]
            skops.io.dump(model, folder / f"{name}.skops")
    manifests = "".join(_MODEL.format(name=name, cost=PRICES[name], quality=qualities[name]) for name in models)
    return Ladder(manifests, qualities, samples, Rows(asked, wanted))
