"""A change that a gate keeps out changes nothing and leaves a record; one that passes says what was found."""

from dataclasses import replace
from typing import Any

import pytest

from modelyard.registry.v1 import registry_pb2 as pb
from services.domain.errors import GateFailed, InvalidRequest, ObjectNotFound
from services.domain.model import TensorSpec
from services.domain.objects import (
    Metadata,
    Model,
    Object,
    Pool,
    Route,
    RouteTarget,
    Single,
    SmokeTest,
    Template,
    WarmupTensor,
)
from services.domain.templates import TEMPLATE_ANNOTATION
from services.registry import attempt_log, layout
from services.registry.attempt_log import APPROVED_S
from tests.fakes.etcd import FakeEtcd
from tests.fakes.objects import a_model, a_pool, a_version
from tests.unit.registry.test_apply import DIGITS, Replica
from tests.unit.registry.test_collecting import LEADER, Place

ROUTE = Route(Metadata("read"), Single(RouteTarget("digits", "1.0.0")), owner="olga, otto", protected=True)


@pytest.fixture
async def yard() -> Replica:
    replica = Replica(FakeEtcd())
    await replica.apply([*DIGITS, ROUTE])
    return replica


async def attempts(replica: Replica) -> list[pb.Attempt]:
    return await replica.attempts.attempts(50, timeout_s=1.0)


async def approve(replica: Replica, attempt_id: str, author: str) -> pb.Approval:
    request = pb.ApproveRequest(attempt_id=attempt_id, author=author, reason="fine")
    return await replica.attempts.approve(request, timeout_s=1.0)


# --- schema ------------------------------------------------------------------------------------


def digits(**changes: Any) -> Model:
    return replace(a_model("digits"), **changes)


WIDER = TensorSpec("x", "FP32", (-1, -1))
MORE = TensorSpec("hint", "INT64", (-1,), optional=True)


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        (digits(inputs=(WIDER, MORE)), ""),
        (digits(outputs=(*a_model("digits").outputs, TensorSpec("score", "FP32", (-1,)))), ""),
        (digits(inputs=(TensorSpec("x", "FP32", (-1, 8)),)), "takes FP32 \\[-1, 8\\] as input 'x'"),
        (digits(inputs=(TensorSpec("x", "FP64", (-1, 4)),)), "takes FP64"),
        (digits(inputs=(TensorSpec("z", "FP32", (-1, 4)),)), "takes no input 'x'"),
        (digits(inputs=(*a_model("digits").inputs, replace(MORE, optional=False))), "needs input 'hint'"),
        (digits(outputs=(TensorSpec("y", "FP32", (-1, -1)),)), "as output 'y'"),
        (digits(outputs=(TensorSpec("other", "FP32", (-1, 4)),)), "gives no output 'y'"),
    ],
)
async def test_a_model_with_versions_changes_its_schema_only_so_that_callers_are_served_on(
    yard: Replica, change: Model, misfit: str
) -> None:
    if not misfit:
        applied = await yard.apply([change])
        assert [(finding.gate, finding.passed) for finding in applied.findings] == [("schema", True)]
        return

    with pytest.raises(GateFailed, match=misfit) as refused:
        await yard.apply([change], request_id="r")

    (attempt,) = await attempts(yard)
    assert refused.value.metadata["attempt"] == attempt.id
    assert (attempt.author, attempt.request_id, attempt.change_count) == ("ann", "r", 1)
    assert [(finding.gate, finding.passed) for finding in attempt.findings] == [("schema", False)]
    assert (await yard.apply()).revision == 1


async def test_a_model_without_versions_may_become_anything(yard: Replica) -> None:
    await yard.apply([a_model("draft")])

    assert (await yard.apply([replace(a_model("draft"), inputs=(MORE,))])).findings == ()


# --- limits ------------------------------------------------------------------------------------


async def test_versions_keep_within_what_their_pool_allows(yard: Replica) -> None:
    small: Pool = replace(a_pool("small"), max_version_bytes=64 << 20, min_latency_slo_s=0.1)
    fast = replace(a_model("fast"), latency_slo_s=0.05)

    with pytest.raises(GateFailed) as refused:
        await yard.apply([small, fast, a_version("fast", pool="small", mib=100)])

    assert "declares 100 MiB, pool 'small' allows a version 64" in refused.value.message
    assert "promises 0.05 s, in pool 'small' no less than 0.1 s" in refused.value.message
    slow = replace(fast, latency_slo_s=0.2)
    applied = await yard.apply([small, slow, a_version("fast", pool="small", mib=64)])
    assert [(finding.gate, finding.passed) for finding in applied.findings] == [("limits", True)]


