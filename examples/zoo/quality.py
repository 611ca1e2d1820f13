"""How good a model's answers are, as one number in [0, 1] and a line that says what was measured.

A model is whatever answers tensors with tensors, so that what is measured is what will be served.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.tensors import Arrays
from examples.zoo import inputs
from examples.zoo.inputs import GradedPairs, HeldOut

Predict = Callable[[Arrays], Awaitable[dict[str, NDArray[Any]]]]

SPEECH_PROBABILITY = 0.5
"""A frame counts as speech above it, as in the detector's own examples."""
SPEECH_FRAMES = 8
"""Frames of speech that make a clip speech: a quarter of a second."""
NOTES = range(33, 97, 2)
"""MIDI notes that are played to the note finder: A1 to C7."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured."""

    value: float
    metric: str


async def similarity(predict: Predict, pairs: GradedPairs, *, rows: int) -> Quality:
    """How well the nearness of embeddings orders pairs of sentences as people do.

    Args:
        predict: Texts to embeddings of length 1.
        pairs: Pairs and their grades.
        rows: Most texts in one call.
    """
    both = np.concatenate([pairs.first, pairs.second])
    parts = [(await predict({"text": both[at : at + rows]}))["embedding"] for at in range(0, len(both), rows)]
    first, second = np.split(np.concatenate(parts), 2)
    order = rank_correlation(pairs.grades, (first * second).sum(axis=1))
    return Quality(
        round(order, 3), f"Spearman correlation of cosine and human grade over {len(pairs.grades)} sentence pairs"
    )


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's correlation of two series: Pearson's of their ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = ends - (counts - 1) / 2
    return mean_rank[place]


async def accuracy(predict: Predict, held_out: HeldOut, *, name: str, rows: int) -> Quality:
    """Share of held-out rows that are labelled right.

    Args:
        predict: Rows under `name` to `label`.
        held_out: Rows that no fit saw, of the type that the model takes.
        name: Name of the model's input.
        rows: Most rows in one call.
    """
    parts = [
        (await predict({name: held_out.rows[at : at + rows]}))["label"] for at in range(0, len(held_out.rows), rows)
    ]
    right = float((np.concatenate(parts) == held_out.labels).mean())
    return Quality(round(right, 4), f"accuracy on {len(held_out.labels)} held-out rows")


def is_speech(probabilities: NDArray[np.float32]) -> bool:
    """Whether a clip's frames hold speech for long enough."""
    return int((probabilities > SPEECH_PROBABILITY).sum()) >= SPEECH_FRAMES


def labelled_clips() -> Mapping[str, tuple[NDArray[np.float32], bool]]:
    """Clips that hold speech, loud, soft and in noise, and clips that do not, each with the truth."""
    speech = inputs.speech()
    clips: dict[str, tuple[NDArray[np.float32], bool]] = {}
    for gain in (1.0, 0.5, 0.2, 0.05):
        clips[f"speech at {gain:g}"] = (speech * np.float32(gain), True)
    for level in (0.005, 0.02, 0.05, 0.1):
        hiss = inputs.noise(len(speech) / inputs.SPEECH_RATE, seed=1, amplitude=level)
        clips[f"speech in noise of {level:g}"] = (speech + hiss[: len(speech)], True)
        clips[f"noise of {level:g}"] = (inputs.noise(2.0, seed=2, amplitude=level), False)
    time_s = np.arange(2 * inputs.SPEECH_RATE) / inputs.SPEECH_RATE
    for frequency_hz in (110.0, 440.0, 2000.0):
        clips[f"tone of {frequency_hz:g} Hz"] = (
            (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32),
            False,
        )
    clips["silence"] = (np.zeros(2 * inputs.SPEECH_RATE, dtype=np.float32), False)
    return clips


async def speech_detection(predict: Predict) -> Quality:
    """Share of the labelled clips that are taken for what they are."""
    clips = labelled_clips()
    right = 0
    for samples, truth in clips.values():
        answer = await predict(inputs.speech_frames(samples))
        right += is_speech(answer["probabilities"]) == truth
    return Quality(round(right / len(clips), 4), f"share of {len(clips)} labelled clips told apart: speech or none")


async def note_finding(predict: Predict) -> Quality:
    """Share of tones whose strongest note is the one that was played."""
    right = 0
    for note in NOTES:
        tone = inputs.tone(inputs.note_frequency_hz(note), overtones=3)
        answer = await predict({"audio": tone})
        right += inputs.strongest_note(answer["notes"]) == note
    return Quality(round(right / len(NOTES), 4), f"share of {len(NOTES)} tones with overtones named right")
