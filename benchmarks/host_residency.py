"""Thirty versions on a host with memory for about eight: how often a call finds its version away, and what that costs.

The versions are perceptrons with weights of their own, all of one size, so that a place is a place: what was missed is
compared with what the least recently used and Belady's bound would have missed of the same calls over as many places
as the host had. The calls are skewed (Zipf), come in bursts, and what is popular changes: not a trace of a
real mesh, but seeded and with what makes those hard.
"""

import bisect
import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.host_figures import Figures
from benchmarks.host_load import Plan, Source
from benchmarks.host_models import VERSION, Subject
from benchmarks.host_process import Host
from benchmarks.host_stream import offer, open_line
from examples.tensors import infer_request
from modelyard.host.v1 import host_pb2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2, resources_pb2

MODELS, PLACES = 30, 8
FEATURES, WIDTH, LAYERS = 64, 1448, 3
PER_S = 12.0
TIMEOUT_S = 10.0
ZIPF = 1.1
BURST = 0.3
"""Share of the calls that ask for what was asked for last."""

DRIFT_EVERY = 150
"""Calls after which two versions change places in popularity."""

WAITED_S = 0.020
"""A call that took longer than this waited for its version, or for another one's to leave."""


async def measure(folder: Path, *, quick: bool, seed: int, tell: Callable[[str], None]) -> Figures:
    """Once reading every version anew from its file, once keeping those that leave in the host's memory."""
    subjects = _subjects(folder)
    figures: Figures = {}
    for name, flags in (("cold", ()), ("warm", ("--warm-bytes", str(1 << 30)))):
        figures |= await _run(folder / name, name, subjects, flags, seconds=15.0 if quick else 60.0, seed=seed)
    tell("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return figures


def calls(count: int, *, seed: int) -> list[int]:
    """Which version each call asks for."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(MODELS).tolist()
    heights = np.cumsum([1.0 / (rank + 1) ** ZIPF for rank in range(MODELS)]).tolist()
    asked: list[int] = []
    for number in range(count):
        if number % DRIFT_EVERY == DRIFT_EVERY - 1:
            first, second = rng.integers(0, MODELS, 2)
            order[first], order[second] = order[second], order[first]
        if asked and rng.random() < BURST:
            asked.append(asked[-1])
        else:
            asked.append(int(order[bisect.bisect(heights, rng.random() * heights[-1])]))
    return asked


def misses(asked: Sequence[int], places: int, *, belady: bool) -> int:
    """Misses of the least recently used, or of who knows what comes (Belady, IBM Systems Journal 1966)."""
    next_use = [len(asked) + number for number in range(len(asked))]
    seen: dict[int, int] = {}
    for number in range(len(asked) - 1, -1, -1):
        next_use[number] = seen.get(asked[number], next_use[number])
        seen[asked[number]] = number
    inside: dict[int, int] = {}
    count = 0
    for number, model in enumerate(asked):
        if model not in inside:
            count += 1
            if len(inside) >= places:
                del inside[max(inside, key=inside.__getitem__) if belady else min(inside, key=inside.__getitem__)]
        inside[model] = next_use[number] if belady else number
    return count


async def _run(
    folder: Path, name: str, subjects: Sequence[Subject], flags: Sequence[str], *, seconds: float, seed: int
) -> Figures:
    takes = await _takes(folder / "one", subjects[0])
    budget = PLACES * takes + takes // 2
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0 / PER_S, int(PER_S * seconds)))
    asked = calls(len(at_s), seed=seed)
    sources = [Source(each.name, PER_S / MODELS, TIMEOUT_S, each.key, each.requests) for each in subjects]
    async with Host(folder / "host", memory_bytes=budget, flags=flags) as host:
        for subject in subjects:
            await host.load(subject.model, subject.version)
        before = await host.status()
        async with open_line(host.channel) as line:
            outcomes = await offer(line, Plan(sources, at_s, np.array(asked)), grace_s=TIMEOUT_S)
        status = await host.status()
    outcomes.check_generator()
    cold = _colds(status) - _colds(before)
    took_s = outcomes.took_s[outcomes.answered]
    waited_s = took_s[took_s > WAITED_S]
    held = [each.memory_bytes for each in status.record.models]
    places = max(1, int(budget // (sum(held) / len(held))))
    found: Figures = {
        f"resident_{name}_miss_rate": cold / len(asked),
        f"resident_{name}_failed": float(len(asked) - int(outcomes.answered.sum())),
        f"resident_{name}_loads_per_s": sum(each.load_count for each in status.statistics) / seconds,
        f"resident_{name}_waited_p50_ms": 1e3 * float(np.quantile(waited_s, 0.5)) if len(waited_s) else 0.0,
        f"resident_{name}_waited_p99_ms": 1e3 * float(np.quantile(waited_s, 0.99)) if len(waited_s) else 0.0,
        f"resident_{name}_p50_ms": 1e3 * float(np.quantile(took_s, 0.5)),
        f"resident_{name}_p99_ms": 1e3 * float(np.quantile(took_s, 0.99)),
    }
    if name == "cold":
        found |= {
            "resident_places": float(places),
            "resident_lru_miss_rate": misses(asked, places, belady=False) / len(asked),
            "resident_belady_miss_rate": misses(asked, places, belady=True) / len(asked),
        }
    return found


async def _takes(folder: Path, subject: Subject) -> int:
    """What a host measures that one version takes."""
    async with Host(folder) as host:
        return (await host.load(subject.model, subject.version)).memory_bytes


def _colds(status: host_pb2.GetStatusResponse) -> int:
    return sum(each.cold_count for each in status.statistics)


def _subjects(folder: Path) -> list[Subject]:
    folder.mkdir(parents=True, exist_ok=True)
    return [_subject(folder, number) for number in range(MODELS)]


def _subject(folder: Path, number: int) -> Subject:
    name = f"net-{number}"
    torch.manual_seed(number)
    sizes = [FEATURES, *(WIDTH,) * LAYERS, 10]
    state: dict[str, torch.Tensor] = {}
    for index, (have, want) in enumerate(pairwise(sizes)):
        layer = torch.nn.Linear(have, want)
        state |= {f"layers.{index}.{key}": value.detach().contiguous() for key, value in layer.named_parameters()}
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    artifact = objects_pb2.Artifact(uri=f"file:{path}", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    model = objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name),
        model=objects_pb2.ModelSpec(
            inputs=[model_pb2.TensorSpec(name="x", datatype="FP32", shape=[-1, FEATURES])],
            outputs=[model_pb2.TensorSpec(name="values", datatype="FP32", shape=[-1, 10])],
        ),
    )
    version = objects_pb2.Object(
        metadata=objects_pb2.Metadata(name=name),
        model_version=objects_pb2.ModelVersionSpec(
            version=VERSION,
            artifact=artifact,
            backend=objects_pb2.Backend(
                name="torch",
                architecture="mlp",
                options={"sizes": ",".join(map(str, sizes)), "task": "regress", "input": "x"},
            ),
            resources=resources_pb2.ResourceNeed(memory_bytes=path.stat().st_size),
            batching=objects_pb2.Batching(max_batch_size=8),
            on_demand=True,
        ),
    )
    inputs = {"x": np.random.default_rng(number).standard_normal((1, FEATURES)).astype(np.float32)}
    return Subject(model, version, [infer_request(name, inputs).SerializeToString()], [inputs])