# --- approvals ---------------------------------------------------------------------------------


CHANGED = replace(ROUTE, description="other")


async def test_a_protected_route_changes_once_an_owner_has_approved_of_exactly_that(yard: Replica) -> None:
    with pytest.raises(GateFailed, match=r"an owner must approve: olga, otto.*once one of olga, otto has approved"):
        await yard.apply([CHANGED])
    (attempt,) = await attempts(yard)
    assert list(attempt.approvers) == ["olga", "otto"]

    with pytest.raises(GateFailed, match="'eve' owns not all"):
        await approve(yard, attempt.id, "eve")
    await approve(yard, attempt.id, "otto")

    with pytest.raises(GateFailed):
        await yard.apply([replace(ROUTE, description="yet another")])
    with pytest.raises(GateFailed):
        await yard.apply([replace(CHANGED, protected=False)], author="eve")
    applied = await yard.apply([CHANGED])
    assert applied.revision == 2
    assert [(finding.gate, finding.text) for finding in applied.findings] == [("approval", "otto has approved")]


async def test_an_approval_is_of_the_objects_that_the_change_met(yard: Replica) -> None:
    with pytest.raises(GateFailed):
        await yard.apply([CHANGED])
    await approve(yard, (await attempts(yard))[0].id, "olga")
    await yard.apply([replace(ROUTE, max_attempts=1)], author="olga")

    with pytest.raises(GateFailed):
        await yard.apply([CHANGED])


async def test_owners_need_nobody_and_others_cannot_make_themselves_one(yard: Replica) -> None:
    with pytest.raises(GateFailed, match="olga, otto"):
        await yard.apply([replace(ROUTE, owner="eve")], author="eve")
    with pytest.raises(GateFailed):
        await yard.apply([], ["Route/read"], author="eve")

    applied = await yard.apply([replace(ROUTE, owner="")], author="olga")
    assert applied.findings[0].text == "olga owns it"
    with pytest.raises(GateFailed, match="has no owner who could approve"):
        await yard.apply([ROUTE], author="olga")


async def test_an_approval_ends_after_a_week(yard: Replica) -> None:
    with pytest.raises(GateFailed):
        await yard.apply([CHANGED])
    await approve(yard, (await attempts(yard))[0].id, "olga")

    yard.clock.advance(APPROVED_S)

    with pytest.raises(GateFailed):
        await yard.apply([CHANGED])


async def test_rollbacks_and_imports_pass_the_same_gates(yard: Replica) -> None:
    await yard.apply([CHANGED], author="olga")

    with pytest.raises(GateFailed, match="an owner must approve"):
        await yard.apply(restores=1)
    with pytest.raises(GateFailed, match="an owner must approve"):
        await yard.apply(DIGITS, exact=True)
    assert (await yard.apply(restores=1, author="otto")).revision == 3


async def test_what_cannot_be_approved_says_why(yard: Replica) -> None:
    with pytest.raises(ObjectNotFound, match="no attempt 'x'"):
        await approve(yard, "x", "olga")
    with pytest.raises(InvalidRequest) as refused:
        await approve(yard, "", "")
    assert [fault.path for fault in refused.value.faults] == ["attempt_id", "author"]
    with pytest.raises(GateFailed):
        await yard.apply([digits(inputs=(MORE,))])
    with pytest.raises(GateFailed, match="lacks no approval"):
        await approve(yard, (await attempts(yard))[0].id, "olga")


# --- dry runs, smoke tests, records ------------------------------------------------------------


async def test_a_dry_run_tells_what_would_keep_it_out_and_keeps_no_record(yard: Replica) -> None:
    applied = await yard.apply([CHANGED, digits(inputs=(MORE,))], dry_run=True)

    assert sorted((finding.gate, finding.passed) for finding in applied.findings) == [
        ("approval", False),
        ("schema", False),
    ]
    assert len(applied.changes) == 2
    assert await attempts(yard) == []


