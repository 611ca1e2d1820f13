"""What all decisions of one request cost: the router's own pipeline, over hosts that answer at once.

Decisions: what the name leads to, the rules and the deadline, whether it may enter, which version, which host. Each is
made in a router through which calls go meanwhile, so that nothing is decided by what was known once.

The whole: CPU of everything that the router does for a call between the wires: also purses, the attempt, learning from
the answer, metrics. The hop itself is not in it: a host answers without being asked over any wire, and what that takes
is measured by itself and taken off. The worlds are random, and the same for a seed.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.chassis.shared_counts import LocalCounts
from services.chassis.telemetry import Telemetry
from services.domain.clock import SystemClock
from services.domain.host import Device, DeviceKind, HostedModel, HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState, TensorMeta, TensorSpec
from services.domain.objects import Backend, Choose, Metadata, Model, ModelVersion, Object, Route, RouteTarget, Single
from services.domain.request import InferCall, RouteOptions
from services.domain.rng import KeyedRng
from services.domain.service_class import ServiceClass
from services.policy.balancing import Draw
from services.router.attempting import HostAnswer
from services.router.composing import Composer
from services.router.entering import Entrance
from services.router.feedback import Feedback
from services.router.host_picking import Fleet
from services.router.pipeline import Limits, Pipeline
from services.router.planning import Plan
from services.router.settling import settle
from services.router.snapshot import Objects, Snapshot
from services.router.strategies.course import draw_key

CALLS = 300
"""Of one repetition."""

REPETITIONS = 15
WARM = 30
"""How often each call is made before: until the tables have settled for what it leads to."""

COPIES = 4
"""Hosts that have each model."""

ROUTES = 100
"""Routes that the calls of the worlds that are compared go over in turn, as many in the small one as in the large."""

TIGHT_S = 0.006
"""A promise in the middle of what hosts take: the best model is often one that may be late."""

SPEC = TensorSpec("x", "FP32", (-1, 4))
INPUTS = (TensorMeta("x", "FP32", (1, 4), raw_bytes=16),)

EXPLAINED: Mapping[str, str] = {
    "decide_10_us": "CPU µs of all decisions of a request: `choose` of 10 models, each on 4 hosts",
    "decide_200_us": "the same of 200 models",
    "decide_200_tight_us": "the same of 200 models whose promises many of their hosts can hardly keep",
    "decide_single_10_us": "CPU µs of all decisions of a request: one model on 10 hosts",
    "decide_single_200_us": "the same on 200 hosts",
    "whole_10_us": "CPU µs of the whole call less the hop, bookkeeping and metrics included: `choose` of 10 models",
    "whole_200_us": "the same of 200 models",
    "whole_single_us": "the same of one model on 10 hosts",
    "decide_growth": "decisions among 10 models with 10,000 models on 1,000 hosts ÷ with 100 models on 10 hosts",
    "whole_growth": "the same of the whole call less the hop",
}

GOALS: Mapping[str, tuple[str, float]] = {
    "decide_10_us": ("<=", 25.0),
    "decide_200_us": ("<=", 60.0),
    "decide_single_10_us": ("<=", 25.0),
    "decide_single_200_us": ("<=", 60.0),
    "decide_growth": ("<=", 1.25),
}


class InstantHosts:
    """Hosts that answer at once, each with a report of its own speed."""

    def __init__(self, chance: random.Random) -> None:
        """Speeds by `chance`."""
        self._chance = chance
        self._loads: dict[tuple[str, ModelKey], tuple[ModelLoad, ...]] = {}
        self._sequence = 0

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Answer."""
        loads = self._loads.get((host.host_id, key))
        if loads is None:
            base_s = self._chance.uniform(0.002, 0.010)
            loads = self._loads[host.host_id, key] = (ModelLoad(key, 0, 1, 4, base_s, base_s / 10),)
        self._sequence += 1
        load = HostLoad(host.host_id, self._sequence, loads, 0, 0.0, False)
        return HostAnswer(payload, 0.0, 0.0, 1, load)


@dataclass
class World:
    """A router over hosts, and calls for it."""

    pipeline: Pipeline
    hosts: InstantHosts
    calls: Sequence[InferCall]
    record: HostRecord
    key: ModelKey

    async def run(self, count: int) -> float:
        """CPU µs of one of `count` calls, hops included."""
        route, calls = self.pipeline.route, [self.calls[at % len(self.calls)] for at in range(count)]
        start_ns = time.thread_time_ns()
        for call in calls:
            await route(call, remaining_s=30.0)
        return (time.thread_time_ns() - start_ns) / 1e3 / count

    async def decide(self, count: int) -> float:
        """CPU µs of the decisions of one of `count` calls."""
        pipeline, limit = self.pipeline, Entrance(LocalCounts(), most=100, routers=1, refused=lambda _: None)
        planner, view, clock, rng = pipeline._planner, pipeline._catalog.snapshot, pipeline._clock, pipeline._rng
        calls = [self.calls[at % len(self.calls)] for at in range(count)]
        start_ns = time.thread_time_ns()
        for call in calls:
            now_s, snapshot = clock.now_s(), view()
            assert snapshot is not None
            destination = snapshot.fits(call.name, call.version, call.inputs)
            assert destination is not None
            rules, allowed = settle(call, snapshot, destination, 30.0)
            limit.enter(rules, destination.route, 0, now_s)
            draw = Draw(lambda purpose, call=call: rng.bits(draw_key(call), f"{purpose}/1"))  # type: ignore[misc]
            plan = planner.plan(call, destination, now_s=now_s, remaining_s=allowed.duration_s, draw=draw, rules=rules)
            assert isinstance(plan, Plan)
        return (time.thread_time_ns() - start_ns) / 1e3 / count

    async def hop(self, count: int) -> float:
        """CPU µs of one of `count` hops by themselves."""
        execute, record, key, ordinary = self.hosts.execute, self.record, self.key, ServiceClass()
        start_ns = time.thread_time_ns()
        for _ in range(count):
            await execute(record, key, b"", service_class=ordinary, timeout_s=1.0)
        return (time.thread_time_ns() - start_ns) / 1e3 / count


