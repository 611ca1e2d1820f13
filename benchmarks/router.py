"""What the router's decisions cost, how they balance, spend and replay, and what callers see of faults behind it.

Runs its parts in turn. Writes its part of the page and a record, and ends with one line of JSON: the figures by name.
With `--only` it runs those parts alone, and writes into `build/bench`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import uvloop

from benchmarks import router_report
from benchmarks.conditions import conditions_now
from benchmarks.host_load import Void
from benchmarks.measuring import machine_cpu_s, spent_cpu_s
from benchmarks.places import BUILD, FOLDER
from benchmarks.router_parts import TITLES, Figures, Part, PartMissing, parts
from services.domain.clock import SystemClock

SEED = 20_26
_CLOCK = SystemClock()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def run(chosen: Sequence[Part], *, seed: int, out: Path) -> dict[str, float]:
    """Measure, write; returns the figures by name."""
    figures: dict[str, Figures] = {}
    notes: list[str] = []
    began_s, machine_s, own_s = _CLOCK.now_s(), machine_cpu_s(), spent_cpu_s()
    for part in chosen:
        part_began_s = _CLOCK.now_s()
        try:
            figures[part.name] = await part.figures(seed=seed)
        except Void as void:
            notes.append(f"{part.name}: {void}")
            _tell(f"{part.name}: void: {void}")
            continue
        _tell(f"{part.name}: {_CLOCK.now_s() - part_began_s:.0f} s")
        for name in part.missed(figures[part.name]):
            _tell(f"  missed: {name} {figures[part.name][name]:.4g}, to be {part.goal(name)}")
        if unmeasured := part.unmeasured(figures[part.name]):
            notes.append(f"{part.name}: void: {', '.join(f'`{name}`' for name in unmeasured)}")
    took_s = _CLOCK.now_s() - began_s
    others_s = machine_cpu_s() - machine_s - (spent_cpu_s() - own_s)
    conditions = conditions_now(
        generator="grpc.aio",
        lead="aio",
        repetitions=1,
        seconds=0.0,
        quick=False,
        others_share=max(0.0, others_s) / took_s / (psutil.cpu_count() or 1),
    )
    router_report.write(out, chosen, conditions=conditions, figures=figures, notes=notes, seed=seed, seconds=took_s)
    return router_report.flat(figures)


def main() -> int:
    """Measure, write, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES), help="parts to run")
    parser.add_argument("--seed", type=int, default=SEED, help="of arrivals and of what is drawn")
    parser.add_argument("--out", type=Path, help="folder to write into; default: benchmarks; --only: build/bench")
    arguments = parser.parse_args()
    everything = set(arguments.only) == set(TITLES)
    try:
        chosen = parts(arguments.only)
    except PartMissing as error:
        _tell(f"error: {error}")
        return 2
    out = arguments.out or (FOLDER if everything else BUILD)
    print(json.dumps(uvloop.run(run(chosen, seed=arguments.seed, out=out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
