"""What passes over the wire and back is the same; what is not set takes the contract's default."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.registry.v1 import objects_pb2, tenancy_pb2
from modelyard.type.v1 import resources_pb2
from services.chassis import codec, object_codec
from services.domain.errors import InvalidRequest
from services.domain.host import Device, DeviceKind, HostedModel, HostLoad, HostRecord, ModelLoad
from services.domain.model import ModelKey, ModelState
from services.domain.objects import Choose, Metadata, Object, Policy, Route, RouteTarget, Tenant
from services.domain.strategies import (
    Combine,
    Ensemble,
    EnsembleMember,
    HashKey,
    Shadow,
    Split,
    SplitTarget,
)
from services.domain.tenancy import Balancing, Budget, HedgeRules, Quotas, RateLimit, RetryRules, Tier
from tests.fakes import arbitrary_objects


@settings(max_examples=300, deadline=None)
@given(arbitrary_objects.objects)
def test_objects_read_back_the_same(item: Object) -> None:
    wire = object_codec.object_to(item).SerializeToString()

    assert object_codec.object_from(objects_pb2.Object.FromString(wire)) == item


@given(st.floats(-1e6, 1e6))
def test_durations_read_back_to_the_nanosecond(seconds: float) -> None:
    assert codec.seconds_from(codec.duration_to(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_a_host_reads_back_the_same() -> None:
    record = HostRecord(
        "local-0",
        "127.0.0.1:7610",
        "local",
        "a",
        Device(DeviceKind.CUDA, "H200", 1 << 37, 5),
        tuple(HostedModel(ModelKey("m", f"1.0.{n}"), state, "why", 7, 0.5) for n, state in enumerate(ModelState)),
        draining=True,
        pid=4242,
        trusts_artifacts=True,
    )
    load = HostLoad("local-0", 9, (ModelLoad(ModelKey("m", "1.0.0"), 1, 2, 3, 0.5, 0.25),), 5, 0.5, draining=True)

    assert codec.record_from(codec.record_to(record)) == record
    assert codec.load_from(codec.load_to(load)) == load


def test_a_state_of_a_later_contract_is_neither_used_nor_given_up() -> None:
    record = resources_pb2.HostRecord(host_id="h")
    record.models.add().state = 77  # type: ignore[assignment]

    assert codec.record_from(record).models[0].state is ModelState.LOADING


def test_an_object_without_a_kind_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has no spec"):
        object_codec.object_from(objects_pb2.Object(metadata=objects_pb2.Metadata(name="x")))


def test_a_route_without_a_strategy_is_refused() -> None:
    message = objects_pb2.Object(metadata=objects_pb2.Metadata(name="x"), route=objects_pb2.RouteSpec())

    with pytest.raises(InvalidRequest, match="has no strategy"):
        object_codec.object_from(message)


def test_what_is_not_set_takes_the_default_of_the_contract() -> None:
    message = objects_pb2.Object(metadata=objects_pb2.Metadata(name="x"))
    message.route.choose.candidates.add().model = "m"

    route = object_codec.object_from(message)

    assert route == Route(Metadata("x"), Choose((RouteTarget("m"),), 1.0, 0.001, 1.0), "", 30.0, 300.0, 3)


def test_what_is_not_set_in_a_strategy_takes_the_default_of_the_contract() -> None:
    target, wire = RouteTarget("m"), objects_pb2.RouteTarget(model="m")
    split = objects_pb2.Split(targets=[objects_pb2.SplitTarget(target=wire, percent=100)])
    shadow = objects_pb2.Shadow(primary=wire, shadow=wire)
    ensemble = objects_pb2.Ensemble(members=[objects_pb2.EnsembleMember(target=wire)] * 2)

    read = [
        object_codec.object_from(objects_pb2.Object(route=spec))
        for spec in (
            objects_pb2.RouteSpec(split=split),
            objects_pb2.RouteSpec(shadow=shadow),
            objects_pb2.RouteSpec(ensemble=ensemble),
        )
    ]

    assert [item.strategy for item in read if isinstance(item, Route)] == [
        Split((SplitTarget(target, 100.0),), HashKey.SESSION),
        Shadow(target, target, 100.0, None, 8),
        Ensemble((EnsembleMember(target), EnsembleMember(target)), Combine.MEAN, 2),
    ]


def test_a_shadow_of_no_per_cent_is_paused_and_not_unset() -> None:
    message = objects_pb2.Object(route=objects_pb2.RouteSpec(shadow=objects_pb2.Shadow(percent=0.0)))

    route = object_codec.object_from(message)

    assert isinstance(route, Route)
    assert isinstance(route.strategy, Shadow)
    assert route.strategy.percent == 0.0


def test_what_is_not_set_in_a_policy_or_tenant_takes_the_default_of_the_contract() -> None:
    policy = objects_pb2.Object(policy=tenancy_pb2.PolicySpec(tiers=[tenancy_pb2.Tier(name="gold", priority_band=1)]))
    tenant = objects_pb2.Object(
        tenant=tenancy_pb2.TenantSpec(
            policy="p",
            tier="gold",
            rate_limit=tenancy_pb2.RateLimit(requests_per_s=2.5),
            budget=tenancy_pb2.Budget(amount_microusd=5),
        )
    )

    assert object_codec.object_from(policy) == Policy(
        Metadata(""), (Tier("gold", 1),), "", "", RetryRules(3, 0.1), HedgeRules(False, 0.95), None, Balancing()
    )
    assert object_codec.object_from(tenant) == Tenant(
        Metadata(""), "p", "gold", "", "", Quotas(), RateLimit(2.5, 3), 0, Budget(5, 86_400.0)
    )


def test_a_callee_that_is_nobody_is_refused_with_its_place() -> None:
    fallback = objects_pb2.Fallback(targets=[objects_pb2.Callee(route="r"), objects_pb2.Callee()])
    pipeline = objects_pb2.Pipeline(steps=[objects_pb2.PipelineStep(name="a")])

    for spec, path in (
        (objects_pb2.RouteSpec(fallback=fallback), "route.fallback.targets[1]"),
        (objects_pb2.RouteSpec(pipeline=pipeline), "route.pipeline.steps[0].call"),
    ):
        with pytest.raises(InvalidRequest, match="names nobody") as refused:
            object_codec.object_from(objects_pb2.Object(route=spec))
        assert [fault.path for fault in refused.value.faults] == [path]


def test_objects_of_a_later_release_are_told_apart_by_what_is_known_of_them() -> None:
    route = objects_pb2.Object(metadata=objects_pb2.Metadata(name="r"), route=objects_pb2.RouteSpec())
    kindless = objects_pb2.Object(metadata=objects_pb2.Metadata(name="k"))
    pool = objects_pb2.Object(metadata=objects_pb2.Metadata(name="p"), pool=objects_pb2.PoolSpec(memory_bytes=1))

    found, others = object_codec.readable([route, kindless, pool])

    assert [str(item.key) for item in found] == ["Pool/p"]
    assert [str(key) for key, _ in others] == ["Route/r", "/k"]
