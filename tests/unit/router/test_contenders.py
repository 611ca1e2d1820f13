"""Looking only at candidates that could win chooses what looking at all of them does."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.domain.errors import YardError
from services.domain.host import HostedModel, HostRecord
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Choose, Metadata, Object, Route, RouteTarget
from services.domain.request import Preference, RouteOptions
from services.domain.rng import KeyedRng
from services.policy.balancing import Draw
from services.policy.complexity import Kind
from services.policy.learning import Tables
from services.router.host_book import HostBook
from services.router.host_picking import Fleet
from services.router.planning import Plan, Planner, Seen
from tests.fakes.objects import a_host, a_model
from tests.unit.router.yards import a_call, a_snapshot, rated

NOW_S = 100.0


class Yard:
    """Candidates on hosts in random states: loaded, failing, cut off, and many of equal worth."""

    def __init__(self, seed: int, *, candidates: int = 12, hosts: int = 7) -> None:
        self.chance = chance = random.Random(seed)
        names = [f"m{at}" for at in range(candidates)]
        objects: list[Object] = [
            Route(Metadata("pick"), Choose(tuple(map(RouteTarget, names)), latency_weight=chance.choice((0.0, 1.0))))
        ]
        for name in names:
            quality, cost = chance.choice((None, 0.5, 0.7, chance.random())), chance.choice((0, 10, 500))
            objects += [
                replace(a_model(name), latency_slo_s=chance.choice((None, 0.003))),
                rated(name, quality=quality, cost=cost),
            ]
        records: list[HostRecord] = []
        for at in range(hosts):
            some = [HostedModel(ModelKey(name, "1.0.0"), ModelState.READY) for name in names if chance.random() < 0.6]
            records.append(replace(a_host(f"h{at}", *some), zone=chance.choice("ab")))
        fleet = Fleet(routers=2, zone=chance.choice(("", "a")), zone_way_s=0.002)
        self.book = HostBook(fleet)
        snapshot = a_snapshot(objects, records)
        self.book.turn_to(snapshot, 0.0)
        self.destination = snapshot.destination("pick")
        self.tables = Tables()
        self.planner = Planner(self.book, fleet, KeyedRng(0), self.tables)
        for option in self.destination.options:
            for _ in range(chance.choice((0, 0, 1, 30))):
                kind = Kind(chance.choice(("", "law")), "hard", ())
                price = chance.choice((None, 50.0))
                self.tables.labelled(option.key, kind, quality=chance.random(), cost_microusd=price)
                self.tables.answered(option.key, kind, chance.random() / 50)
        for option in self.destination.options:
            for state in self.book.states(option):
                state.base_s = chance.choice((0.001, 0.002, chance.random() / 100))
                state.measured_at_s = chance.choice((NOW_S, -1e9))
                state.queued = chance.choice((0, 0, 5))
                state.queued_at_s = NOW_S
                if chance.random() < chance.choice((0.2, 0.9)):
                    state.circuit.open(NOW_S - chance.uniform(0.0, 20.0), why="of the test")

    def options(self) -> RouteOptions:
        chance = self.chance
        return RouteOptions(
            max_cost_microusd=chance.choice((None, None, 100)),
            min_quality=chance.choice((None, None, 0.6)),
            prefer=chance.choice(list(Preference)),
            zone=chance.choice(("", "", "b")),
            domain=chance.choice(("", "law")),
            complexity="hard",
        )

    def plan(
        self, options: RouteOptions, number: int, seen: Seen, only: Sequence[int] | None = None
    ) -> Plan | YardError:
        excluded = ("h1",) if number % 3 == 0 else ()
        return self.planner.plan(
            a_call("pick", options=options),
            self.destination,
            now_s=NOW_S,
            remaining_s=1.0 if number % 2 else 0.004,
            draw=Draw(lambda _: random.Random(number).getrandbits(64)),
            excluded=excluded,
            seen=seen,
            only=only,
        )


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_that_of_looking_at_all(seed: int) -> None:
    yard = Yard(seed)
    everything = range(len(yard.destination.options))
    for number in range(20):
        options = yard.options()
        few, all_of_them = Seen(), Seen()

        plan = yard.plan(options, number, few)
        full = yard.plan(options, number, all_of_them, everything)

        if isinstance(full, Plan):
            assert isinstance(plan, Plan)
            assert plan._replace(reason="") == full._replace(reason="")  # it may count as open what was not looked at
            assert few.scores[[look.option for look in few.looks].index(plan.option)] == max(
                score
                for look, score in zip(all_of_them.looks, all_of_them.scores, strict=True)
                if look.option is full.option
            )
        else:
            assert isinstance(plan, YardError)
            assert (type(plan), plan.message) == (type(full), full.message)
            assert len(few.looks) == len(yard.destination.options)


def test_labels_change_who_is_looked_at() -> None:
    yard = Yard(3)
    options = RouteOptions(domain="law", complexity="hard")
    yard.plan(options, 1, Seen())
    option = yard.destination.options[-1]

    for _ in range(2000):
        yard.tables.labelled(option.key, Kind("law", "hard", ()), quality=1.0, cost_microusd=0.0)
    seen = Seen()
    yard.plan(options, 1, seen)

    assert option in [look.option for look in seen.looks]
    assert seen.learned_order == (len(seen.looks) < len(yard.destination.options))


def test_a_candidate_that_cannot_win_is_not_looked_at() -> None:
    names = [f"m{at}" for at in range(50)]
    objects: list[Object] = [Route(Metadata("pick"), Choose(tuple(map(RouteTarget, names))))]
    for at, name in enumerate(names):
        objects += [a_model(name), rated(name, quality=at / 100)]
    keys = [HostedModel(ModelKey(name, "1.0.0"), ModelState.READY) for name in names]
    snapshot = a_snapshot(objects, [a_host("h", *keys)])
    fleet = Fleet(routers=1, zone="", zone_way_s=0.0)
    book, seen = HostBook(fleet), Seen()
    book.turn_to(snapshot, 0.0)

    plan = Planner(book, fleet, KeyedRng(0), Tables()).plan(
        a_call("pick"),
        snapshot.destination("pick"),
        now_s=0.0,
        remaining_s=30.0,
        draw=Draw(lambda _: 0),
        seen=seen,
    )

    assert isinstance(plan, Plan)
    assert plan.option.key.model == "m49"
    assert [look.option.key.model for look in seen.looks] == ["m49"]
    assert plan.reason.startswith("highest utility of 50, 0.49")
