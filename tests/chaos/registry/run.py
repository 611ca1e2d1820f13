"""One run: a cluster under faults, with appliers and readers, and what the checker says of it in the end."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call, read
from services.domain.errors import YardError
from tests.chaos.registry import events
from tests.chaos.registry.appliers import Applier, Ledger
from tests.chaos.registry.checker import Verdict, judge
from tests.chaos.registry.cluster import Cluster, Recording, cluster, recording
from tests.chaos.registry.faults import Faults
from tests.chaos.registry.fencing import Fences
from tests.chaos.registry.planners import Planner
from tests.chaos.registry.readers import Follower, Reader, running
from tests.chaos.registry.recorder import read as read_record
from tests.chaos.registry.recorder import read_listing
from tests.chaos.registry.truth import Truth
from tests.support.relay import Relay

APPLIERS, READERS, PLANNERS = 6, 3, 2
MIN_ACKNOWLEDGED = 10
"""Requests that must be acknowledged in each round; without traffic a round proves nothing."""

ROUND_S = 1.0
"""Least time of a round."""

VOID_S = 45.0
"""A round that has not had its traffic by then makes the run void."""

SAY_EVERY = 25
"""Rounds."""

SETTLE_S = 60.0
CONVERGE_S = 30.0


class Void(Exception):
    """The run proves nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    rounds: int
    seed: int
    directory: Path
    bug: str = ""
    """Planted in the registries; see `faulty`."""
    faults: bool = True
    first: tuple[str, ...] = ()
    """Faults that come before those dealt by chance."""
    apart: bool = True
    keep_revisions: int = 400
    collect_every_s: float = 3.0
    pause_s: float = 0.06
    """Longest pause of an applier between two requests."""
    publish_s: float = 0.1
    """Pause of a leader between two plans through one replica."""
    round_s: float = ROUND_S
    converge_s: float = CONVERGE_S
    """How long readers may take to come to the head in the end."""
    say: Callable[[str], None] = lambda _: None
    """Told how it goes on, now and then."""


@dataclass(slots=True)
class Report:
    """What a run was and what came of it."""

    rounds: int = 0
    applies: int = 0
    acknowledged: int = 0
    least_acknowledged: int = 0
    """In any round."""
    unknown: int = 0
    resolved: int = 0
    done_unanswered: int = 0
    """Requests that were done although nobody answered; known by asking again."""
    revisions: int = 0
    collected: int = 0
    """Revisions that the collector deleted meanwhile."""
    faults: Counter[str] = field(default_factory=Counter)
    published: int = 0
    """Plans that leaders published."""
    led: int = 0
    """Writes of leaders that etcd took: plans, and the marks of collections."""
    resumes: int = 0
    """Of the readers' watches."""
    watch_cuts: int = 0
    """Of the product's watch of etcd."""
    no_network: str = ""
    verify: list[str] = field(default_factory=list)
    """What the product's own Verify found broken."""
    internal: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)

    def count(self, *parts: str) -> int:
        """Faults whose name has one of `parts`."""
        return sum(count for name, count in self.faults.items() if any(part in name for part in parts))


async def run(plan: Plan) -> Report:
    """Run it.

    Raises:
        Void: There was too little traffic.
    """
    report = Report()
    arguments = [
        *("--keep-revisions", str(plan.keep_revisions)),
        *("--collect-every-s", str(plan.collect_every_s)),
    ]
    plan.directory.mkdir(parents=True, exist_ok=True)
    async with (
        cluster(plan.directory, arguments=arguments, bug=plan.bug, apart=plan.apart) as made,
        recording(made.etcd.endpoints, plan.directory / "record") as record,
        _relays(made, plan) as relays,
    ):
        report.no_network = made.no_network
        ledger = Ledger()
        appliers = [
            Applier(
                number,
                seed=plan.seed,
                stubs=made.stubs,
                ledger=ledger,
                kept=plan.keep_revisions,
                pause_s=plan.pause_s,
            )
            for number in range(APPLIERS)
        ]
        readers = [Reader(number, made.stubs) for number in range(READERS)]
        follower = Follower("etcd watch", [address for _, address in relays])
        planners = [
            Planner(number, seed=plan.seed, endpoints=made.etcd.endpoints, stubs=made.stubs, pause_s=plan.publish_s)
            for number in range(PLANNERS)
        ]
        async with running(*readers, follower):
            async with running(*planners):
                await _rounds(plan, report, made, appliers, ledger)
            made.heal()
            await asyncio.gather(*(applier.settle_all(within_s=SETTLE_S) for applier in appliers))
            for relay, _ in relays:
                relay.cut_no_more()
            head = await _verified(made, report, plan.converge_s)
            await record.end()
            await _until(lambda: all(reader.heard.revision >= head for reader in readers), plan.converge_s)
            await _until(lambda: follower.revision >= record.last, plan.converge_s)
        report.published = sum(planner.published for planner in planners)
        report.watch_cuts = sum(relay.cuts for relay, _ in relays)
        report.resumes = sum(reader.heard.resumes for reader in readers)
    report.applies = sum(len(each.attempts) for each in ledger.asked.values())
    report.acknowledged, report.unknown, report.resolved = ledger.acknowledged, ledger.unknown, ledger.resolved
    report.done_unanswered = ledger.done_unanswered
    report.internal += ledger.internal
    await asyncio.to_thread(_judge, report, record, ledger, readers, follower)
    return report