def world(
    models: int,
    hosts: int,
    candidates: int,
    *,
    seed: int,
    routes: int = 1,
    copies: int = COPIES,
    promised_s: float = 0.5,
) -> World:
    """A router that knows `models` on `hosts`, with `choose` routes of so many `candidates`; `single` ones of 1."""
    chance = random.Random(seed)
    placed: list[list[HostedModel]] = [[] for _ in range(hosts)]
    objects: list[Object] = []
    for number in range(models):
        name = f"model-{number:05}"
        version = ModelVersion(
            Metadata(name),
            "1.0.0",
            Backend("identity"),
            quality=chance.uniform(0.5, 0.99),
            cost_microusd=chance.randrange(1, 200),
            service_time_s=0.005,
        )
        objects += [Model(Metadata(name), (SPEC,), (replace(SPEC, name="y"),), latency_slo_s=promised_s), version]
        for at in chance.sample(range(hosts), min(copies, hosts)):
            placed[at].append(HostedModel(version.model_key, ModelState.READY))
    names = [f"model-{number:05}" for number in range(models)]
    named = [
        Route(
            Metadata(f"route-{at}"),
            Single(RouteTarget(names[at]))
            if candidates == 1
            else Choose(tuple(RouteTarget(name) for name in chance.sample(names, candidates))),
        )
        for at in range(routes)
    ]
    records = [
        HostRecord(
            f"host-{at:04}",
            "127.0.0.1:1",
            "cpu",
            "",
            Device(DeviceKind.CPU, "cpu", 1 << 30),
            tuple(those),
            False,
            1,
            False,
        )
        for at, those in enumerate(placed)
    ]
    clock = SystemClock()
    fleet = InstantHosts(chance)
    telemetry = Telemetry(service="router", instance="bench", otlp_endpoint=None, sample_ratio=0.0)
    snapshot = Snapshot(Objects().changed(1, [*objects, *named]), {record.host_id: record for record in records})
    pipeline = Pipeline(
        catalog=_Fixed(snapshot),
        hosts=fleet,
        feedback=Feedback(telemetry=telemetry, clock=clock),
        clock=clock,
        rng=KeyedRng(seed),
        fleet=Fleet(routers=2, zone="", zone_way_s=0.002),
        limits=Limits(most_in_flight=100, reserve_s=0.005, retry_share=1.0, money_share=1.0),
        counts=LocalCounts(),
        composes=Composer(),
    )
    calls = [
        InferCall(f"route-{at % routes}", "", f"r{at}", INPUTS, RouteOptions(), None, f"{at:032x}", b"")
        for at in range(CALLS)
    ]
    record = next(record for record in records if record.models)
    return World(pipeline, fleet, calls, record, record.models[0].key)


@dataclass(frozen=True)
class _Fixed:
    current: Snapshot

    def snapshot(self) -> Snapshot:
        return self.current


class Cost(NamedTuple):
    """CPU µs of a call."""

    decisions: float
    whole: float
    """Less the hop."""


async def _cost(worlds: Sequence[World]) -> list[Cost]:
    """Of each world; in turn, so that what else the machine does falls on all of them."""
    for each in worlds:
        await each.run(WARM * len(each.calls))
    rounds = [
        [Cost(await each.decide(CALLS), await each.run(CALLS) - await each.hop(CALLS)) for each in worlds]
        for _ in range(REPETITIONS)
    ]
    return [Cost(*map(statistics.median, zip(*costs, strict=True))) for costs in zip(*rounds, strict=True)]


async def figures(*, seed: int) -> dict[str, float]:
    """Measure; see `EXPLAINED`."""
    ten, many, tight = await _cost(
        [
            world(10, 16, 10, seed=seed),
            world(200, 64, 200, seed=seed),
            world(200, 64, 200, seed=seed, promised_s=TIGHT_S),
        ]
    )
    single, wide = await _cost([world(1, count, 1, seed=seed, copies=count) for count in (10, 200)])
    small, large = await _cost(
        [world(100, 10, 10, seed=seed, routes=ROUTES), world(10_000, 1_000, 10, seed=seed, routes=ROUTES)]
    )
    return {
        "decide_10_us": ten.decisions,
        "decide_200_us": many.decisions,
        "decide_200_tight_us": tight.decisions,
        "decide_single_10_us": single.decisions,
        "decide_single_200_us": wide.decisions,
        "whole_10_us": ten.whole,
        "whole_200_us": many.whole,
        "whole_single_us": single.whole,
        "decide_growth": large.decisions / small.decisions,
        "whole_growth": large.whole / small.whole,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(figures(seed=1))))
