"""What the mesh costs: beside bare gRPC and Envoy, by engine, payload, model, tracing and streaming.

Writes page, plot and record, and ends with one line of JSON: the figures by name. `--quick` measures only what
these need, in under a minute, and writes into `build/bench`.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
from pathlib import Path

from benchmarks import bare_echo, report
from benchmarks.conditions import conditions_now
from benchmarks.figures import figures_of, medians
from benchmarks.generators import Generator, find_generator
from benchmarks.measuring import measure_all
from benchmarks.models import prepare
from benchmarks.places import BUILD, FOLDER
from benchmarks.shapes import Shape, SubjectName, full_matrix, quick_matrix
from benchmarks.subjects import Stage, engines
from services.domain.clock import SystemClock

FULL_REPETITIONS, FULL_S, FULL_WARM_S = 5, 3.0, 1.5
QUICK_REPETITIONS, QUICK_S, QUICK_WARM_S = 3, 0.6, 0.25
QUICK_WITHIN_S = 36.0
"""Measuring is over by then; ending the meshes takes some seconds more."""
_CLOCK = SystemClock()


def _matrix(lead: SubjectName, *, quick: bool) -> tuple[Shape, ...]:
    return quick_matrix(lead) if quick else full_matrix()


def _wanted(shapes: tuple[Shape, ...]) -> frozenset[SubjectName]:
    return frozenset(name for shape in shapes for name in shape.subjects)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def run(arguments: argparse.Namespace, generator: Generator) -> dict[str, object]:
    """Bring all up, measure, write; returns the figures by name."""
    started_s = _CLOCK.now_s()
    best = engines()[-1]
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as name:
        folder = Path(name)
        prepared = prepare(folder, echo_method=bare_echo.METHOD)
        wanted = _wanted(_matrix(best, quick=arguments.quick))
        async with Stage(folder, prepared, wanted, best) as stage:
            _tell(f"up after {_CLOCK.now_s() - started_s:.1f} s")
            for subject, why in stage.missing.items():
                _tell(f"not measured: {subject}: {why}")
            lead: SubjectName = "native" if "native" in stage.subjects else "aio"
            shapes = _matrix(lead, quick=arguments.quick)
            results = await asyncio.to_thread(
                measure_all,
                generator,
                stage.subjects,
                shapes,
                repetitions=arguments.repetitions,
                seconds=arguments.seconds,
                warm_s=arguments.warm_s,
                until_s=started_s + arguments.within_s,
                tell=_tell,
            )
            missing = stage.missing
    figures = figures_of(results, lead)
    conditions = conditions_now(
        generator=generator.name,
        lead=lead,
        repetitions=results.repetitions,
        seconds=arguments.seconds,
        others_share=results.others_share(),
        quick=arguments.quick,
    )
    report.write(arguments.out, conditions=conditions, shapes=shapes, results=results, figures=figures, missing=missing)
    return {**medians(figures), "generator": generator.name, "engine": lead}


def main() -> None:
    """Measure, write, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what the figures by name need")
    parser.add_argument("--repetitions", type=int, help=f"default: {FULL_REPETITIONS}; quick: {QUICK_REPETITIONS}")
    parser.add_argument("--seconds", type=float, help=f"of each measurement; default: {FULL_S}; quick: {QUICK_S}")
    parser.add_argument("--out", type=Path, help="folder to write into; default: benchmarks; quick: build/bench")
    arguments = parser.parse_args()
    usual = (QUICK_REPETITIONS, QUICK_S, BUILD) if arguments.quick else (FULL_REPETITIONS, FULL_S, FOLDER)
    given = (arguments.repetitions, arguments.seconds, arguments.out)
    arguments.repetitions, arguments.seconds, arguments.out = (
        default if value is None else value for value, default in zip(given, usual, strict=True)
    )
    arguments.within_s = QUICK_WITHIN_S if arguments.quick else math.inf
    arguments.warm_s = QUICK_WARM_S if arguments.quick else FULL_WARM_S
    generator = find_generator()
    if generator.name != "nghttp2":
        _tell("the compiled generator is not there (tools/bench_tools.sh): using benchmarks/load.py")
    print(json.dumps(asyncio.run(run(arguments, generator))))


if __name__ == "__main__":
    main()
