"""Faults over real hosts: one slowed, one failing fast, one frozen, one killed, at light load and near capacity.

How soon calls are off the host, how many callers see an error, and what the others wait; the same with each defence
switched off and under the baselines; then all hosts failing at once, and the way back; and hosts killed in turn. Router
and struck host are fresh ones for each run, so that they remember nothing of the one before. A run whose generator was
late is made once more, as long as there is time.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Collection, Iterator, Mapping
from pathlib import Path

from benchmarks import router_kills, router_scenarios
from benchmarks.host_load import Void
from benchmarks.host_models import waiting
from benchmarks.router_load import Load, attempts_of, diverted_after_s, p_ms, recovered_after_s
from benchmarks.router_scenarios import BASE_MS, HOSTS, LOADS, MEASURED, Goal, Scenario, scenarios
from benchmarks.router_variants import ALL, VARIANTS, objects_of
from benchmarks.router_yard import FaultyYard
from modelyard.inference.v1 import inference_pb2
from services.domain.clock import SystemClock

SUBJECT = waiting("device", base_ms=BASE_MS, batch=1)
TIMEOUT_S = 1.0
"""Deadline of each call: far above twice the P99 before the fault, so that every failure is a visible error."""

MOST_PER_S = 250.0
"""More calls a second than this are not sent: router, hosts and callers share the machine."""

CAPACITY_S = 2.0
CALLERS = 3 * HOSTS
WARM_S = 0.5
"""The first calls of a run do not count: the router has just started."""

BEFORE_S = 1.5
COMPARED_BEFORE_S = 1.0
AFTER_S = 2.0
ENOUGH_S = 300.0
"""After this long nothing is made once more."""

OUTAGE_S = 5.0
RECOVERY_S = 7.0
KILLS = 12
GOODPUT = 0.95
LEAST_CALLS = 40
"""During a fault; a run with fewer is void."""

Figures = dict[str, float]
_CLOCK = SystemClock()


def _named() -> Iterator[tuple[str, str, Goal | None]]:
    yield "capacity_per_s", f"answers a second of {HOSTS} hosts that take {BASE_MS:g} ms a call", None
    for scenario in scenarios():
        yield from scenario.figures
    yield "kills_hit", f"calls that {KILLS} kills of hosts, one after the other, hit", None
    yield "kills_errors", "calls that failed meanwhile", ("<=", 0.0)
    yield "kills_extra_ms", "the longest of those, beyond the others' P99, ms; hosts start meanwhile", None
    full = LOADS["full"]
    yield "outage_attempts_per_call", f"all hosts failing fast, {full:g} of capacity: attempts by call", ("<=", 1.10)
    yield "outage_later_attempts_per_call", "the same in the outage's second half", ("<=", 1.10)
    yield "outage_recovery_s", f"s from its end until {GOODPUT:.0%} of calls are answered again", ("<=", 5.0)


EXPLAINED: Mapping[str, str] = {name: said for name, said, _ in _named()}
table = router_scenarios.table
GOALS: Mapping[str, Goal] = {name: goal for name, _, goal in _named() if goal is not None}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Run:
    """One run, scenario by scenario, over one set of processes."""

    def __init__(self, yard: FaultyYard, *, seed: int) -> None:
        """Over `yard`, which has the routes of the scenarios' rules."""
        self._yard = yard
        self._seed = seed
        self._capacity_per_s = MOST_PER_S
        self._began_s = _CLOCK.now_s()
        self.figures: Figures = {}

    async def capacity(self) -> None:
        """What the hosts answer when all of them always have something to do."""
        load = self._load(VARIANTS[ALL].route)
        await load.keep_busy(CALLERS, CAPACITY_S)
        self._capacity_per_s = sum(not each.failure for each in load.done) / CAPACITY_S
        self.figures["capacity_per_s"] = self._capacity_per_s

    async def scenario(self, scenario: Scenario, victim: str) -> None:
        """One fault upon one host; what is void, twice if there is time, leaves no figures."""
        for again in (False, True):
            if again and _CLOCK.now_s() > self._began_s + ENOUGH_S:
                return
            try:
                found = await self._struck(scenario, victim)
            except Void as void:
                _tell(f"  {scenario.name}: void: {void}")
            else:
                self.figures |= {f"{scenario.name}_{name}": found[name] for name in MEASURED if name in found}
                _tell(f"  {scenario.name}: " + "  ".join(f"{name} {value:.3g}" for name, value in found.items()))
                return

    async def _struck(self, scenario: Scenario, victim: str) -> Figures:
        """One run of a scenario.

        Raises:
            Void: The generator was late, or too few calls were sent.
        """
        load = self._load(scenario.variant.route)
        struck_s = WARM_S + (BEFORE_S if scenario.is_full else COMPARED_BEFORE_S)
        ends_s = struck_s + scenario.seconds
        after_s = AFTER_S if scenario.is_full else 0.0
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(self._per_s(scenario.load), ends_s + after_s, seed=self._seed))
                await load.at(struck_s)
                scenario.fault.strike(self._yard, victim)
                struck_s = load.now_s
                await load.at(ends_s)
                if after_s:
                    await self._yard.heal(victim)
        finally:
            await self._yard.renew(victim)
        load.check_generator()
        if (count := len(load.between(struck_s, ends_s))) < LEAST_CALLS:
            raise Void(f"{count} calls during the fault")
        for failure, times in Counter(each.failure for each in load.done if each.failure).most_common(3):
            _tell(f"    {times} times: {failure}")
        return _judged(load, victim, struck_s=struck_s, ends_s=ends_s)

    async def outage(self) -> None:
        """All hosts fail, and come back.

        Raises:
            Void: The generator was late, or calls were answered all the same.
        """
        load = self._load(VARIANTS[ALL].route)
        struck_s, healed_s = WARM_S + BEFORE_S, WARM_S + BEFORE_S + OUTAGE_S
        ends_s = healed_s + RECOVERY_S
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(self._per_s("full"), ends_s, seed=self._seed))
            await load.at(struck_s)
            for host_id in self._yard.hosts:
                self._yard.fail(host_id)
            struck_s = load.now_s
            await load.at(healed_s)
            for host_id in self._yard.hosts:
                await self._yard.heal(host_id)
            healed_s = load.now_s
        load.check_generator()
        calls = load.between(struck_s, healed_s - TIMEOUT_S / 10)  # the last ones were under way when all came back
        # One that waited to be tried again may be answered after that.
        if not calls or any(not each.failure and each.ended_s < healed_s for each in calls):
            raise Void("calls were answered although every host was to fail")
        later = [each for each in calls if each.due_s >= (struck_s + healed_s) / 2]
        self.figures |= {
            "outage_attempts_per_call": attempts_of(calls),
            "outage_later_attempts_per_call": attempts_of(later),
            "outage_recovery_s": recovered_after_s(load.done, healed_s=healed_s, until_s=ends_s, goodput=GOODPUT),
        }

    async def kills(self) -> None:
        """Hosts killed in turn, over hosts of their own.

        Raises:
            Void: Too few calls were hit.
        """
        with tempfile.TemporaryDirectory(prefix="modelyard-kills-") as name:
            found = await router_kills.run(Path(name), kills=KILLS, seed=self._seed, tell=_tell)
        found.check()
        self.figures |= {
            "kills_hit": float(found.hit),
            "kills_errors": float(found.failures.total()),
            "kills_extra_ms": found.extra_ms,
        }

    def _per_s(self, load: str) -> float:
        return min(MOST_PER_S, self._capacity_per_s * LOADS[load])

    def _load(self, route: str) -> Load:
        request = inference_pb2.InferRequest.FromString(SUBJECT.requests[0])
        request.model_name = route
        return Load(self._yard.router, request, TIMEOUT_S)