async def test_a_version_with_a_smoke_test_needs_a_staging_host(yard: Replica) -> None:
    tensor = WarmupTensor((1, 4), b"\0" * 16)
    version = replace(a_version("digits", "2.0.0"), smoke=SmokeTest({"x": tensor}, {"y": tensor}))

    with pytest.raises(GateFailed, match="no staging host is listed"):
        await yard.apply([version])

    (attempt,) = await attempts(yard)
    assert [(finding.gate, finding.passed) for finding in attempt.findings] == [("smoke", False)]


async def test_the_last_attempts_are_kept_and_the_leader_forgets_the_rest(
    yard: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_log, "KEPT_ATTEMPTS", 3)
    for index in range(5):
        yard.clock.advance(1.0)
        with pytest.raises(GateFailed):
            await yard.apply([replace(ROUTE, description=str(index))])
    newest = await attempts(yard)
    await approve(yard, newest[0].id, "olga")
    await yard.etcd.put(LEADER, b"me")
    place = Place(LEADER, yard.etcd.keys[LEADER].create_revision)

    await yard.attempts.forget(place)
    assert await attempts(yard) == newest[:3]
    assert layout.approval_key(newest[0].change_digest) in yard.etcd.keys
    yard.clock.advance(APPROVED_S)
    await yard.attempts.forget(place)
    assert not [key for key in yard.etcd.keys if key.startswith(layout.APPROVALS)]


# --- templates ---------------------------------------------------------------------------------


SERVED = Template(Metadata("served"), (), (b"\x52\x00",), owner="olga, otto", requires_approval=True)


def made_by(item: Object, template: str) -> Any:
    """An object that says that a template made it."""
    origin = {TEMPLATE_ANNOTATION: f"{template}@0123456789ab"}
    return replace(item, metadata=replace(item.metadata, annotations=origin))


async def test_what_a_template_made_changes_as_its_owners_want_before_and_after(yard: Replica) -> None:
    model = a_model("made")
    await yard.apply([SERVED])
    await yard.apply([model])

    for wanted in ([made_by(model, "served")], [made_by(a_model("more"), "served")], [replace(SERVED, owner="eve")]):
        with pytest.raises(GateFailed, match=r"an owner must approve: olga, otto.*once one of olga, otto"):
            await yard.apply(wanted, author="eve")
    applied = await yard.apply([made_by(model, "served")], author="olga")
    assert [(finding.gate, finding.text) for finding in applied.findings] == [
        ("template", "olga owns template 'served'")
    ]
    with pytest.raises(GateFailed, match="template 'served' made it, which requires approval"):
        await yard.apply([model])
    with pytest.raises(GateFailed):
        await yard.apply([], ["Model/made"])
    assert (await yard.apply([made_by(a_model("other"), "nobody")])).findings == ()
    assert (await yard.apply([replace(SERVED, requires_approval=False)], author="otto")).revision
    assert (await yard.apply([model])).findings == ()


async def test_one_approval_must_do_for_routes_and_templates(yard: Replica) -> None:
    await yard.apply([replace(SERVED, owner="otto, oskar")])
    with pytest.raises(GateFailed) as refused:
        await yard.apply([made_by(CHANGED, "served")])
    (attempt,) = await attempts(yard)
    assert [finding.gate for finding in attempt.findings if not finding.passed] == ["approval", "template"]
    assert refused.value.metadata["approvers"] == "otto"

    await approve(yard, attempt.id, "otto")
    assert {finding.text for finding in (await yard.apply([made_by(CHANGED, "served")])).findings} == {
        "otto has approved"
    }


async def test_no_approval_stands_for_a_smoke_test_that_a_template_asks_for(yard: Replica) -> None:
    await yard.apply([replace(SERVED, requires_smoke=True)])
    version = made_by(a_version("digits", "9.0.0"), "served")

    with pytest.raises(GateFailed, match="has no smoke test, which template 'served' asks for") as refused:
        await yard.apply([version])
    assert "apply the same again" not in str(refused.value)
    (attempt,) = await attempts(yard)
    await approve(yard, attempt.id, "olga")
    with pytest.raises(GateFailed, match="has no smoke test"):
        await yard.apply([version])
    with pytest.raises(GateFailed, match="has no smoke test"):
        await yard.apply([version], author="otto")
