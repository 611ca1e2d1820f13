"""A decoder of Llama's kind that continues texts, many at once, each at its own place.

Touvron et al., "LLaMA" (2023): root-mean-square norms (Zhang and Sennrich, NeurIPS 2019), rotary positions (Su et al.,
2021), gated feed-forward parts (Shazeer, 2020); queries share keys and values in groups (Ainslie et al., EMNLP 2023).

State dict: the names of Hugging Face's `LlamaForCausalLM` with tied embeddings (`model.embed_tokens.weight`,
`model.layers.<n>.*`, `model.norm.weight`).
Options: `layers`, `heads`, `kv_heads`, `hidden`, `intermediate`, `vocabulary` (defaults 30, 9, 3, 576, 1536, 49152:
SmolLM2-135M), `rope_theta` (100000), `norm_epsilon` (1e-5), and those of `generated_text`.
Input: BYTES [1], UTF-8. Outputs of a piece: `text` BYTES [1]; `tokens` INT64 [-1], their ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from numpy.typing import NDArray

from services.domain.errors import ArtifactRejected
from services.domain.objects import Generation
from services.model_host.backends.architectures import options
from services.model_host.backends.architectures.generated_text import Part, TextGenerator, TextRules


@dataclass(frozen=True, slots=True)
class Sizes:
    """The dimensions of the decoder."""

    layers: int
    heads: int
    kv_heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    rope_theta: float
    norm_epsilon: float

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def group(self) -> int:
        """Heads that share keys and values."""
        return self.heads // self.kv_heads


class Span(NamedTuple):
    """The rows of one sequence in a pass."""

    first: int
    rows: int
    """Which rows they are."""
    slot: int
    length: int
    """Positions of the sequence, with these."""
    mask: torch.Tensor | None
    """Added to their scores, so that none looks ahead; None for a single row."""


class Places(NamedTuple):
    """Where the rows of one pass stand, and what they may look at."""

    cos: torch.Tensor
    sin: torch.Tensor
    """Rotations of each row, [rows, 1, head]."""
    slots: torch.Tensor
    positions: torch.Tensor
    """Where each row is kept."""
    spans: Sequence[Span]


class Projection(torch.nn.Linear):
    """A linear layer without bias, whose answer to a row does not depend on the other rows.

    With weights as MKL takes them the last bits of a product change with the number of rows, and a text with them. With
    weights packed for oneDNN they do not from two rows on, and few rows take half of the time.
    """

    def __init__(self, have: int, want: int) -> None:
        """Project from `have` to `want`."""
        super().__init__(have, want, bias=False)
        self.packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Pack the weights for this machine's processor, in place of those that are there."""
        self.packed = packed(self.weight)
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, have] to [rows, want]."""
        return super().forward(rows) if self.packed is None else product(rows, self.packed)


def packed(weight: torch.Tensor) -> torch.Tensor:
    """`weight` in oneDNN's layout."""
    made: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return made


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`rows` times a packed weight."""
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return made


class RootMeanSquareNorm(torch.nn.Module):
    """Scales rows to a root mean square of 1, then by what was learned."""

    def __init__(self, width: int, epsilon: float) -> None:
        """Rows of `width`."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, width] to the same."""
        return torch.nn.functional.rms_norm(rows, self.weight.shape, self.weight, self.epsilon)


