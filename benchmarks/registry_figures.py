"""The figures of a registry by name: what is measured at each size, and what is said of all sizes together."""

from collections.abc import Sequence

Figures = dict[str, float]

AT_EACH_SIZE = {
    "apply_1000_at_{}_ms": "a change of 1,000 objects, P50",
    "apply_1000_at_{}_cpu_ms": "of it, CPU of the registry",
    "create_1000_at_{}_ms": "1,000 new objects, P50 of the last five times while it was filled",
    "apply_1_at_{}_ms": "a change of one object, P50",
    "apply_1_at_{}_cpu_ms": "of it, CPU of the registry",
    "get_{}_p50_ms": "Get, P50",
    "get_missing_{}_ms": "Get of what is not there, P50",
    "list_page_{}_ms": "List, a page of 500, P50",
    "list_first_page_{}_ms": "List, the first page after a change, P50",
    "registry_cold_start_{}_s": "the registry from the start of its process until it serves, s",
    "registry_cold_start_{}_cpu_s": "of it, its CPU, s",
    "registry_rss_{}_mb": "its memory 3 s later, MB",
    "router_cold_start_{}_s": "a router without a snapshot on disk, likewise, s",
    "router_cold_start_{}_cpu_s": "of it, its CPU, s",
    "router_rss_{}_mb": "its memory 3 s later, MB",
    "apply_to_route_{}_p50_ms": "from Apply's answer until the router goes by it, P50",
    "apply_to_route_{}_p99_ms": "P99 of the same",
    "send_to_route_{}_p50_ms": "from Apply's sending until then, P50",
    "send_to_route_{}_p99_ms": "P99 of the same",
    "etcd_{}_mb": "etcd's database by then, MB",
}
"""By what stands for the size; milliseconds where nothing else is said."""

OVER_ALL = {
    "apply_growth": "apply_1000_at_ of the largest size ÷ that of the smallest",
    "apply_cpu_growth": "the same of the registry's CPU",
    "apply_1_growth": "the same of a change of one object",
    "get_p50_ms": "Get at the largest size, P50",
    "list_page_ms": "List at the largest size, P50",
    "apply_to_route_p50_ms": "from Apply's answer until the router goes by it, at the largest size, P50",
    "apply_to_route_p99_ms": "P99 of the same; the goal is 150",
}


def label(count: int) -> str:
    """What stands for a size in names."""
    return f"{count // 1000}k" if count >= 1000 else str(count)


def over_all(figures: Figures, sizes: Sequence[int]) -> Figures:
    """What is said of all sizes together."""
    least, most = label(sizes[0]), label(sizes[-1])

    def growth(name: str) -> float:
        below = figures[name.format(least)]
        return figures[name.format(most)] / below if below else 0.0

    return {
        "apply_growth": growth("apply_1000_at_{}_ms"),
        "apply_cpu_growth": growth("apply_1000_at_{}_cpu_ms"),
        "apply_1_growth": growth("apply_1_at_{}_ms"),
        "get_p50_ms": figures[f"get_{most}_p50_ms"],
        "list_page_ms": figures[f"list_page_{most}_ms"],
        "apply_to_route_p50_ms": figures[f"apply_to_route_{most}_p50_ms"],
        "apply_to_route_p99_ms": figures[f"apply_to_route_{most}_p99_ms"],
    }


def fan_out_names(watchers: int) -> dict[str, str]:
    """The figures of the fan-out, and what they are."""
    return {
        f"fanout_{watchers}_p50_ms": f"from an apply's sending until the last of {watchers:,} watchers has it, P50",
        f"fanout_{watchers}_p99_ms": "P99 of the same",
        "fanout_registry_cpu_ms": "CPU of the registry for it, the apply included",
        "fanout_readers_cpu_ms": "CPU of the process that the watchers are in",
    }
