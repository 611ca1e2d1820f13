"""What the benchmark of the router writes: its part of the page, and its record."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from benchmarks.conditions import Conditions
from benchmarks.figures import rounded
from benchmarks.places import PAGE
from benchmarks.report import WIDTH, number, replaced_part
from benchmarks.router_parts import TITLES, Figures, Part

RECORD = "router.json"
PART = "router"


def write(
    folder: Path,
    parts: Sequence[Part],
    *,
    conditions: Conditions,
    figures: Mapping[str, Figures],
    notes: Sequence[str],
    seed: int,
    seconds: float,
) -> None:
    """Write the record, and this benchmark's part of the page, into `folder`; `figures` by part."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "conditions": conditions.as_dict(),
        "seed": seed,
        "figures": flat(figures),
        "missed": [name for part in parts for name in part.missed(figures.get(part.name, {}))],
        "unmeasured": [name for part in parts for name in part.unmeasured(figures.get(part.name, {}))],
        "notes": list(notes),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    page = folder / PAGE
    before = page.read_text() if page.exists() else ""
    text = part_of_page(conditions, parts, figures, notes=notes, seed=seed, seconds=seconds)
    page.write_text(replaced_part(before, PART, "\n".join(text)))


def flat(figures: Mapping[str, Figures]) -> dict[str, float]:
    """The figures by name, whatever part they are of."""
    return {name: rounded(value) for found in figures.values() for name, value in found.items()}


def part_of_page(
    conditions: Conditions,
    parts: Sequence[Part],
    figures: Mapping[str, Figures],
    *,
    notes: Sequence[str],
    seed: int,
    seconds: float,
) -> list[str]:
    """The part of the page, line by line."""
    lines = ["## The router", "", *_introduction(conditions, parts, figures, seed, seconds)]
    for part in parts:
        lines += _section(part, figures.get(part.name, {}))
    if notes:
        lines += ["", "Not measured, or void:", "", *(f"- {note}" for note in notes)]
    return lines


def shown(value: float) -> str:
    """A figure; shares and ratios near 1 need more digits than others."""
    return f"{value:.3f}" if 0.9 <= value < 2.0 else number(value)


def _section(part: Part, figures: Figures) -> Iterator[str]:
    """A part; one with a table of its own lists only the figures that have a goal."""
    if not figures:
        return
    yield from ("", f"### {part.title}")
    if part.table is not None:
        yield from ("", *part.table(figures).strip().splitlines())
    rows = [
        f"| `{name}` | {shown(figures[name])}{' **missed**' if part.is_missed(name, figures[name]) else ''} "
        f"| {part.goal(name)} | {what} |"
        for name, what in part.explained.items()
        if name in figures and (part.table is None or name in part.goals)
    ]
    if rows:
        yield from ("", "| figure | | goal | what |", "|---|---:|---:|---|", *rows)


def _introduction(
    conditions: Conditions, parts: Sequence[Part], figures: Mapping[str, Figures], seed: int, seconds: float
) -> list[str]:
    packages = ", ".join(f"{name} {conditions.packages[name]}" for name in ("grpcio", "protobuf", "uvloop"))
    made = "make bench-router"
    if len(parts) < len(TITLES):
        made = f"python -m benchmarks.router --only {' '.join(part.name for part in parts)}"
    missed = [name for part in parts for name in part.missed(figures.get(part.name, {}))]
    unmeasured = [name for part in parts for name in part.unmeasured(figures.get(part.name, {}))]
    verdict = [
        f"{what}: {', '.join(f'`{name}`' for name in names)}."
        for what, names in (("Goals that were missed", missed), ("Goals that were not measured", unmeasured))
        if names
    ]
    text = (
        f"`{made}` wrote this part on {conditions.day}, at commit {conditions.commit}, in {seconds:.0f} s. On one "
        f"machine, loopback, load generator included: {conditions.cores} cores, {conditions.processor}, "
        f"{conditions.system}; {conditions.python}, {packages}. Seed {seed}. Meanwhile {conditions.others_share:.0%} "
        f"of the machine's CPU went to other work. {' '.join(verdict) or 'Every goal was met.'}"
    )
    return wrap(text, WIDTH, break_on_hyphens=False)
