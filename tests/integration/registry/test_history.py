"""The history over real gRPC and etcd: shown, compared, rolled back, exported, imported, verified."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call, read
from services.chassis.etcd import EtcdClient
from services.domain.errors import InvalidRequest, ObjectNotFound, RevisionNotFound
from services.registry import layout
from tests.fakes.objects import a_model, a_pool, a_version
from tests.integration.registry.replicas import Replica
from tests.support.etcd import EtcdProcess
from tests.support.ports import free_ports

DIGITS = (a_pool(), a_model("digits"), a_version("digits", pool="cpu"))


async def export(replica: Replica, *, revision: int = 0, history: bool = False) -> bytes:
    request = pb.ExportRequest(revision=revision, history=history)
    return b"".join([answer.data async for answer in read(replica.stub.Export, request, timeout_s=30.0)])


async def take(replica: Replica, *parts: bytes, options: pb.ImportOptions | None = None) -> pb.ImportResponse:
    async def requests() -> AsyncIterator[pb.ImportRequest]:
        yield pb.ImportRequest(options=options or pb.ImportOptions(author="ann", reason="move"))
        for part in parts:
            yield pb.ImportRequest(data=part)

    return await call(replica.stub.Import, requests(), timeout_s=30.0)


async def verify(replica: Replica) -> pb.VerifyResponse:
    *_, last = [answer async for answer in read(replica.stub.Verify, pb.VerifyRequest(), timeout_s=30.0)]
    return last


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Replica]:
    """A registry on an etcd that is empty."""
    etcd = EtcdProcess(tmp_path / "elsewhere")
    etcd.start()
    replica = Replica(etcd.endpoint, free_ports(1)[0])
    await replica.start()
    yield replica
    await replica.stop()
    etcd.stop()


async def test_a_revision_shows_who_when_why_and_every_field(replica: Replica) -> None:
    await replica.apply(DIGITS, reason="first", request_id="one")
    await replica.apply([replace(DIGITS[2], min_replicas=5)], reason="more", request_id="two")

    found = await call(replica.stub.GetRevision, pb.GetRevisionRequest(), timeout_s=5.0)

    record = found.revision
    assert (record.number, record.author, record.reason, record.request_id) == (2, "ann", "more", "two")
    assert record.time.seconds > 1_700_000_000
    (change,) = found.changes
    assert [(field.path, field.before, field.after) for field in change.fields] == [
        ("model_version.min_replicas", "1", "5")
    ]
    first = await call(replica.stub.GetRevision, pb.GetRevisionRequest(revision=1), timeout_s=5.0)
    assert record.parent_digest == first.digest
    assert (len(first.changes), first.oldest) == (3, False)
    with pytest.raises(RevisionNotFound, match="the head is 2"):
        await call(replica.stub.GetRevision, pb.GetRevisionRequest(revision=3), timeout_s=5.0)


async def test_two_revisions_are_compared_in_both_directions(replica: Replica) -> None:
    await replica.apply(DIGITS)
    await replica.apply([a_model("new"), replace(DIGITS[1], owner="bob")], ["ModelVersion/digits/1.0.0"])

    there = await call(replica.stub.Diff, pb.DiffRequest(from_revision=1), timeout_s=5.0)
    back = await call(replica.stub.Diff, pb.DiffRequest(from_revision=2, to_revision=1), timeout_s=5.0)
    everything = await call(replica.stub.Diff, pb.DiffRequest(), timeout_s=5.0)

    assert [(change.action, change.key.kind, change.key.name) for change in there.changes] == [
        (pb.CHANGE_ACTION_UPDATE, "Model", "digits"),
        (pb.CHANGE_ACTION_CREATE, "Model", "new"),
        (pb.CHANGE_ACTION_DELETE, "ModelVersion", "digits"),
    ]
    assert (there.from_revision, there.to_revision) == (1, 2)
    assert [(change.action, change.key.name) for change in back.changes] == [
        (pb.CHANGE_ACTION_UPDATE, "digits"),
        (pb.CHANGE_ACTION_CREATE, "digits"),
        (pb.CHANGE_ACTION_DELETE, "new"),
    ]
    assert [change.action for change in everything.changes] == [pb.CHANGE_ACTION_CREATE] * 3
    with pytest.raises(InvalidRequest, match="to_revision"):
        await call(replica.stub.Diff, pb.DiffRequest(to_revision=-1), timeout_s=5.0)


async def test_a_rollback_brings_the_old_state_back_and_watchers_follow(replica: Replica) -> None:
    await replica.apply(DIGITS)
    await replica.apply([a_model("new")], ["ModelVersion/digits/1.0.0"])
    watcher = await replica.watch().until(lambda heard: heard.revisions[-1:] == [2])

    request = pb.RollbackRequest(revision=1, author="ann", request_id="back", dry_run=True)
    dry = await call(replica.stub.Rollback, request, timeout_s=5.0)
    request.dry_run = False
    done = await call(replica.stub.Rollback, request, timeout_s=5.0)
    again = await call(replica.stub.Rollback, request, timeout_s=5.0)

    assert (dry.revision, done.revision) == (2, 3)
    assert done == again
    assert done.changes == dry.changes
    await watcher.until(lambda heard: heard.revisions[-2:] == [2, 3])
    assert watcher.names == {"cpu", "digits"}
    watcher.cancel()
    newest, _, oldest = await replica.history()
    assert (newest.restores, newest.reason) == (1, "rollback to revision 1")
    assert newest.tree_digest == oldest.tree_digest
    with pytest.raises(ObjectNotFound):
        await replica.get("Model/new")
    with pytest.raises(InvalidRequest, match="revision"):
        await call(replica.stub.Rollback, pb.RollbackRequest(), timeout_s=5.0)


async def test_state_and_history_make_the_round_trip_into_an_empty_etcd(replica: Replica, elsewhere: Replica) -> None:
    await replica.apply(DIGITS, reason="first")
    await replica.apply([a_model(f"m-{index}") for index in range(3000)])
    await replica.apply([], [f"Model/m-{index}" for index in range(2000)])
    state, history = await export(replica), await export(replica, history=True)

    brought = await take(elsewhere, history)

    assert (brought.revision, brought.revisions) == (3, 3)
    assert await export(elsewhere, history=True) == history
    assert await export(elsewhere) == state
    assert await elsewhere.history() == await replica.history()
    said = await verify(elsewhere)
    assert (said.head, said.oldest, said.revisions, said.HasField("broken")) == (3, 1, 3, False)

    old = await export(replica, revision=1)
    assert len(old) < len(state)
    back = await take(elsewhere, *(old[start : start + 10] for start in range(0, len(old), 10)))
    assert (back.revision, len(back.changes)) == (4, 1000)
    assert await export(elsewhere) == old


async def test_verification_finds_what_was_done_to_the_store_behind_the_registrys_back(
    replica: Replica, own_etcd: EtcdProcess
) -> None:
    await replica.apply(DIGITS)
    await replica.apply([a_model("new")])
    client = EtcdClient([own_etcd.endpoint])
    key = layout.revision_key(1)
    kept = await client.get(key)
    assert kept is not None

    forged = pb.Revision.FromString(kept.value)
    forged.author = "mallory"
    await client.put(key, forged.SerializeToString(deterministic=True))
    broken = (await verify(replica)).broken

    assert (broken.revision, broken.key) == (1, key)
    await client.put(key, kept.value)
    assert not (await verify(replica)).HasField("broken")
    await client.close()


async def test_bad_calls_say_what_is_wrong(replica: Replica) -> None:
    await replica.apply(DIGITS)

    async def data_first() -> AsyncIterator[pb.ImportRequest]:
        yield pb.ImportRequest(data=b"x")

    async def options_twice() -> AsyncIterator[pb.ImportRequest]:
        yield pb.ImportRequest(options=pb.ImportOptions())
        yield pb.ImportRequest(options=pb.ImportOptions())

    for requests, what in ((data_first, "options: must be the first"), (options_twice, "data: must follow")):
        with pytest.raises(InvalidRequest, match=what):
            await call(replica.stub.Import, requests(), timeout_s=5.0)
    with pytest.raises(InvalidRequest, match="must be 0 with history"):
        await export(replica, revision=1, history=True)
    with pytest.raises(RevisionNotFound):
        await export(replica, revision=9)
    with pytest.raises(InvalidRequest, match=r"does not begin as a file|is no record"):
        await take(replica, b"kind: Model\nmetadata: {name: x}\n" * 10)
    assert len(await replica.history()) == 1
