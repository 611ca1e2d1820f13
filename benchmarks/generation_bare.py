"""A model that generates, stepped in a loop with nothing around it: what the device could do at most.

    python -m benchmarks.generation_bare MANIFESTS [--sequences N ...] [--tokens T]

Loads the first version of the manifests with the host's own backend, in a process of its own. Prints a line of JSON:
tokens a second by how many sequences are stepped together, prompts included.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as services.model_host does
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402

from benchmarks.generation_load import PROMPTS  # noqa: E402
from services.chassis.object_codec import object_from  # noqa: E402
from services.domain.clock import SystemClock  # noqa: E402
from services.domain.objects import Artifact, Model, ModelVersion  # noqa: E402
from services.model_host.backends.base import GenerativeModel  # noqa: E402
from services.model_host.devices.choosing import choose  # noqa: E402
from services.model_host.loading import backends  # noqa: E402
from yardctl import manifests  # noqa: E402

_CLOCK = SystemClock()


def loaded(folder: Path) -> tuple[GenerativeModel, ModelVersion]:
    """The model of the manifests, as a host would have it."""
    objects = [object_from(document.object) for document in manifests.load([folder])]
    model = next(item for item in objects if isinstance(item, Model))
    version = next(item for item in objects if isinstance(item, ModelVersion))
    assert version.artifact is not None
    device = choose("cpu", 0)
    backend = backends(trusts_artifacts=False, torch_threads=1, onnx_threads=1)[version.backend.name]
    backend.prepare(device)
    files = {name: _path(item) for name, item in version.files.items()}
    found = backend.load(_path(version.artifact), files, version, model, device)
    assert isinstance(found, GenerativeModel)
    return found, version


def tokens_per_s(model: GenerativeModel, chunk: int, *, sequences: int, tokens: int, rounds: int) -> float:
    """Tokens of answers a second, of so many sequences from their prompts to their ends, in lockstep."""
    _round(model, chunk, range(sequences), tokens)
    began_s = _CLOCK.now_s()
    told = sum(_round(model, chunk, range(sequences), tokens) for _ in range(rounds))
    return told / (_CLOCK.now_s() - began_s)


def _round(model: GenerativeModel, chunk: int, slots: Sequence[int], tokens: int) -> int:
    told = 0
    for slot in slots:
        text: Any = np.array([PROMPTS[slot % len(PROMPTS)].encode()], np.object_)
        prompt = model.read({"text": text}, {"max_tokens": tokens, "seed": 0})
        model.join(slot, prompt)
        for start in range(0, prompt.tokens, chunk):
            told += model.step(((slot, min(chunk, prompt.tokens - start)),), ())[slot].tokens
    going = list(slots)
    while going:
        advances = model.step((), going)
        told += sum(advance.tokens for advance in advances.values())
        going = [slot for slot in going if not advances[slot].finished]
    for slot in slots:
        model.leave(slot)
    return told


def _path(artifact: Artifact) -> Path:
    return Path(unquote(artifact.uri.removeprefix("file:")))


def main() -> None:
    """Step it, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=Path)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    model, version = loaded(asked.manifests)
    assert version.generation is not None
    chunk = version.generation.prefill_tokens
    rates = {
        count: tokens_per_s(model, chunk, sequences=count, tokens=asked.tokens, rounds=asked.rounds)
        for count in asked.sequences
    }
    print(json.dumps({count: round(rate, 2) for count, rate in rates.items()}))


if __name__ == "__main__":
    main()
