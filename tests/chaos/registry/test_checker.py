"""The checker itself: it finds nothing in a right history, and each way of spoiling one is found and called by name."""

from dataclasses import replace

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from tests.chaos.registry import run
from tests.chaos.registry.__main__ import missing
from tests.chaos.registry.appliers import Ledger
from tests.chaos.registry.asked import Content, Followed, Heard, sha256
from tests.chaos.registry.checker import Verdict, judge
from tests.chaos.registry.events import digest, transactions
from tests.chaos.registry.fencing import LED, Fences
from tests.chaos.registry.planted import kinds
from tests.chaos.registry.story import Story, tell
from tests.chaos.registry.truth import PREFIX


@pytest.fixture
def story() -> Story:
    """Three revisions, all acknowledged."""
    made = Story()
    made.apply("one", "Model/a", "Model/b")
    made.apply("two", "Model/b", "Model/c")
    made.apply("three", deletes=["Model/a"])
    return made


def found(story: Story) -> tuple[str, ...]:
    return kinds(story.verdict())


def without(story: Story, *parts: str) -> None:
    """Leave out every event whose key has one of `parts`."""
    story.events = [event for event in story.events if not any(part in event.key for part in parts)]


def test_a_right_history_is_clean(story: Story) -> None:
    verdict = story.verdict()

    assert verdict.clean, verdict.lines()
    assert [move.number for move in story.truth().moves] == [1, 2, 3]


def test_requests_that_had_nothing_to_change_were_dry_or_refused_are_no_fault(story: Story) -> None:
    same = story.ask("same")
    tell(same, "acknowledged", 100.0, story.note(same))
    dry = story.ask("dry", "Model/a")
    dry.dry_run = True
    tell(dry, "acknowledged", 101.0, 3)
    tell(story.ask("refused", "Model/a"), "refused", 102.0)
    late = story.ask("late", "Model/d")
    tell(late, "unknown", 103.0)
    tell(late, "refused", 105.0)
    story.do(late)  # the lost attempt arrived after all

    assert found(story) == ()


def test_a_restored_state_is_that_of_its_revision(story: Story) -> None:
    first = {key: sha256(f"{key} by one".encode()) for key in ("Model/a", "Model/b")}
    back = story.ask("back", restores=1)
    tell(back, "acknowledged", 100.0, story.do(back, restored=first))
    assert found(story) == ()

    wrong = story.ask("wrong", restores=2)
    tell(wrong, "acknowledged", 200.0, story.do(wrong, restored={"Model/a": first["Model/a"]}))
    assert found(story) == ("torn",)


def test_an_acknowledged_request_that_is_nowhere_is_lost(story: Story) -> None:
    tell(story.ask("four", "Model/d"), "acknowledged", 100.0, 4)

    assert found(story) == ("lost",)


def test_an_acknowledgement_of_another_revision_is_a_loss(story: Story) -> None:
    story.asked["two"].attempts.clear()
    tell(story.asked["two"], "acknowledged", 2.0, 3)

    assert found(story) == ("lost",)


def test_a_repeated_request_that_is_answered_otherwise_is_a_loss(story: Story) -> None:
    tell(story.asked["one"], "refused", 100.0)

    assert found(story) == ("lost",)


def test_a_request_that_nobody_knows_the_end_of_is_lost(story: Story) -> None:
    tell(story.ask("four", "Model/d"), "unknown", 100.0)

    assert found(story) == ("lost",)


def test_a_revision_in_the_place_of_another_is_a_loss(story: Story) -> None:
    four, again = story.ask("four", "Model/d"), story.ask("again", "Model/e")
    tell(four, "acknowledged", 100.0, story.do(four))
    tell(again, "acknowledged", 100.0, story.do(again, number=4))

    verdict = story.verdict()

    assert verdict.lost == ("four was acknowledged at 4, which is now again's, or gone",)
    assert verdict.torn


@pytest.mark.parametrize("part", ["objects/", "trees/", "revisions/", "requests/"])
def test_a_head_that_names_what_is_not_there_is_torn(story: Story, part: str) -> None:
    without(story, part)

    assert "torn" in found(story)


def test_a_value_under_the_digest_of_another_is_torn(story: Story) -> None:
    story.events[0] = replace(story.events[0], value=b"else")

    assert found(story) == ("torn",)


def test_a_revision_of_a_part_of_what_was_asked_is_torn(story: Story) -> None:
    whole = story.ask("four", "Model/d", "Model/e")
    del story.asked["four"]
    part = story.ask("four", "Model/d")
    story.asked["four"] = whole
    tell(whole, "acknowledged", 100.0, story.do(part))

    assert found(story) == ("torn",)


def test_a_revision_made_on_another_than_was_expected_is_torn(story: Story) -> None:
    story.asked["three"].expected_revision = 1

    assert found(story) == ("torn",)


def test_a_head_that_leaves_a_number_out_is_torn(story: Story) -> None:
    four = story.ask("four", "Model/d")
    tell(four, "acknowledged", 100.0, story.do(four, number=5))

    assert "torn" in found(story)


def test_a_collection_may_delete_what_no_kept_revision_names_and_nothing_else(story: Story) -> None:
    truth = story.truth()
    gone = sha256(b"Model/b by one")
    kept = sha256(b"Model/c by two")
    story.put({"oldest": b"2"})
    story.put({f"revisions/{1:016d}": None, f"objects/{gone}": None})
    assert truth.faults == []
    assert found(story) == ()

    story.put({f"objects/{kept}": None})
    story.put({f"revisions/{2:016d}": None})
    story.put({"oldest": b"1"})
    assert len(story.truth().faults) == 3


