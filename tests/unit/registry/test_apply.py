"""One apply, with the store in memory: all or nothing, once, and with every fault."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest

from modelyard.etcd.v3 import rpc_pb2 as etcd
from modelyard.registry.v1 import registry_pb2
from services.domain.clock import ManualClock
from services.domain.deadline import Deadline
from services.domain.errors import (
    BudgetExhausted,
    InvalidRequest,
    RevisionMoved,
    RevisionNotFound,
    StoreUnavailable,
)
from services.domain.objects import Metadata, Object, ObjectKey
from services.policy.change_check import Submitted
from services.policy.tree_diff import FieldChange
from services.registry import layout
from services.registry.apply import Applied, Applier, Command
from services.registry.attempt_log import AttemptLog
from services.registry.gates import Gates
from services.registry.layout import Draft, Entry, State
from services.registry.object_store import ObjectStore
from services.registry.smoke import SmokeRunner
from services.registry.values import Values
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model, a_pool, a_version

DIGITS = (a_pool(), a_model("digits"), a_version("digits", pool="cpu"))


@dataclass
class Replica:
    """A registry without its network."""

    etcd: FakeEtcd
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        ids = count()
        self.store = ObjectStore(client=self.etcd, clock=self.clock)
        self.attempts = AttemptLog(values=Values(client=self.etcd, clock=self.clock), clock=self.clock)
        self.gates = Gates(attempts=self.attempts, smoke=SmokeRunner(hosts=list, clock=self.clock))
        self.applier: Applier[State, Entry, Draft] = Applier(
            store=self.store, gates=self.gates, clock=self.clock, new_request_id=lambda: f"own-{id(self)}-{next(ids)}"
        )

    async def apply(
        self,
        objects: Iterable[Object] = (),
        deletes: Iterable[str] = (),
        *,
        expected: int = 0,
        request_id: str = "",
        dry_run: bool = False,
        reason: str = "",
        timeout_s: float = 10.0,
        exact: bool = False,
        restores: int = 0,
        author: str = "ann",
    ) -> Applied:
        command = Command(
            submitted=tuple(Submitted(item.key, item) for item in objects),
            deletes=tuple(ObjectKey.parse(text) for text in deletes),
            expected_revision=expected,
            reason=reason,
            author=author,
            request_id=request_id,
            dry_run=dry_run,
            exact=exact,
            restores=restores,
        )
        return await self.applier.apply(command, Deadline.after(timeout_s, self.clock))

    async def names(self) -> list[str]:
        return sorted(str(key) for key in (await self.store.head(timeout_s=1.0)).objects)


@pytest.fixture
def replica() -> Replica:
    return Replica(FakeEtcd())


def moves_head(request: etcd.TxnRequest) -> bool:
    return any(op.request_put.key.decode() == layout.HEAD for op in request.success)


async def test_many_objects_make_one_revision(replica: Replica) -> None:
    applied = await replica.apply(DIGITS)

    assert applied.revision == 1
    assert [f"{change.action.value} {change.key}" for change in applied.changes] == [
        "CREATE Pool/cpu",
        "CREATE Model/digits",
        "CREATE ModelVersion/digits/1.0.0",
    ]
    assert await replica.names() == ["Model/digits", "ModelVersion/digits/1.0.0", "Pool/cpu"]


async def test_creating_updating_and_deleting_are_one_revision(replica: Replica) -> None:
    await replica.apply([*DIGITS, a_model("old")])

    applied = await replica.apply([a_model("new"), replace(a_model("digits"), owner="bob")], ["Model/old"])

    assert applied.revision == 2
    assert [f"{change.action.value} {change.key}" for change in applied.changes] == [
        "UPDATE Model/digits",
        "CREATE Model/new",
        "DELETE Model/old",
    ]
    assert applied.changes[0].fields == (FieldChange("model.owner", "", "bob"),)


async def test_every_fault_of_request_and_objects_comes_at_once_and_nothing_is_written(replica: Replica) -> None:
    before = dict(replica.etcd.keys)

    with pytest.raises(InvalidRequest) as refused:
        await replica.apply(
            [a_model("Bad"), a_version("digits")], ["Model/none"], expected=-1, request_id="a b", reason="x" * 5000
        )

    assert [fault.path for fault in refused.value.faults] == [
        "expected_revision",
        "reason",
        "request_id",
        "objects[0].metadata.name",
        "deletes[0]",
        "objects[1].metadata.name",
    ]
    assert replica.etcd.keys == before


async def test_an_object_too_large_for_the_store_is_a_fault(replica: Replica) -> None:
    large = replace(a_model("large"), description="x" * (1 << 20))

    with pytest.raises(InvalidRequest, match="at most 1048576: large data belongs in artifacts") as refused:
        await replica.apply([a_model("small"), large])

    assert [fault.path for fault in refused.value.faults] == ["objects[1]"]


async def test_a_dry_run_says_what_would_change_and_changes_nothing(replica: Replica) -> None:
    await replica.apply(DIGITS)
    before = dict(replica.etcd.keys)

    applied = await replica.apply([replace(DIGITS[2], min_replicas=3)], dry_run=True, request_id="r")

    assert applied.revision == 1
    assert applied.changes[0].fields == (FieldChange("model_version.min_replicas", "1", "3"),)
    assert replica.etcd.keys == before


async def test_a_dry_run_finds_the_same_faults(replica: Replica) -> None:
    with pytest.raises(InvalidRequest):
        await replica.apply([a_version("digits")], dry_run=True)


async def test_nothing_to_change_makes_no_revision(replica: Replica) -> None:
    await replica.apply(DIGITS)
    before = dict(replica.etcd.keys)

    assert await replica.apply(DIGITS) == Applied(1, ())
    assert await replica.apply([]) == Applied(1, ())
    assert replica.etcd.keys == before


async def test_a_stale_expectation_is_refused_with_the_head(replica: Replica) -> None:
    await replica.apply(DIGITS)
    await replica.apply([a_model("a")], expected=1)

    with pytest.raises(RevisionMoved, match="the head is revision 2, not 1") as refused:
        await replica.apply([a_model("b")], expected=1)

    assert refused.value.metadata == {"head": "2", "expected": "1", "moved": "create Model/a"}


async def test_the_same_request_id_answers_with_the_first_result(replica: Replica) -> None:
    await replica.apply(DIGITS)
    first = await replica.apply([replace(DIGITS[2], min_replicas=3), a_model("a")], request_id="r", expected=1)
    await replica.apply([a_model("later")])

    again = await replica.apply([replace(DIGITS[2], min_replicas=3), a_model("a")], request_id="r", expected=1)

    assert again == first
    assert (await replica.store.head(timeout_s=1.0)).revision == 3


async def test_another_replica_knows_the_first_result_too(replica: Replica) -> None:
    first = await replica.apply(DIGITS, request_id="r")

    assert await Replica(replica.etcd).apply(DIGITS, request_id="r") == first


async def test_a_request_that_changed_nothing_still_changes_nothing_when_repeated(replica: Replica) -> None:
    await replica.apply(DIGITS)
    assert await replica.apply(DIGITS, request_id="r") == Applied(1, ())
    await replica.apply([replace(DIGITS[2], min_replicas=9)])

    again = await replica.apply(DIGITS, request_id="r")

    assert again == Applied(1, ())
    assert (await replica.store.head(timeout_s=1.0)).objects[DIGITS[2].key] == replace(DIGITS[2], min_replicas=9)


async def test_a_lost_answer_is_read_back_and_the_change_is_made_once(replica: Replica) -> None:
    lost = iter([True])
    replica.etcd.lose_answer = lambda request: moves_head(request) and next(lost, False)

    applied = await replica.apply(DIGITS)

    assert applied.revision == 1
    assert len(applied.changes) == 3
    assert (await replica.store.head(timeout_s=1.0)).revision == 1


async def test_a_lost_request_is_sent_again(replica: Replica) -> None:
    def lose(_: etcd.TxnRequest) -> None:
        raise StoreUnavailable("the request was lost", metadata={"outcome": "unknown"})

    def lose_second(_: etcd.TxnRequest) -> None:
        replica.etcd.before_txn = lose  # the first write is that of the objects

    replica.etcd.before_txn = lose_second

    assert (await replica.apply(DIGITS)).revision == 1


async def test_a_request_that_arrives_late_is_not_done_twice(replica: Replica) -> None:
    held: list[etcd.TxnRequest] = []

    def hold(request: etcd.TxnRequest) -> None:
        held.append(request)
        replica.etcd.before_txn = release
        raise StoreUnavailable("no answer yet", metadata={"outcome": "unknown"})

    def release(request: etcd.TxnRequest) -> None:
        if moves_head(request):
            replica.etcd.commit(held[0])  # just before the second attempt
        else:
            replica.etcd.before_txn = release

    def hold_second(_: etcd.TxnRequest) -> None:
        replica.etcd.before_txn = hold

    replica.etcd.before_txn = hold_second

    applied = await replica.apply(DIGITS)

    assert held
    assert moves_head(held[0])
    assert applied.revision == 1
    assert len(applied.changes) == 3
    assert (await replica.store.head(timeout_s=1.0)).revision == 1


async def test_an_outcome_that_cannot_be_found_out_says_so_and_how_to_ask(replica: Replica) -> None:
    def go_away(request: etcd.TxnRequest) -> bool:
        replica.etcd.away = moves_head(request)
        return replica.etcd.away

    replica.etcd.lose_answer = go_away

    with pytest.raises(StoreUnavailable, match="ask again with the same request id 'r'") as unknown:
        await replica.apply(DIGITS, request_id="r", timeout_s=5.0)

    assert unknown.value.retry_after_s is not None
    assert unknown.value.metadata["outcome"] == "unknown"
    replica.etcd.away = False
    replica.etcd.lose_answer = lambda _: False
    assert (await replica.apply(DIGITS, request_id="r")).revision == 1


async def test_an_outage_is_told_at_once_and_nothing_is_done(replica: Replica) -> None:
    replica.etcd.away = True

    with pytest.raises(StoreUnavailable, match="etcd is away"):
        await replica.apply(DIGITS)

    replica.etcd.away = False
    assert await replica.names() == []


def once_before_the_head_moves(replica: Replica, intrusion: Callable[[], Awaitable[object]]) -> None:
    """Let something happen after the replica has read the head and before it moves it."""
    write = replica.store.write

    async def write_then_intrude(draft: Draft, *, timeout_s: float) -> None:
        replica.store.write = write  # type: ignore[method-assign]
        await write(draft, timeout_s=timeout_s)
        await intrusion()

    replica.store.write = write_then_intrude  # type: ignore[method-assign]


async def test_a_head_that_another_replica_moves_meanwhile_is_built_upon(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply([a_model("first")])
    once_before_the_head_moves(replica, lambda: other.apply([a_model("theirs")]))

    applied = await replica.apply([a_model("mine")])

    assert applied.revision == 3
    assert await replica.names() == ["Model/first", "Model/mine", "Model/theirs"]


async def test_a_head_that_another_replica_moves_meanwhile_fails_who_expected_the_old_one(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply([a_model("first")])
    once_before_the_head_moves(replica, lambda: other.apply([a_model("theirs")]))

    with pytest.raises(RevisionMoved):
        await replica.apply([a_model("mine")], expected=1)

    assert await replica.names() == ["Model/first", "Model/theirs"]


async def test_a_change_that_another_replica_makes_invalid_meanwhile_is_refused(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply(DIGITS)
    once_before_the_head_moves(replica, lambda: other.apply([], ["ModelVersion/digits/1.0.0", "Model/digits"]))

    with pytest.raises(InvalidRequest, match="there is no Model 'digits'"):
        await replica.apply([a_version("digits", "2.0.0")])

    assert await replica.names() == ["Pool/cpu"]


async def test_one_request_sent_to_two_replicas_at_once_is_done_once(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply([a_model("first")])
    theirs: list[Applied] = []

    async def same() -> None:
        theirs.append(await other.apply([a_model("mine")], request_id="r", expected=1))

    once_before_the_head_moves(replica, same)

    assert [await replica.apply([a_model("mine")], request_id="r", expected=1)] == theirs
    assert (await replica.store.head(timeout_s=1.0)).revision == 2


async def test_a_request_id_is_used_once_even_for_different_requests_at_once(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply([a_model("first")])
    once_before_the_head_moves(replica, lambda: other.apply([a_model("first")], request_id="r"))

    assert await replica.apply([a_model("mine")], request_id="r") == Applied(1, ())
    assert await replica.names() == ["Model/first"]


async def test_a_request_done_by_another_replica_while_the_head_is_read_is_recognised(replica: Replica) -> None:
    other = Replica(replica.etcd)
    await replica.apply([a_model("first")])
    look = replica.store._look
    theirs: list[Applied] = []

    async def look_then_lag(keys: Sequence[str], timeout_s: float) -> Any:
        replica.store._look = look  # type: ignore[method-assign]
        seen = await look(keys, timeout_s)
        theirs.append(await other.apply([a_model("mine")], request_id="r", expected=1))
        await replica.store.head(timeout_s=1.0)  # a reader of this replica has heard of it by now
        return seen

    replica.store._look = look_then_lag  # type: ignore[method-assign]

    assert [await replica.apply([a_model("mine")], request_id="r", expected=1)] == theirs


async def test_a_turn_that_does_not_come_within_the_deadline_is_told(replica: Replica) -> None:
    async with replica.applier._turn:
        with pytest.raises(BudgetExhausted, match="nothing was changed"):
            await replica.apply(DIGITS, timeout_s=0.1)


async def test_history_keeps_who_why_when_and_a_chain_of_digests(replica: Replica) -> None:
    await replica.apply(DIGITS, reason="begin", request_id="r1")
    await replica.apply([], ["ModelVersion/digits/1.0.0"], reason="clean", request_id="r2")

    second, first = await replica.store.revisions(2, 10, timeout_s=1.0)

    assert (first.author, first.reason, first.request_id) == ("ann", "begin", "r1")
    assert first.time.seconds == 1_000
    assert first.parent_digest == ""
    assert second.parent_digest == layout.digest_of(layout.raw_of(first))
    assert [change.action for change in second.changes] == [registry_pb2.CHANGE_ACTION_DELETE]
    assert second.change_count == 1


async def test_a_long_history_entry_names_a_hundred_changes_and_counts_them_all(replica: Replica) -> None:
    await replica.apply([a_model(f"m-{index}") for index in range(130)])

    (revision,) = await replica.store.revisions(1, 1, timeout_s=1.0)

    assert len(revision.changes) == 100
    assert revision.change_count == 130


async def test_labels_change_a_version_without_a_new_one(replica: Replica) -> None:
    await replica.apply(DIGITS)

    applied = await replica.apply([replace(DIGITS[2], metadata=Metadata("digits", {"stage": "canary"}))])

    assert applied.changes[0].fields == (FieldChange("metadata.labels[stage]", "", "canary"),)


async def test_a_rollback_is_a_new_revision_with_the_old_tree(replica: Replica) -> None:
    await replica.apply([*DIGITS, a_model("old")])
    await replica.apply([replace(a_model("digits"), owner="bob"), a_model("new")], ["Model/old"])

    applied = await replica.apply(restores=1, request_id="back")

    assert applied.revision == 3
    assert [f"{change.action.value} {change.key}" for change in applied.changes] == [
        "UPDATE Model/digits",
        "CREATE Model/old",
        "DELETE Model/new",
    ]
    first, second, third = [(await replica.store.record(number, 1.0))[0] for number in (1, 2, 3)]
    assert third.tree_digest == first.tree_digest != second.tree_digest
    assert (third.restores, third.parent_digest) == (1, replica_digest(replica, 2))
    assert await replica.apply(restores=1, request_id="back") == applied
    assert (await replica.apply(restores=3)).changes == ()


def replica_digest(replica: Replica, revision: int) -> str:
    return layout.digest_of(replica.etcd.keys[layout.revision_key(revision)].value)


async def test_a_rollback_that_would_change_a_version_under_its_name_is_refused_by_its_name(replica: Replica) -> None:
    await replica.apply(DIGITS)
    await replica.apply([], ["ModelVersion/digits/1.0.0"])
    await replica.apply([a_version("digits", pool="cpu", mib=2)])

    with pytest.raises(InvalidRequest) as refused:
        await replica.apply(restores=1)

    (fault,) = refused.value.faults
    assert fault.path == "ModelVersion/digits/1.0.0.model_version.resources.memory_bytes"
    assert "immutable" in fault.message
    assert (await replica.apply()).revision == 3


async def test_a_rollback_to_what_never_was_is_refused(replica: Replica) -> None:
    await replica.apply(DIGITS)

    with pytest.raises(RevisionNotFound, match="no revision 7; the head is 1"):
        await replica.apply(restores=7)


async def test_an_exact_apply_takes_away_what_it_does_not_name(replica: Replica) -> None:
    await replica.apply([*DIGITS, a_model("old")])

    applied = await replica.apply([a_model("digits"), a_model("new")], exact=True)

    assert [f"{change.action.value} {change.key}" for change in applied.changes] == [
        "CREATE Model/new",
        "DELETE ModelVersion/digits/1.0.0",
        "DELETE Model/old",
        "DELETE Pool/cpu",
    ]


async def test_a_moved_head_is_refused_with_what_moved(replica: Replica) -> None:
    await replica.apply(DIGITS)
    await replica.apply([a_model(f"m-{index}") for index in range(7)], ["ModelVersion/digits/1.0.0"])

    with pytest.raises(RevisionMoved) as refused:
        await replica.apply([a_model("more")], expected=1)

    moved = "create Model/m-0, create Model/m-1, create Model/m-2, create Model/m-3, create Model/m-4 and 3 more"
    assert refused.value.metadata == {"head": "2", "expected": "1", "moved": moved}
    assert moved in refused.value.message
    assert refused.value.message.endswith("apply on top of 2")
