"""The figures by name: what `make bench` ends with, what is recorded, and what the guard compares.

A ratio is taken within each repetition, whose two sides were measured seconds apart, and the middle one counts.
"""

from collections.abc import Callable

from benchmarks.measuring import Repetitions, Results, Spread
from benchmarks.shapes import EIGHT, MANY, ONE, SLOW, STREAM, STREAM_MANY, Load, SubjectName, Work

DIGITS = 3

HIGHER_IS_BETTER = ("aio_ratio", "native_ratio", "native_vs_envoy", "large_ratio", "stream_ratio", "mlp_ratio")
LOWER_IS_BETTER = ("tracing_cpu_ratio", "cpu_ratio", "p50_ratio")
RATIOS = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
"""Figures that say the same on any machine, more or less."""

EXPLAINED = {
    "aio_ratio": "throughput of the mesh on the aio engine ÷ the two-hop pair, 64 callers, 200 B",
    "native_rps": "requests/s of the mesh on the native engine, 64 callers, 200 B",
    "native_ratio": "native_rps ÷ the two-hop pair",
    "native_vs_envoy": "native_rps ÷ Envoy before a native echo",
    "cpu_us_per_request": "CPU µs of router and host, 64 callers, 200 B",
    "router_cpu_us": "of these the router's",
    "host_cpu_us": "of these the host's",
    "cpu_ratio": "cpu_us_per_request ÷ the two-hop pair's",
    "p50_ms_300rps": "P50 at 300/s open loop, from the intended send, 200 B",
    "p99_ms_300rps": "P99 of the same",
    "p50_ms_1": "P50 with 1 caller, 200 B",
    "p50_ratio": "p50_ms_1 ÷ the two-hop pair's",
    "rps_8": "requests/s with 8 callers, 200 B",
    "p99_ms_8": "P99 of the same",
    "v2_stream_rps": "requests/s by V2 ModelStreamInfer, 4 streams, 16 in flight on each, 200 B",
    "many_stream_rps": "requests/s by InferMany, as many",
    "stream_rps": "the better of the two",
    "stream_ratio": "stream_rps ÷ the two-hop pair with 64 unary callers",
    "large_ratio": "throughput with 600 KB and 8 callers ÷ the one-hop echo",
    "mlp_rps": "requests/s of the MLP, batched, 64 callers",
    "mlp_ratio": "mlp_rps ÷ the two-hop pair",
    "tracing_cpu_ratio": "CPU of router and host a request, 100 % of calls traced ÷ none, 64 callers, 200 B",
    "generator_cpu_us": "CPU µs of the load generator a request, while it takes native_rps (or aio's)",
}
"""In the order in which they are shown. Where no engine is named, the leading one is meant."""


def figures_of(results: Results, lead: SubjectName) -> dict[str, Spread | None]:
    """Every figure of `EXPLAINED`; None where it could not be measured.

    Args:
        results: What was measured.
        lead: The engine that figures without an engine's name are of.
    """

    def each(subject: SubjectName, load: Load, figure: str = "per_s", work: Work = "200 B") -> Repetitions:
        return results.of(subject, work, load).of(figure)

    pair = each("two-hop", MANY)
    native = each("native", MANY)
    v2 = each(lead, STREAM, work="ModelStreamInfer")
    many = each(lead, STREAM_MANY, work="InferMany")
    best = _pairwise(v2, many, max) if v2 and many else v2 or many
    mlp = each(lead, MANY, work="MLP")
    found: dict[str, Repetitions] = {
        "aio_ratio": _ratio(each("aio", MANY), pair),
        "native_rps": native,
        "native_ratio": _ratio(native, pair),
        "native_vs_envoy": _ratio(native, each("envoy", MANY)),
        "cpu_us_per_request": each(lead, MANY, "cpu_us"),
        "router_cpu_us": each(lead, MANY, "router_cpu_us"),
        "host_cpu_us": each(lead, MANY, "host_cpu_us"),
        "cpu_ratio": _ratio(each(lead, MANY, "cpu_us"), each("two-hop", MANY, "cpu_us")),
        "p50_ms_300rps": each(lead, SLOW, "p50_ms"),
        "p99_ms_300rps": each(lead, SLOW, "p99_ms"),
        "p50_ms_1": each(lead, ONE, "p50_ms"),
        "p50_ratio": _ratio(each(lead, ONE, "p50_ms"), each("two-hop", ONE, "p50_ms")),
        "rps_8": each(lead, EIGHT),
        "p99_ms_8": each(lead, EIGHT, "p99_ms"),
        "v2_stream_rps": v2,
        "many_stream_rps": many,
        "stream_rps": best,
        "stream_ratio": _ratio(best, pair),
        "large_ratio": _ratio(each(lead, EIGHT, work="600 KB"), each("one-hop", EIGHT, work="600 KB")),
        "mlp_rps": mlp,
        "mlp_ratio": _ratio(mlp, pair),
        "tracing_cpu_ratio": _ratio(each("traced", MANY, "cpu_us"), each("untraced", MANY, "cpu_us")),
        "generator_cpu_us": each(lead, MANY, "generator_cpu_us"),
    }
    return {name: Spread.of(found[name].values()) for name in EXPLAINED}


def _pairwise(left: Repetitions, right: Repetitions, join: Callable[[float, float], float]) -> Repetitions:
    return {number: join(left[number], right[number]) for number in left if number in right}


def _ratio(above: Repetitions, below: Repetitions) -> Repetitions:
    return {number: above[number] / below[number] for number in above if below.get(number)}


def rounded(value: float) -> float:
    """To three digits behind the point, or to a whole number where it is large."""
    return round(value) if abs(value) >= 1000 else round(value, DIGITS)


def medians(figures: dict[str, Spread | None]) -> dict[str, float | None]:
    """The middle of each."""
    return {name: rounded(spread.median) if spread else None for name, spread in figures.items()}
