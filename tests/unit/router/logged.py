"""A router whose decisions are logged, over a random fleet, for tests of the log and of its replay."""

import asyncio
import contextlib
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.inference.v1 import inference_pb2
from services.chassis.delimited import Delimited
from services.chassis.shared_counts import LocalCounts
from services.chassis.telemetry import Telemetry
from services.domain.clock import ManualClock
from services.domain.errors import HostUnavailable, ModelFailed, Overloaded, YardError
from services.domain.host import HostedModel, HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState
from services.domain.objects import (
    Cache,
    Choose,
    Metadata,
    Object,
    Policy,
    Route,
    RouteTarget,
    SegmentQuality,
    Single,
    Tenant,
)
from services.domain.request import InferCall, Preference, RouteOptions
from services.domain.rng import KeyedRng
from services.domain.service_class import OPEN, ServiceClass
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    Cascade,
    CascadeStep,
    Escalation,
    Fallback,
    HashKey,
    RouteName,
    Shadow,
    Split,
    SplitTarget,
)
from services.domain.tenancy import (
    Balancing,
    BalancingStrategy,
    Budget,
    HedgeRules,
    PriceRules,
    Protection,
    SessionAffinity,
    Tier,
    ZoneSpill,
)
from services.policy.keeping import Kept
from services.router.attempting import AttemptFailed, HostAnswer
from services.router.cache import AnswerCache, Entry
from services.router.canonical import Canonical
from services.router.composing import Composer
from services.router.decision_log import DecisionLog
from services.router.feedback import Feedback
from services.router.frames import Payload
from services.router.host_picking import Fleet
from services.router.log_entries import Entries, Origin
from services.router.log_files import LogFiles
from services.router.pipeline import Limits, Pipeline
from services.router.replaying import Replay, Tally
from services.router.snapshot import Objects, Snapshot
from tests.fakes.objects import a_host, a_model
from tests.unit.router.yards import FixedCatalog, a_call, rated

SEED = 20_26


class Count:
    """A counter."""

    def __init__(self) -> None:
        """At 0."""
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """So many more."""
        self.value += amount


