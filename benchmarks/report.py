"""What is written: the page for people, the record for programs."""

import json
import re
from pathlib import Path
from textwrap import wrap

from benchmarks import plot
from benchmarks.conditions import Conditions
from benchmarks.figures import EXPLAINED, rounded
from benchmarks.measuring import Results, Series, Spread
from benchmarks.places import PAGE, PLOT, RECORD
from benchmarks.shapes import LABELS, Shape, SubjectName

WIDTH = 120
_HEAD = (
    "| load | subject | requests/s | P50, ms | P99, ms | CPU µs a request | generator µs |",
    "|---|---|---|---|---|---|---|",
)

Figures = dict[str, Spread | None]


def write(
    folder: Path,
    *,
    conditions: Conditions,
    shapes: tuple[Shape, ...],
    results: Results,
    figures: Figures,
    missing: dict[SubjectName, str],
) -> None:
    """Write page, plot and record into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLOT).write_text(plot.svg(results))
    (folder / PAGE).write_text(_with_parts_of(folder / PAGE, page(conditions, shapes, results, figures, missing)))
    record = {
        "conditions": conditions.as_dict(),
        "figures": {name: spread and _as_dict(spread) for name, spread in figures.items()},
        "measurements": [
            {
                "subject": subject,
                "work": work,
                "load": load,
                **{name: _as_dict(spread) for name in series.values if (spread := series.spread(name))},
                "void": series.voids,
            }
            for (subject, work, load), series in results.series.items()
        ],
        "missing": missing,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def replaced_part(text: str, name: str, part: str) -> str:
    """A page with the part called `name` replaced, or appended: another command writes it, between two marks."""
    begin, end = _marks(name)
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    return f"{before.rstrip()}\n\n{begin}\n{part}\n{end}\n{after.lstrip()}".lstrip()


def _with_parts_of(written: Path, text: str) -> str:
    """A page with the parts that other commands have written into the one before it."""
    old = written.read_text() if written.exists() else ""
    for name in re.findall(r"<!-- begin: ([a-z-]+) -->", old):
        begin, end = _marks(name)
        text = replaced_part(text, name, old.partition(begin)[2].partition(end)[0].strip())
    return text


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def _as_dict(spread: Spread) -> dict[str, float]:
    return {"median": rounded(spread.median), "min": rounded(spread.least), "max": rounded(spread.most)}


def page(
    conditions: Conditions,
    shapes: tuple[Shape, ...],
    results: Results,
    figures: Figures,
    missing: dict[SubjectName, str],
) -> str:
    """`benchmarks/README.md`."""
    lines = ["# Benchmarks", "", *_introduction(conditions), "", "## In short", "", *_figures_table(figures), ""]
    lines += [f"![Throughput, P50 and P99 by callers, 200 B]({PLOT})", "", "## Every measurement", "", _how_to_read()]
    for work in dict.fromkeys(shape.work for shape in shapes):
        rows = _rows([shape for shape in shapes if shape.work == work], results)
        lines += ["", f"### {work}", "", *_HEAD, *rows] if rows else []
    lines += ["", "## How each was taken", "", *_method(conditions)]
    voids = list(results.voids())
    if missing or voids:
        lines += ["", "## Not measured", ""]
        lines += [f"- {LABELS[name]}: {why}" for name, why in missing.items()]
        lines += [f"- {why}" for why in voids]
    return "\n".join(lines) + "\n"


def _introduction(conditions: Conditions) -> list[str]:
    packages = ", ".join(f"{name} {number}" for name, number in conditions.packages.items())
    made = "make bench-quick" if conditions.quick else "make bench"
    envoy = f"Envoy {conditions.envoy} with {conditions.envoy_concurrency} worker" if conditions.envoy else "no Envoy"
    text = (
        f"`{made}` wrote this page on {conditions.day}, at commit {conditions.commit}. Everything ran on one machine, "
        f"load generator included, on loopback: {conditions.cores} cores, {conditions.processor}, "
        f"{conditions.system}; {conditions.python}, {packages}; {envoy}. Each figure is the median (min to max) of "
        f"{conditions.repetitions} repetitions of {conditions.seconds:g} s after a round that warms up. Meanwhile "
        f"{conditions.others_share:.0%} of the machine's CPU went to other work, idle subjects included. Absolute "
        "figures are of that machine; ratios travel better."
    )
    return wrap(text, WIDTH)


def _figures_table(figures: Figures) -> list[str]:
    rows = ["| figure | median | min | max | what |", "|---|---:|---:|---:|---|"]
    for name, spread in figures.items():
        cells = [number(each) for each in (spread.median, spread.least, spread.most)] if spread else ["-"] * 3
        rows.append(f"| `{name}` | {' | '.join(cells)} | {EXPLAINED[name]} |")
    return rows


def _how_to_read() -> str:
    return (
        "CPU is that of the processes named, by request answered; the generator's own is the last column. A share\n"
        "failed only shows in open loop, where calls leave whether or not they can be served; in closed loop one\n"
        "failed call makes a measurement void."
    )


def _rows(shapes: list[Shape], results: Results) -> list[str]:
    rows = []
    for shape in shapes:
        for subject in shape.subjects:
            series = results.of(subject, shape.work, shape.load)
            if series.values:
                rows.append(f"| {shape.load.name} | {LABELS[subject]} | {' | '.join(_cells(series))} |")
    return rows


def _cells(series: Series) -> list[str]:
    answered = _spread(series, "per_s")
    failed = series.spread("failed_share")
    if failed and failed.median:
        answered += f", {failed.median:.1%} failed"
    named = [name for name in series.values if name.endswith("_cpu_us") and name != "generator_cpu_us"]
    parts = " + ".join(f"{name.removesuffix('_cpu_us')} {_median(series, name)}" for name in named)
    cpu = f"{_median(series, 'cpu_us')} = {parts}" if len(named) > 1 else parts
    return [answered, _spread(series, "p50_ms"), _spread(series, "p99_ms"), cpu, _median(series, "generator_cpu_us")]


def _spread(series: Series, name: str) -> str:
    spread = series.spread(name)
    if spread is None:
        return "-"
    return f"{number(spread.median)} ({number(spread.least)} to {number(spread.most)})"


def _median(series: Series, name: str) -> str:
    spread = series.spread(name)
    return f"{spread.median:,.0f}" if spread else "-"


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _method(conditions: Conditions) -> list[str]:
    if conditions.generator == "nghttp2":
        generator = (
            "Load comes from `benchmarks/generator`: C on libnghttp2, one thread, a process of its own. It opens a "
            "connection for every 16 callers or 500 calls a second begun, and one for each stream. It checks each "
            "answer: gRPC status 0, one whole message, and in it the bytes sent (of the MLP: the label, which numpy "
            "computes)."
        )
    else:
        generator = (
            "**The compiled generator could not be built here** (see `tools/bench_tools.sh`): load comes from "
            "`benchmarks/load.py` on grpc.aio, over one connection. It takes much of the CPU that the servers need, "
            "and cannot stream: these figures are lower than those of the compiled one and do not compare with them."
        )
    points = (
        "All subjects are up at once and idle in turn; each shape is measured on one after the other, so that drift "
        "of the machine hits all. Ratios are taken within a repetition.",
        generator,
        "Closed loop: each caller sends its next request when its last is answered. Open loop: requests leave at "
        "fixed times and are timed from when they were to leave, so that a stall cannot hide (coordinated omission).",
        "one-hop, two-hop grpc.aio: `benchmarks/bare_echo.py`, raw bytes on uvloop, no message parsed, nothing "
        "decided. The pair's second hop is the one-hop echo.",
        f"Envoy: static configuration, {conditions.envoy_concurrency} worker thread (`--concurrency`), HTTP/2 on both "
        "sides, no access log, no stats sink; before an echo on pygrpc-native (`benchmarks/native_echo.py`).",
        "The mesh: client → router → host, one of each, with every policy, metric and trace switched on; 1 % of calls "
        "traced unless said otherwise. Each mesh is a whole one, with etcd, registry, resource manager and collector.",
        "200 B and 600 KB are bytes of a UINT8 tensor [1, N] for the identity model; the MLP is 64 → 256 → 10 on the "
        "torch backend, batched by the host. The echoes are sent the same bytes without the request around them.",
        "600 KB at 300/s are 180 MB/s each way on each hop; at most 256 such calls are let be in flight, and those "
        "beyond count as failed. They are not sent at 1,000/s.",
        f"Figures that name no engine are of the {conditions.lead} engine.",
        "`python -m benchmarks.guard` compares the ratios of a fresh run with `benchmarks/last.json`.",
    )
    return [line for point in points for line in wrap(f"- {point}", WIDTH, subsequent_indent="  ")]
