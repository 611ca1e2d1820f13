"""A BERT encoder that turns texts into embeddings of length 1.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (NAACL
2019), with the mean pooling of Reimers and Gurevych, "Sentence-BERT" (EMNLP 2019, section 3).

State dict: the names of Hugging Face's `BertModel` (`embeddings.*`, `encoder.layer.<n>.*`, `pooler.*`).
Options: `layers`, `heads`, `hidden`, `intermediate` (defaults 6, 12, 384, 1536: MiniLM-L6), `vocabulary`
(30522), `positions` (512), `max_length` (tokens of one text, 256), `tokenizer` (name among the version's
files, `tokenizer.json`), `text_input` (`text`).
Input: BYTES [batch], UTF-8. Output: `embedding` FP32 [batch, hidden].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.domain.errors import ArtifactRejected
from services.model_host.backends.architectures import options
from services.model_host.backends.text import TextEncoder, mean_pool
from services.model_host.backends.torch_tensors import to_arrays, to_device

NORM_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Sizes:
    """The dimensions of the encoder."""

    layers: int
    heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int


class Embeddings(torch.nn.Module):
    """Sums what is known of each token: its word, its place, its segment."""

    position_ids: torch.Tensor

    def __init__(self, sizes: Sizes) -> None:
        """Tables of the given sizes."""
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(sizes.vocabulary, sizes.hidden, padding_idx=0)
        self.position_embeddings = torch.nn.Embedding(sizes.positions, sizes.hidden)
        self.token_type_embeddings = torch.nn.Embedding(2, sizes.hidden)
        self.LayerNorm = torch.nn.LayerNorm(sizes.hidden, eps=NORM_EPSILON)
        self.register_buffer("position_ids", torch.arange(sizes.positions)[None])

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """[batch, tokens] to [batch, tokens, hidden]."""
        places = self.position_embeddings(self.position_ids[:, : input_ids.shape[1]])
        summed: torch.Tensor = self.LayerNorm(
            self.word_embeddings(input_ids) + places + self.token_type_embeddings(token_type_ids)
        )
        return summed


class SelfAttention(torch.nn.Module):
    """Scaled dot-product attention over several heads."""

    def __init__(self, sizes: Sizes) -> None:
        """Projections of width `hidden`."""
        super().__init__()
        self.heads = sizes.heads
        self.query = torch.nn.Linear(sizes.hidden, sizes.hidden)
        self.key = torch.nn.Linear(sizes.hidden, sizes.hidden)
        self.value = torch.nn.Linear(sizes.hidden, sizes.hidden)

    def forward(self, states: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] to the same; `visible` is true for tokens that may be looked at."""
        batch, tokens, hidden = states.shape

        def split(rows: torch.Tensor) -> torch.Tensor:
            return rows.view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)

        mixed = torch.nn.functional.scaled_dot_product_attention(
            split(self.query(states)), split(self.key(states)), split(self.value(states)), attn_mask=visible
        )
        return mixed.transpose(1, 2).reshape(batch, tokens, hidden)


class Residual(torch.nn.Module):
    """A projection, added to what came in, and normalised."""

    def __init__(self, have: int, want: int) -> None:
        """Project from `have` to `want`."""
        super().__init__()
        self.dense = torch.nn.Linear(have, want)
        self.LayerNorm = torch.nn.LayerNorm(want, eps=NORM_EPSILON)

    def forward(self, states: torch.Tensor, came_in: torch.Tensor) -> torch.Tensor:
        """[..., have] and [..., want] to [..., want]."""
        normalised: torch.Tensor = self.LayerNorm(self.dense(states) + came_in)
        return normalised


class Layer(torch.nn.Module):
    """Attention, then a feed-forward part, each with a residual connection."""

    def __init__(self, sizes: Sizes) -> None:
        """Parts under the names of the state dict."""
        super().__init__()
        self.attention = torch.nn.ModuleDict(
            {"self": SelfAttention(sizes), "output": Residual(sizes.hidden, sizes.hidden)}
        )
        self.intermediate = torch.nn.ModuleDict({"dense": torch.nn.Linear(sizes.hidden, sizes.intermediate)})
        self.output = Residual(sizes.intermediate, sizes.hidden)

    def forward(self, states: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, hidden] to the same."""
        attended = self.attention["output"](self.attention["self"](states, visible), states)
        widened = torch.nn.functional.gelu(self.intermediate["dense"](attended))
        answered: torch.Tensor = self.output(widened, attended)
        return answered


class BertEncoder(torch.nn.Module):
    """Embeddings and layers. The pooler is loaded, since the weights have one, and not used."""

    def __init__(self, sizes: Sizes) -> None:
        """An encoder of the given sizes."""
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = torch.nn.ModuleDict({"layer": torch.nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))})
        self.pooler = torch.nn.ModuleDict({"dense": torch.nn.Linear(sizes.hidden, sizes.hidden)})

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Three of [batch, tokens] to the last states [batch, tokens, hidden]."""
        states: torch.Tensor = self.embeddings(input_ids, token_type_ids)
        visible = mask.bool()[:, None, None, :]
        layers = self.encoder["layer"]
        assert isinstance(layers, torch.nn.ModuleList)
        for layer in layers:
            states = layer(states, visible)
        return states


@dataclass(frozen=True, slots=True)
class BertEncoderArchitecture:
    """The encoder on the wire."""

    module: BertEncoder
    text: TextEncoder
    input_name: str

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, NDArray[Any]]:
        """Embeddings of texts."""
        tokens = self.text.encode([bytes(text) for text in inputs[self.input_name]])
        states = self.module(
            to_device(tokens["input_ids"], device),
            to_device(tokens["attention_mask"], device),
            to_device(tokens["token_type_ids"], device),
        )
        answer = to_arrays({"states": states.float()})
        return {"embedding": mean_pool(answer["states"], tokens["attention_mask"])}


def build(settings: Mapping[str, str], files: Mapping[str, Path]) -> BertEncoderArchitecture:
    """Make it from a version's options and its tokenizer file."""
    sizes = Sizes(
        layers=options.integer(settings, "layers", 6),
        heads=options.integer(settings, "heads", 12),
        hidden=options.integer(settings, "hidden", 384),
        intermediate=options.integer(settings, "intermediate", 1536),
        vocabulary=options.integer(settings, "vocabulary", 30522),
        positions=options.integer(settings, "positions", 512),
    )
    if sizes.hidden % sizes.heads:
        raise ArtifactRejected(f"option 'hidden' ({sizes.hidden}) must be a multiple of 'heads' ({sizes.heads})")
    max_length = options.integer(settings, "max_length", 256, least=2)
    if max_length > sizes.positions:
        raise ArtifactRejected(f"option 'max_length' ({max_length}) must not exceed 'positions' ({sizes.positions})")
    text = TextEncoder(options.file(files, settings.get("tokenizer", "tokenizer.json")), max_length)
    tokens = text.tokenizer.get_vocab_size()
    if tokens > sizes.vocabulary:
        raise ArtifactRejected(f"the tokenizer knows {tokens} tokens, option 'vocabulary' says {sizes.vocabulary}")
    return BertEncoderArchitecture(BertEncoder(sizes).eval(), text, settings.get("text_input", "text"))
