"""A canary by hand over a mesh of its own: how near its share is, whether sessions stay, how fast an abort acts."""

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc.aio

from benchmarks.places import ROOT
from benchmarks.servers import free_base_ports
from benchmarks.subjects import apply
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from modelyard.registry.v1 import objects_pb2, registry_pb2, registry_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.object_codec import object_from, object_to
from services.domain.clock import SystemClock
from services.domain.objects import Route
from yardctl.errors import CommandError
from yardctl.mesh import Mesh
from yardctl.rollouts import aborted

PERCENT = 5.0
SESSIONS = 3000
"""Each calls twice, some time apart."""

CALLERS = 16
Z_99 = 2.576
"""Of a two-sided interval of 99 %, by the normal approximation; good to a tenth of a per cent here."""

WATCHED = 8
"""Sessions of the canary that call without a pause while it is aborted."""

WATCH_S = 1.5
"""How long they go on after the abort was acknowledged."""

READY_WITHIN_S = 60.0
CALL_S = 10.0
ROUTE, OLD, NEW = "rolled", "1.0.0", "1.1.0"

_VERSION = """\
---
kind: ModelVersion
metadata: {{ name: identity }}
spec:
  version: {version}
  backend: {{ name: identity }}
  batching: {{ max_batch_size: 64 }}
  min_replicas: 1
  service_time: 1ms
"""
_MANIFEST = f"""\
kind: Model
metadata: {{ name: identity }}
spec:
  inputs: [{{ name: x, datatype: UINT8, shape: [-1, -1] }}]
  outputs: [{{ name: x, datatype: UINT8, shape: [-1, -1] }}]
{_VERSION.format(version=OLD)}{_VERSION.format(version=NEW)}---
kind: Route
metadata: {{ name: {ROUTE} }}
spec:
  single: {{ target: {{ model: identity, version: {OLD} }} }}
"""

EXPLAINED: Mapping[str, str] = {
    "canary_share": f"part of {SESSIONS:,} sessions that a canary of {PERCENT:g} % got",
    "canary_sigmas": "how far that is off, in standard deviations of fair draws, 99 % of which are within 2.576",
    "canary_moved": "sessions whose second call was answered by another version than the first",
    "canary_abort_s": "seconds from sending an abort to the registry to the last call that the canary answered",
}

GOALS: Mapping[str, tuple[str, float]] = {
    "canary_sigmas": ("<=", Z_99),
    "canary_moved": ("<=", 0.0),
    "canary_abort_s": ("<=", 0.5),
}

_CLOCK = SystemClock()


class Callers:
    """Calls to the route, by session."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Over `channel`."""
        self._stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)

    async def version(self, session: str, *, name: str = ROUTE, version: str = "") -> str:
        """Who answers a session's call."""
        request = inference_pb2.InferRequest(
            model_name=name,
            model_version=version,
            raw_input_contents=[bytes(4)],
            route=inference_pb2.RouteOptions(session=session),
        )
        request.inputs.add(name="x", datatype="UINT8", shape=[1, 4])
        return str((await self._stub.Infer(request, timeout=CALL_S)).model_version)

    async def versions(self, sessions: Sequence[str]) -> dict[str, str]:
        """Who answers each one's call, several at a time."""
        found: dict[str, str] = {}
        left = iter(sessions)

        async def ask() -> None:
            for session in left:
                found[session] = await self.version(session)

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        return found

    async def answers(self, *, name: str, version: str) -> bool:
        """Whether a version does."""
        try:
            return await self.version("", name=name, version=version) == version
        except grpc.aio.AioRpcError:
            return False


async def figures(*, seed: int) -> dict[str, float]:
    """Measure; see `EXPLAINED`. The sessions' names depend on `seed`."""
    with tempfile.TemporaryDirectory(prefix="canary-") as name:
        folder = Path(name)
        manifest = folder / "canary.yaml"
        manifest.write_text(_MANIFEST)
        mesh = await Mesh.start(folder / "mesh", base_port=free_base_ports(1)[0], hosts=2, trace_ratio=0.0)
        try:
            await apply(mesh, manifest)
            async with open_channel(mesh.addresses.router) as router, open_channel(mesh.addresses.registry) as registry:
                callers = Callers(router)
                for version in (OLD, NEW):
                    await _until(callers, name="identity", version=version)
                await _until(callers, name=ROUTE, version=OLD)
                await _yardctl(
                    mesh, "rollout", "start", ROUTE, "--to", f"identity:{NEW}", "--steps", f"{PERCENT:g},100"
                )
                return await _canary(callers, registry, [f"{seed}-{number}" for number in range(SESSIONS)])
        finally:
            await mesh.stop()


async def _canary(callers: Callers, registry: grpc.aio.Channel, sessions: Sequence[str]) -> dict[str, float]:
    await _CLOCK.sleep(1.0)  # ten times what a router may take to go by the new revision
    first = await callers.versions(sessions)
    second = await callers.versions(sessions)
    canary = [session for session in sessions if first[session] == NEW]
    part, share = PERCENT / 100.0, len(canary) / len(sessions)
    return {
        "canary_share": share,
        "canary_sigmas": abs(share - part) / math.sqrt(part * (1.0 - part) / len(sessions)),
        "canary_moved": float(sum(first[session] != second[session] for session in sessions)),
        "canary_abort_s": await _abort(callers, registry, canary[:WATCHED]),
    }


async def _abort(callers: Callers, registry: grpc.aio.Channel, sessions: Sequence[str]) -> float:
    """Seconds to the last answer of the canary; infinite if it goes on answering."""
    last_s, over = 0.0, False

    async def go_on(session: str) -> None:
        nonlocal last_s
        while not over:
            if await callers.version(session) == NEW:
                last_s = _CLOCK.now_s()

    stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(registry)
    key = objects_pb2.ObjectKey(kind="Route", name=ROUTE)
    found = await stub.Get(registry_pb2.GetRequest(key=key), timeout=CALL_S)
    route = object_from(found.object)
    assert isinstance(route, Route)
    request = registry_pb2.ApplyRequest(objects=[object_to(aborted(route))], reason="the end of a canary")
    watching = [asyncio.create_task(go_on(session)) for session in sessions]
    await _CLOCK.sleep(0.2)
    began_s = _CLOCK.now_s()
    if not last_s:
        raise CommandError("the canary answered none of its sessions")
    await stub.Apply(request, timeout=CALL_S)
    await _CLOCK.sleep(WATCH_S)
    over = True
    await asyncio.gather(*watching)
    return math.inf if _CLOCK.now_s() - last_s < WATCH_S / 2 else max(0.0, last_s - began_s)


async def _until(callers: Callers, *, name: str, version: str) -> None:
    end_s = _CLOCK.now_s() + READY_WITHIN_S
    while not await callers.answers(name=name, version=version):
        if _CLOCK.now_s() > end_s:
            raise CommandError(f"{name} {version} does not answer within {READY_WITHIN_S:g} s")
        await _CLOCK.sleep(0.05)


async def _yardctl(mesh: Mesh, *arguments: str) -> None:
    command = [sys.executable, "-m", "yardctl", *arguments, "--dir", str(mesh.layout.directory)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise CommandError(f"yardctl {' '.join(arguments)}: {said.decode(errors='replace').strip()}")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(figures(seed=1))))
