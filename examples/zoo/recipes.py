"""How every version of the zoo is measured: with which inputs, and what its quality is taken to be."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.tensors import Arrays, texts
from examples.zoo import inputs, quality, weights
from examples.zoo.inputs import HeldOut
from examples.zoo.quality import Predict, Quality

SENTENCE = "The yard is open, and every model is in its place."


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one version is measured."""

    name: str
    """As in the places of the manifests."""
    model: str
    version: str
    sample: Arrays
    """A batch of one, for timing."""
    quality: Callable[[Predict], Awaitable[Quality]] | None = None
    """None where the manifest itself cites a published figure."""


def recipes(held_out: Path) -> list[Recipe]:
    """The recipe of every version.

    Args:
        held_out: Folder with the rows that no fit saw.
    """
    sentence = {"text": texts(SENTENCE)}
    photo = {"image": inputs.photo(weights.CAT_PHOTO)}
    tumours = inputs.held_out(held_out / "breast_cancer.npz")
    digits = inputs.held_out(held_out / "digits.npz")
    pixels = HeldOut(digits.rows.astype(np.float32), digits.labels)
    pairs = inputs.graded_pairs()

    def alike(predict: Predict) -> Awaitable[Quality]:
        return quality.similarity(predict, pairs, rows=32)

    def tumours_right(predict: Predict) -> Awaitable[Quality]:
        return quality.accuracy(predict, tumours, name="features", rows=256)

    def digits_right(predict: Predict) -> Awaitable[Quality]:
        return quality.accuracy(predict, pixels, name="pixels", rows=64)

    features = {"features": tumours.rows[:1]}
    digit = {"pixels": pixels.rows[:1]}
    return [
        Recipe("minilm", "minilm", "1.0.0", sentence, alike),
        Recipe("minilm-int8", "minilm-int8", "1.0.0", sentence, alike),
        Recipe("efficientnet-lite0", "efficientnet-lite0", "1.0.0", photo),
        Recipe("efficientnet-lite2", "efficientnet-lite2", "1.0.0", photo),
        Recipe(
            "silero-vad",
            "silero-vad",
            "6.2.3",
            inputs.speech_frames(inputs.speech()),
            quality.speech_detection,
        ),
        Recipe("basic-pitch", "basic-pitch", "0.4.0", {"audio": inputs.tone(440.0)}, quality.note_finding),
        Recipe("breast-cancer-linear", "breast-cancer", "1.0.0", features, tumours_right),
        Recipe("breast-cancer-boosted", "breast-cancer", "2.0.0", features, tumours_right),
        Recipe("digits-linear", "digits-linear", "1.0.0", digit, digits_right),
        Recipe("digits-cnn", "digits-cnn", "1.0.0", digit, digits_right),
    ]
