"""What a model host does with more than it can: goodput, fairness, batching, predictions, and what a request costs.

Starts host processes and loads them over loopback, as a router would. Writes its part of the page and a record, and
ends with one line of JSON: the figures by name. `--quick` takes less of everything, and writes into `build/bench`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil
import uvloop

from benchmarks import (
    host_batching,
    host_costs,
    host_fairness,
    host_overload,
    host_prediction,
    host_report,
    host_residency,
)
from benchmarks.conditions import conditions_now
from benchmarks.figures import rounded
from benchmarks.host_figures import SECTIONS, Figures, missed
from benchmarks.host_models import SEED, Subject, real
from benchmarks.measuring import machine_cpu_s, spent_cpu_s
from benchmarks.places import BUILD, FOLDER
from services.domain.clock import SystemClock

ASKED = ("digits-cnn", "minilm")
"""Models of the zoo that are loaded; `--quick` batches the last one alone."""

_CLOCK = SystemClock()


class Run:
    """One run, section by section."""

    def __init__(self, folder: Path, zoo: Mapping[str, Subject], *, quick: bool, seed: int) -> None:
        """Keep hosts' files in `folder`; ask models of `zoo`, where there are any to ask."""
        self._folder = folder
        self._quick = quick
        self._seed = seed
        self._zoo = zoo
        self.notes: list[str] = []

    async def section(self, name: str) -> Figures:
        """Measure one section."""
        steps: Mapping[str, Callable[[], Awaitable[Figures]]] = {
            "overload": self._overload,
            "batching": self._batching,
            "fairness": self._fairness,
            "prediction": self._prediction,
            "residency": self._residency,
            "costs": self._costs,
        }
        began_s = _CLOCK.now_s()
        figures = await steps[name]()
        _tell(f"{name}: {_CLOCK.now_s() - began_s:.0f} s")
        return figures

    async def _overload(self) -> Figures:
        folder = self._folder / "overload"
        return await host_overload.measure(folder, quick=self._quick, seed=self._seed, tell=self._note)

    async def _batching(self) -> Figures:
        asked = {name: self._zoo[name] for name in (ASKED[-1:] if self._quick else ASKED)}
        folder = self._folder / "batching"
        return await host_batching.measure(folder, asked, quick=self._quick, seed=self._seed, tell=self._note)

    async def _fairness(self) -> Figures:
        folder = self._folder / "fairness"
        return await host_fairness.measure(folder, quick=self._quick, seed=self._seed, tell=self._note)

    async def _prediction(self) -> Figures:
        folder = self._folder / "prediction"
        folder.mkdir()
        asked = {name: self._zoo[name] for name in ASKED}
        of_time = await host_prediction.batches(folder, asked, quick=self._quick, seed=self._seed, tell=self._note)
        return of_time | await host_prediction.memory(folder, self._zoo, quick=self._quick, tell=self._note)

    async def _residency(self) -> Figures:
        folder = self._folder / "residency"
        return await host_residency.measure(folder, quick=self._quick, seed=self._seed, tell=self._note)

    async def _costs(self) -> Figures:
        folder = self._folder / "costs"
        return {
            **await host_costs.cpu(folder, quick=self._quick, tell=self._note),
            **await host_costs.copies(self._note),
            **await host_costs.memory(folder, quick=self._quick, tell=self._note),
        }

    def _note(self, text: str) -> None:
        _tell(f"  {text}")
        if "void:" in text:
            self.notes.append(text)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def run(arguments: argparse.Namespace, zoo: Mapping[str, Subject]) -> dict[str, float]:
    """Measure, write; returns the figures by name."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="modelyard-host-") as name:
        found = Run(Path(name), zoo, quick=arguments.quick, seed=arguments.seed)
        began_s, machine_s, own_s = _CLOCK.now_s(), machine_cpu_s(), spent_cpu_s()
        for section in arguments.sections:
            figures |= await found.section(section)
    took_s = _CLOCK.now_s() - began_s
    others_s = machine_cpu_s() - machine_s - (spent_cpu_s() - own_s)
    conditions = conditions_now(
        generator="grpc.aio",
        lead="aio",
        repetitions=1,
        seconds=0.0,
        quick=arguments.quick,
        others_share=max(0.0, others_s) / took_s / (psutil.cpu_count() or 1),
    )
    host_report.write(
        arguments.out, conditions=conditions, figures=figures, notes=found.notes, seed=arguments.seed, seconds=took_s
    )
    for each in missed(figures):
        _tell(f"missed: {each} {figures[each]:.4f}")
    return {each: rounded(value) for each, value in figures.items()}


def main() -> None:
    """Measure, write, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, in under 90 seconds")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seed", type=int, default=SEED, help="of arrivals")
    parser.add_argument("--out", type=Path, help="folder to write into; default: benchmarks; quick: build/bench")
    arguments = parser.parse_args()
    arguments.out = arguments.out or (BUILD if arguments.quick else FOLDER)
    zoo = real() if {"batching", "prediction"} & set(arguments.sections) else {}
    print(json.dumps(uvloop.run(run(arguments, zoo))))


if __name__ == "__main__":
    main()
