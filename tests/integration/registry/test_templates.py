"""Templates over real gRPC and etcd: what they make is applied, checked and gated like anything else."""

from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.channels import call
from services.chassis.object_codec import object_from
from services.domain.errors import GateFailed, InvalidRequest, ObjectNotFound
from services.domain.objects import Template
from services.domain.templates import TEMPLATE_ANNOTATION
from tests.integration.registry.replicas import Replica
from yardctl.manifests import load

SERVED = """
kind: Template
metadata: {name: served}
spec:
  owner: olga, otto
  parameters:
    - {name: name}
    - {name: replicas, type: INTEGER, default: "1"}
    - {name: row, type: INTEGER, default: "4", allowed: ["4", "8"]}
  objects:
    - kind: Model
      metadata: {name: "${name}"}
      spec:
        inputs: [{name: x, datatype: FP32, shape: [-1, "${row}"]}]
        outputs: [{name: x, datatype: FP32, shape: [-1, "${row}"]}]
    - kind: ModelVersion
      metadata: {name: "${name}"}
      spec:
        version: 1.0.0
        backend: {name: identity}
        min_replicas: "${replicas}"
    - kind: Route
      metadata: {name: "read-${name}"}
      spec:
        single: {target: {model: "${name}"}}
"""


@pytest.fixture
def template(tmp_path: Path) -> Template:
    """The template above."""
    path = tmp_path / "served.yaml"
    path.write_text(SERVED)
    (document,) = load([path])
    item = object_from(document.object)
    assert isinstance(item, Template)
    return item


async def instantiate(
    replica: Replica,
    template: str = "served",
    *,
    author: str = "ann",
    dry_run: bool = False,
    expected: int = 0,
    **parameters: str,
) -> pb.InstantiateResponse:
    """Make what a template says."""
    request = pb.InstantiateRequest(
        template=template, parameters=parameters, author=author, dry_run=dry_run, expected_revision=expected
    )
    return await call(replica.stub.Instantiate, request, timeout_s=10.0)


async def version_of(replica: Replica, name: str) -> objects_pb2.Object:
    return (await replica.get(f"ModelVersion/{name}/1.0.0")).object


def changed(answer: pb.InstantiateResponse) -> list[str]:
    return ["/".join(filter(None, (each.key.kind, each.key.name, each.key.version))) for each in answer.changes]


async def test_one_template_makes_many_sets_that_say_where_they_come_from(replica: Replica, template: Template) -> None:
    await replica.apply([template])

    first = await instantiate(replica, name="fox")
    second = await instantiate(replica, name="owl", replicas="3", row="8")
    again = await instantiate(replica, name="fox")

    assert changed(first) == ["Model/fox", "ModelVersion/fox/1.0.0", "Route/read-fox"]
    assert [first.revision, second.revision, again.revision] == [2, 3, 3]
    assert [item.metadata.name for item in second.objects] == ["owl", "owl", "read-owl"]
    fox, owl = await version_of(replica, "fox"), await version_of(replica, "owl")
    assert (fox.model_version.min_replicas, owl.model_version.min_replicas) == (1, 3)
    key = objects_pb2.ObjectKey(kind="Template", name="served")
    digest = (await call(replica.stub.Get, pb.GetRequest(key=key), timeout_s=5.0)).digest
    assert owl.metadata.annotations[TEMPLATE_ANNOTATION] == f"served@{digest[:12]}"
    newest = (await replica.history())[0]
    assert (newest.author, newest.reason) == ("ann", "template served")


async def test_a_dry_run_says_what_would_be_made(replica: Replica, template: Template) -> None:
    await replica.apply([template])

    answer = await instantiate(replica, name="fox", dry_run=True)

    assert (answer.revision, len(answer.changes), len(answer.objects)) == (1, 3, 3)
    with pytest.raises(ObjectNotFound):
        await version_of(replica, "fox")


async def test_bad_parameters_are_told_all_at_once_and_so_is_what_they_make(
    replica: Replica, template: Template
) -> None:
    await replica.apply([template])

    with pytest.raises(InvalidRequest) as caught:
        await instantiate(replica, replicas="many", row="5", rows="4")
    assert sorted(fault.path for fault in caught.value.faults) == [
        "parameters[name]",
        "parameters[replicas]",
        "parameters[row]",
        "parameters[rows]",
    ]

    with pytest.raises(InvalidRequest) as caught:
        await instantiate(replica, name="Not a Name", replicas="-1")
    paths = [fault.path for fault in caught.value.faults]
    assert "ModelVersion/Not a Name/1.0.0.model_version.min_replicas" in paths
    assert "Route/read-Not a Name.metadata.name" in paths
    assert len(await replica.history()) == 1


async def test_a_template_that_is_not_there_is_not_found_with_what_is_near(
    replica: Replica, template: Template
) -> None:
    await replica.apply([template])

    with pytest.raises(ObjectNotFound, match="no Template/serve; near it: served"):
        await instantiate(replica, "serve", name="fox")
    with pytest.raises(InvalidRequest, match="template: 'Served' must be"):
        await instantiate(replica, "Served", name="fox")


async def test_a_template_that_makes_nothing_sensible_is_refused_when_it_is_applied(
    replica: Replica, template: Template
) -> None:
    broken = replace(template, parameters=template.parameters[:2])

    with pytest.raises(InvalidRequest) as caught:
        await replica.apply([broken])

    assert {fault.path for fault in caught.value.faults} == {
        "objects[0].template.bindings[0]",
        "objects[0].template.bindings[1]",
    }


async def test_what_a_template_made_changes_only_as_its_owners_want(replica: Replica, template: Template) -> None:
    await replica.apply([replace(template, requires_approval=True)])

    with pytest.raises(GateFailed, match="once one of olga, otto has approved of attempt"):
        await instantiate(replica, name="fox")
    (attempt,) = (await call(replica.stub.ListAttempts, pb.ListAttemptsRequest(), timeout_s=5.0)).attempts
    assert {finding.gate for finding in attempt.findings} == {"template"}
    with pytest.raises(GateFailed, match="'eve' owns not all"):
        await call(replica.stub.Approve, pb.ApproveRequest(attempt_id=attempt.id, author="eve"), timeout_s=5.0)
    await call(replica.stub.Approve, pb.ApproveRequest(attempt_id=attempt.id, author="otto"), timeout_s=5.0)
    made = await instantiate(replica, name="fox")
    assert {finding.text for finding in made.findings} == {"otto has approved"}

    owned = await instantiate(replica, name="owl", author="olga")
    assert {finding.text for finding in owned.findings} == {"olga owns template 'served'"}
    route = object_from((await replica.get("Route/read-fox")).object)
    with pytest.raises(GateFailed, match="template 'served' made it"):
        await replica.apply(deletes=["Route/read-fox"])
    with pytest.raises(GateFailed, match="template 'served' made it"):
        await replica.apply([replace(route, metadata=replace(route.metadata, annotations={}))])
    with pytest.raises(GateFailed, match="it requires approval"):
        await replica.apply([template])


async def test_versions_without_a_smoke_test_do_not_land_where_the_template_asks_for_one(
    replica: Replica, template: Template
) -> None:
    await replica.apply([replace(template, requires_smoke=True)])

    with pytest.raises(GateFailed, match="has no smoke test, which template 'served' asks for"):
        await instantiate(replica, name="fox")

    dry = await instantiate(replica, name="fox", dry_run=True)
    assert [(finding.gate, finding.passed) for finding in dry.findings] == [("template", False)]
