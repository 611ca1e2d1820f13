"""The parts of the router's benchmark: each is a module of its own that says what it measures, and measures it."""

import importlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Figures = dict[str, float]
Goal = tuple[str, float]
"""`<=` or `>=`, and the value."""

TITLES: Mapping[str, str] = {
    "decisions": "What a decision costs",
    "canary": "Canaries",
    "replay": "Replay of the decision log",
    "balance": "Unequal hosts, against baselines",
    "ladder": "Cascade and choose on a real ladder",
    "cache": "Cache and coalescing",
    "faults": "Faults",
}
"""Of every part, by name, in the order in which they run. `benchmarks.router_NAME` measures it."""

_TAKEN_BY: Mapping[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
}


class PartMissing(Exception):
    """There is no module for a part, or it lacks what a part has; the text says what."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one module measures."""

    name: str
    explained: Mapping[str, str]
    """What each figure is."""
    goals: Mapping[str, Goal]
    figures: Callable[..., Coroutine[Any, Any, Figures]]
    """Measures; takes `seed`."""
    table: Callable[[Mapping[str, float]], str] | None
    """Its own way to show them, as Markdown; then the page lists only those that have a goal."""

    @property
    def title(self) -> str:
        """Of its section."""
        return TITLES[self.name]

    def goal(self, figure: str) -> str:
        """Of a figure, in a table; empty if it has none."""
        if figure not in self.goals:
            return ""
        sign, bound = self.goals[figure]
        return f"{'≤' if sign == '<=' else '≥'} {bound:g}"

    def is_missed(self, figure: str, value: float) -> bool:
        """Whether there is a goal, and a value is not there."""
        if figure not in self.goals:
            return False
        sign, bound = self.goals[figure]
        return not _TAKEN_BY[sign](value, bound)

    def missed(self, figures: Mapping[str, float]) -> list[str]:
        """Goals that these figures do not reach."""
        return [name for name in self.goals if name in figures and self.is_missed(name, figures[name])]

    def unmeasured(self, figures: Mapping[str, float]) -> list[str]:
        """Goals that these figures say nothing of."""
        return [name for name in self.goals if name not in figures]


def part(name: str) -> Part:
    """A part by name.

    Raises:
        PartMissing: There is no such module, or it is no part.
    """
    where = f"benchmarks.router_{name}"
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name != where:
            raise
        raise PartMissing(f"there is no {where}: name the parts to run with --only") from None
    return part_of(name, module)


def part_of(name: str, module: ModuleType) -> Part:
    """What a module measures.

    Raises:
        PartMissing: It lacks something, or sets a goal for a figure that it does not explain.
    """
    lacking = [each for each in ("figures", "EXPLAINED", "GOALS") if not hasattr(module, each)]
    if lacking:
        raise PartMissing(f"{module.__name__} lacks {', '.join(lacking)}")
    unknown = [
        each for each, (sign, _) in module.GOALS.items() if each not in module.EXPLAINED or sign not in _TAKEN_BY
    ]
    if unknown:
        raise PartMissing(
            f"{module.__name__} has goals of figures that it does not explain, or with another sign "
            f"than <= or >=: {', '.join(unknown)}"
        )
    return Part(name, module.EXPLAINED, module.GOALS, module.figures, getattr(module, "table", None))


def parts(names: Sequence[str]) -> list[Part]:
    """Parts by name, all or none, in the order in which they run.

    Raises:
        PartMissing: One cannot be had.
    """
    return [part(name) for name in TITLES if name in names]
