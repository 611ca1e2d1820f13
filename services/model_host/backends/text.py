"""Text in, tensors out, and embeddings from what a transformer answers.

Owns what text models share whatever computes them: turning bytes into token ids with a
`tokenizer.json`, and pooling token states into one vector per text. The torch and the ONNX
encoders of one model use the same code, so that they differ only in their arithmetic.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.domain.errors import ArtifactRejected


class TextEncoder:
    """Turns texts into the three integer inputs of a BERT-like model."""

    def __init__(self, tokenizer_json: Path, max_length: int) -> None:
        """Read `tokenizer_json` at first use.

        Args:
            tokenizer_json: A file of the `tokenizers` library.
            max_length: Most tokens of one text, special tokens included; the rest is cut off.
        """
        self._tokenizer_json = tokenizer_json
        self._max_length = max_length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with truncation to `max_length` and without padding.

        Raises:
            ArtifactRejected: The file is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_json))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactRejected(f"'{self._tokenizer_json.name}' is no tokenizer.json: {error}") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=self._max_length)
        return tokenizer

    def encode(self, texts: Sequence[bytes]) -> dict[str, NDArray[np.int64]]:
        """Tokenize texts, padded to the longest of them.

        Bytes that are not UTF-8 become U+FFFD instead of an error: a batch holds texts of several
        callers, and one of them must not fail the others.

        Args:
            texts: UTF-8 encoded; may be empty strings.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids`, each of shape [texts, longest].
        """
        tokenizer = self.tokenizer
        # One by one: encode_batch would compute on threads of its own, beside the device's one thread.
        encoded = [tokenizer.encode(text.decode("utf-8", errors="replace")) for text in texts]
        longest = max((len(item.ids) for item in encoded), default=0)
        shape = (len(encoded), longest)
        input_ids = np.full(shape, tokenizer.token_to_id("[PAD]") or 0, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        for row, item in enumerate(encoded):
            length = len(item.ids)
            input_ids[row, :length] = item.ids
            attention_mask[row, :length] = 1
            token_type_ids[row, :length] = item.type_ids
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def mean_pool(hidden: NDArray[np.floating], mask: NDArray[np.integer]) -> NDArray[np.float32]:
    """One vector of length 1 per text: the mean of its tokens' states, as in Sentence-BERT section 3.

    Args:
        hidden: Token states, [texts, tokens, width].
        mask: 1 for tokens, 0 for padding, [texts, tokens].

    Returns:
        Embeddings, [texts, width]; zeros for a text without tokens.
    """
    weights = mask.astype(np.float32)
    # matmul sums over tokens without a copy of `hidden` the size of the product.
    total = np.matmul(weights[:, None, :], hidden.astype(np.float32, copy=False))[:, 0, :]
    mean = total / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    pooled: NDArray[np.float32] = (mean / np.maximum(norm, 1e-12)).astype(np.float32, copy=False)
    return pooled