@contextlib.asynccontextmanager
async def _relays(made: Cluster, plan: Plan) -> AsyncIterator[list[tuple[Relay, str]]]:
    """Relays to etcd's members whose connections are cut at ages by chance."""
    rng = random.Random(f"{plan.seed}/cuts")

    def age_s() -> float:
        # Every other one is cut about when the first changes come, just after the answer that opens the watch.
        return rng.uniform(0.005, 0.1) if rng.random() < 0.5 else rng.uniform(0.1, 2.0)

    relays = [Relay(endpoint, age_s=age_s) for endpoint in made.etcd.endpoints]
    try:
        yield [(relay, await relay.listen("127.0.0.1:0")) for relay in relays]
    finally:
        for relay in relays:
            await relay.close()


async def _rounds(plan: Plan, report: Report, made: Cluster, appliers: Sequence[Applier], ledger: Ledger) -> None:
    faults = Faults(made, seed=plan.seed, first=plan.first)
    tasks = [asyncio.create_task(applier.run()) for applier in appliers]
    least: list[int] = []
    try:
        await _traffic(tasks, ledger, ledger.acknowledged + MIN_ACKNOWLEDGED)
        for _ in range(plan.rounds):
            before, end_s = ledger.acknowledged, time.monotonic() + plan.round_s
            if plan.faults:
                await faults.round()
            await asyncio.sleep(max(0.0, end_s - time.monotonic()))
            await _traffic(tasks, ledger, before + MIN_ACKNOWLEDGED)
            least.append(ledger.acknowledged - before)
            report.rounds += 1
            if report.rounds % SAY_EVERY == 0:
                plan.say(f"round {report.rounds}: {ledger.acknowledged} acknowledged, {faults.done.total()} faults")
        await faults.end()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.least_acknowledged = min(least, default=0)
    report.faults = faults.done
    report.internal += faults.failed


async def _traffic(tasks: Sequence[asyncio.Task[None]], ledger: Ledger, wanted: int) -> None:
    """Wait until so many requests were acknowledged.

    Raises:
        Void: They were not in time.
    """
    end_s = time.monotonic() + VOID_S
    while ledger.acknowledged < wanted:
        for task in tasks:
            if task.done():
                task.result()
        if time.monotonic() > end_s:
            raise Void(f"{wanted - ledger.acknowledged} of {MIN_ACKNOWLEDGED} acknowledgements lack after {VOID_S:g} s")
        await asyncio.sleep(0.02)


async def _verified(made: Cluster, report: Report, within_s: float) -> int:
    """Let each replica verify the chain; returns the head."""
    head = 0
    for registry, stub in zip(made.registries, made.stubs, strict=True):
        end_s = time.monotonic() + within_s
        while True:
            try:
                *_, last = [answer async for answer in read(stub.Verify, pb.VerifyRequest(), timeout_s=60.0)]
                found = await call(stub.GetRevision, pb.GetRevisionRequest(), timeout_s=5.0)
            except YardError as error:  # it starts yet, or what it read was collected
                if time.monotonic() > end_s:
                    report.verify.append(f"{registry.name}: {error}")
                    break
                await asyncio.sleep(0.2)
                continue
            if last.HasField("broken") or not last.done:
                report.verify.append(f"{registry.name}: {last}")
            head = max(head, found.revision.number)
            break
    return head


async def _until(done: Callable[[], bool], within_s: float) -> None:
    """Wait for it, but not for ever: the checker says what lacks."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not done():  # noqa: ASYNC110 - readers are told by streams
                await asyncio.sleep(0.05)


def _judge(report: Report, record: Recording, ledger: Ledger, readers: Sequence[Reader], follower: Follower) -> None:
    truth, fences = Truth(), Fences()
    happened: list[tuple[int, str]] = []
    for revision, group in events.transactions(read_record(record.log)):
        truth.take(revision, group)
        fences.take(revision, group)
        happened.append((revision, events.digest(group)))
    truth.compare(read_listing(record.log))
    report.revisions, report.collected = len(truth.moves), truth.deleted["revisions"]
    report.led = fences.led
    report.verdict = judge(
        asked=ledger.asked,
        truth=truth,
        fences=fences,
        readers=[reader.heard for reader in readers],
        followed=[follower.followed],
        happened=happened,
    )
