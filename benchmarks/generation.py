"""What a real language model does on a host: first tokens, next tokens, tokens a second, and what batching gives.

    python -m benchmarks.generation [--tokens T] [--rounds R] [--requests N]

Prepares SmolLM2 (`examples.zoo.smollm2`), measures it bare (`generation_bare`), and starts a host with it. Callers are
in this process, over loopback. Ends with one line of JSON; times are in milliseconds:

- `bare_per_s`: tokens a second of a loop around the model, by how many sequences are stepped together; the mean of
  before and after all else;
- `at`: with 1, 4 and 8 callers: time to the first token and between tokens (P50, P99), tokens a second, the part of the
  time that the compute thread was in the model, and the ratio of the tokens a second to the bare loop's;
- `load`: the same arrivals with sequences that join and leave between steps (`iteration`), and in static batches of 8
  (`static`): from each request's intended time to its first token and to its end.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.generation_load import Callers, Heard, arrivals
from benchmarks.host_process import Host
from benchmarks.places import ROOT
from examples.progress import Progress
from examples.zoo import smollm2
from modelyard.registry.v1 import objects_pb2
from modelyard.type.v1 import model_pb2
from yardctl import manifests

CALLERS = (1, 4, 8)
BARE = (1, 8)
SLOTS = 8
LOAD_SHARE = 0.7
"""Arrivals ask for this part of the tokens that eight sequences together were seen to make."""

SHORTEST, LONGEST = 4, 92
SEED = 11
HOST_BYTES = 3 << 30


def bare_per_s(folder: Path, tokens: int) -> dict[int, float]:
    """Tokens a second of a loop around the model."""
    command = [sys.executable, "-m", "benchmarks.generation_bare", str(folder), "--tokens", str(tokens)]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return {int(count): rate for count, rate in json.loads(done.stdout.splitlines()[-1]).items()}


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """P50 and P99."""
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


async def measured(folder: Path, objects: Sequence[objects_pb2.Object], asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes through a host."""
    model, version = objects
    async with Host(folder, memory_bytes=HOST_BYTES) as host:
        await host.load(model, version)
        key = model_pb2.ModelKey(model=model.metadata.name, version=version.model_version.version)
        callers = Callers(host.stub, key)
        await callers.closed_loop(SLOTS, tokens=4, rounds=1)
        at: dict[int, Heard] = {}
        share: dict[int, float] = {}
        for count in CALLERS:
            before = await host.done(model.metadata.name)
            at[count] = await callers.closed_loop(count, tokens=asked.tokens, rounds=asked.rounds)
            done = await host.done(model.metadata.name)
            share[count] = (done.device_s - before.device_s) / at[count].took_s
        mean = (SHORTEST + LONGEST) / 2
        coming = arrivals(
            asked.requests,
            mean_gap_s=mean / (LOAD_SHARE * at[SLOTS].tokens_per_s),
            least=SHORTEST,
            most=LONGEST,
            seed=SEED,
        )
        load = {
            "iteration": await callers.as_they_come(coming),
            "static": await callers.in_batches(coming, size=SLOTS),
        }
    return {"at": at, "share": share, "load": load}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="answers of each caller")
    parser.add_argument("--requests", type=int, default=32, help="that arrive")
    asked = parser.parse_args()
    folder = smollm2.prepare(smollm2.DEFAULT_FOLDER, Progress(Console(stderr=True)))
    before = bare_per_s(folder, asked.tokens)
    objects = [document.object for document in manifests.load([folder])]
    with tempfile.TemporaryDirectory(prefix="modelyard-generation-") as scratch:
        found = asyncio.run(measured(Path(scratch), objects, asked))
    after = bare_per_s(folder, asked.tokens)
    bare = {count: round((before[count] + after[count]) / 2, 2) for count in BARE}
    print(
        json.dumps(
            {
                "bare_per_s": bare,
                "at": {
                    count: {
                        "first_ms": quantiles_ms(heard.first_s),
                        "next_ms": quantiles_ms(heard.gaps_s),
                        "per_s": round(heard.tokens_per_s, 2),
                        "in_model": round(found["share"][count], 3),
                        **({"ratio": round(heard.tokens_per_s / bare[count], 3)} if count in bare else {}),
                    }
                    for count, heard in found["at"].items()
                },
                "load": {
                    how: {
                        "first_ms": quantiles_ms(heard.first_s),
                        "whole_ms": quantiles_ms(heard.whole_s),
                        "per_s": round(heard.tokens_per_s, 2),
                    }
                    for how, heard in found["load"].items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
