"""Manifests of Policies, Tenants and every strategy: read, refused and written like all others."""

from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings

from modelyard.registry.v1 import objects_pb2, tenancy_pb2
from services.chassis.object_codec import object_to
from services.domain.errors import Fault, InvalidRequest
from services.domain.objects import Object
from tests.fakes import arbitrary_objects
from tests.unit.yardctl.manifest_files import faults_of, only, write
from yardctl.manifest_text import to_yaml
from yardctl.manifests import load, located


def test_strategies_policies_and_tenants_are_read_with_their_enums_and_units(tmp_path: Path) -> None:
    route = """\
kind: Route
metadata: {name: r, tenant: acme}
spec:
  protected: true
  split:
    hash_key: TENANT
    targets:
      - {target: {model: a}, percent: 99.5}
      - {target: {model: b, version: 1.0.0}, percent: 0.5}
"""
    tenant = "kind: Tenant\nmetadata: {name: acme}\nspec: {budget: {amount_microusd: 5, period: 24h}}\n"

    documents = load([write(tmp_path, f"{route}---\n{tenant}")])

    target = objects_pb2.RouteTarget
    assert [document.object for document in documents] == [
        objects_pb2.Object(
            metadata=objects_pb2.Metadata(name="r", tenant="acme"),
            route=objects_pb2.RouteSpec(
                protected=True,
                split=objects_pb2.Split(
                    hash_key=objects_pb2.HASH_KEY_TENANT,
                    targets=[
                        objects_pb2.SplitTarget(target=target(model="a"), percent=99.5),
                        objects_pb2.SplitTarget(target=target(model="b", version="1.0.0"), percent=0.5),
                    ],
                ),
            ),
        ),
        objects_pb2.Object(
            metadata=objects_pb2.Metadata(name="acme"),
            tenant=tenancy_pb2.TenantSpec(
                budget=tenancy_pb2.Budget(amount_microusd=5, period=Duration(seconds=86_400))
            ),
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "spec", "fault"),
    [
        ("Policy", "tiers: [{name: a, preemption: ALWAYS}]", "'preemption' must be one of LOWER_BANDS, NEVER, not the"),
        ("Policy", "retry: {attempts: 3}", "unknown field of 'retry' 'attempts'; did you mean 'max_attempts'?"),
        ("Tenant", "rate_limit: 5", "'rate_limit' must be a mapping of fields, not the number 5"),
        ("Route", "split: {hash_key: USER}", "'hash_key' must be one of SESSION, TENANT, REQUEST, not the text 'USER'"),
        (
            "Route",
            "ensemble: {combine: MEDIAN}",
            "'combine' must be one of MEAN, VOTE, WEIGHTED, not the text 'MEDIAN'",
        ),
        (
            "Route",
            "fallback: {targets: [{route: a, target: {model: b}}]}",
            "only one of 'route' and 'target' may be set",
        ),
        (
            "Route",
            "cascade: {steps: [{escalate: {threshold: high}}]}",
            "'threshold' must be a number, not the text 'high'",
        ),
        ("Route", "pipeline: {steps: {a: b}}", "'steps' must be a list, not a mapping"),
        ("Route", "pipeline: {outputs: {y: one.y}}", "'outputs[y]' must be a mapping of fields, not the text 'one.y'"),
        ("Route", "chose: {}", "unknown field of the spec of a Route 'chose'; did you mean 'choose'?"),
    ],
)
def test_a_value_of_a_later_kind_is_refused_at_its_line(tmp_path: Path, kind: str, spec: str, fault: str) -> None:
    path = write(tmp_path, f"kind: {kind}\nmetadata: {{name: a}}\nspec:\n  {spec}\n")

    (line,) = faults_of(path)

    assert line.startswith("a.yaml:4:")
    assert fault in line


def test_faults_inside_strategies_come_back_with_their_lines(tmp_path: Path) -> None:
    text = """\
kind: Route
metadata: {name: a}
spec:
  pipeline:
    steps:
      - name: one
        call: {route: b}
        inputs:
          x: {tensor: y}
    outputs:
      z: {step: one, tensor: z}
---
kind: Policy
metadata: {name: p}
spec:
  tiers:
    - {name: gold, priority_band: 9}
"""
    documents = load([write(tmp_path, text)])
    refused = InvalidRequest.of(
        [
            Fault("objects[0].route.pipeline.steps[0].inputs[x].tensor", "is unknown"),
            Fault("objects[0].route.pipeline.steps[0].call.route", "is none"),
            Fault("objects[0].route.pipeline.outputs[z]", "does not fit"),
            Fault("objects[0].route.inputs", "are missing"),
            Fault("objects[1].policy.tiers[0].priority_band", "is out of range"),
        ]
    )

    faults = located(refused, documents).faults

    assert [(Path(fault.path).name, fault.message.split(": ")[1]) for fault in faults] == [
        ("a.yaml:9:23", "spec.pipeline.steps[0].inputs[x].tensor"),
        ("a.yaml:7:23", "spec.pipeline.steps[0].call.route"),
        ("a.yaml:11:7", "spec.pipeline.outputs[z]"),
        ("a.yaml:3:1", "spec.inputs"),
        ("a.yaml:17:35", "spec.tiers[0].priority_band"),
    ]


@settings(max_examples=150, deadline=None)
@given(item=arbitrary_objects.objects)
def test_every_kind_and_strategy_is_written_so_that_it_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, item: Object
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.yaml"
    path.write_text(to_yaml([object_to(item)]))

    assert only(path).object == object_to(item)
