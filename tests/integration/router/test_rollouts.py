"""A rollout by hand: each step is a revision, and the router goes by it at once."""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import grpc.aio

from modelyard.inference.v1 import inference_pb2_grpc
from services.domain.objects import Metadata, Route, RouteTarget, Single
from tests.integration.router.zoo import raw
from tests.support.services import Bench, eventually


async def yardctl(yard: Bench, *arguments: str, code: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "yardctl", *arguments, "--address", yard.registry.address,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == code, f"{arguments}: {out.decode()} {err.decode()}"
    return (err if code else out).decode()


async def versions(channel: grpc.aio.Channel, calls: int = 60) -> Counter[str]:
    """Who answers callers of many sessions."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    served: Counter[str] = Counter()
    for number in range(calls):
        request = raw(rows=1)
        request.model_name = "rolled"
        request.route.session = f"session-{number}"
        served[(await stub.Infer(request, timeout=10.0)).model_version] += 1
    return served


async def test_a_canary_is_started_promoted_and_taken_back(channel: grpc.aio.Channel, yard: Bench) -> None:
    await yard.apply(Route(Metadata("rolled"), Single(RouteTarget("echo", "1.0.0"))))

    async def known() -> bool:
        try:
            return await versions(channel, 1) == {"1.0.0": 1}
        except grpc.aio.AioRpcError:
            return False

    await eventually(known, "the router knows the route")

    refused = await yardctl(yard, "rollout", "start", "rolled", "--to", "echo:9.9.9", code=1)
    assert "no host has echo:9.9.9 ready" in refused

    started = await yardctl(yard, "rollout", "start", "rolled", "--to", "echo:1.1.0", "--steps", "50,100")
    assert "1 updated" in started
    await eventually(lambda: split_seen(channel), "both versions answer")
    part = await versions(channel, 200)
    assert 60 <= part["1.1.0"] <= 140
    again = await versions(channel, 200)
    assert again == part, "a session stays where it is"
    told: list[dict[str, Any]] = json.loads(await yardctl(yard, "rollout", "status", "-o", "json"))
    assert [(each["route"], each["to"], each["at"]) for each in told] == [("rolled", "echo:1.1.0", 0)]
    assert told[0]["ready"] == 2

    await yardctl(yard, "rollout", "promote", "rolled")
    await eventually(lambda: all_by(channel, "1.1.0"), "the new version answers all")
    await yardctl(yard, "rollout", "abort", "rolled", "--reason", "worse on Mondays")
    await eventually(lambda: all_by(channel, "1.0.0"), "the old version answers all again")
    assert "in no rollout" in await yardctl(yard, "rollout", "promote", "rolled", code=1)
    history = await yardctl(yard, "history")
    assert "rollout of rolled: over, it goes to echo:1.0.0; worse on Mondays" in " ".join(history.split())


async def split_seen(channel: grpc.aio.Channel) -> bool:
    return len(await versions(channel, 20)) == 2


async def all_by(channel: grpc.aio.Channel, version: str) -> bool:
    return set(await versions(channel, 20)) == {version}