class SelfAttention(torch.nn.Module):
    """Attention of each row to the kept keys and values of its own sequence."""

    def __init__(self, sizes: Sizes) -> None:
        """Projections without biases."""
        super().__init__()
        self.sizes = sizes
        shared = sizes.kv_heads * sizes.head
        self.q_proj = Projection(sizes.hidden, sizes.hidden)
        self.k_proj = Projection(sizes.hidden, shared)
        self.v_proj = Projection(sizes.hidden, shared)
        self.o_proj = Projection(sizes.hidden, sizes.hidden)

    def forward(self, rows: torch.Tensor, places: Places, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to the same; the rows' keys and values are kept first.

        Each sequence by itself: padded to the longest one it would be slower, and its last bits would depend on that
        one. Queries that share keys stand side by side as if they were rows, so that nothing is copied for them.
        """
        sizes, count = self.sizes, rows.shape[0]
        shared = (count, sizes.kv_heads, sizes.head)
        queries = _rotated(self.q_proj(rows).view(count, sizes.heads, sizes.head), places)
        keys[places.slots, :, places.positions] = _rotated(self.k_proj(rows).view(shared), places)
        values[places.slots, :, places.positions] = self.v_proj(rows).view(shared)
        grouped = queries.view(count, sizes.kv_heads, sizes.group, sizes.head)
        mixed = []
        for span in places.spans:
            asked = grouped[span.first : span.first + span.rows].transpose(0, 1)
            found = torch.nn.functional.scaled_dot_product_attention(
                asked.reshape(1, sizes.kv_heads, span.rows * sizes.group, sizes.head),
                keys[span.slot : span.slot + 1, :, : span.length],
                values[span.slot : span.slot + 1, :, : span.length],
                attn_mask=span.mask,
            )
            own = found.view(sizes.kv_heads, span.rows, sizes.group, sizes.head).transpose(0, 1)
            mixed.append(own.reshape(span.rows, sizes.hidden))
        attended: torch.Tensor = self.o_proj(torch.cat(mixed))
        return attended


class GatedFeedForward(torch.nn.Module):
    """Two projections, one of which opens the other."""

    def __init__(self, sizes: Sizes) -> None:
        """Projections without biases."""
        super().__init__()
        self.gate_proj = Projection(sizes.hidden, sizes.intermediate)
        self.up_proj = Projection(sizes.hidden, sizes.intermediate)
        self.down_proj = Projection(sizes.intermediate, sizes.hidden)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to the same."""
        fed: torch.Tensor = self.down_proj(torch.nn.functional.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return fed


class Layer(torch.nn.Module):
    """Attention, then a feed-forward part, each normalised before and added after."""

    def __init__(self, sizes: Sizes) -> None:
        """Parts under the names of the state dict."""
        super().__init__()
        self.self_attn = SelfAttention(sizes)
        self.mlp = GatedFeedForward(sizes)
        self.input_layernorm = RootMeanSquareNorm(sizes.hidden, sizes.norm_epsilon)
        self.post_attention_layernorm = RootMeanSquareNorm(sizes.hidden, sizes.norm_epsilon)

    def forward(self, rows: torch.Tensor, places: Places, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to the same."""
        rows = rows + self.self_attn(self.input_layernorm(rows), places, keys, values)
        fed: torch.Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return fed


class LlamaDecoder(torch.nn.Module):
    """Embeddings, layers, and the embeddings again to score the next token."""

    def __init__(self, sizes: Sizes) -> None:
        """A decoder of the given sizes."""
        super().__init__()
        self.sizes = sizes
        self.head: torch.Tensor | None = None
        """The embeddings, packed."""
        self.model = torch.nn.ModuleDict(
            {
                "embed_tokens": torch.nn.Embedding(sizes.vocabulary, sizes.hidden),
                "layers": torch.nn.ModuleList(Layer(sizes) for _ in range(sizes.layers)),
                "norm": RootMeanSquareNorm(sizes.hidden, sizes.norm_epsilon),
            }
        )

    def pack(self) -> None:
        """Pack the weights for this machine's processor."""
        for part in self.modules():
            if isinstance(part, Projection):
                part.pack()
        embedding = self.model["embed_tokens"]
        assert isinstance(embedding, torch.nn.Embedding)
        self.head = packed(embedding.weight)

    def forward(self, ids: torch.Tensor, places: Places, cache: "Cache", wanted: torch.Tensor) -> torch.Tensor:
        """Scores of the tokens after those rows that are `wanted`, [wanted, vocabulary]; all rows are kept."""
        embedding, layers = self.model["embed_tokens"], self.model["layers"]
        assert isinstance(embedding, torch.nn.Embedding)
        assert isinstance(layers, torch.nn.ModuleList)
        rows = embedding(ids)
        for index, layer in enumerate(layers):
            rows = layer(rows, places, cache.keys[index], cache.values[index])
        rows = self.model["norm"](rows[wanted])
        if self.head is not None:
            return product(rows, self.head)
        return torch.nn.functional.linear(rows, embedding.weight)


class Cache:
    """Keys and values of every slot, and the rotations of every position: all there is, from the beginning."""

    def __init__(self, sizes: Sizes, *, slots: int, positions: int, device: torch.device) -> None:
        """Room for `slots` sequences of `positions` tokens."""
        shape = (slots, sizes.kv_heads, positions, sizes.head)
        # `full` writes, so that the memory is taken now and seen by whoever measures; `zeros` would only promise it.
        self.keys = [torch.full(shape, 0.0, device=device) for _ in range(sizes.layers)]
        self.values = [torch.full(shape, 0.0, device=device) for _ in range(sizes.layers)]
        half = torch.arange(0, sizes.head, 2, dtype=torch.float64) / sizes.head
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * sizes.rope_theta**-half
        angles = torch.cat((angles, angles), dim=1)[:, None, :]
        self.cos = angles.cos().to(device, torch.float32)
        self.sin = angles.sin().to(device, torch.float32)
        self.device = device

    def forget(self, slot: int) -> None:
        """Overwrite a slot: what is not a number would spread, even where nobody looks."""
        for kept in (*self.keys, *self.values):
            kept[slot].zero_()

    def places(self, parts: Sequence[Part], group: int) -> Places:
        """Where the rows of `parts` stand, one after the other; each looks back at its own sequence."""
        slots: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for part in parts:
            count, length = len(part.ids), part.start + len(part.ids)
            spans.append(Span(len(slots), count, part.slot, length, self._mask(part.start, count, group)))
            slots += [part.slot] * count
            positions += range(part.start, length)
        at = torch.tensor(positions, device=self.device)
        return Places(self.cos[at], self.sin[at], torch.tensor(slots, device=self.device), at, spans)

    def _mask(self, start: int, count: int, group: int) -> torch.Tensor | None:
        if count == 1:
            return None
        at = torch.arange(start, start + count, device=self.device)
        ahead = torch.arange(start + count, device=self.device)[None, :] > at[:, None]
        mask = torch.zeros(ahead.shape, device=self.device).masked_fill_(ahead, float("-inf"))
        return mask.repeat_interleave(group, dim=0)[None, None]


class SlotDecoder:
    """The decoder with its cache; see `generated_text.Decoder`."""

    def __init__(self, module: LlamaDecoder, settings: Generation, device: torch.device) -> None:
        """Compute on `device`, with room for as many sequences as `settings` say."""
        self.vocabulary = module.sizes.vocabulary
        self._module = module
        if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            module.pack()
        self._cache = Cache(module.sizes, slots=settings.sequences, positions=settings.max_tokens, device=device)

    def run(self, parts: Sequence[Part]) -> torch.Tensor:
        """Take every part in, in one pass; scores after the last token of each that wants them."""
        wanting = sum(part.wanted for part in parts)
        if sum(len(part.ids) for part in parts) == 1:
            parts = (*parts, *parts)  # a product of one row is computed in another way than that of more
        places = self._cache.places(parts, self._module.sizes.group)
        ids = [token for part in parts for token in part.ids]
        wanted = [span.first + span.rows - 1 for part, span in zip(parts, places.spans, strict=True) if part.wanted]
        wanted += wanted[:1] * (len(wanted) == 1)
        if not wanted:
            wanted = [0]  # nobody asks, and the prompt is kept all the same
        with torch.inference_mode():
            device = self._cache.device
            scores: torch.Tensor = self._module(
                torch.tensor(ids, device=device), places, self._cache, torch.tensor(wanted, device=device)
            )
        return scores[:wanting]

    def forget(self, slot: int) -> None:
        """Overwrite a slot that may hold what is not a number."""
        with torch.inference_mode():
            self._cache.forget(slot)


@dataclass(frozen=True, slots=True)
class LlamaDecoderArchitecture:
    """The decoder on the wire."""

    module: LlamaDecoder
    text: TextRules

    def predict(self, inputs: Mapping[str, NDArray[Any]], device: torch.device) -> NoReturn:
        """Refused: it generates.

        Raises:
            ArtifactRejected: Always.
        """
        raise ArtifactRejected("llama_decoder generates: the version needs 'generation'")

    def generator(self, settings: Generation, device: torch.device) -> TextGenerator:
        """The decoder with a cache, as a model that generates."""
        return TextGenerator(SlotDecoder(self.module, settings, device), self.text, settings)


def _rotated(heads: torch.Tensor, places: Places) -> torch.Tensor:
    """[rows, heads, head]: each pair of features turned by its row's angles."""
    half = heads.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return heads * places.cos + turned * places.sin


def build(settings: Mapping[str, str], files: Mapping[str, Path]) -> LlamaDecoderArchitecture:
    """Make it from a version's options and its tokenizer file."""
    sizes = Sizes(
        layers=options.integer(settings, "layers", 30),
        heads=options.integer(settings, "heads", 9),
        kv_heads=options.integer(settings, "kv_heads", 3),
        hidden=options.integer(settings, "hidden", 576),
        intermediate=options.integer(settings, "intermediate", 1536),
        vocabulary=options.integer(settings, "vocabulary", 49152),
        rope_theta=options.number(settings, "rope_theta", 100_000.0),
        norm_epsilon=options.number(settings, "norm_epsilon", 1e-5),
    )
    if sizes.hidden % (2 * sizes.heads):
        raise ArtifactRejected(f"option 'hidden' ({sizes.hidden}) must be an even multiple of 'heads' ({sizes.heads})")
    if sizes.heads % sizes.kv_heads:
        raise ArtifactRejected(f"option 'heads' ({sizes.heads}) must be a multiple of 'kv_heads' ({sizes.kv_heads})")
    text = TextRules.of(settings, files, vocabulary=sizes.vocabulary)
    with torch.device("meta"):  # nothing is drawn by chance that the weights of the artifact overwrite
        module = LlamaDecoder(sizes)
    return LlamaDecoderArchitecture(module.to_empty(device="cpu").eval(), text)