def test_what_etcd_lists_in_the_end_must_be_what_happened(story: Story) -> None:
    truth = story.truth()
    truth.compare(story.stored())
    assert truth.faults == []

    truth.compare({**story.stored(), f"{PREFIX}head": b""})
    assert truth.faults == [f"{PREFIX}head is not what its last transaction made of it"]


def test_a_revision_that_nobody_asked_for_is_a_phantom(story: Story) -> None:
    del story.asked["three"]

    assert found(story) == ("phantom",)


def test_a_request_that_is_carried_out_twice_is_a_phantom(story: Story) -> None:
    story.do(story.asked["one"])

    assert "phantom" in found(story)


@pytest.mark.parametrize("outcome", ["refused", "undone"])
def test_a_refused_request_that_is_carried_out_is_a_phantom(story: Story, outcome: str) -> None:
    four = story.ask("four", "Model/d")
    tell(four, "refused" if outcome == "refused" else "undone", 100.0)
    story.do(four)

    assert found(story) == ("phantom",)


def test_a_dry_run_that_changes_something_is_a_phantom(story: Story) -> None:
    story.asked["three"].dry_run = True

    assert found(story) == ("phantom",)


def test_what_began_after_an_acknowledgement_comes_after_it(story: Story) -> None:
    early, late = story.ask("early", "Model/d"), story.ask("late", "Model/e")
    tell(late, "acknowledged", 102.0, story.do(late))
    tell(early, "acknowledged", 100.0, story.do(early))

    assert found(story) == ("order",)

    story.asked["early"].attempts.clear()
    tell(early, "acknowledged", 102.5, 5)
    assert found(story) == ()


def test_what_had_nothing_to_change_has_its_place_in_the_order(story: Story) -> None:
    same = story.ask("same")
    at = story.note(same)
    after = story.apply("after", "Model/d").attempts[0]
    tell(same, "acknowledged", after.end_s + 1.0, at)

    assert found(story) == ("order",)


def judged(story: Story, *, heard: Heard | None = None, followed: Followed | None = None) -> Verdict:
    return judge(
        asked=story.asked,
        truth=story.truth(),
        fences=Fences(),
        readers=[heard] if heard else [],
        followed=[followed] if followed else [],
        happened=[(revision, digest(group)) for revision, group in transactions(story.events)],
    )


def test_a_reader_must_have_seen_states_that_were_and_come_to_the_head(story: Story) -> None:
    sums = {move.number: move.sum for move in story.truth().moves}
    assert sums[3] == Content(story.objects).sum
    right = Heard("r", [(0, 0), (2, sums[2]), (3, sums[3])])
    assert judged(story, heard=right).clean

    assert judged(story, heard=Heard("r", [(2, sums[1]), (3, sums[3])])).readers
    assert judged(story, heard=Heard("r", [(2, sums[2])])).readers
    assert judged(story, heard=Heard("r", [(3, sums[3])], faults=["a delta of 3 after revision 1"])).readers


def test_a_watch_must_give_each_transaction_once_in_order_and_as_it_was(story: Story) -> None:
    batches = [(revision, digest(group)) for revision, group in transactions(story.events)]
    later = (story.revision + 1, "after the end")
    assert judged(story, followed=Followed("w", [*batches, later])).clean

    assert judged(story, followed=Followed("w", [*batches[:1], *batches[2:]])).watches
    assert judged(story, followed=Followed("w", [*batches, batches[-1]])).watches
    assert judged(story, followed=Followed("w", [(batches[0][0], "else"), *batches[1:]])).watches


def test_a_write_of_one_who_does_not_lead_is_stale() -> None:
    story = Story()
    place = "elections/registry/a"
    story.put({place: b"first"})
    token = story.revision
    story.put({"elections/registry/b": b"second"})
    heir = story.revision
    story.put({"sweep": str(token).encode()})
    assert found(story) == ()

    story.put({"sweep": str(heir).encode()})
    assert found(story) == ("stale",), "it is not its turn yet"

    story.put({place: None})
    lost = story.revision
    story.put({"sweep": str(heir).encode()})
    story.put({"sweep": str(token).encode()})
    stale = story.verdict().stale
    assert [(write.token, write.lost) for write in stale] == [(heir, 0), (token, lost)]


def test_plans_and_the_writes_of_the_tests_own_leaders_are_judged_as_well() -> None:
    story = Story()
    story.put({"elections/resource-manager/a": b"", "elections/chaos-1/a": b""})
    token = story.revision
    mine = LED.removeprefix(PREFIX)
    plan = pb.Plan(leader_id=str(token)).SerializeToString()
    story.put({"live/plan": plan, f"{mine}chaos-1/plan": plan, f"{mine}chaos-1/collected": str(token).encode()})
    assert found(story) == ()

    story.put({"elections/resource-manager/a": None, "elections/chaos-1/a": None})
    story.put({"live/plan": plan, f"{mine}chaos-1/plan": plan, f"{mine}chaos-1/collected": str(token).encode()})
    assert len(story.verdict().stale) == 3


async def test_a_run_without_its_traffic_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "VOID_S", 0.05)
    ledger = Ledger(acknowledged=run.MIN_ACKNOWLEDGED - 1)

    with pytest.raises(run.Void, match="1 of 10 acknowledgements lack"):
        await run._traffic([], ledger, run.MIN_ACKNOWLEDGED)

    ledger.acknowledged += 1
    await run._traffic([], ledger, run.MIN_ACKNOWLEDGED)
    assert "kills" in missing(run.Report(no_network="no root"))
    assert "partitions" not in missing(run.Report(no_network="no root"))
