"""The order of events of one reconciliation, with a fleet in memory and a clock that stands."""

import asyncio
from dataclasses import replace
from itertools import pairwise

from services.domain.clock import ManualClock
from services.domain.errors import HostUnavailable, InsufficientMemory, StoreUnavailable, YardError
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Artifact, Metadata
from services.resource_manager.order_book import SHOWN_WITHIN_S
from services.resource_manager.reconciler import RELEASE_AFTER_S, Action, Reconciler
from tests.fakes.fleet import FakeAuthority, FakeFleet, FakeJournal, FakeLauncher
from tests.fakes.objects import MIB, a_host, a_model, a_pool, a_version, hosted


class Yard:
    """A reconciler and everything around it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.fleet = FakeFleet()
        self.launcher = FakeLauncher()
        self.journal = FakeJournal()
        self.authority = FakeAuthority()
        self.reconciler = Reconciler(
            source=self.fleet,
            orders=self.fleet,
            launcher=self.launcher,
            journal=self.journal,
            clock=self.clock,
            candidate="rm-1",
            wake=asyncio.Event(),
        )

    def wants(self, name: str, *, replicas: int = 1, mib: int = 1) -> None:
        self.fleet.versions = [one for one in self.fleet.versions if one.metadata.name != name]
        self.fleet.versions.append(a_version(name, replicas=replicas, mib=mib))
        self.fleet.models = [one for one in self.fleet.models if one.metadata.name != name] + [a_model(name)]

    def has(self, *host_ids: str) -> None:
        for host_id in host_ids:
            self.fleet.hosts[host_id] = a_host(host_id)

    async def turn(self, times: int = 1) -> None:
        for _ in range(times):
            await self.reconciler.reconcile(self.authority)
            await self.reconciler.settled()

    def lacking(self) -> list[str]:
        plan = self.reconciler.plan
        assert plan is not None
        return [f"{one.missing} {one.key.model}: {one.reason}" for one in plan.unplaced]


async def test_a_version_is_brought_to_its_replicas_and_the_plan_published_once() -> None:
    yard = Yard()
    yard.wants("m", replicas=2)
    yard.has("a", "b", "c")

    await yard.turn(3)

    assert yard.fleet.sent == [("load", "m:1.0.0", "a"), ("load", "m:1.0.0", "b")]
    assert yard.journal.ended() == ["OK", "OK"]
    assert [one.action for one in yard.journal.decisions] == [Action.LOAD, Action.LOAD]
    assert yard.fleet.ids == ["7-1", "7-2"]
    (plan,) = yard.fleet.published
    assert [(one.key.model, one.host_id) for one in plan.placements] == [("m", "a"), ("m", "b")]
    assert plan.leader_id == "rm-1"
    assert yard.lacking() == []


async def test_a_replica_that_does_not_lead_makes_the_plan_and_sends_nothing() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")

    await yard.reconciler.reconcile(None)

    assert yard.fleet.sent == []
    assert yard.fleet.published == []
    assert yard.reconciler.plan is not None
    assert [one.host_id for one in yard.reconciler.plan.placements] == ["a"]


async def test_a_leader_that_lost_its_place_sends_nothing_more() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.authority.held = False

    await yard.turn()

    assert yard.fleet.sent == []
    assert yard.fleet.published == []


async def test_leadership_lost_between_decision_and_order_stops_the_order() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")

    await yard.reconciler.reconcile(yard.authority)
    yard.authority.held = False
    await yard.reconciler.settled()

    assert yard.fleet.sent == []
    assert yard.journal.ended() == ["leadership was lost before the order was sent"]


async def test_only_one_order_is_under_way_for_a_version_on_a_host() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.hang = asyncio.Event()

    for _ in range(5):
        await yard.reconciler.reconcile(yard.authority)
        await asyncio.sleep(0)
    yard.fleet.hang.set()
    yard.fleet.shows = False
    await yard.turn(3)

    assert yard.fleet.sent == [("load", "m:1.0.0", "a")]


async def test_a_host_that_hangs_keeps_no_other_from_its_orders() -> None:
    yard = Yard()
    yard.wants("m", replicas=2)
    yard.has("a")
    yard.fleet.hang = asyncio.Event()
    await yard.reconciler.reconcile(yard.authority)
    await asyncio.sleep(0)
    yard.has("b")

    await yard.reconciler.reconcile(yard.authority)
    await asyncio.sleep(0)

    assert [host for _, _, host in yard.fleet.sent] == ["a", "b"]
    await yard.reconciler.stand_down("end of the test")


async def test_what_the_registry_no_longer_has_is_unloaded_and_nothing_else() -> None:
    yard = Yard()
    yard.wants("m", replicas=2)
    yard.wants("n")
    yard.has("a", "b")
    await yard.turn(2)
    yard.fleet.sent.clear()

    yard.fleet.versions = [one for one in yard.fleet.versions if one.metadata.name != "n"]
    yard.fleet.revision = 2
    await yard.turn(2)

    assert yard.fleet.sent == [("unload", "n:1.0.0", "a")]


async def test_replicas_above_the_minimum_are_unloaded() -> None:
    yard = Yard()
    yard.wants("m", replicas=3)
    yard.has("a", "b", "c")
    await yard.turn(2)
    yard.fleet.sent.clear()

    yard.wants("m", replicas=1)
    await yard.turn(2)

    assert yard.fleet.sent == [("unload", "m:1.0.0", "b"), ("unload", "m:1.0.0", "c")]


async def test_nothing_is_ordered_or_replanned_on_a_view_that_is_not_trusted() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.pools = [a_pool()]
    await yard.turn(2)
    plan = yard.reconciler.plan
    yard.fleet.sent.clear()

    yard.fleet.trusted = False
    yard.fleet.versions = []
    yard.wants("other")
    yard.launcher.extra = {"a"}
    yard.clock.advance(2 * RELEASE_AFTER_S)
    await yard.turn(2)

    assert yard.fleet.sent == []
    assert yard.reconciler.plan is plan
    assert yard.launcher.released == frozenset()
    assert list(yard.launcher.pools) == ["cpu"]


async def test_nothing_is_taken_away_where_the_registry_knows_of_no_revision() -> None:
    yard = Yard()
    yard.fleet.revision = 0
    yard.fleet.hosts["a"] = a_host("a", hosted("m"))
    yard.fleet.hosts["b"] = a_host("b", hosted("m"))
    yard.launcher.extra = {"b"}

    await yard.turn()
    yard.clock.advance(2 * RELEASE_AFTER_S)
    await yard.turn()

    assert yard.fleet.sent == []
    assert yard.launcher.released == frozenset()


async def test_nothing_happens_before_the_registry_was_heard() -> None:
    yard = Yard()
    yard.fleet.heard = False

    await yard.turn()

    assert yard.reconciler.plan is None
    assert yard.journal.reconciliations == 0


async def test_a_load_that_fails_is_tried_on_another_host_at_once() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a", "b")
    yard.fleet.load_state, yard.fleet.load_message = ModelState.FAILED, "sha256 differs"

    await yard.turn()
    yard.fleet.load_state, yard.fleet.load_message = ModelState.READY, ""
    await yard.turn(2)

    assert yard.fleet.sent[:2] == [("load", "m:1.0.0", "a"), ("load", "m:1.0.0", "b")]
    assert yard.journal.ended()[:2] == ["sha256 differs", "OK"]
    # What is left of the failure goes once the version is ready elsewhere.
    assert yard.fleet.sent[2:] == [("unload", "m:1.0.0", "a")]


async def test_a_load_that_keeps_failing_rests_longer_each_time_and_says_why() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.load_state, yard.fleet.load_message = ModelState.FAILED, "out of luck"
    sent_at = []
    start_s = yard.clock.now_s()

    for _ in range(300):
        before = len(yard.fleet.sent)
        await yard.turn()
        if len(yard.fleet.sent) > before:
            sent_at.append(round(yard.clock.now_s() - start_s, 1))
        yard.clock.advance(0.5)

    gaps = [after - before for before, after in pairwise(sent_at)]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 2.0
    assert gaps[-1] >= 30.0
    assert yard.lacking()[0].startswith("1 m: a failed ")
    assert "out of luck" in yard.lacking()[0]


async def test_an_order_that_is_refused_rests_and_its_reason_is_in_the_plan() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.refusal = lambda host_id, key: InsufficientMemory("3 GiB needed, 1 GiB free")

    await yard.turn(3)

    assert yard.fleet.sent == [("load", "m:1.0.0", "a")]
    assert yard.journal.ended() == ["3 GiB needed, 1 GiB free"]
    assert yard.lacking() == ["1 m: a failed once: 3 GiB needed, 1 GiB free"]

    yard.fleet.refusal = lambda host_id, key: None
    yard.clock.advance(1.0)
    await yard.turn(2)
    assert yard.lacking() == []


async def test_an_order_that_breaks_off_unexpectedly_keeps_nobody_else_waiting() -> None:
    yard = Yard()
    yard.wants("broken")
    yard.wants("m")
    yard.has("a")

    def refuse(host_id: str, key: ModelKey) -> YardError | None:
        if key.model == "broken":
            raise ValueError("not a protobuf")
        return None

    yard.fleet.refusal = refuse
    await yard.turn(2)

    assert sorted(yard.journal.ended()) == ["OK", "the order broke off: ValueError"]
    assert len(yard.journal.notes) == 1


async def test_a_stale_token_that_a_host_refuses_has_no_effect_and_is_told() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.highest_token = 8

    await yard.turn(2)

    assert yard.fleet.hosts["a"].models == ()
    assert yard.journal.ended() == ["token 7 is below 8"]


async def test_an_order_whose_effect_never_shows_is_given_up_and_tried_again() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.shows = False
    await yard.turn(2)

    yard.clock.advance(SHOWN_WITHIN_S + 0.1)
    await yard.turn()
    assert yard.journal.ended() == ["the host never showed it"]

    yard.clock.advance(1.0)
    await yard.turn()
    assert len(yard.fleet.sent) == 2


async def test_a_host_that_dies_while_it_loads_is_not_given_the_version_again_at_once() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.load_state = ModelState.LOADING
    await yard.turn()

    yard.fleet.hosts["a"] = a_host("a", pid=2)
    await yard.turn()

    assert yard.journal.ended() == ["the host was restarted"]
    assert yard.lacking() == ["1 m: a failed once: the host ended while it loaded"]
    assert len(yard.fleet.sent) == 1


async def test_a_host_restarted_with_nothing_loaded_is_loaded_again_at_once() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    await yard.turn(2)

    yard.fleet.hosts["a"] = a_host("a", pid=2)
    await yard.turn(2)

    assert yard.fleet.sent == [("load", "m:1.0.0", "a")] * 2
    assert yard.journal.ended() == ["OK", "OK"]


async def test_an_absent_host_is_not_replaced_and_gets_no_orders() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a", "b")
    await yard.turn(2)
    yard.fleet.sent.clear()

    yard.fleet.absent = {"a"}
    yard.wants("n")
    await yard.turn(2)

    assert yard.fleet.sent == [("load", "n:1.0.0", "b")]


async def test_a_new_leader_leaves_what_is_ready_alone_and_knows_earlier_failures() -> None:
    yard = Yard()
    yard.wants("m")
    yard.wants("n")
    yard.fleet.hosts["a"] = a_host("a", hosted("m"), hosted("n", state=ModelState.FAILED, message="bad header"))

    await yard.turn(2)

    assert yard.fleet.sent == []
    assert yard.lacking() == ["1 n: a failed once: bad header"]


async def test_a_failed_load_tried_again_is_not_judged_by_the_old_record() -> None:
    yard = Yard()
    yard.wants("m")
    yard.fleet.hosts["a"] = a_host("a", hosted("m", state=ModelState.FAILED, message="old"))
    await yard.turn()
    yard.fleet.shows = False
    yard.clock.advance(1.0)

    await yard.turn(3)
    assert len(yard.fleet.sent) == 1
    assert yard.journal.ended() == [""]

    # A record that says FAILED long enough after the order speaks of it.
    yard.clock.advance(3.0)
    await yard.turn()
    assert yard.journal.ended() == ["old"]


async def test_a_plan_that_could_not_be_published_is_published_by_the_next_turn() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.publish_error = StoreUnavailable("no quorum")
    await yard.turn(2)
    assert yard.fleet.published == []

    yard.fleet.publish_error = None
    await yard.turn(2)

    assert len(yard.fleet.published) == 1


async def test_a_host_too_many_is_released_once_its_versions_are_ready_elsewhere() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a", "b")
    await yard.turn(2)
    yard.launcher.extra = {"a"}
    yard.fleet.load_state = ModelState.LOADING

    await yard.turn(2)
    assert yard.fleet.sent[-1] == ("load", "m:1.0.0", "b")
    assert yard.launcher.released == frozenset()

    yard.fleet.show("b", hosted("m"))
    await yard.turn()
    assert yard.launcher.released == {"a"}


async def test_a_host_too_many_is_released_after_a_time_even_without_another_place() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    await yard.turn(2)
    yard.launcher.extra = {"a"}

    await yard.turn()
    assert yard.launcher.released == frozenset()
    yard.clock.advance(RELEASE_AFTER_S)
    await yard.turn()

    assert yard.launcher.released == {"a"}


async def test_a_host_that_drains_is_replaced() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a", "b")
    await yard.turn(2)

    yard.fleet.hosts["a"] = replace(yard.fleet.hosts["a"], draining=True)
    await yard.turn(2)

    assert yard.fleet.sent == [("load", "m:1.0.0", "a"), ("load", "m:1.0.0", "b")]


async def test_standing_down_calls_off_orders_and_ends_their_decisions() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.hang = asyncio.Event()
    await yard.reconciler.reconcile(yard.authority)
    await asyncio.sleep(0)

    await yard.reconciler.stand_down("leadership was lost")

    assert yard.journal.ended() == ["leadership was lost"]
    yard.fleet.hang = None
    await yard.turn(2)
    assert yard.journal.ended() == ["leadership was lost", "OK"]


async def test_a_host_out_of_reach_is_tried_again_after_a_rest() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    yard.fleet.refusal = lambda host_id, key: HostUnavailable("connection refused")
    await yard.turn(2)

    assert len(yard.fleet.sent) == 1
    now_s = yard.clock.now_s()
    assert yard.reconciler.next_retry_s(now_s) == now_s + 1.0


async def test_a_host_is_told_what_others_measured_instead_of_what_was_declared() -> None:
    yard = Yard()
    yard.wants("m", replicas=2, mib=90)
    yard.fleet.hosts["a"] = a_host("a", hosted("m", mib=20))
    yard.fleet.hosts["b"] = a_host("b", mib=50)

    await yard.turn(2)

    assert yard.fleet.sent == [("load", "m:1.0.0", "b")]
    (entry,) = yard.fleet.hosts["b"].models
    assert entry.memory_bytes == 20 * MIB


async def test_a_version_made_anew_with_other_contents_is_unloaded_and_loaded_again() -> None:
    yard = Yard()
    yard.wants("m", replicas=2)
    yard.has("a", "b")
    await yard.turn(2)
    yard.fleet.sent.clear()

    # Deleted and made anew between two looks; only labels and replicas may change without that.
    old = yard.fleet.versions[0]
    yard.fleet.versions = [replace(old, artifact=Artifact("file:/other", "0" * 64))]
    await yard.turn(4)

    assert yard.fleet.sent == [
        ("unload", "m:1.0.0", "a"),
        ("unload", "m:1.0.0", "b"),
        ("load", "m:1.0.0", "a"),
        ("load", "m:1.0.0", "b"),
    ]


async def test_new_labels_move_nothing() -> None:
    yard = Yard()
    yard.wants("m")
    yard.has("a")
    await yard.turn(2)

    old = yard.fleet.versions[0]
    yard.fleet.versions = [replace(old, metadata=Metadata("m", {"team": "vision"}))]
    await yard.turn(2)

    assert len(yard.fleet.sent) == 1
