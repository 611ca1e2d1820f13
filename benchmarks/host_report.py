"""What the benchmark of the model host writes: its part of the page, and its record."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from benchmarks.conditions import Conditions
from benchmarks.figures import rounded
from benchmarks.host_figures import SECTIONS, Figures, missed, unmeasured
from benchmarks.places import PAGE
from benchmarks.report import WIDTH, number, replaced_part

RECORD = "host.json"
PART = "host"


def write(
    folder: Path, *, conditions: Conditions, figures: Figures, notes: Sequence[str], seed: int, seconds: float
) -> None:
    """Write the record, and this benchmark's part of the page, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "conditions": conditions.as_dict(),
        "seed": seed,
        "figures": {name: rounded(value) for name, value in figures.items()},
        "missed": missed(figures),
        "unmeasured": unmeasured(figures, SECTIONS),
        "notes": list(notes),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    page = folder / PAGE
    before = page.read_text() if page.exists() else ""
    part = part_of(conditions, figures, notes=notes, seed=seed, seconds=seconds)
    page.write_text(replaced_part(before, PART, "\n".join(part)))


def part_of(conditions: Conditions, figures: Figures, *, notes: Sequence[str], seed: int, seconds: float) -> list[str]:
    """The part of the page, line by line."""
    lines = ["## The model host", "", *_introduction(conditions, figures, seed, seconds)]
    for title, explained in SECTIONS.values():
        rows = [
            f"| `{name}` | {shown(figures[name])}{' **missed**' if figure.is_missed(figures[name]) else ''} "
            f"| {figure.goal} | {figure.what} |"
            for name, figure in explained.items()
            if name in figures
        ]
        if rows:
            lines += ["", f"### {title}", "", "| figure | | goal | what |", "|---|---:|---:|---|", *rows]
    lines += ["", "### How the host was measured", "", *_method()]
    if notes:
        lines += ["", "Not measured, or void:", "", *(f"- {note}" for note in notes)]
    return lines


def shown(value: float) -> str:
    """A figure; shares near 1 need more digits than others."""
    return f"{value:.4f}" if 0.9 <= value < 1.0 else number(value)


def _verdict(figures: Figures) -> str:
    """Goals that were missed, and those that this run says nothing of."""
    said = []
    if found := missed(figures):
        said.append(f"Goals that were missed: {', '.join(f'`{name}`' for name in found)}.")
    if found := unmeasured(figures, SECTIONS):
        said.append(f"Goals that were not measured: {', '.join(f'`{name}`' for name in found)}.")
    return " ".join(said) or "Every goal was met."


def _introduction(conditions: Conditions, figures: Figures, seed: int, seconds: float) -> list[str]:
    named = [name for name in ("grpcio", "protobuf", "uvloop", "torch") if name in conditions.packages]
    packages = ", ".join(f"{name} {conditions.packages[name]}" for name in named)
    made = "make bench-host" if not conditions.quick else "python -m benchmarks.host --quick"
    text = (
        f"`{made}` wrote this part on {conditions.day}, at commit {conditions.commit}, in {seconds:.0f} s. On one "
        f"machine, loopback, load generator included: {conditions.cores} cores, {conditions.processor}, "
        f"{conditions.system}; {conditions.python}, {packages}. Seed {seed}. Meanwhile {conditions.others_share:.0%} "
        f"of the machine's CPU went to other work. {_verdict(figures)}"
    )
    return wrap(text, WIDTH, break_on_hyphens=False)


def _method() -> list[str]:
    points = (
        "Each host is a process of its own without registry and router; calls come over one Dispatch stream, those of "
        "600 KB by Execute, as a router sends them. Ratios are taken within the run.",
        "Open loop: Poisson arrivals by the seed, the same for all that are compared, sent in messages of what fell "
        "due within 2 ms, and timed from when each was to leave. A run whose generator was later than 25 ms (P99) is "
        "void.",
        "Overload: the identity model with a device that waits 6 ms a batch and 3 ms a row, batches up to 16, a fresh "
        "host for each load. Gold (band 1, 250 ms) asks for 0.2 of the peak at every load; of the rest silver (band "
        "3, 500 ms) has 0.4 and bronze (band 6, 1 s, sheddable) 0.6; four tenants each, or forty. In time is what came "
        "within its deadline from when it was to leave. The first second does not count. The host counts device "
        "time as wasted from 5 ms before a caller's deadline on, which it keeps to answer in.",
        "The two that it is compared with are the same host with parts replaced as it starts "
        "(`benchmarks/host_planted.py`); the product has no such switches.",
        "Batching: a load is kept if 99 % of its calls are answered within 50 ms (digits-cnn) or 500 ms (minilm), "
        "which is also their deadline; loads are tried from high to low, as shares of what the host answers when 4 "
        "batches are always in flight. The bare loop calls the same model by the host's own backend, on ready batches, "
        "in a process of its own with nothing beside it; the host shares the cores with its caller.",
        "Fairness: device time is worked out from the results: calls with the same compute time were of one batch, "
        "which is shared out by rows. Eight tenants: two versions, one with twice the time a row, calls of 1, 2, 4 and "
        "8 rows, each offering 2 to 6 times its share.",
        "Prediction: the host's own, as it fills batches by it, noted beside what each batch took; both models on one "
        "host, at loads that rise and fall. Sentences have 4 to 24 words. Memory: the peak resident size of a process "
        "that had its framework before.",
        "Copies: the host's own steps on one request, in a process of their own; what Python and numpy allocate "
        "counts (tracemalloc).",
        "Memory over time: the identity model, 64 calls in flight, every tenth cancelled with the next message.",
    )
    return [
        line for point in points for line in wrap(f"- {point}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]
