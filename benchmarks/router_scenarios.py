"""Which faults come upon which host under which load and which rules, and what is to be seen of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.router_variants import ALL, VARIANTS, Variant
from benchmarks.router_yard import FaultyYard

HOSTS = 6
BASE_MS = 20.0
"""Time of a call on a device, asleep; calls are not batched."""

SLOWED = 10.0
LOADS: Mapping[str, float] = {"light": 0.25, "full": 0.8}
"""Parts of the hosts' capacity."""

COMPARED = ("none", "round_robin", "random", "least_loaded")
OFF_SHARE = 0.002
EXTRA_MS = BASE_MS + 50.0
"""What a call may lose that a killed host had: one more service time and 50 ms."""

Goal = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one host."""

    name: str
    label: str
    strike: Callable[[FaultyYard, str], None]
    off: Sequence[str]
    """Rules without a defence that has to do with it."""
    goals: Mapping[str, Goal]
    """Of runs with all defences, by figure."""
    seconds: float = 5.0
    """How long it lasts, with all defences."""
    compared_seconds: float = 3.5
    """And with other rules."""


FAULTS: Sequence[Fault] = (
    Fault(
        "slow",
        "slowed tenfold",
        lambda yard, host_id: yard.slow(host_id, SLOWED),
        ("no_ejection", "no_hedges"),
        {"divert_s": ("<=", 3.0)},
    ),
    Fault(
        "sinkhole",
        "failing fast",
        FaultyYard.fail,
        ("no_penalties", "no_ejection", "no_circuits", "no_retries"),
        {"divert_s": ("<=", 1.0), "error_share": ("<=", OFF_SHARE)},
        seconds=10.0,
        compared_seconds=2.5,
    ),
    Fault(
        "frozen",
        "frozen (SIGSTOP)",
        FaultyYard.freeze,
        ("no_ejection", "no_hedges", "no_retries"),
        {"divert_s": ("<=", 2.0)},
    ),
    Fault(
        "killed",
        "killed (SIGKILL)",
        FaultyYard.kill,
        ("no_penalties", "no_retries"),
        {"errors": ("<=", 0.0), "extra_ms": ("<=", EXTRA_MS)},
        compared_seconds=2.5,
    ),
)

MEASURED: Mapping[str, str] = {
    "divert_s": "s until the host got at most a tenth of its fair share of calls",
    "errors": "calls that failed meanwhile",
    "error_share": "their share",
    "p99_before_ms": "P99 before, ms",
    "p99_ms": "P99 meanwhile, ms; a call that failed counts as its deadline",
    "extra_ms": "the longest of the calls that the host had and lost, beyond the P99 before, ms",
    "errors_after": "calls that failed in the seconds after its end, the host being back",
}
"""Figures of a run. With other rules than all defences only those that do not say what happens afterwards."""

_OF_OTHER_RULES = ("divert_s", "errors", "error_share", "p99_before_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run."""

    fault: Fault
    load: str
    variant: Variant

    @property
    def is_full(self) -> bool:
        """Whether it is run as the product is."""
        return self.variant.name == ALL

    @property
    def name(self) -> str:
        """What its figures' names begin with."""
        return "_".join([self.fault.name, self.load, *([] if self.is_full else [self.variant.name])])

    @property
    def seconds(self) -> float:
        """How long the fault lasts."""
        return self.fault.seconds if self.is_full else self.fault.compared_seconds

    @property
    def figures(self) -> Iterator[tuple[str, str, Goal | None]]:
        """Name, what it is, and goal of each of its figures."""
        said = f"one host {self.fault.label}, {LOADS[self.load]:g} of capacity, {self.variant.label}"
        for name in MEASURED if self.is_full else _OF_OTHER_RULES:
            goal = self.fault.goals.get(name) if self.is_full else None
            yield f"{self.name}_{name}", f"{MEASURED[name]}: {said}", goal


def scenarios() -> list[Scenario]:
    """Every run, in order."""
    found = []
    for fault in FAULTS:
        found += [Scenario(fault, load, VARIANTS[ALL]) for load in LOADS]
        found += [Scenario(fault, "light", VARIANTS[name]) for name in (*fault.off, *COMPARED)]
    return found


def table(figures: Mapping[str, float]) -> str:
    """A row for each scenario."""
    rows = [
        "| one host | load | rules | off it after, s | errors | of calls | P99 before, ms | P99 meanwhile, ms |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for scenario in scenarios():
        found = {name: figures.get(f"{scenario.name}_{name}") for name in MEASURED}
        if found["errors"] is None:
            continue
        never = found["divert_s"] is not None and found["divert_s"] > scenario.seconds - 0.1
        cells = [
            scenario.fault.label,
            f"{LOADS[scenario.load]:g}",
            scenario.variant.label,
            "never" if never else f"{found['divert_s']:.2f}",
            f"{found['errors']:.0f}",
            f"{found['error_share']:.2%}",
            f"{found['p99_before_ms']:.0f}",
            f"{found['p99_ms']:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
