"""What is measured of models: right for right answers, and low for wrong ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from examples.tensors import texts
from examples.zoo import inputs, quality
from examples.zoo.inputs import GradedPairs, HeldOut

Arrays = Mapping[str, NDArray[Any]]


def test_rank_correlation_is_spearmans_with_ties_and_without() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        first = rng.integers(0, 6, 40).astype(float)
        second = rng.normal(size=40).round(1)

        assert quality.rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


async def test_similarity_is_one_for_embeddings_in_the_order_of_the_grades() -> None:
    angles = {b"a": 0.0, b"b": 1.0, b"c": 0.5, b"d": 0.1}
    pairs = GradedPairs(np.array([1.0, 3.0, 5.0]), texts("a", "a", "a"), texts("b", "c", "d"))
    calls: list[int] = []

    async def predict(given: Arrays) -> dict[str, NDArray[Any]]:
        calls.append(len(given["text"]))
        found = np.array([angles[text] for text in given["text"]])
        return {"embedding": np.stack([np.cos(found), np.sin(found)], axis=1)}

    found = await quality.similarity(predict, pairs, rows=4)

    assert found.value == 1.0
    assert calls == [4, 2]


async def test_accuracy_counts_rows_over_all_calls() -> None:
    held_out = HeldOut(np.arange(10.0)[:, None], np.zeros(10, dtype=np.int64))

    async def predict(given: Arrays) -> dict[str, NDArray[Any]]:
        return {"label": (given["rows"][:, 0] >= 7).astype(np.int64)}

    found = await quality.accuracy(predict, held_out, name="rows", rows=4)

    assert found.value == pytest.approx(0.7)
    assert found.metric == "accuracy on 10 held-out rows"


async def test_a_detector_that_hears_speech_everywhere_is_right_on_the_spoken_clips_only() -> None:
    clips = quality.labelled_clips().values()

    async def predict(given: Arrays) -> dict[str, NDArray[Any]]:
        return {"probabilities": np.ones(len(given["frames"]), dtype=np.float32)}

    found = await quality.speech_detection(predict)

    assert found.value == pytest.approx(sum(truth for _, truth in clips) / len(clips))
    assert 0.4 < found.value < 0.6


async def test_a_finder_that_always_says_the_same_note_is_right_once() -> None:
    async def predict(given: Arrays) -> dict[str, NDArray[Any]]:
        notes = np.zeros((1, 172, 88), dtype=np.float32)
        notes[:, :, quality.NOTES[3] - inputs.LOWEST_NOTE] = 1.0
        return {"notes": notes}

    assert (await quality.note_finding(predict)).value == pytest.approx(1 / len(quality.NOTES), abs=1e-4)


def test_a_short_click_is_no_speech() -> None:
    probabilities = np.zeros(60, dtype=np.float32)
    probabilities[: quality.SPEECH_FRAMES - 1] = 0.9

    assert not quality.is_speech(probabilities)
    assert quality.is_speech(np.full(60, 0.9, dtype=np.float32))


def test_frames_of_a_clip_overlap_by_the_context_and_cover_all_of_it() -> None:
    samples = np.arange(1, 1201, dtype=np.float32)

    given = inputs.speech_frames(samples)

    frames = given["frames"]
    assert frames.shape == (3, inputs.CONTEXT + inputs.FRAME)
    assert not frames[0, : inputs.CONTEXT].any()
    np.testing.assert_array_equal(frames[1, : inputs.CONTEXT], frames[0, -inputs.CONTEXT :])
    whole = frames[:, inputs.CONTEXT :].ravel()
    np.testing.assert_array_equal(whole[:1200], samples)
    assert not whole[1200:].any()
