"""Apply over real gRPC and etcd: atomic, repeatable, with every fault, from any replica."""

import asyncio
import hashlib
import itertools
from dataclasses import replace

import grpc
import pytest

from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.object_codec import object_to
from services.domain.errors import (
    DeadlineRequired,
    InvalidRequest,
    MalformedMessage,
    ObjectNotFound,
    RevisionMoved,
    RevisionNotFound,
)
from services.domain.objects import Artifact, Metadata, Object, Route, RouteTarget, Single
from tests.fakes.objects import a_model, a_pool, a_version
from tests.integration.registry.conftest import StartReplica
from tests.integration.registry.replicas import Replica

DIGITS = (a_pool(), a_model("digits"), a_version("digits", pool="cpu"))
ROUTE = Route(Metadata("read"), Single(RouteTarget("digits", "1.0.0")))


async def test_what_was_applied_is_read_back_at_its_revision(replica: Replica) -> None:
    assert (await replica.apply([*DIGITS, ROUTE])).revision == 1
    assert (await replica.apply([replace(DIGITS[2], min_replicas=5)], ["Route/read"])).revision == 2

    assert (await replica.get("ModelVersion/digits/1.0.0")).object.model_version.min_replicas == 5
    assert (await replica.get("ModelVersion/digits/1.0.0", revision=1)).object.model_version.min_replicas == 1
    assert (await replica.get("Route/read", revision=1)).revision == 1
    with pytest.raises(ObjectNotFound):
        await replica.get("Route/read")
    answer = await replica.get("Model/digits")
    stored = answer.object.SerializeToString(deterministic=True)
    assert answer.digest == hashlib.sha256(stored).hexdigest()


async def test_changes_are_answered_field_by_field(replica: Replica) -> None:
    await replica.apply(DIGITS)

    answer = await replica.apply([replace(DIGITS[2], min_replicas=5)], dry_run=True)

    (change,) = answer.changes
    assert (answer.revision, change.action) == (1, pb.CHANGE_ACTION_UPDATE)
    assert [(field.path, field.before, field.after) for field in change.fields] == [
        ("model_version.min_replicas", "1", "5")
    ]
    assert (await replica.get("ModelVersion/digits/1.0.0")).object.model_version.min_replicas == 1


async def test_five_faults_are_five_violations_with_their_paths(replica: Replica) -> None:
    broken = replace(a_version("digits", "1.0", pool="gpu"), artifact=Artifact("http://x", "abc"), min_replicas=-1)

    with pytest.raises(InvalidRequest) as refused:
        await replica.apply([a_model("digits"), a_model("Bad Name"), broken], ["Model/none"])

    assert [fault.path for fault in refused.value.faults] == [
        "objects[1].metadata.name",
        "objects[2].model_version.version",
        "objects[2].model_version.artifact.uri",
        "objects[2].model_version.artifact.sha256",
        "objects[2].model_version.min_replicas",
        "deletes[0]",
        "objects[2].model_version.pool",
    ]
    assert isinstance(refused.value.__cause__, grpc.aio.AioRpcError)
    assert refused.value.__cause__.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await replica.apply([])).revision == 0


async def test_an_object_without_a_spec_is_a_fault_beside_the_others(replica: Replica) -> None:
    request = pb.ApplyRequest(
        objects=[objects_pb2.Object(metadata=objects_pb2.Metadata(name="x")), object_to(a_model("Bad Name"))]
    )

    with pytest.raises(InvalidRequest) as refused:
        await call(replica.stub.Apply, request, timeout_s=5.0)

    assert [fault.path for fault in refused.value.faults] == ["objects[0].spec", "objects[1].metadata.name"]


async def test_a_stale_revision_is_aborted_with_the_head(replica: Replica) -> None:
    await replica.apply([a_model("a")])
    await replica.apply([a_model("b")], expected=1)

    with pytest.raises(RevisionMoved, match="the head is revision 2, not 1") as refused:
        await replica.apply([a_model("c")], expected=1)

    assert isinstance(refused.value.__cause__, grpc.aio.AioRpcError)
    assert refused.value.__cause__.code() is grpc.StatusCode.ABORTED
    assert refused.value.metadata["head"] == "2"


async def test_a_version_is_immutable(replica: Replica) -> None:
    await replica.apply(DIGITS)

    with pytest.raises(InvalidRequest, match="make it a new version") as refused:
        await replica.apply([replace(DIGITS[2], cost_microusd=7)])

    assert [fault.path for fault in refused.value.faults] == ["objects[0].model_version.cost_microusd"]
    await replica.apply([replace(DIGITS[2], min_replicas=2, metadata=Metadata("digits", {"a": "b"}, {"c": "d"}))])


async def test_what_is_in_use_is_not_deleted(replica: Replica) -> None:
    await replica.apply([*DIGITS, ROUTE])

    for key, user in (
        ("Model/digits", "ModelVersion/digits/1.0.0, Route/read"),
        ("ModelVersion/digits/1.0.0", "Route/read"),
        ("Pool/cpu", "ModelVersion/digits/1.0.0"),
    ):
        with pytest.raises(InvalidRequest, match=f"{key} is still used by {user}"):
            await replica.apply([], [key])

    assert (await replica.apply([], ["Route/read", "ModelVersion/digits/1.0.0", "Model/digits"])).revision == 2


