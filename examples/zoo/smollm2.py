"""Makes SmolLM2-135M-Instruct ready, a small language model: an optional part of the zoo.

    python -m examples.zoo.smollm2 [FOLDER]

Writes into FOLDER (default `build/smollm2`): `artifacts/` (weights as safetensors, `tokenizer.json`), `manifests/` (for
`yardctl apply -f`), and `prepared.json`, by which a second run sees that nothing has changed.

The package's GGUF file has the weights in blocks of 4 bits. They become the 32-bit floats that the blocks say, under
the names of the architecture `llama_decoder`: what the model answers is what the blocks hold, and no more exact.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from examples.progress import Progress, console
from examples.zoo import stamp, weights
from examples.zoo.gguf import Gguf, GgufError
from examples.zoo.manifesting import TemplateError, Value, render
from examples.zoo.weights import WeightsError, sha256_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "smollm2"
TEMPLATE = Path(__file__).parent / "generation" / "smollm2.yaml"
SOURCES = ("gguf.py", "smollm2.py", "weights.py")
PACKAGES = ("numpy", "safetensors", "tokenizers")
"""Libraries whose versions decide what is made."""

CONTROL = 3
"""GGUF's type of tokens that are no text."""

DIGITS_THEN_WORDS = "smollm"
"""GGUF's name for the way that this model's texts are taken apart: digits one by one, then as GPT-2 does."""


def main(argv: list[str]) -> int:
    """Prepare into the folder named, or the default one."""
    terminal = console()
    folder = Path(argv[0]).resolve() if argv else DEFAULT_FOLDER
    try:
        manifests = prepare(folder, Progress(terminal))
    except (WeightsError, GgufError, TemplateError, OSError) as error:
        terminal.print(f"[red]cannot prepare SmolLM2:[/red] {error}", soft_wrap=True)
        return 1
    terminal.print(f"  manifests are in {manifests}", soft_wrap=True)
    return 0


def prepare(folder: Path, progress: Progress) -> Path:
    """Make the model ready in `folder`; quick where it is already.

    Returns:
        The folder of its manifests.

    Raises:
        WeightsError: The package is missing, or its file is not the pinned one.
        GgufError: The file cannot be read.
    """
    manifests = folder / "manifests"
    with progress.step("check SmolLM2's weights") as step:
        source = weights.SMOLLM2.find()
        step.result = f"{source.stat().st_size / 1e6:.0f} MB, SHA-256 as pinned"
    fingerprint = _fingerprint()
    if stamp.is_fresh(folder, fingerprint):
        return manifests
    artifacts = folder / "artifacts"
    for each in (artifacts, manifests):
        each.mkdir(parents=True, exist_ok=True)
    with progress.step("convert SmolLM2 to safetensors") as step:
        file = Gguf(source)
        model, tokenizer = artifacts / "smollm2-135m.safetensors", artifacts / "tokenizer.json"
        _save(dict(converted(file)), model)
        tokenizer.write_text(tokenizer_json(file), encoding="utf-8")
        step.result = f"{model.stat().st_size / 1e6:.0f} MB"
    facts: dict[str, Value] = {}
    for name, path in (("smollm2", model), ("smollm2-tokenizer", tokenizer)):
        facts |= {f"{name}.uri": f"file:{quote(str(path))}", f"{name}.sha256": sha256_of(path)}
    written = manifests / TEMPLATE.name
    written.write_text(render(TEMPLATE.read_text(encoding="utf-8"), facts), encoding="utf-8")
    stamp.write(folder, fingerprint, [model, tokenizer, written])
    return manifests


def converted(file: Gguf) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors under the names of `llama_decoder`'s state dict.

    Raises:
        GgufError: It is no model of Llama's kind, or a tensor cannot be read.
    """
    metadata = file.metadata
    if metadata.get("general.architecture") != "llama":
        raise GgufError(f"the model is of the kind '{metadata.get('general.architecture')}', not 'llama'")
    heads, kv_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    yield "model.embed_tokens.weight", file.tensor("token_embd.weight")
    yield "model.norm.weight", file.tensor("output_norm.weight")
    for index in range(metadata["llama.block_count"]):
        have, want = f"blk.{index}", f"model.layers.{index}"
        for theirs, ours in (
            ("attn_norm", "input_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ):
            yield f"{want}.{ours}.weight", file.tensor(f"{have}.{theirs}.weight")
        yield f"{want}.self_attn.q_proj.weight", halves_apart(file.tensor(f"{have}.attn_q.weight"), heads)
        yield f"{want}.self_attn.k_proj.weight", halves_apart(file.tensor(f"{have}.attn_k.weight"), kv_heads)


def halves_apart(projection: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection in the order in which the architecture turns them.

    GGUF keeps the two features of each rotation side by side; `llama_decoder` has the first of all pairs in
    the first half of a head, and the second ones in the other.
    """
    pairs = projection.reshape(heads, -1, 2, projection.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(projection.shape)


def tokenizer_json(file: Gguf) -> str:
    """The tokenizer in the format of the `tokenizers` library.

    Raises:
        GgufError: Texts are taken apart in a way that is not known here.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    metadata = file.metadata
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", DIGITS_THEN_WORDS):
        raise GgufError(f"the tokenizer is of the kind {kind}")
    names: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in metadata["tokenizer.ggml.merges"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [name for name, kind in zip(names, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return str(tokenizer.to_str())


def _save(tensors: dict[str, NDArray[np.float32]], path: Path) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415

    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _fingerprint() -> str:
    here = Path(__file__).parent
    sources = stamp.fingerprint_of((TEMPLATE.parent,), packages=PACKAGES, root=ROOT)
    return json.dumps([sources, *(sha256_of(here / name) for name in SOURCES)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
