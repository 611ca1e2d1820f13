"""How right a host is about what is to come: what a batch takes, and how much memory a version needs.

Of batches the host's own prediction is taken, by which it fills batches and refuses calls; it is written down beside
what each batch took (`host_planted predictions`). So is the line that outsiders are told. Of memory, the record's
`memory_bytes` stands beside the growth of a process that has nothing else but its framework.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import psutil

from benchmarks.host_figures import Figures
from benchmarks.host_load import Source, poisson
from benchmarks.host_models import Subject
from benchmarks.host_process import Host
from benchmarks.host_stream import Saturation, offer, open_line

LOADS = (0.15, 0.6, 0.3, 0.9)
"""One after the other, as shares of what the device could do, so that batches of all sizes come."""

SKIPPED = 32
"""First batches of each version, in which it finds out."""

TIMEOUT_S = 2.0
MEASURED = ("minilm", "minilm-int8", "efficientnet-lite0")
"""Versions whose memory is compared: of two frameworks, text and images."""

FRAMEWORK_BY = {"torch": "digits-cnn", "onnxruntime": "silero-vad"}
"""The small version that brings a framework in."""

FULL_BATCHES = 4


async def batches(
    folder: Path, subjects: Mapping[str, Subject], *, quick: bool, seed: int, tell: Callable[[str], None]
) -> Figures:
    """Load both models at once, now more and now less; compare what was predicted with what came."""
    log = folder / "predictions.jsonl"
    seconds = 0.7 if quick else 6.0
    async with AsyncExitStack() as stack:
        program = ("benchmarks.host_planted", f"predictions={log}")
        host = await stack.enter_async_context(Host(folder / "predictions", program=program))
        for subject in subjects.values():
            await host.load(subject.model, subject.version)
        line = await stack.enter_async_context(open_line(host.channel))
        rates = {}
        for name, subject in subjects.items():
            busy = Saturation(line, Source("all", 0.0, 30.0, subject.key, subject.requests), in_flight=128)
            rates[name] = await busy.run(seconds=seconds / 3)
        for number, share in enumerate(LOADS):
            sources = [
                Source(name, share * rates[name] / len(subjects), TIMEOUT_S, subject.key, subject.requests)
                for name, subject in subjects.items()
            ]
            await offer(line, poisson(sources, seconds, seed=seed + number), grace_s=TIMEOUT_S)
    with log.open() as lines:
        figures = errors_of(map(json.loads, lines))
    tell("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return figures


def errors_of(noted: Iterable[tuple[str, int, float, float, float]]) -> Figures:
    """Median and P95 of |predicted - actual| / actual, by model.

    Args:
        noted: Model, rows, the host's own prediction, that of the line, and what it took; in order of time.
    """
    by_model: dict[str, list[tuple[float, float]]] = {}
    for model, _, own_s, line_s, took_s in noted:
        by_model.setdefault(model, []).append((abs(own_s - took_s) / took_s, abs(line_s - took_s) / took_s))
    figures: Figures = {}
    for model, errors in sorted(by_model.items()):
        own, line = np.array(errors[SKIPPED:] or errors).T
        figures |= {
            f"predict_{model}_p50": float(np.quantile(own, 0.5)),
            f"predict_{model}_p95": float(np.quantile(own, 0.95)),
            f"predict_line_{model}_p50": float(np.quantile(line, 0.5)),
            f"predict_line_{model}_p95": float(np.quantile(line, 0.95)),
            f"predict_{model}_batches": float(len(own)),
        }
    return figures


async def memory(folder: Path, subjects: Mapping[str, Subject], *, quick: bool, tell: Callable[[str], None]) -> Figures:
    """Load each version into a process of its own, run full batches, and see how it grew: at its peak, and for good."""
    figures: Figures = {}
    full_batches = FULL_BATCHES // 2 if quick else FULL_BATCHES
    for name in MEASURED[:1] if quick else MEASURED:
        subject = subjects[name]
        first = subjects[FRAMEWORK_BY[subject.version.model_version.backend.name]]
        async with Host(folder / f"memory-{name}") as host:
            await host.load(first.model, first.version)
            before = host.process.memory_info().rss
            declared = (await host.load(subject.model, subject.version)).memory_bytes
            rows = subject.version.model_version.batching.max_batch_size
            async with open_line(host.channel) as line:
                source = Source("all", 0.0, 60.0, subject.key, subject.requests)
                load = Saturation(line, source, in_flight=2 * rows)
                await load.run(calls=rows * full_batches)
            peak = peak_bytes(host.process) - before
            resident = host.process.memory_info().rss - before
        figures |= {
            f"memory_{name}_mb": declared / 1e6,
            f"memory_{name}_peak_mb": peak / 1e6,
            f"memory_{name}_resident_mb": resident / 1e6,
            f"memory_{name}_error": (declared - peak) / peak,
        }
        tell(
            f"{name}: {declared / 1e6:.1f} MB on record, {peak / 1e6:.1f} MB grown at its peak, "
            f"{resident / 1e6:.1f} MB afterwards ({load.failed} calls failed)"
        )
    return figures


def peak_bytes(process: psutil.Process) -> int:
    """The most that was resident since the last load began: that is where a host begins to count anew."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return int(process.memory_info().rss)
