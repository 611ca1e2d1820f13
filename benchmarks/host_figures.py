"""The figures of a model host by name: what each is, and its goal where there is one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Figures = dict[str, float]

_PROGRAMS = {
    "host": "the host",
    "many": "the host, with 40 tenants of each tier instead of 4",
    "fifo": "first come first served, without admission and drops",
    "unguarded": "the host's order, without admission and drops",
}
_GOODPUT_GOALS = {"2x": 0.97, "5x": 0.96, "10x": 0.95}
_REAL = ("digits-cnn", "minilm")
_SIZES = {"200b": "200 B", "600kb": "600 KB"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    what: str
    least: float | None = None
    """It should not be below this."""
    most: float | None = None
    """Nor above this."""

    @property
    def goal(self) -> str:
        """In a table."""
        if self.least is not None:
            return f"≥ {self.least:g}"
        return f"≤ {self.most:g}" if self.most is not None else ""

    def is_missed(self, value: float) -> bool:
        """Whether there is a goal, and a value is not there."""
        return (self.least is not None and value < self.least) or (self.most is not None and value > self.most)


def _overload() -> Iterator[tuple[str, Figure]]:
    yield "overload_peak_per_s", Figure("answers a second while there is always more to do: the peak")
    for program, said in _PROGRAMS.items():
        for scale in ("1x", "2x", "5x", "10x"):
            if program == "many" and scale != "10x":
                continue
            load = "0.95 of the peak" if scale == "1x" else f"{scale} of the peak"
            ours = program in ("host", "many")
            goodput = _GOODPUT_GOALS.get(scale) if ours else None
            gold = 0.999 if ours and scale == "10x" else None
            yield (
                f"goodput_{program}_{scale}",
                Figure(f"answers in time a second ÷ the peak, at {load}: {said}", goodput),
            )
            yield (
                f"gold_in_slo_{program}_{scale}",
                Figure("calls of the top tier answered in time, at the same", gold),
            )
            yield (
                f"wasted_{program}_{scale}",
                Figure("device time wasted by the host's own count, at the same", most=0.01 if ours else None),
            )
            yield f"late_{program}_{scale}", Figure("device time of answers that came too late for their caller")
    yield "overload_generator_late_p99_ms", Figure("the latest that calls left, P99 of the worst run", most=25.0)


def _batching() -> Iterator[tuple[str, Figure]]:
    for name in _REAL:
        yield f"batch_{name}_per_s", Figure(f"{name}: answers a second at the highest load that keeps its P99, batched")
        yield f"batch_{name}_gain", Figure("that ÷ the same one by one")
        yield f"batch_{name}_bare_gain", Figure("rows a second in a bare loop at its best batch ÷ one by one")
        yield f"batch_{name}_bare_per_s", Figure("rows a second in a bare loop at its best batch")
        yield f"batch_{name}_of_bare", Figure("answers a second of a host that always has more to do ÷ that")


def _fairness() -> Iterator[tuple[str, Figure]]:
    yield "fair_modest_share", Figure("share of a tenant that offers half the peak, beside a flood ten times as large")
    yield (
        "fair_modest_of_entitled",
        Figure("what it had ÷ half the device, or what it asked for if that was less", 0.95),
    )
    yield "fair_modest_answered", Figure("its calls that were answered")
    yield (
        "fair_jain_8",
        Figure("Jain's index of the device time of 8 tenants that want more than their share", 0.99),
    )
    yield "fair_least_8", Figure("the least of them ÷ the mean")
    yield "fair_most_8", Figure("the most of them ÷ the mean")
    yield "fair_device_busy_8", Figure("device time of all of them ÷ time")


def _prediction() -> Iterator[tuple[str, Figure]]:
    for name in _REAL:
        yield (
            f"predict_{name}_p50",
            Figure(f"{name}: how far off a batch's predicted time was, as a share of what it took, median"),
        )
        yield f"predict_{name}_p95", Figure("P95 of the same")
        yield f"predict_line_{name}_p50", Figure("the same by the line that outsiders are told, median")
        yield f"predict_line_{name}_p95", Figure("P95 of the same")
        yield f"predict_{name}_batches", Figure("batches compared")
    for name in ("minilm", "minilm-int8", "efficientnet-lite0"):
        yield f"memory_{name}_mb", Figure(f"{name}: memory on record, MB")
        yield f"memory_{name}_peak_mb", Figure("peak growth of a process that loads it and runs full batches, MB")
        yield f"memory_{name}_resident_mb", Figure("growth that stays after that, MB")
        yield f"memory_{name}_error", Figure("(on record - peak growth) ÷ peak growth; below 0: too little on record")


def _costs() -> Iterator[tuple[str, Figure]]:
    for size, said in _SIZES.items():
        for rows in (1, 8, 32):
            yield f"host_cpu_us_{size}_b{rows}", Figure(f"CPU µs of the host a request, {said}, batches up to {rows}")
            yield f"host_cpu_batch_{size}_b{rows}", Figure("calls of a batch meanwhile, on average")
    yield "copies_received_execute", Figure("copies of a 600 KB tensor, batch 1: an Execute's bytes taken apart")
    yield "copies_received_dispatch", Figure("the same, a Dispatch message's; besides what protobuf keeps in C")
    yield "copies_decoded", Figure("from the request's bytes to an array")
    yield "copies_into_torch", Figure("from the array into a torch tensor")
    yield "copies_answered", Figure("from the output to the answer's bytes")
    yield "array_is_view", Figure("1 if the array is a view of the received bytes")
    yield "torch_is_view", Figure("1 if the tensor is, too")
    yield "rss_growth_mb", Figure("growth of the host over all requests, MB", most=5.0)
    yield "rss_slope_mb_per_million", Figure("its slope, MB by million requests")
    yield "rss_slope_later_mb_per_million", Figure("the same over the second half")
    yield "rss_requests", Figure("requests")
    yield "rss_cancelled_share", Figure("of them cancelled before their answer came")
    yield "rss_failed", Figure("of them failed", most=0.0)


def _residency() -> Iterator[tuple[str, Figure]]:
    yield "resident_places", Figure("versions of 30 that the host has memory for")
    for name, said in (("cold", "read again from their files"), ("warm", "kept in the host's memory")):
        yield f"resident_{name}_miss_rate", Figure(f"calls that found their version away: versions {said}")
        yield f"resident_{name}_failed", Figure("calls that failed", most=0.0)
        yield f"resident_{name}_loads_per_s", Figure("versions brought in a second")
        yield f"resident_{name}_waited_p50_ms", Figure("time of calls that took over 20 ms: they waited for it")
        yield f"resident_{name}_waited_p99_ms", Figure("P99 of the same")
        yield f"resident_{name}_p50_ms", Figure("time of all calls, P50")
        yield f"resident_{name}_p99_ms", Figure("P99 of the same")
    yield "resident_lru_miss_rate", Figure("what the least recently used would have missed of the same calls")
    yield "resident_belady_miss_rate", Figure("Belady's bound for them")


SECTIONS: Mapping[str, tuple[str, Mapping[str, Figure]]] = {
    "overload": ("Overload", dict(_overload())),
    "batching": ("Batching", dict(_batching())),
    "fairness": ("Fairness", dict(_fairness())),
    "prediction": ("Prediction", dict(_prediction())),
    "residency": ("Versions that come and go", dict(_residency())),
    "costs": ("Costs of a request", dict(_costs())),
}
"""In the order in which they are measured and shown: title and figures by name."""

EXPLAINED: Mapping[str, Figure] = {name: figure for _, each in SECTIONS.values() for name, figure in each.items()}


def unmeasured(figures: Figures, sections: Iterable[str]) -> list[str]:
    """Names of those with a goal, in these sections, that are not there."""
    named = [(name, figure) for section in sections for name, figure in SECTIONS[section][1].items()]
    return [name for name, figure in named if figure.goal and name not in figures]


def missed(figures: Figures) -> list[str]:
    """Names of those that are not where they should be."""
    return [name for name, value in figures.items() if name in EXPLAINED and EXPLAINED[name].is_missed(value)]
