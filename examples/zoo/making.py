"""Makes what the packages do not bring: converted and trained artifacts, measurements, and finished manifests."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors.torch import save_file

from examples.progress import Progress
from examples.zoo import manifesting, training, weights
from examples.zoo.manifesting import Value
from examples.zoo.measuring import Footprint, measuring_host
from examples.zoo.quality import Quality
from examples.zoo.recipes import Recipe, recipes
from examples.zoo.weights import sha256_of

MEMORY_STEP_BYTES = 1 << 20
MEMORY_MARGIN = 1.25
"""A need is the measured peak and a quarter more: batches are larger than what warms up."""
LEAST_MEMORY_BYTES = 8 << 20
"""Small models vanish in the noise of a process's memory; none is declared as less."""


def make(folder: Path, *, manifests: Path, held_out: Path, progress: Progress) -> list[Path]:
    """Make everything in `folder`.

    Args:
        folder: Where artifacts and logs go.
        manifests: Where the finished manifests go.
        held_out: Where rows that no fit saw go.
        progress: Shows the steps.

    Returns:
        Every file that later runs rely on.

    Raises:
        WeightsError: A package is missing, or a file is not the pinned one.
        MeasuringError: A version does not load, or the host does not start.
        YardError: A model fails.
    """
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    held_out.mkdir(parents=True, exist_ok=True)
    artifacts = _make_artifacts(folder / "artifacts", held_out, progress)
    facts: dict[str, Value] = {}
    for name, path in artifacts.items():
        facts |= {f"{name}.uri": f"file:{quote(str(path))}", f"{name}.sha256": sha256_of(path)}
    measured = asyncio.run(_measure(recipes(held_out), facts, folder / "measuring", progress))
    written = manifesting.render_all({**facts, **measured}, manifests)
    made = [path for path in artifacts.values() if path.is_relative_to(folder)]
    return [*made, *written, *sorted(held_out.glob("*.npz"))]


def _make_artifacts(folder: Path, held_out: Path, progress: Progress) -> dict[str, Path]:
    """The file of every version by its name: found in packages, converted, or trained."""
    with progress.step("convert EfficientNet-Lite2 to safetensors"):
        lite2 = folder / "efficientnet-lite2.safetensors"
        state = torch.load(weights.EFFICIENTNET_LITE2.find(), map_location="cpu", weights_only=True)
        save_file({name: value.contiguous() for name, value in state.items()}, lite2)
    artifacts = {
        "minilm": weights.MINILM.find(),
        "minilm-tokenizer": weights.MINILM_TOKENIZER.find(),
        "minilm-int8": weights.MINILM_INT8.find(),
        "efficientnet-lite0": weights.EFFICIENTNET_LITE0.find(),
        "efficientnet-lite2": lite2,
        "silero-vad": weights.SILERO_VAD.find(),
        "basic-pitch": weights.BASIC_PITCH.find(),
    }
    tumours, digits = training.breast_cancer(), training.digits()
    tumours.save_held_out(held_out / "breast_cancer.npz")
    digits.save_held_out(held_out / "digits.npz")
    for name, suffix, fit, split in (
        ("breast-cancer-linear", "skops", training.fit_linear, tumours),
        ("breast-cancer-boosted", "skops", training.fit_boosted, tumours),
        ("digits-linear", "skops", training.fit_linear, digits),
        ("digits-cnn", "safetensors", training.fit_cnn, digits),
    ):
        with progress.step(f"train {name}") as step:
            artifacts[name] = folder / f"{name}.{suffix}"
            fit(split, artifacts[name])
            step.result = f"{len(split.labels)} rows, {len(split.held_out_labels)} held out"
    return artifacts


async def _measure(
    todo: Sequence[Recipe], facts: Mapping[str, Value], folder: Path, progress: Progress
) -> dict[str, Value]:
    """Quality, memory and time of every version, by place of the manifests."""
    guesses: dict[str, Value] = {}
    for recipe in todo:
        guesses |= places(recipe.name, Footprint(memory_bytes=0, compute_s=0.01), Quality(0.0, "not measured yet"))
    manifesting.render_all({**facts, **guesses}, folder / "manifests")
    objects = manifesting.objects_in(folder / "manifests")
    models = {item.metadata.name: item for item in objects if item.HasField("model")}
    versions = {
        (item.metadata.name, item.model_version.version): item for item in objects if item.HasField("model_version")
    }
    measured: dict[str, Value] = {}
    async with AsyncExitStack() as stack:
        with progress.step("start a model host to measure on"):
            host = await stack.enter_async_context(measuring_host(folder))
        for recipe in todo:
            with progress.step(f"measure {recipe.name}") as step:
                async with host.loaded(models[recipe.model], versions[recipe.model, recipe.version]) as loaded:
                    footprint = await loaded.footprint(recipe.sample)
                    found = None if recipe.quality is None else await recipe.quality(loaded.predict)
                measured |= places(recipe.name, footprint, found)
                step.result = _in_words(footprint, found)
    return measured


def places(name: str, footprint: Footprint, found: Quality | None) -> dict[str, Value]:
    """What was measured of a version, by place of the manifests.

    Args:
        name: The version, as its places begin.
        footprint: What it takes.
        found: How good it is; None leaves out the places of quality.
    """
    memory_bytes = max(LEAST_MEMORY_BYTES, math.ceil(footprint.memory_bytes * MEMORY_MARGIN))
    places: dict[str, Value] = {
        f"{name}.memory_bytes": f"{math.ceil(memory_bytes / MEMORY_STEP_BYTES)}MiB",
        f"{name}.service_time": f"{max(1, round(footprint.compute_s * 1e6))}us",
    }
    if found is not None:
        places |= {f"{name}.quality": found.value, f"{name}.quality_metric": found.metric}
    return places


def _in_words(footprint: Footprint, found: Quality | None) -> str:
    words = f"{footprint.compute_s * 1e3:.2f} ms, {footprint.memory_bytes / MEMORY_STEP_BYTES:.0f} MiB"
    return words if found is None else f"{words}, quality {found.value:g}"
