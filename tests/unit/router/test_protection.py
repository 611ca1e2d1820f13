"""Hosts that fail, hang, slow down or come back, and what callers see of it, with each defence and without."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.domain.errors import HostUnavailable, ModelFailed, YardError
from services.domain.host import HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey
from services.domain.objects import Metadata, Policy
from services.domain.request import InferCall, RouteOptions
from services.domain.service_class import ServiceClass
from services.domain.tenancy import HedgeRules, Protection, RetryRules, Tier
from services.policy.circuit import CircuitState
from services.policy.ejection import Reason
from services.policy.retrying import BUDGET_BURST
from services.policy.scoring import HostState
from services.router.attempting import AttemptFailed, HostAnswer
from services.router.decision import Decision
from tests.fakes.clock import SteppedClock, settle
from tests.fakes.objects import a_host, hosted
from tests.unit.router.yards import World, a_call, digits

NORMAL_S = 0.020

TICK_S = 0.010
TURNS = 8
"""Of the loop: more than any call takes from one wait to the next."""


class SteppedHosts:
    """Hosts that take their time on a clock that a test moves."""

    def __init__(self, clock: SteppedClock) -> None:
        """All well."""
        self.clock = clock
        self.calls: Counter[str] = Counter()
        self.takes_s: dict[str, float] = {}
        self.says_s: dict[str, float] = {}
        """What a host says that an answer takes, if it is not what it takes."""
        self.errors: dict[str, Callable[[], YardError]] = {}
        self.frozen: set[str] = set()
        self.under_way: Counter[str] = Counter()
        self._sequence = 0

    async def execute(
        self, host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        """Answer in time, fail at once, or never come back."""
        name = host.host_id
        self.calls[name] += 1
        self.under_way[name] += 1
        try:
            if name in self.frozen:
                await asyncio.Event().wait()
            if name in self.errors:
                raise AttemptFailed(self.errors[name](), None)
            takes_s = self.takes_s.get(name, NORMAL_S)
            await self.clock.sleep(takes_s)
        finally:
            self.under_way[name] -= 1
        self._sequence += 1
        says_s = self.says_s.get(name, takes_s)
        load = HostLoad(name, self._sequence, (ModelLoad(key, 0, 0, 1, says_s, 0.0),), 0, 0.0, False)
        return HostAnswer(payload, 0.0, says_s, 1, load)


class Yard:
    """A router over such hosts."""

    def __init__(self, count: int, policy: Policy | None = None) -> None:
        """With hosts h0, h1 and so on."""
        self.clock = SteppedClock()
        self.hosts = SteppedHosts(self.clock)
        objects = [*digits(), *([] if policy is None else [policy])]
        records = [a_host(f"h{at}", hosted("digits")) for at in range(count)]
        self.world = World(objects, records, over=(self.hosts, self.clock))
        self.errors: list[YardError] = []
        self.answered: list[Decision] = []
        self._count = 0

    def state(self, name: str) -> HostState:
        """What is known of a host."""
        return next(host for host in self.world.pipeline.watch._book.hosts() if host.host_id == name)

    def send(self, *, options: RouteOptions | None = None, remaining_s: float = 5.0) -> "asyncio.Task[None]":
        """A call."""
        self._count += 1
        call = a_call(request_id=f"r{self._count}", options=options)
        return asyncio.ensure_future(self._ask(call, remaining_s))

    async def _ask(self, call: InferCall, remaining_s: float) -> None:
        try:
            self.answered.append((await self.world.pipeline.route(call, remaining_s=remaining_s)).decision)
        except YardError as error:
            self.errors.append(error)

    async def go(self, duration_s: float, *, every_s: float | None = None) -> None:
        """Let time pass, with a call now and then."""
        for step in range(round(duration_s / TICK_S)):
            if every_s is not None and step % round(every_s / TICK_S) == 0:
                self.send()
            await self.clock.advance(TICK_S, turns=TURNS)
            if step % 2:
                self.world.pipeline.watch.step()

    async def explain(self) -> Decision:
        """A dry run."""
        return self.world.pipeline.explain(a_call(), remaining_s=None)


def a_policy(*, hedge: bool = False, **protection: bool) -> Policy:
    return Policy(Metadata("default"), (Tier("all", 1),), hedge=HedgeRules(hedge), protection=Protection(**protection))


async def test_calls_that_a_frozen_host_has_are_answered_by_others_and_no_more_go_there() -> None:
    yard = Yard(3)
    await yard.go(2.0, every_s=0.01)
    yard.hosts.frozen.add("h0")
    yard.hosts.calls.clear()

    await yard.go(1.0, every_s=0.01)
    before = yard.hosts.calls["h0"]
    await yard.go(3.0, every_s=0.01)
    await yard.go(1.0)

    assert yard.errors == []
    assert len(yard.answered) == 600
    assert yard.hosts.calls["h0"] == before < 20
    assert yard.world.notes.ejections == [("h0", Reason.SILENT)]
    assert yard.state("h0").in_flight == 0


async def test_without_ejection_they_wait_for_it() -> None:
    yard = Yard(3, a_policy(ejection=False))
    await yard.go(2.0, every_s=0.01)
    yard.hosts.frozen.add("h0")

    await yard.go(1.0, every_s=0.01)
    await yard.go(1.0)

    assert yard.hosts.under_way["h0"] > 0
    assert len(yard.answered) < 300


async def test_a_frozen_host_is_found_out_by_calls_with_little_time_too() -> None:
    yard = Yard(3)
    await yard.go(2.0, every_s=0.01)
    yard.hosts.frozen.add("h0")

    for _ in range(30):
        yard.send(remaining_s=0.3)
        await yard.go(0.02)
    await yard.go(1.0)

    assert yard.errors == []
    assert len(yard.answered) == 230


async def test_calls_that_are_not_idempotent_stay_with_a_silent_host() -> None:
    yard = Yard(2)
    await yard.go(1.0, every_s=0.02)
    yard.hosts.frozen.update(("h0", "h1"))

    yard.send(options=RouteOptions(idempotent=False))
    await yard.go(1.0)

    assert sum(yard.hosts.under_way.values()) == 1


async def test_a_router_that_was_held_up_itself_finds_nobody_silent() -> None:
    yard = Yard(2)
    await yard.go(1.0, every_s=0.02)
    yard.hosts.takes_s = {"h0": 3.0, "h1": 3.0}
    yard.send()
    await settle()

    for _ in range(2):
        await yard.clock.advance(1.0)
        yard.world.pipeline.watch.step()

    assert yard.world.notes.ejections == []


async def test_one_probe_admits_a_host_again_after_it_failed() -> None:
    yard = Yard(3)
    await yard.go(1.0, every_s=0.01)
    yard.hosts.errors["h0"] = lambda: ModelFailed("broken")
    yard.hosts.calls.clear()

    await yard.go(20.0, every_s=0.01)

    assert yard.errors == []
    assert yard.hosts.calls["h0"] < 12
    assert yard.world.notes.probes == [("h0", False), ("h0", False)]

    yard.hosts.errors.clear()
    await yard.go(30.0, every_s=0.01)

    assert yard.world.notes.probes[2:] == [("h0", True)]
    yard.hosts.calls.clear()
    await yard.go(2.0, every_s=0.01)
    assert yard.hosts.calls["h0"] > 40


async def test_without_circuits_a_host_that_fails_fast_draws_calls() -> None:
    yard = Yard(3, a_policy(circuits=False, ejection=False))
    await yard.go(1.0, every_s=0.01)
    yard.hosts.errors["h0"] = lambda: ModelFailed("broken")
    yard.hosts.calls.clear()

    await yard.go(5.0, every_s=0.01)

    assert yard.hosts.calls["h0"] > 100
    assert yard.errors


async def test_without_penalties_a_host_out_of_reach_draws_calls() -> None:
    calls = []
    for on in (True, False):
        yard = Yard(3, a_policy(penalties=on))
        await yard.go(1.0, every_s=0.01)
        yard.hosts.errors["h0"] = lambda: HostUnavailable("gone")
        yard.hosts.calls.clear()
        await yard.go(3.0, every_s=0.01)
        calls.append(yard.hosts.calls["h0"])

    assert calls[0] < 5
    assert calls[1] > 60


@pytest.mark.parametrize("hosts", [2, 4])
async def test_a_host_that_says_it_is_quick_and_is_not_is_ejected(hosts: int) -> None:
    shares = []
    for on in (True, False):
        yard = Yard(hosts, a_policy(ejection=on))
        yard.hosts.says_s = {f"h{at}": NORMAL_S for at in range(hosts)}
        await yard.go(2.0, every_s=0.01)
        yard.hosts.takes_s["h0"] = 10 * NORMAL_S
        await yard.go(3.0, every_s=0.01)
        yard.hosts.calls.clear()
        await yard.go(3.0, every_s=0.01)
        shares.append(yard.hosts.calls["h0"] / yard.hosts.calls.total() * hosts)

    assert shares[0] <= 0.1
    assert shares[1] > 0.1


@pytest.mark.parametrize("hosts", [2, 4])
async def test_a_host_that_slows_down_and_says_so_gets_a_tenth_of_its_share_at_most(hosts: int) -> None:
    yard = Yard(hosts)
    await yard.go(2.0, every_s=0.02)
    yard.hosts.takes_s["h0"] = 10 * NORMAL_S
    await yard.go(3.0, every_s=0.02)
    yard.hosts.calls.clear()

    await yard.go(20.0, every_s=0.02)

    assert yard.hosts.calls["h0"] / yard.hosts.calls.total() * hosts <= 0.1
    assert yard.errors == []


async def test_a_host_that_fails_every_second_call_keeps_little_of_its_share() -> None:
    yard = Yard(3)
    turn = iter(range(10**6))
    sound = yard.hosts.execute

    async def flapping(
        host: HostRecord, key: ModelKey, payload: object, *, service_class: ServiceClass, timeout_s: float
    ) -> HostAnswer:
        if host.host_id == "h0" and next(turn) % 2:
            yard.hosts.calls["h0"] += 1
            raise AttemptFailed(ModelFailed("by turns"), None)
        return await sound(host, key, payload, service_class=service_class, timeout_s=timeout_s)

    yard.hosts.execute = flapping  # type: ignore[method-assign]
    await yard.go(30.0, every_s=0.02)

    assert yard.errors == []
    assert yard.hosts.calls["h0"] / yard.hosts.calls.total() * 3 <= 0.2


async def test_where_every_host_is_in_trouble_calls_are_still_served() -> None:
    yard = Yard(3)
    await yard.go(1.0, every_s=0.02)
    for name in ("h0", "h1", "h2"):
        yard.state(name).circuit.open(yard.clock.now_s(), why="failed")

    await yard.go(1.0, every_s=0.02)
    await yard.go(0.1)

    assert yard.errors == []
    assert len(yard.answered) == 100


async def test_a_slow_first_attempt_is_raced_by_a_second_on_another_host() -> None:
    yard = Yard(2, a_policy(hedge=True))
    await yard.go(1.0, every_s=0.02)
    yard.answered.clear()
    yard.hosts.takes_s = {"h0": 0.240}

    await yard.go(0.5, every_s=0.05)
    await yard.go(0.5)

    raced = [decision for decision in yard.answered if len(decision.attempts) > 1]
    assert raced
    assert all(decision.host is not None and decision.host.host_id == "h1" for decision in raced)
    assert [(each.host_id, each.hedge, each.cancelled) for each in raced[0].attempts] == [
        ("h1", True, False),
        ("h0", False, True),
    ]
    assert raced[0].stages.compute_s == NORMAL_S
    assert set(yard.world.notes.hedges) == {"won"}
    state = yard.state("h0")
    assert (state.in_flight, state.work_s, len(state.owed), yard.hosts.under_way["h0"]) == (0, 0.0, 0, 0)
    assert state.circuit.state(yard.clock.now_s()) is CircuitState.CLOSED
    assert yard.errors == []


@pytest.mark.parametrize("options", [RouteOptions(hedge=False), RouteOptions(idempotent=False)])
async def test_who_does_not_want_it_is_sent_once(options: RouteOptions) -> None:
    yard = Yard(2, a_policy(hedge=True))
    await yard.go(1.0, every_s=0.02)
    yard.hosts.takes_s = {"h0": 0.200, "h1": 0.200}
    yard.hosts.calls.clear()

    yard.send(options=options)
    await yard.go(0.5)

    assert yard.hosts.calls.total() == 1


async def test_whose_policy_allows_one_attempt_is_sent_once() -> None:
    yard = Yard(2, replace(a_policy(hedge=True), retry=RetryRules(max_attempts=1)))
    await yard.go(1.0, every_s=0.02)
    yard.hosts.takes_s = {"h0": 0.200, "h1": 0.200}
    yard.hosts.calls.clear()

    yard.send()
    await yard.go(0.5)

    assert yard.hosts.calls.total() == 1


async def test_hedges_stay_within_the_retry_budget() -> None:
    yard = Yard(2, a_policy(hedge=True))
    await yard.go(1.0, every_s=0.02)
    yard.hosts.takes_s = {"h0": 0.200, "h1": 0.200}
    yard.hosts.calls.clear()

    for _ in range(80):
        yard.send()
    await yard.go(1.0)

    assert yard.hosts.calls.total() <= 80 + BUDGET_BURST
    assert yard.world.notes.hedges.count("no_budget") >= 60 - 1
    assert yard.errors == []


async def test_an_explanation_says_what_speaks_against_a_host() -> None:
    yard = Yard(3)
    await yard.go(1.0, every_s=0.01)
    yard.hosts.frozen.add("h0")
    yard.hosts.errors["h1"] = lambda: ModelFailed("no such layer")
    await yard.go(1.0, every_s=0.01)

    scores = {score.host_id: score for score in (await yard.explain()).candidates[0].hosts}

    assert (scores["h0"].ejected, scores["h0"].circuit) == (True, CircuitState.CLOSED)
    assert scores["h0"].trouble.startswith("said nothing for 0.")
    assert (scores["h1"].ejected, scores["h1"].circuit) == (False, CircuitState.OPEN)
    assert scores["h1"].trouble == "failed: no such layer"
    assert scores["h2"].trouble == ""
