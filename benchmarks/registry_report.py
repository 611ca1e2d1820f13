"""What the benchmark of the registry writes: its part of the page, and its record."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from benchmarks.conditions import Conditions
from benchmarks.figures import rounded
from benchmarks.places import PAGE
from benchmarks.registry_figures import AT_EACH_SIZE, OVER_ALL, Figures, fan_out_names, label
from benchmarks.report import WIDTH, number, replaced_part

RECORD = "registry.json"
PART = "registry"


def write(
    folder: Path, *, conditions: Conditions, figures: Figures, sizes: Sequence[int], watchers: int, seconds: float
) -> None:
    """Write the record, and this benchmark's part of the page, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"conditions": conditions.as_dict(), "figures": {name: rounded(value) for name, value in figures.items()}}
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    page = folder / PAGE
    before = page.read_text() if page.exists() else ""
    part = _part(conditions, figures, sizes, watchers, seconds)
    page.write_text(replaced_part(before, PART, "\n".join(part)))


def _part(conditions: Conditions, figures: Figures, sizes: Sequence[int], watchers: int, seconds: float) -> list[str]:
    lines = ["## The registry by what it holds", "", *_introduction(conditions, seconds), "", *_by_size(figures, sizes)]
    lines += ["", "| figure | | what |", "|---|---:|---|"]
    for name, what in {**OVER_ALL, **fan_out_names(watchers)}.items():
        if name in figures:
            lines.append(f"| `{name}` | {number(figures[name])} | {what} |")
    return [*lines, "", *_method(sizes, watchers)]


def _introduction(conditions: Conditions, seconds: float) -> list[str]:
    packages = ", ".join(f"{name} {conditions.packages[name]}" for name in ("grpcio", "protobuf", "uvloop"))
    made = "make bench-registry" if not conditions.quick else "python -m benchmarks.registry --quick"
    text = (
        f"`{made}` wrote this part on {conditions.day}, at commit {conditions.commit}, in {seconds:.0f} s. On one "
        f"machine, loopback: {conditions.cores} cores, {conditions.processor}, {conditions.system}; "
        f"{conditions.python}, {packages}. Changes of 1,000 were timed {conditions.repetitions} times. Meanwhile "
        f"{conditions.others_share:.0%} of the CPU went to other work. Times are ms where nothing else is said."
    )
    return wrap(text, WIDTH)


def _by_size(figures: Figures, sizes: Sequence[int]) -> list[str]:
    head = " | ".join(f"{count:,}" for count in sizes)
    lines = [f"| objects | {head} | last ÷ first |", f"|---|{'---:|' * (len(sizes) + 1)}"]
    for name, what in AT_EACH_SIZE.items():
        found = [figures.get(name.format(label(count))) for count in sizes]
        cells = [number(value) if value is not None else "-" for value in found]
        first, last = found[0], found[-1]
        cells.append(number(last / first) if first and last is not None else "-")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def _method(sizes: Sequence[int], watchers: int) -> list[str]:
    points = (
        "etcd, one registry and one router run as processes of their own, started as a mesh starts them; nothing is "
        "traced. Objects are models, versions and routes in twenty shapes, 300 to 800 bytes stored "
        "(`benchmarks/registry_objects.py`); the registry is filled by applies of 1,000.",
        "A change updates a description, a timeout or an annotation of objects from all over the state, so that as "
        "many shards of the tree change as can. Times are the caller's, gRPC included; CPU is that of the registry's "
        "process.",
        "A cold start is that of a process whose predecessor was killed; a router's begins without a snapshot on disk "
        "and ends when it has one to route by.",
        "From an apply to a router: a new route is applied, and from Apply's answer on the router is asked by Explain "
        "until it knows the route; each question waits 1 ms after the one before was answered.",
        f"Fan-out: {watchers:,} streams of Watch over connections of 125, in one process, at {sizes[-1]:,} objects; "
        "one is applied, and the time runs until the last stream has brought it. Readers and registry share the "
        "cores.",
    )
    return [line for point in points for line in wrap(f"- {point}", WIDTH, subsequent_indent="  ")]