class RandomHosts:
    """Hosts that answer, fail and report by chance, each after some time of the manual clock."""

    def __init__(self, clock: ManualClock, chance: random.Random) -> None:
        """By `chance`."""
        self._clock = clock
        self._chance = chance
        self._sequence = 0

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Answer or fail."""
        chance = self._chance
        for _ in range(chance.randrange(4) if chance.random() < 0.9 else 12):
            await asyncio.sleep(0)
        self._clock.advance(chance.random() * 0.003)
        self._sequence += 1
        many = chance.random() < 0.3
        load = ModelLoad(
            key,
            chance.randrange(20),
            chance.randrange(4),
            chance.choice((1, 4, 8)),
            chance.random() * 0.004,
            chance.random() * 0.001,
            tuple(sorted(chance.randrange(12) for _ in range(8))) if many else (),
            chance.choice((0.0, 0.0, 0.2)),
        )
        cutoff = OPEN if chance.random() < 0.9 else chance.randrange(200, 1200)
        report = HostLoad(host.host_id, self._sequence, (load,), 0, 0.0, False, cutoff)
        if chance.random() < 0.04:
            error: YardError = chance.choice((HostUnavailable, ModelFailed, Overloaded))("by chance")
            error.retry_after_s = 0.01
            raise AttemptFailed(error, report)
        return HostAnswer(_answer(chance), chance.random() * 0.001, chance.random() * 0.002, 1, report)


def _answer(chance: random.Random) -> bytes:
    response = inference_pb2.InferResponse(model_name="m")
    response.outputs.add(name="y", datatype="FP32", shape=[1, 4])
    response.raw_output_contents.append(struct.pack("<4f", *(chance.random() for _ in range(4))))
    return response.SerializeToString()


MODELS = ("small", "large", "huge")
SURE = Calibration((CalibrationPoint(0.1, 0.2), CalibrationPoint(0.9, 0.8)))
TIERS = (
    Tier("gold", 1),
    Tier("silver", 3, quality_weight=1.5, exploration=0.1),
    Tier("bulk", 6, sheddable=True),
)

BALANCED = {
    "turns": Balancing(BalancingStrategy.ROUND_ROBIN),
    "any": Balancing(BalancingStrategy.RANDOM),
    "fewest": Balancing(BalancingStrategy.LEAST_LOADED),
    "zoned": Balancing(affinity=SessionAffinity(True, 1.5), zones=ZoneSpill(0.3, 0.001)),
}
"""By the name of a route and of its policy."""


def objects_of(generation: int) -> list[Object]:
    """Objects of a revision; quality and prices change with each."""
    versions = [
        replace(
            rated(model, version, quality=0.5 + at / 10 + generation / 100, cost=10 * at + generation),
            segment_qualities=(SegmentQuality("", "language=de", 0.9 - at / 10),),
        )
        for at, model in enumerate(MODELS)
        for version in ("1.0.0", "1.1.0")
    ]
    return [
        *(replace(a_model(model), latency_slo_s=0.02, availability_slo=0.5, deterministic=True) for model in MODELS),
        *versions,
        Policy(
            Metadata("default"),
            TIERS,
            default_tier="silver",
            hedge=HedgeRules(True, 0.5),
            price=PriceRules(step=0.001, interval_s=1.0),
        ),
        Policy(Metadata("bare"), TIERS, protection=Protection(False, generation % 2 == 0, True, False)),
        Tenant(Metadata("acme"), policy="default", tier="silver", budget=Budget(1000 + generation, 1.0)),
        Tenant(Metadata("bold"), policy="bare", tier="bulk"),
        Route(Metadata("pick"), Choose(tuple(map(RouteTarget, MODELS)), latency_weight=1.0 + generation)),
        Route(Metadata("one"), Single(RouteTarget("small"))),
        Route(
            Metadata("canary"),
            Split(
                (SplitTarget(RouteTarget("small", "1.0.0"), 75.0), SplitTarget(RouteTarget("large"), 25.0)),
                HashKey.SESSION,
            ),
        ),
        Route(Metadata("always"), Fallback((RouteTarget("huge", "1.1.0"), RouteName("one")))),
        Route(Metadata("kept"), Choose(tuple(map(RouteTarget, MODELS))), cache=Cache(ttl_s=0.05)),
        Route(
            Metadata("kept-canary"),
            Split((SplitTarget(RouteTarget("small"), 75.0), SplitTarget(RouteTarget("large"), 25.0))),
            cache=Cache(ttl_s=0.05, stale_s=0.1),
        ),
        Route(
            Metadata("careful"),
            Cascade(
                (
                    CascadeStep(RouteTarget("small"), Escalation("y", 0.5, SURE, audit_share=0.5)),
                    CascadeStep(RouteTarget("large"), Escalation("y", 0.9)),
                    CascadeStep(RouteTarget("huge")),
                )
            ),
        ),
        Route(Metadata("copied"), Shadow(RouteTarget("small"), RouteTarget("large"))),
        *(
            item
            for name, rules in BALANCED.items()
            for item in (
                Policy(Metadata(name), TIERS, default_tier="silver", balancing=rules),
                Route(Metadata(name), Single(RouteTarget("small")), policy=name),
            )
        ),
    ]


def fleet_of(count: int, chance: random.Random, keys: Sequence[tuple[str, str]]) -> dict[str, HostRecord]:
    """Hosts, each with some of the versions."""
    hosts = {}
    for number in range(count):
        some = [HostedModel(ModelKey(*key), ModelState.READY) for key in keys if chance.random() < 0.7]
        host = a_host(f"host-{number:02}", *some)
        hosts[host.host_id] = replace(host, zone=chance.choice("abc"), pid=chance.randrange(1, 1000))
    return hosts


class LoggedWorld:
    """A pipeline over a random fleet, with a log that is written when a test says so."""

    def __init__(
        self, directory: Path, *, hosts: int = 14, seed: int = 1, zone: str = "a", ratio: float = 1.0,
        most_bytes: int = 1 << 30, most_files: int = 100, queued: int = 1 << 20,
    ) -> None:  # fmt: skip
        """Log into `directory`."""
        self.chance = random.Random(seed)
        self.clock = ManualClock()
        self.directory = directory
        self.objects: dict[int, Objects] = {}
        self.names: tuple[str, ...] = (
            "pick",
            "pick",
            "one",
            "canary",
            "always",
            "copied",
            "large",
            "careful",
            *BALANCED,
        )
        """What calls name."""
        self.dropped, self.written = Count(), Count()
        self.catalog = FixedCatalog(None)
        self._count = hosts
        self.apply()
        self.files = LogFiles(directory, "router@test:1", most_bytes=most_bytes, most_files=most_files)
        self.log = DecisionLog(
            self.files,
            Entries(Origin("router@test:1", "0", "p", SEED, 2, zone, 0.002, ratio)),
            own_zone=zone,
            ratio=ratio,
            clock=self.clock,
            written=self.written,
            dropped=self.dropped,
            queued=queued,
        )
        telemetry = Telemetry(service="router", instance="test", otlp_endpoint=None, sample_ratio=0.0)
        feedback = Feedback(telemetry=telemetry, clock=self.clock)
        kept: Kept[bytes, Entry] = Kept(1 << 20)
        self.pipeline = Pipeline(
            catalog=self.catalog,
            hosts=RandomHosts(self.clock, self.chance),
            feedback=feedback,
            clock=self.clock,
            rng=KeyedRng(SEED),
            fleet=Fleet(routers=2, zone=zone, zone_way_s=0.002),
            limits=Limits(most_in_flight=1000, reserve_s=0.005, retry_share=1.0, money_share=1.0),
            counts=LocalCounts(),
            composes=Composer(),
            recorder=self.log,
            cache=AnswerCache(kept=kept, messages=Canonical(bytes(16)), feedback=feedback, clock=self.clock),
        )

    def apply(self) -> None:
        """A new revision."""
        revision = len(self.objects) + 1
        self.objects[revision] = Objects().changed(revision, objects_of(revision))
        self.move()

    def move(self) -> None:
        """Other hosts; the first half stays."""
        keys = [(model, version) for model in MODELS for version in ("1.0.0", "1.1.0")]
        before = self.catalog.current
        hosts = fleet_of(self._count, self.chance, keys)
        if before is not None:
            hosts |= dict(list(before.hosts.items())[: self._count // 2])
        self.catalog.current = Snapshot(self.objects[max(self.objects)], hosts)

    def call(self, number: int) -> InferCall:
        """Some call."""
        chance = self.chance
        options = RouteOptions()
        if chance.random() < 0.5:
            options = RouteOptions(
                max_cost_microusd=chance.choice((None, 15)),
                min_quality=chance.choice((None, None, 0.55)),
                prefer=chance.choice(list(Preference)),
                zone=chance.choice(("", "", "b")),
                tenant=(tenant := chance.choice(("", "acme", "bold"))),
                tier=chance.choice(("", "bulk") if tenant == "bold" else ("", "silver", "bulk")),
                idempotent=chance.random() < 0.9,
                hedge=chance.random() < 0.9,
                session=f"s{chance.randrange(9)}",
                domain=chance.choice(("", "law")),
                complexity=chance.choice(("", "", "hard")),
                labels=chance.choice(((), (("language", "de"),))),
            )
        name = chance.choice(self.names)
        call = a_call(name, request_id=f"r{number}", options=options, timeout_s=chance.choice((None, 0.05)))
        return call._replace(payload=Payload(b""))

    async def run(self, count: int, *, at_once: int = 20, pause_s: float = 0.0) -> None:
        """Run calls, some at a time, with a pause after each few; the fleet and the revision change now and then."""
        for start in range(0, count, at_once):
            calls = [self.call(number) for number in range(start, min(count, start + at_once))]
            await asyncio.gather(*map(self._ask, calls))
            self.clock.advance(pause_s)
            self.pipeline.watch.step()
            if self.chance.random() < 0.01:
                self.move()
            if self.chance.random() < 0.002:
                self.apply()
            if start % 1000 == 0:
                self.log.write()
        await self.pipeline.close()
        self.log.close()

    async def _ask(self, call: InferCall) -> None:
        with contextlib.suppress(YardError):
            await self.pipeline.route(call, remaining_s=self.chance.choice((None, 0.03, 5.0)))

    def entries(self) -> Iterator[pb.LogEntry]:
        """Everything that was written, of all files."""
        for path in self.files.kept():
            yield from Delimited(path, pb.LogEntry)

    def replay(self) -> Tally:
        """What a replay comes to."""
        tally = Tally()
        for path in self.files.kept():
            replay = Replay(self.objects.get, tally)
            for entry in Delimited(path, pb.LogEntry):
                replay.take(entry)
        return tally
