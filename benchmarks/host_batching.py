"""What batching gains on real models: the highest load with the same P99, with it and without; and beside a bare loop.

A load is kept if 99 % of its calls are answered within the objective, which is also their deadline; loads are tried
from high to low. A bare loop in a process of its own says what the device could do at most.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.host_figures import Figures
from benchmarks.host_load import Source, Void, goodput_per_s, poisson, share_in_time
from benchmarks.host_models import Subject
from benchmarks.host_process import Host
from benchmarks.host_stream import Line, Saturation, offer, open_line
from benchmarks.places import ROOT

OBJECTIVES_S = {"digits-cnn": 0.050, "minilm": 0.5}
"""P99 that is kept, by model: room for more than one batch, and for a stall of a shared machine."""

KEPT_SHARE = 0.99
TRIED = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)
"""Loads, as shares of what it answers when there is always more to do."""

WARM_S = 0.5
TAIL_S = 0.2
"""The load goes on for so long after what counts."""

IN_FLIGHT = 4
"""Batches in flight when there is always more to do."""


async def measure(
    folder: Path, subjects: Mapping[str, Subject], *, quick: bool, seed: int, tell: Callable[[str], None]
) -> Figures:
    """Every model with batching, without, and bare."""
    figures: Figures = {}
    for name, subject in subjects.items():
        try:
            figures |= await _of(folder, subject, quick=quick, seed=seed, tell=tell)
        except Void as void:
            tell(f"{name}: void: {void}")
    return figures


async def _of(folder: Path, subject: Subject, *, quick: bool, seed: int, tell: Callable[[str], None]) -> Figures:
    """One model.

    Raises:
        Void: There is a load that it should have kept, and could not be shown to.
    """
    name, seconds = subject.name, 0.6 if quick else 3.0
    kept: dict[str, float] = {}
    busy: dict[str, float] = {}
    for mode, tried in (("batched", subject), ("single", subject.with_batches_of(1))):
        async with Host(folder / f"{name}-{mode}") as host:
            await host.load(tried.model, tried.version)
            async with open_line(host.channel) as line:
                busy[mode] = await _busy(line, tried, seconds)
                kept[mode] = await _kept(line, tried, busy[mode], seconds=seconds, seed=seed, tell=tell)
    bare = await _bare(name, quick=quick)
    tell(f"{name}: kept {kept}, busy {busy}, bare {bare}")
    best = max(bare.values())
    return {
        f"batch_{name}_per_s": kept["batched"],
        f"batch_{name}_gain": kept["batched"] / kept["single"],
        f"batch_{name}_bare_gain": best / bare[1],
        f"batch_{name}_bare_per_s": best,
        f"batch_{name}_of_bare": busy["batched"] / best,
    }


async def _busy(line: Line, subject: Subject, seconds: float) -> float:
    """Answers a second while there is always more to do."""
    source = Source("all", 0.0, 30.0, subject.key, subject.requests)
    in_flight = IN_FLIGHT * max(8, subject.version.model_version.batching.max_batch_size)
    await Saturation(line, source, in_flight=in_flight).run(seconds=WARM_S)
    return await Saturation(line, source, in_flight=in_flight).run(seconds=seconds)


async def _kept(
    line: Line, subject: Subject, busy_per_s: float, *, seconds: float, seed: int, tell: Callable[[str], None]
) -> float:
    """Answers in time per second at the highest load that keeps the objective.

    Raises:
        Void: None of those tried does, or none could be tried.
    """
    objective_s = OBJECTIVES_S[subject.name]
    until_s = WARM_S + seconds
    for share in TRIED:
        source = Source("all", share * busy_per_s, objective_s, subject.key, subject.requests)
        outcomes = await offer(line, poisson([source], until_s + TAIL_S, seed=seed), grace_s=objective_s + 1.0)
        try:
            outcomes.check_generator()
        except Void as void:
            tell(f"{subject.name} at {share:g}: void: {void}")
            continue
        if share_in_time(outcomes, lambda _: True, from_s=WARM_S, until_s=until_s) >= KEPT_SHARE:
            return goodput_per_s(outcomes, from_s=WARM_S, until_s=until_s)
    raise Void(f"no load that was tried keeps {objective_s * 1e3:.0f} ms")


async def _bare(name: str, *, quick: bool) -> dict[int, float]:
    """Rows a second of the bare loop, by rows of a batch."""
    flags = ("--seconds", "0.1", "--quick") if quick else ("--seconds", "0.7")
    command = (sys.executable, "-m", "benchmarks.host_bare", name, *flags)
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
    return {int(rows): float(per_s) for rows, per_s in json.loads(done.stdout).items()}
