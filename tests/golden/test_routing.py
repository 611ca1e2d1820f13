"""Routing scenarios as text: commands, `----`, and what is decided.

Commands: `model NAME [slo_ms=] [VERSION:QUALITY:COST:MS ...]`, `route NAME MODEL...` (it chooses),
`host ID NAME[:VERSION]... [zone=]`, `gone ID`, `fails ID ERROR [MESSAGE]`, `answers ID`, `takes MS`, `wait SECONDS`,
`zone NAME` (the router's own), and what decides: `call NAME [prefer=] [cost=] [quality=] [zone=] [deadline=] [once]`
(one call, in words) and `calls COUNT NAME` (how many each host got).
`GOLDEN_UPDATE=1` writes what is decided into the files; read the difference before committing it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.domain import errors
from services.domain.errors import YardError
from services.domain.host import HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Model, ModelVersion, Object
from services.domain.request import Preference, RouteOptions
from services.router.decision import Decision
from tests.fakes.objects import a_host, a_model
from tests.unit.router.yards import World, a_call, a_choice, a_snapshot, rated

SCENARIOS = sorted((Path(__file__).parent / "routing").glob("*.txt"))


class Yard:
    """What the commands of one scenario have built up."""

    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.hosts: dict[str, HostRecord] = {}
        self.world = World([], [])
        self.count = 0

    async def run(self, line: str) -> list[str]:
        """Carry out one command; what it decides, if it decides."""
        verb, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        match verb:
            case "model":
                self._model(plain, options)
            case "route":
                self.objects.append(a_choice(plain[0], *plain[1:]))
            case "host":
                keys = [ModelKey(*(word.split(":") if ":" in word else (word, "1.0.0"))) for word in plain[1:]]
                models = [HostedModel(key, ModelState.READY) for key in keys]
                self.hosts[plain[0]] = a_host(plain[0], *models, zone=options.get("zone", ""))
            case "gone":
                del self.hosts[plain[0]]
            case "fails":
                error = getattr(errors, plain[1])(" ".join(plain[2:]) or "it failed", retry_after_s=0.1)
                self.world.hosts.fail(plain[0], error)
            case "answers":
                self.world.hosts.heal(plain[0])
            case "takes":
                self.world.hosts.took_s = float(plain[0]) / 1e3
            case "wait":
                self.world.clock.advance(float(plain[0]))
            case "zone":
                self.world = World([], [], zone=plain[0])
            case "call":
                return [await self._call(plain[0], options, once="once" in plain)]
            case "calls":
                return [await self._calls(int(plain[0]), plain[1])]
            case _:
                raise ValueError(f"no such command: {line}")
        self.world.catalog.current = a_snapshot(self.objects, self.hosts.values(), revision=1)
        return []

    def _model(self, plain: list[str], options: dict[str, str]) -> None:
        slo_s = float(options["slo_ms"]) / 1e3 if "slo_ms" in options else None
        self.objects = [item for item in self.objects if item.metadata.name != plain[0]]
        model: Model = replace(a_model(plain[0]), latency_slo_s=slo_s)
        self.objects.append(model)
        for word in plain[1:] or ["1.0.0:-:0:1"]:
            number, quality, cost, ms = word.split(":")
            version: ModelVersion = rated(
                plain[0], number, quality=None if quality == "-" else float(quality), cost=int(cost)
            )
            self.objects.append(replace(version, service_time_s=float(ms) / 1e3))

    async def _call(self, name: str, options: dict[str, str], *, once: bool) -> str:
        wishes = RouteOptions(
            max_cost_microusd=int(options["cost"]) if "cost" in options else None,
            min_quality=float(options["quality"]) if "quality" in options else None,
            prefer=Preference[options.get("prefer", "balanced").upper()],
            zone=options.get("zone", ""),
            idempotent=not once,
        )
        self.count += 1
        call = a_call(name, request_id=f"r{self.count}", options=wishes)
        try:
            decision = await self.world.decide(call, remaining_s=float(options.get("deadline", "30")))
        except YardError as error:
            return f"{type(error).__name__}: {error.message}"
        return f"{_path(decision)}: {decision.reason}"

    async def _calls(self, count: int, name: str) -> str:
        served: Counter[str] = Counter()
        for _ in range(count):
            self.count += 1
            try:
                decision = await self.world.decide(a_call(name, request_id=f"r{self.count}"))
            except YardError as error:
                served[type(error).__name__] += 1
            else:
                assert decision.host is not None
                served[decision.host.host_id] += 1
                served["retried"] += len(decision.attempts) > 1
        return ", ".join(f"{who} {number}" for who, number in sorted(served.items()) if number)


def _path(decision: Decision) -> str:
    assert decision.version is not None
    tried = " then ".join(attempt.host_id for attempt in decision.attempts)
    return f"{decision.version.model_key}@{tried}"


def _blocks(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Commands and what is expected of them, blank line by blank line."""
    for block in text.strip().split("\n\n"):
        commands, _, expected = block.partition("----")
        yield commands.strip().splitlines(), expected.strip().splitlines()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
async def test_calls_are_routed_as_written(path: Path) -> None:
    yard = Yard()
    written = []
    for commands, expected in _blocks(path.read_text()):
        decided = [line for command in commands if not command.startswith("#") for line in await yard.run(command)]
        written.append("\n".join([*commands, "----", *decided]))
        if "GOLDEN_UPDATE" not in os.environ:
            assert decided == expected, "\n".join(commands)
    if "GOLDEN_UPDATE" in os.environ:
        path.write_text("\n\n".join(written) + "\n")