async def test_what_does_not_exist_is_told_with_what_is_near(replica: Replica) -> None:
    await replica.apply([a_model("minilm-large"), a_model("minilm-small")])

    with pytest.raises(ObjectNotFound, match="near it: minilm-large") as missing:
        await replica.get("Model/minilm-larg")
    assert isinstance(missing.value.__cause__, grpc.aio.AioRpcError)
    assert missing.value.__cause__.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(RevisionNotFound, match="there is no revision 9; the head is 1"):
        await replica.get("Model/minilm-large", revision=9)


async def test_bytes_that_are_no_message_and_calls_without_a_deadline_are_refused(replica: Replica) -> None:
    path = "/modelyard.registry.v1.RegistryService/Apply"
    raw = replica.channel.unary_unary(path)  # type: ignore[var-annotated]
    with pytest.raises(MalformedMessage):
        await call(raw, b"\xff\xff\xff", timeout_s=5.0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replica.stub.Apply(pb.ApplyRequest())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert DeadlineRequired.reason in str(refused.value.trailing_metadata())


async def test_lists_are_paged_at_one_revision_while_others_apply(replica: Replica) -> None:
    models = [
        replace(a_model(f"m-{index:02}"), metadata=Metadata(f"m-{index:02}", {"odd": str(index % 2)}))
        for index in range(25)
    ]
    await replica.apply([*models, a_pool()])
    first = await call(replica.stub.List, pb.ListRequest(kind="Model", page_size=10), timeout_s=5.0)
    await replica.apply([a_model("a-late-one")], ["Model/m-20"])

    rest = await replica.list_all(pb.ListRequest(kind="Model", page_size=10, page_token=first.next_page_token))

    assert [item.metadata.name for item in [*first.objects, *rest]] == [f"m-{index:02}" for index in range(25)]
    odd = await replica.list_all(pb.ListRequest(labels={"odd": "1"}))
    assert len(odd) == 12
    assert len(await replica.list_all(pb.ListRequest(revision=1))) == 26


async def test_history_is_newest_first_with_who_why_and_an_unbroken_chain(replica: Replica) -> None:
    for index in range(45):
        await replica.apply([a_model(f"m-{index}")], reason=f"reason {index}", request_id=f"r-{index}")

    history = await replica.history()

    assert [revision.number for revision in history] == list(range(45, 0, -1))
    assert (history[0].author, history[0].reason, history[0].request_id) == ("ann", "reason 44", "r-44")
    assert history[0].time.seconds > 1_700_000_000
    for newer, older in itertools.pairwise(history):
        assert newer.parent_digest == hashlib.sha256(older.SerializeToString(deterministic=True)).hexdigest()


async def test_a_repeated_request_answers_with_its_first_result_at_any_replica(start_replica: StartReplica) -> None:
    one, two = await start_replica(), await start_replica()
    first = await one.apply(DIGITS, request_id="r", expected=0)
    await one.apply([replace(DIGITS[2], min_replicas=3)])

    assert await one.apply(DIGITS, request_id="r") == first
    assert await two.apply(DIGITS, request_id="r") == first
    assert len(await one.history()) == 2


async def test_appliers_at_two_replicas_lose_and_repeat_nothing(start_replica: StartReplica) -> None:
    replicas = [await start_replica(), await start_replica()]

    async def applier(number: int) -> list[int]:
        answers = []
        for index in range(10):
            objects: list[Object] = [a_model(f"by-{number}-{index}"), a_version(f"by-{number}-{index}")]
            answers.append((await replicas[number % 2].apply(objects, timeout_s=30.0)).revision)
        return answers

    revisions = [revision for answers in await asyncio.gather(*map(applier, range(4))) for revision in answers]

    assert sorted(revisions) == list(range(1, 41))
    history = await replicas[0].history()
    assert [revision.number for revision in history] == list(range(40, 0, -1))
    assert all(revision.change_count == 2 for revision in history)
    assert len(await replicas[1].list_all(pb.ListRequest())) == 80


async def test_a_thousand_objects_are_one_revision(replica: Replica) -> None:
    models = [a_model(f"m-{index}") for index in range(1000)]

    answer = await replica.apply(models, timeout_s=30.0)

    assert (answer.revision, len(answer.changes)) == (1, 1000)
    assert len(await replica.list_all(pb.ListRequest(page_size=300))) == 1000
    assert (await replica.apply([], [f"Model/m-{index}" for index in range(1000)], timeout_s=30.0)).revision == 2
    assert await replica.list_all(pb.ListRequest()) == []


async def test_a_replica_that_starts_later_reads_everything_from_the_store(start_replica: StartReplica) -> None:
    one = await start_replica()
    await one.apply(DIGITS)
    await one.apply([ROUTE])
    await one.stop()

    two = await start_replica()

    assert (await two.get("Route/read")).revision == 2
    assert len(await two.list_all(pb.ListRequest(revision=1))) == 3
