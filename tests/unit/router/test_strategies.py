"""Routes that lead over others: what is true of all of them, and of those that this release cannot read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.openinference.v2 import grpc_service_pb2 as v2
from modelyard.registry.v1 import objects_pb2
from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.object_codec import object_to
from services.domain.errors import HostUnavailable, InvalidRequest, ModelNotFound
from services.domain.host import HostRecord
from services.domain.objects import Object
from services.domain.strategies import (
    Cascade,
    CascadeStep,
    Combine,
    Ensemble,
    EnsembleMember,
    Escalation,
    Fallback,
    Pipeline,
    PipelineStep,
    RouteName,
    RouteTarget,
    Shadow,
    Split,
    SplitTarget,
    StaticTensor,
    Strategy,
    TensorSource,
    strategy_name,
)
from services.router import snapshot_file, v2_wire
from services.router.catalog import Mirror
from services.router.servicer import Calls
from services.router.v2_servicer import GRPCInferenceServicer
from tests.fakes.objects import a_host, a_model, a_policy, a_route, a_tenant, hosted
from tests.unit.router.yards import World, a_call, a_single, a_snapshot, digits

TARGET, OTHER = RouteTarget("digits"), RouteTarget("digits", "1.0.0")
STRATEGIES: tuple[Strategy, ...] = (
    Split((SplitTarget(TARGET, 90.0), SplitTarget(OTHER, 10.0))),
    Shadow(TARGET, OTHER),
    Fallback((TARGET, RouteName("plain"))),
    Cascade((CascadeStep(OTHER, Escalation("y", 0.5)), CascadeStep(TARGET))),
    Ensemble((EnsembleMember(TARGET), EnsembleMember(OTHER)), Combine.MEAN, 1),
    Pipeline((PipelineStep("one", TARGET, {"x": TensorSource("x")}),), {"y": TensorSource("y", "one")}),
)
HOSTS = (a_host("h0", hosted("digits")),)


def objects(strategy: Strategy) -> list[Object]:
    model = a_model("digits")
    route = replace(a_route("r", strategy), inputs=model.inputs, outputs=model.outputs)
    return [*digits(), a_single("plain", "digits"), route, a_policy(), a_tenant("acme")]


class NoHosts:
    """Nobody has statistics."""

    async def status(self, host: HostRecord, *, timeout_s: float) -> Any:
        """None."""
        raise HostUnavailable("not asked")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=strategy_name)
async def test_the_v2_protocol_says_ready_and_tells_what_it_takes(strategy: Strategy) -> None:
    world = World(objects(strategy), HOSTS)
    calls = Calls(pipeline=world.pipeline, ids=iter(()))
    servicer = GRPCInferenceServicer(calls=calls, snapshot=world.catalog.snapshot, hosts=NoHosts(), version="0")
    context: Any = None

    assert (await servicer.ModelReady(v2.ModelReadyRequest(name="r"), context)).ready
    assert not (await servicer.ModelReady(v2.ModelReadyRequest(name="r", version="1.0.0"), context)).ready
    metadata = await servicer.ModelMetadata(v2.ModelMetadataRequest(name="r"), context)
    assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [("x", [-1, 4])]
    config = (await servicer.ModelConfig(v2.ModelConfigRequest(name="r"), context)).config
    assert config.parameters["strategy"].string_value == strategy_name(strategy)
    await servicer.RepositoryModelLoad(v2.RepositoryModelLoadRequest(model_name="r"), context)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=strategy_name)
async def test_without_hosts_they_are_not_ready_but_for_an_answer_known_beforehand(strategy: Strategy) -> None:
    snapshot = World(objects(strategy), []).catalog.snapshot()

    assert snapshot is not None
    assert not snapshot.destination("r").ready
    known = Fallback((TARGET,), {"y": StaticTensor((1, 4))})
    assert World(objects(known), []).catalog.current is not None
    assert a_snapshot(objects(known), []).destination("r").ready


@pytest.mark.parametrize("strategy", STRATEGIES, ids=strategy_name)
async def test_explain_names_everybody_without_inputs_too(strategy: Strategy) -> None:
    world = World(objects(strategy), HOSTS)

    dry = world.pipeline.explain(a_call("r", inputs=()), remaining_s=None)

    assert dry.answerable
    assert dry.told is not None
    assert dry.told.arm or dry.told.steps
    assert not world.hosts.calls


async def test_a_route_that_becomes_one_during_a_call_ends_in_the_error_of_the_attempt() -> None:
    world = World([*digits(), a_single("r", "digits")], [*HOSTS, a_host("h1", hosted("digits"))])

    def change() -> HostUnavailable:
        world.catalog.current = a_snapshot(objects(STRATEGIES[0]), HOSTS)
        return HostUnavailable("gone")

    world.hosts.behaviour = {"h0": change, "h1": change}

    with pytest.raises(HostUnavailable):
        await world.decide(a_call("r"))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=strategy_name)
def test_the_snapshot_on_disk_keeps_them(tmp_path: Path, strategy: Strategy) -> None:
    path = tmp_path / "snapshot"
    kept = a_snapshot(objects(strategy), HOSTS)

    snapshot_file.write(path, kept)
    read = snapshot_file.read(path)

    assert read is not None
    assert read.objects == kept.objects


def mirrored(*messages: objects_pb2.Object) -> Mirror:
    mirror = Mirror()
    part = pb.WatchSnapshot(revision=3, objects=messages, first=True, last=True)
    mirror.take(pb.WatchResponse(snapshot=part), 0.0)
    mirror.take(pb.WatchResponse(hosts=pb.WatchHosts(reset=True)), 0.0)
    return mirror


def test_objects_of_a_later_release_do_not_end_the_watch() -> None:
    unknown = objects_pb2.Object(metadata=objects_pb2.Metadata(name="new-kind"))
    later = objects_pb2.Object(metadata=objects_pb2.Metadata(name="later"), route=objects_pb2.RouteSpec())
    was = [object_to(item) for item in (*digits(), a_single("later", "digits"), a_single("plain", "digits"))]

    mirror = mirrored(unknown, *was)
    assert mirror.snapshot is not None
    assert sorted(mirror.snapshot.objects.routes) == ["later", "plain"]

    # A strategy that this release cannot read must not leave the route as it was.
    mirror.take(pb.WatchResponse(delta=pb.WatchDelta(revision=4, upserts=[later, unknown])), 0.0)
    assert mirror.snapshot.revision == 4
    assert sorted(mirror.snapshot.objects.routes) == ["plain"]
    with pytest.raises(ModelNotFound):
        mirror.snapshot.destination("later")


async def test_a_route_with_a_schema_of_its_own_takes_what_that_says_and_tells_it() -> None:
    narrow = (replace(a_model("digits").inputs[0], shape=(1, 4)),)
    route = replace(a_single("one-row", "digits"), inputs=narrow)
    world = World([*digits(), route], HOSTS)
    two_rows = a_call("one-row").inputs[0]._replace(shape=(2, 4), raw_bytes=32)

    assert (await world.decide(a_call("one-row"))).route == "one-row"
    with pytest.raises(InvalidRequest, match=r"must have shape \[1, 4\]"):
        await world.decide(a_call("one-row", inputs=(two_rows,)))
    snapshot = world.catalog.snapshot()
    assert snapshot is not None
    answer = v2_wire.metadata_to(snapshot.destination("one-row"))
    assert list(answer.inputs[0].shape) == [1, 4]
    assert [output.name for output in answer.outputs] == ["y"]