def _judged(load: Load, victim: str, *, struck_s: float, ends_s: float) -> Figures:
    """What calls say of a fault from `struck_s` to `ends_s`, after which the host was back."""
    before, after = load.between(WARM_S, struck_s), load.between(ends_s, float("inf"))
    # Those that were under way when it happened are its victims, too.
    concerned = [each for each in load.between(0.0, ends_s) if each.ended_s >= struck_s]
    errors = sum(bool(each.failure) for each in concerned)
    p99_before_ms = p_ms(before, 0.99, timeout_s=TIMEOUT_S)
    lost_ms = [1e3 * call.took_s for call in concerned if any(each.lost and each.host == victim for each in call.sent)]
    found = {
        "divert_s": diverted_after_s(concerned, victim, fault_s=struck_s, until_s=ends_s, hosts=HOSTS),
        "errors": float(errors),
        "error_share": errors / len(concerned),
        "p99_before_ms": p99_before_ms,
        "p99_ms": p_ms(concerned, 0.99, timeout_s=TIMEOUT_S),
    }
    if after and lost_ms:
        found["extra_ms"] = max(0.0, max(lost_ms) - p99_before_ms)
    if after:
        found["errors_after"] = float(sum(bool(each.failure) for each in after))
    return found


async def figures(*, seed: int, only: Collection[str] = ()) -> Figures:
    """Bring all up, and measure every scenario, or `only` these, and the outage."""
    chosen = [each for each in scenarios() if not only or each.name in only]
    with tempfile.TemporaryDirectory(prefix="modelyard-faults-") as name:
        folder = Path(name)
        said = {name: objects_of(each, SUBJECT.name, folder) for name, each in VARIANTS.items()}
        placed = {f"host-{number}": (SUBJECT.name,) for number in range(HOSTS)}
        objects = [item for items in said.values() for item in items]
        async with FaultyYard(folder, [SUBJECT], placed=placed, objects=objects) as yard:
            run = Run(yard, seed=seed)
            await run.capacity()
            for number, scenario in enumerate(each for each in chosen if said[each.variant.name]):
                await run.scenario(scenario, yard.hosts[number % HOSTS])
            await _unless_void(run.outage())
    if not only:
        await _unless_void(run.kills())
    return run.figures


async def _unless_void(measured: Awaitable[None]) -> None:
    """What is void leaves no figures, and the others stand."""
    try:
        await measured
    except Void as void:
        _tell(f"  void: {void}")
