"""Who gets how much of a device that several tenants want more of than there is.

Device time is worked out from the results alone (`host_load.device_seconds`): what each batch took, shared out by the
rows that each call had in it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.host_figures import Figures
from benchmarks.host_load import Floats, Source, Void, device_seconds, jain, poisson
from benchmarks.host_models import Subject, request_of, waiting
from benchmarks.host_process import Host
from benchmarks.host_stream import Saturation, offer, open_line
from modelyard.type.v1 import service_class_pb2

BASE_MS, PER_ROW_MS, BATCH = 6.0, 3.0, 16
HEAVY = 2.0
"""How much longer the second version's rows take."""

TIMEOUT_S = 1.0
WARM_S = 1.0
ENTITLED_SHARE = 0.5
FLOOD = 10.0
"""How many times its own entitlement the other one offers."""

ROWS = (1, 2, 4, 8)
"""Of the calls of the tenants of each version, so that a call of one costs up to eight times that of another."""

WANTED = (2.0, 3.0, 4.0, 6.0, 6.0, 4.0, 3.0, 2.0)
"""What each of eight tenants offers, as a multiple of its fair share: so much that it seldom has no call that waits:
for such a time nobody is owed anything."""


def tenant(name: str) -> service_class_pb2.ServiceClass:
    """One of several of the same tier."""
    return service_class_pb2.ServiceClass(tenant=name, tier="shared", band=4)


async def measure(folder: Path, *, quick: bool, seed: int, tell: Callable[[str], None]) -> Figures:
    """A flood beside a modest tenant; then eight tenants that all want more than their share."""
    light = waiting("light", base_ms=BASE_MS, per_row_ms=PER_ROW_MS, batch=BATCH)
    heavy = waiting("heavy", base_ms=HEAVY * BASE_MS, per_row_ms=HEAVY * PER_ROW_MS, batch=BATCH)
    async with Host(folder / "peak") as host:
        await host.load(light.model, light.version)
        async with open_line(host.channel) as line:
            source = Source("all", 0.0, 30.0, light.key, light.requests)
            peak = await Saturation(line, source, in_flight=4 * BATCH).run(seconds=1.0 if quick else 3.0)
    figures: Figures = {}
    for name, subjects, sources, seconds in (
        ("flood", (light,), flood(light, peak), 2.5 if quick else 12.0),
        ("eight", (light, heavy), eight(light, heavy, peak), 3.5 if quick else 15.0),
    ):
        try:
            figures |= await _shares(folder / name, name, subjects, sources, seconds=seconds, seed=seed)
        except Void as void:
            tell(f"fairness, {name}: void: {void}")
    tell("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    return figures


def flood(subject: Subject, peak_per_s: float) -> list[Source]:
    """One tenant that offers what it is entitled to, beside one that offers ten times as much."""
    entitled_per_s = ENTITLED_SHARE * peak_per_s
    return [
        Source(name, per_s, TIMEOUT_S, subject.key, subject.requests, service_class=tenant(name))
        for name, per_s in (("modest", entitled_per_s), ("flood", FLOOD * entitled_per_s))
    ]


def eight(light: Subject, heavy: Subject, peak_per_s: float) -> list[Source]:
    """Four tenants of each version, with calls of 1 to 8 rows; all offer more than an eighth of the device."""
    sources = []
    for index, wanted in enumerate(WANTED):
        subject, cost = (light, 1.0) if index < len(ROWS) else (heavy, HEAVY)
        rows = ROWS[index % len(ROWS)]
        per_s = wanted / len(WANTED) * peak_per_s / (rows * cost)
        requests = [request_of(subject.name, rows=rows)]
        name = f"tenant-{index}"
        sources.append(Source(name, per_s, TIMEOUT_S, subject.key, requests, rows=rows, service_class=tenant(name)))
    return sources


def of_entitled(had_s: Floats, *, offered: int, answered: int) -> float:
    """What the first of two tenants had of the device ÷ what it was to have: its half, or less if it asked for less.

    Args:
        had_s: Device time of each.
        offered: Calls of the first one.
        answered: Of them answered; by these is known what the others would have taken.
    """
    asked_s = float(had_s[0]) * offered / answered if answered else math.inf
    return float(had_s[0]) / min(ENTITLED_SHARE * float(had_s.sum()), asked_s)


async def _shares(
    folder: Path, name: str, subjects: Sequence[Subject], sources: Sequence[Source], *, seconds: float, seed: int
) -> Figures:
    until_s = WARM_S + seconds
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(Host(folder))
        for subject in subjects:
            await host.load(subject.model, subject.version)
        line = await stack.enter_async_context(open_line(host.channel))
        outcomes = await offer(line, poisson(sources, until_s, seed=seed), grace_s=TIMEOUT_S)
    outcomes.check_generator()
    had_s = device_seconds(outcomes, from_s=WARM_S, until_s=until_s)
    if name == "flood":
        modest = (outcomes.plan.who == 0) & (outcomes.plan.at_s >= WARM_S)
        offered, answered = int(modest.sum()), int((modest & outcomes.answered).sum())
        return {
            "fair_modest_share": float(had_s[0] / had_s.sum()),
            "fair_modest_of_entitled": of_entitled(had_s, offered=offered, answered=answered),
            "fair_modest_answered": answered / offered,
        }
    return {
        "fair_jain_8": jain(had_s),
        "fair_least_8": float(had_s.min() / had_s.mean()),
        "fair_most_8": float(had_s.max() / had_s.mean()),
        "fair_device_busy_8": float(had_s.sum()) / seconds,
    }
