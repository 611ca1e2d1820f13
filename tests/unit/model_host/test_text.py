"""Tokenizing and pooling: what every text model of the mesh rests on."""

import json
from pathlib import Path

import numpy as np
import pytest

from services.domain.errors import ArtifactRejected
from services.model_host.backends.text import TextEncoder, mean_pool

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "yard", "is", "open", "\ufffd"]


def write_tokenizer(folder: Path, *, padded_to: int | None = None) -> Path:
    """A word-level tokenizer with BERT's frame, as a tokenizer.json."""
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None
        if padded_to is None
        else {
            "strategy": {"Fixed": padded_to},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(WORDS)},
            "unk_token": "[UNK]",
        },
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    return path


def test_texts_are_padded_to_the_longest_of_the_batch_and_the_padding_is_masked(tmp_path: Path) -> None:
    encoded = TextEncoder(write_tokenizer(tmp_path), 16).encode([b"the yard is open", b"yard"])

    assert encoded["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 5, 3, 0, 0, 0]]
    assert encoded["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert encoded["token_type_ids"].tolist() == [[0] * 6] * 2
    assert all(array.dtype == np.int64 for array in encoded.values())


def test_padding_that_the_file_asks_for_is_left_out(tmp_path: Path) -> None:
    encoded = TextEncoder(write_tokenizer(tmp_path, padded_to=128), 16).encode([b"open"])

    assert encoded["input_ids"].shape == (1, 3)


def test_a_long_text_is_cut_and_keeps_its_end_token(tmp_path: Path) -> None:
    encoded = TextEncoder(write_tokenizer(tmp_path), 5).encode([b"the yard is open " * 9])

    assert encoded["input_ids"].tolist() == [[2, 4, 5, 6, 3]]


def test_bytes_that_are_not_utf8_become_the_replacement_character(tmp_path: Path) -> None:
    encoded = TextEncoder(write_tokenizer(tmp_path), 16).encode([b"the \xff"])

    assert encoded["input_ids"].tolist() == [[2, 4, 8, 3]]


def test_an_empty_batch_gives_empty_tensors(tmp_path: Path) -> None:
    encoded = TextEncoder(write_tokenizer(tmp_path), 16).encode([])

    assert {array.shape for array in encoded.values()} == {(0, 0)}


def test_a_file_that_is_no_tokenizer_is_rejected_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{}")

    with pytest.raises(ArtifactRejected, match=r"broken\.json"):
        TextEncoder(path, 16).encode([b"text"])


def test_mean_pool_leaves_padding_out_and_gives_length_one() -> None:
    hidden = np.array([[[3.0, 0.0], [3.0, 8.0], [99.0, 99.0]]], dtype=np.float32)

    pooled = mean_pool(hidden, np.array([[1, 1, 0]]))

    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, [[0.6, 0.8]], rtol=1e-6)


def test_mean_pool_of_a_text_without_tokens_is_zero_and_not_nan() -> None:
    pooled = mean_pool(np.ones((1, 2, 3), dtype=np.float32), np.zeros((1, 2), dtype=np.int64))

    assert pooled.tolist() == [[0.0, 0.0, 0.0]]
