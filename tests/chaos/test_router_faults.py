"""What callers see of hosts that are killed or frozen behind a router: nothing. Calls leave in open loop."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import router_kills
from benchmarks.host_models import waiting
from benchmarks.router_kills import PER_S, SUBJECT, judged, kill_in_turn, load_of
from benchmarks.router_load import diverted_after_s
from benchmarks.router_yard import FaultyYard
from modelyard.registry.v1 import objects_pb2

KILLS = 10
STRUCK_S = 1.5
FROZEN_S = 5.0
OFF_WITHIN_S = 2.0
LEAST_SHARE = 0.5
"""Of the calls that were planned; a run with fewer is void."""

FIRST, MIDDLE, LAST = (waiting(name, base_ms=20.0, batch=8) for name in ("first", "middle", "last"))


def graph() -> objects_pb2.Object:
    """A route over three models, one after the other."""
    tensor = FIRST.model.model.inputs[0]
    route = objects_pb2.RouteSpec(inputs=[tensor], outputs=[tensor])
    before = ""
    for subject in (FIRST, MIDDLE, LAST):
        step = route.pipeline.steps.add(name=subject.name)
        step.call.target.model = subject.name
        step.inputs["x"].CopyFrom(objects_pb2.TensorSource(step=before, tensor="x"))
        before = subject.name
    route.pipeline.outputs["x"].CopyFrom(objects_pb2.TensorSource(step=before, tensor="x"))
    return objects_pb2.Object(metadata=objects_pb2.Metadata(name="graph"), route=route)


@pytest.mark.timeout(180)
async def test_no_call_fails_while_hosts_are_killed_one_after_the_other(tmp_path: Path) -> None:
    found = await router_kills.run(tmp_path, kills=KILLS, seed=1)

    found.check()
    assert found.failures == {}
    print(f"{found.kills} kills, {found.calls} calls, {found.hit} hit, {found.extra_ms:.0f} ms more at most, 0 failed")


@pytest.mark.timeout(180)
async def test_no_call_of_a_pipeline_fails_while_the_hosts_of_its_middle_step_are_killed(tmp_path: Path) -> None:
    placed = {
        "host-0": ("first", "last"),
        **dict.fromkeys(("middle-0", "middle-1"), ("middle",)),
    }
    yard = FaultyYard(tmp_path, [FIRST, MIDDLE, LAST], placed=placed, objects=[graph()])
    async with yard, asyncio.TaskGroup() as group:
        load = load_of(yard, "graph", FIRST)
        group.create_task(load.run(PER_S, router_kills.LONGEST_S, seed=1))
        await kill_in_turn(yard, load, ("middle-0", "middle-1"), kills=4, down=1, tell=print)
        load.stop()

    found = judged(load, 4)
    answered_by = {sent.host for call in load.done for sent in call.sent}
    assert found.failures == {}
    assert answered_by == {"host-0", "middle-0", "middle-1"}
    assert found.calls >= 4 * router_kills.CALLS_BETWEEN
    print(f"{found.calls} calls of three steps each, 4 kills, 0 failed")


@pytest.mark.timeout(120)
async def test_calls_are_off_a_frozen_host_within_two_seconds_and_none_fails(tmp_path: Path) -> None:
    placed = dict.fromkeys(router_kills.HOSTS, (SUBJECT.name,))
    ends_s = STRUCK_S + FROZEN_S
    async with FaultyYard(tmp_path, [SUBJECT], placed=placed) as yard, asyncio.TaskGroup() as group:
        load = load_of(yard, SUBJECT.name)
        group.create_task(load.run(PER_S, ends_s, seed=1))
        await load.at(STRUCK_S)
        yard.freeze("host-0")
        struck_s = load.now_s
        await load.at(ends_s)
        await yard.heal("host-0")

    assert len(load.between(struck_s, ends_s)) >= LEAST_SHARE * PER_S * FROZEN_S
    assert any(sent.host == "host-0" for call in load.between(0.0, struck_s) for sent in call.sent)
    off_after_s = diverted_after_s(load.done, "host-0", fault_s=struck_s, until_s=ends_s, hosts=len(placed))
    assert off_after_s <= OFF_WITHIN_S
    assert {call.failure for call in load.done} == {""}
