"""The decoder's arithmetic, against itself written out, and the same alone and in company."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from services.domain.errors import ArtifactRejected
from services.domain.objects import Generation
from services.model_host.backends.architectures import Generative, build
from services.model_host.backends.architectures.generated_text import Part, TextGenerator
from services.model_host.backends.architectures.llama_decoder import (
    LlamaDecoderArchitecture,
    SlotDecoder,
    packed,
    product,
)
from services.model_host.sequences import Advance
from tests.support.llama import OPTIONS, TinyLlama, write_llama

CPU = torch.device("cpu")
ROOM = 96
SLOTS = 4
IDS = [7, 250, 3, 99, 180, 42, 42, 11, 5, 201, 77]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    return write_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def architecture(tiny: TinyLlama) -> LlamaDecoderArchitecture:
    made = build("llama_decoder", OPTIONS, tiny.files)
    assert isinstance(made, LlamaDecoderArchitecture)
    made.module.load_state_dict(load_file(tiny.weights), strict=True)
    return made


def settings(slots: int = SLOTS) -> Generation:
    return Generation(sequences=slots, max_tokens=ROOM, prefill_tokens=16)


@pytest.fixture
def decoder(architecture: LlamaDecoderArchitecture) -> SlotDecoder:
    return SlotDecoder(architecture.module, settings(), CPU)


def written_out(tiny: TinyLlama, ids: list[int]) -> NDArray[np.float64]:
    """Scores after each of `ids`: the architecture in 64-bit floats, with nothing kept and nothing shared."""
    weights = {name: value.numpy().astype(np.float64) for name, value in load_file(tiny.weights).items()}
    heads, kv_heads, hidden = (int(OPTIONS[name]) for name in ("heads", "kv_heads", "hidden"))
    width, count = hidden // heads, len(ids)

    def norm(rows: NDArray[Any], name: str) -> NDArray[Any]:
        return np.asarray(rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * weights[f"{name}.weight"])

    def turned(rows: NDArray[Any]) -> NDArray[Any]:
        half = width // 2
        angles = np.arange(count)[:, None] * 100_000.0 ** (-np.arange(half) / half)
        first, second = rows[:, :half], rows[:, half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=1)

    rows = weights["model.embed_tokens.weight"][ids]
    for layer in range(int(OPTIONS["layers"])):
        at = f"model.layers.{layer}"
        normed = norm(rows, f"{at}.input_layernorm")
        q, k, v = (normed @ weights[f"{at}.self_attn.{name}_proj.weight"].T for name in "qkv")
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            own, kept = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
            scores = turned(q[:, own]) @ turned(k[:, kept]).T / np.sqrt(width)
            scores[np.triu_indices(count, 1)] = -np.inf
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(odds / odds.sum(axis=1, keepdims=True) @ v[:, kept])
        rows = rows + np.concatenate(mixed, axis=1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        normed = norm(rows, f"{at}.post_attention_layernorm")
        gate = normed @ weights[f"{at}.mlp.gate_proj.weight"].T
        up = normed @ weights[f"{at}.mlp.up_proj.weight"].T
        rows = rows + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    return np.asarray(norm(rows, "model.norm") @ weights["model.embed_tokens.weight"].T)


def take_in(decoder: SlotDecoder, slot: int, ids: list[int], start: int = 0) -> torch.Tensor:
    """Scores after the last of `ids`."""
    return decoder.run([Part(slot, ids, start, True)])[0]


def test_it_agrees_with_the_architecture_written_out(tiny: TinyLlama, decoder: SlotDecoder) -> None:
    expected = written_out(tiny, IDS)

    whole = take_in(decoder, 0, IDS).numpy()
    take_in(decoder, 1, IDS[:6])
    steps = [take_in(decoder, 1, [token], 6 + at).numpy() for at, token in enumerate(IDS[6:])]

    np.testing.assert_allclose(whole, expected[-1], atol=1e-4)
    for at, scores in enumerate(steps):
        np.testing.assert_allclose(scores, expected[6 + at], atol=1e-4)


def test_a_prompt_in_chunks_is_the_same_prompt(decoder: SlotDecoder) -> None:
    whole = take_in(decoder, 0, IDS)

    for start in range(0, len(IDS), 4):
        last = take_in(decoder, 1, IDS[start : start + 4], start)

    torch.testing.assert_close(last, whole, atol=1e-5, rtol=0.0)


def test_scores_are_the_same_to_the_last_bit_alone_and_in_company(decoder: SlotDecoder) -> None:
    prompts = [IDS[:3], IDS[:7], IDS, IDS[2:6]]
    for slot, ids in enumerate(prompts):
        take_in(decoder, slot, ids)
    parts = [Part(slot, [5 + slot], len(ids), True) for slot, ids in enumerate(prompts)]
    parts[3] = Part(3, IDS * 2, 4, True)  # a prompt beside the others' next tokens

    alone = [decoder.run([part])[0] for part in parts]
    together, backwards = decoder.run(parts), decoder.run(parts[::-1])

    for slot in range(SLOTS):
        assert torch.equal(alone[slot], together[slot])
        assert torch.equal(alone[slot], backwards[SLOTS - 1 - slot])


def test_what_nobody_wants_to_know_is_kept_all_the_same(decoder: SlotDecoder) -> None:
    whole = take_in(decoder, 0, IDS)

    assert decoder.run([Part(1, IDS[:5], 0, False)]).shape[0] == 0
    torch.testing.assert_close(take_in(decoder, 1, IDS[5:], 5), whole, atol=1e-5, rtol=0.0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")  # type: ignore[no-untyped-call]
@pytest.mark.parametrize(("want", "have"), [(192, 576), (576, 576), (1536, 576), (576, 1536), (2048, 576)])
def test_a_row_of_a_packed_product_does_not_depend_on_the_others(want: int, have: int) -> None:
    torch.manual_seed(3)
    weight, rows = packed(torch.randn(want, have)), torch.randn(40, have)

    pairs = torch.cat([product(rows[at : at + 1].repeat(2, 1), weight)[:1] for at in range(40)])

    for count in range(2, 41):
        assert torch.equal(product(rows[:count].clone(), weight), pairs[:count])


def test_a_slot_used_again_knows_nothing_of_who_had_it(decoder: SlotDecoder) -> None:
    fresh = take_in(decoder, 2, IDS[:4])
    take_in(decoder, 2, IDS * 4)

    assert torch.equal(take_in(decoder, 2, IDS[:4]), fresh)


def test_what_is_not_a_number_does_not_outlive_its_sequence(
    architecture: LlamaDecoderArchitecture, tiny: TinyLlama
) -> None:
    decoder = SlotDecoder(architecture.module, settings(), CPU)
    sound = take_in(decoder, 0, IDS)
    for kept in (*decoder._cache.keys, *decoder._cache.values):
        kept[0].fill_(float("nan"))

    decoder.forget(0)

    assert torch.equal(take_in(decoder, 0, IDS), sound)


def test_greedy_answers_are_the_same_alone_and_in_company(
    architecture: LlamaDecoderArchitecture, tiny: TinyLlama
) -> None:
    assert isinstance(architecture, Generative)
    text = architecture.generator(settings(), CPU)
    assert isinstance(text, TextGenerator)
    prompts = ["a", "of models and yards", "12345678", "the mesh picks, places and paces"]

    alone = [answers(text, [prompt])[0] for prompt in prompts]
    together = answers(text, prompts)

    assert together == alone
    assert len(set(alone)) == len(prompts)


def answers(text: TextGenerator, prompts: list[str]) -> list[tuple[int, ...]]:
    """Tokens of each answer; all prompts first, then every sequence in each step."""
    asked = [text.read({"text": np.array([prompt.encode()], np.object_)}, {"max_tokens": 30}) for prompt in prompts]
    told: list[list[int]] = [[] for _ in prompts]

    def note(advances: dict[int, Advance]) -> None:
        for slot, advance in advances.items():
            if advance.outputs is not None:
                tokens: Any = advance.outputs["tokens"]
                told[slot] += tokens.tolist()

    for slot, prompt in enumerate(asked):
        text.join(slot, prompt)
        for start in range(0, prompt.tokens, 16):
            note(text.step(((slot, min(16, prompt.tokens - start)),), ()))
    for _ in range(29):
        note(text.step((), range(len(prompts))))
    for slot in range(len(prompts)):
        text.leave(slot)
    return [tuple(tokens) for tokens in told]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "3"}, "'hidden'"),
        ({"kv_heads": "3"}, "'kv_heads'"),
        ({"rope_theta": "none"}, "'rope_theta'"),
        ({"norm_epsilon": "-1"}, "'norm_epsilon'"),
        ({"vocabulary": "100"}, "257 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(tiny: TinyLlama, options: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactRejected, match=message):
        build("llama_decoder", {**OPTIONS, **options}, tiny.files)


def test_without_a_generation_it_cannot_be_used(architecture: LlamaDecoderArchitecture) -> None:
    with pytest.raises(ArtifactRejected, match="needs 'generation'"):
        architecture.predict({}, CPU)


def test_a_file_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRejected, match=r"tokenizer\.json"):
        build("llama_decoder", OPTIONS, {})
