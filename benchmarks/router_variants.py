"""The rules that faults are met by: all defences, all but one, none, and the baselines. Each is a Policy and a Route.

They are written as manifests, as an operator would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modelyard.registry.v1 import objects_pb2
from yardctl import manifests

ALL = "all"
_NO_GUARDS = {"penalties": False, "ejection": False, "circuits": False, "shedding": False}


@dataclass(frozen=True, slots=True)
class Variant:
    """A set of rules."""

    name: str
    label: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a Policy's spec, besides the hedges that all but those that say otherwise have."""
    attempts: int = 3
    """Most of a call."""

    @property
    def route(self) -> str:
        """Name of its route, and of its policy."""
        return f"faults-{self.name.replace('_', '-')}"

    def documents(self, model: str) -> list[dict[str, Any]]:
        """Its policy and its route, as manifests."""
        tier = {"name": "ordinary", "priority_band": 4}
        spec = {"tiers": [tier], "retry": {"max_attempts": self.attempts}, "hedge": {"enabled": True}, **self.policy}
        return [
            {"kind": "Policy", "metadata": {"name": self.route}, "spec": spec},
            {
                "kind": "Route",
                "metadata": {"name": self.route},
                "spec": {
                    "single": {"target": {"model": model}},
                    "policy": self.route,
                    "max_attempts": self.attempts,
                },
            },
        ]


def _without(*defences: str) -> dict[str, Any]:
    return {"protection": dict.fromkeys(defences, False)}


def _baseline(strategy: str) -> dict[str, Any]:
    return {"balancing": {"strategy": strategy}, "protection": _NO_GUARDS, "hedge": {"enabled": False}}


VARIANTS: Mapping[str, Variant] = {
    each.name: each
    for each in (
        Variant(ALL, "all defences"),
        Variant("no_penalties", "no penalties", _without("penalties")),
        Variant("no_ejection", "no ejection", _without("ejection")),
        Variant("no_circuits", "no circuits", _without("circuits")),
        Variant("no_retries", "no retries", attempts=1),
        Variant("no_hedges", "no hedges", {"hedge": {"enabled": False}}),
        Variant("none", "no defence at all", {"protection": _NO_GUARDS, "hedge": {"enabled": False}}, attempts=1),
        Variant("round_robin", "round robin, retries only", _baseline("ROUND_ROBIN")),
        Variant("random", "random, retries only", _baseline("RANDOM")),
        Variant("least_loaded", "least loaded, retries only", _baseline("LEAST_LOADED")),
    )
}
"""By name."""


def objects_of(variant: Variant, model: str, folder: Path) -> Sequence[objects_pb2.Object]:
    """The variant's objects.

    Args:
        variant: The rules.
        model: Whom its route leads to.
        folder: Where its manifest is written.
    """
    file = folder / f"{variant.route}.yaml"
    file.write_text(yaml.safe_dump_all(variant.documents(model)))
    return [document.object for document in manifests.load([file])]
