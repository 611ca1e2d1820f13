"""Real inputs of the zoo's models, as the tensors that they take."""

import csv
import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.tensors import texts
from examples.zoo.weights import PackageFile

DATA = Path(__file__).parent / "data"
SPEECH_RATE = 16_000
"""Samples a second that the speech detector takes."""
FRAME, CONTEXT = 512, 64
"""Samples of a frame of the speech detector, and those of the frame before that it sees again."""
MUSIC_RATE = 22_050
"""Samples a second that the note finder takes."""
MUSIC_SAMPLES = 43_844
"""Samples of the one window of the note finder, just below two seconds."""
LOWEST_NOTE = 21
"""MIDI number of the note finder's first column: the lowest key of a piano."""


def photo(file: PackageFile) -> NDArray[np.uint8]:
    """A picture as RGB, [1, height, width, 3]."""
    with Image.open(file.find()) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)[None]


def image_labels() -> dict[int, str]:
    """Names of the ImageNet classes that a cat or a cup may be taken for; the other ones go by number."""
    return {int(number): name for number, name in json.loads((DATA / "imagenet_labels.json").read_text()).items()}


def speech() -> NDArray[np.float32]:
    """Someone saying "Every model is in its place.", 16 kHz, in [-1, 1]."""
    with wave.open(str(DATA / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return (samples / 32768.0).astype(np.float32)


def noise(duration_s: float, *, seed: int, amplitude: float = 0.05) -> NDArray[np.float32]:
    """White noise at the speech detector's rate."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, amplitude, int(duration_s * SPEECH_RATE)).astype(np.float32)


def speech_frames(samples: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """A clip as the speech detector takes it: all frames at once, each with the end of the one before.

    `h` and `c` are the detector's memory, empty at the beginning of a clip. Whoever sends a stream in parts
    sends the `hn` and `cn` of one answer with the next part.
    """
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, dtype=np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    memory = np.zeros((1, 1, 128), dtype=np.float32)
    return {"frames": np.ascontiguousarray(windows), "h": memory, "c": memory}


def tone(frequency_hz: float, *, overtones: int = 0) -> NDArray[np.float32]:
    """Just below two seconds of a tone, as the note finder takes it: [1, samples, 1]."""
    time_s = np.arange(MUSIC_SAMPLES) / MUSIC_RATE
    parts = [0.5**n * np.sin(2 * np.pi * frequency_hz * (n + 1) * time_s) for n in range(overtones + 1)]
    samples: NDArray[np.float32] = (0.4 * np.sum(parts, axis=0)).astype(np.float32)
    return samples[None, :, None]


def note_frequency_hz(midi_note: int) -> float:
    """Frequency of a note in equal temperament; 69 is 440 Hz."""
    return float(440.0 * 2.0 ** ((midi_note - 69) / 12))


def strongest_note(notes: NDArray[np.float32]) -> int:
    """MIDI number of the note that sounds most over the window [1, frames, 88]."""
    return LOWEST_NOTE + int(notes[0].mean(axis=0).argmax())


@dataclass(frozen=True, slots=True)
class GradedPairs:
    """Pairs of sentences, and how alike they mean: 0, unrelated, to 5, the same."""

    grades: NDArray[np.float64]
    first: NDArray[Any]
    second: NDArray[Any]


def graded_pairs() -> GradedPairs:
    """61 pairs written and graded for this zoo, on the scale of SemEval's text similarity tasks."""
    with (DATA / "sentence_pairs.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return GradedPairs(
        np.array([float(row["grade"]) for row in rows]),
        texts(*(row["first"] for row in rows)),
        texts(*(row["second"] for row in rows)),
    )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that no fit saw, and what they are."""

    rows: NDArray[np.float64]
    labels: NDArray[np.int64]


def held_out(path: Path) -> HeldOut:
    """Rows kept by `training.Split.save_held_out`."""
    with np.load(path) as kept:
        return HeldOut(kept["rows"], kept["labels"])
