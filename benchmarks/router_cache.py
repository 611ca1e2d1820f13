"""What keeping answers costs and saves, in a pipeline and through a real router.

Beside that: identical calls in flight are computed once, and no tenant gets another's answer.
Ends with one line of JSON: the figures by name.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import grpc.aio
import psutil

from benchmarks.cache_in_process import cost_us, mistaken, request
from benchmarks.cache_pairs import across_tenants, within_tenants
from benchmarks.servers import free_base_ports
from benchmarks.subjects import apply, engines, processes_of, start_mesh
from modelyard.inference.v1 import inference_pb2 as pb
from modelyard.inference.v1 import inference_pb2_grpc
from modelyard.openinference.v2 import grpc_service_pb2 as v2
from services.domain.clock import SystemClock

SMALL_BYTES, LARGE_BYTES = 200, 600_000
TOGETHER, PAIRS = 1000, 100_000
AT_ONCE = 16
CONNECTIONS = 20
CALL_S = 30.0
_CLOCK = SystemClock()

_MANIFESTS = """\
kind: Model
metadata: {name: sure}
spec:
  deterministic: true
  inputs: [{name: x, datatype: UINT8, shape: [-1, -1]}]
  outputs: [{name: x, datatype: UINT8, shape: [-1, -1]}]
---
kind: Model
metadata: {name: slow}
spec:
  deterministic: true
  inputs: [{name: x, datatype: UINT8, shape: [-1, -1]}]
  outputs: [{name: x, datatype: UINT8, shape: [-1, -1]}]
---
kind: ModelVersion
metadata: {name: sure}
spec: {version: 1.0.0, backend: {name: identity}, batching: {max_batch_size: 64}, min_replicas: 1, service_time: 1ms}
---
kind: ModelVersion
metadata: {name: slow}
spec:
  version: 1.0.0
  backend: {name: identity, options: {base_ms: "2000"}}
  min_replicas: 1
  service_time: 1ms
---
kind: Route
metadata: {name: plain}
spec: {single: {target: {model: sure}}}
---
kind: Route
metadata: {name: kept}
spec: {single: {target: {model: sure}}, cache: {ttl: 1h}}
---
kind: Route
metadata: {name: kept-slow}
spec: {single: {target: {model: slow}}, cache: {ttl: 1h}}
"""

EXPLAINED: Mapping[str, str] = {
    "hit_200b_us": "CPU µs of a kept answer in the pipeline, a request of 200 B",
    "computed_200b_us": "the same call asked of a host that takes no time: what a hit saves beside the hop",
    "hit_600kb_us": "CPU µs of a kept answer in the pipeline, a request of 600 KB: nearly all of it is the hash",
    "router_hit_200b_us": "CPU µs of a router for a kept answer, gRPC included",
    "router_computed_200b_us": "CPU µs of the same router for a call that a host answers",
    "router_hit_600kb_us": "CPU µs of a router for a kept answer to 600 KB, gRPC included",
    "coalesced_computes": f"computations at the host for {TOGETHER} identical calls in flight through a router",
    "coalesced_answers": f"answers to these {TOGETHER} calls",
    "leaks": f"of {PAIRS} adversarial pairs of calls of different tenants: those that could have each other's answer",
    "mistaken": f"of {PAIRS // 10} pairs of one tenant: the same call told apart, or different ones taken for the same",
}

GOALS: Mapping[str, tuple[Literal["<=", ">="], float]] = {
    "coalesced_computes": ("<=", 1.0),
    "coalesced_answers": (">=", float(TOGETHER)),
    "leaks": ("<=", 0.0),
    "mistaken": ("<=", 0.0),
    "hit_200b_us": ("<=", 50.0),
}


async def _load(stub: "inference_pb2_grpc.InferenceServiceAsyncStub", asked: pb.InferRequest, count: int) -> None:
    async def some() -> None:
        for _ in range(count // AT_ONCE):
            await stub.Infer(asked, timeout=CALL_S)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def _router_us(
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub",
    router: psutil.Process,
    route: str,
    size_bytes: int,
    count: int,
) -> float:
    """CPU microseconds of the router for one call."""
    asked = request(route, size_bytes)
    await _load(stub, asked, 4 * AT_ONCE)
    before = router.cpu_times()
    await _load(stub, asked, count)
    after = router.cpu_times()
    return (after.user + after.system - before.user - before.system) / (count // AT_ONCE * AT_ONCE) * 1e6


async def _computed(channel: grpc.aio.Channel, model: str) -> int:
    """How many calls hosts have answered with a model."""
    statistics: grpc.aio.UnaryUnaryMultiCallable[v2.ModelStatisticsRequest, v2.ModelStatisticsResponse]
    statistics = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelStatistics",
        request_serializer=v2.ModelStatisticsRequest.SerializeToString,
        response_deserializer=v2.ModelStatisticsResponse.FromString,
    )
    found = await statistics(v2.ModelStatisticsRequest(name=model), timeout=CALL_S)
    # Beside each version stands the sum of its major version, under that number alone.
    return sum(each.execution_count for each in found.model_stats if "." in each.version)


async def _coalesced(channel: grpc.aio.Channel, address: str) -> tuple[int, int]:
    """Computations for identical calls that are under way at once, and their answers."""
    before = await _computed(channel, "slow")
    asked = request("kept-slow", SMALL_BYTES)
    async with AsyncExitStack() as stack:
        stubs: list[inference_pb2_grpc.InferenceServiceAsyncStub] = []
        for _ in range(CONNECTIONS):
            own = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            stubs.append(inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(own)))
        calls = [stubs[at % CONNECTIONS].Infer(asked, timeout=CALL_S) for at in range(TOGETHER)]
        answers = await asyncio.gather(*calls)
    waited = sum(answer.decision.cache == pb.CACHE_STATUS_COALESCED for answer in answers)
    if waited < TOGETHER - 1:
        raise RuntimeError(f"only {waited} of {TOGETHER} calls were in flight with the first: nothing was measured")
    return await _computed(channel, "slow") - before, len(answers)


async def _through_a_router(folder: Path) -> dict[str, float]:
    manifests = folder / "cache.yaml"
    manifests.write_text(_MANIFESTS)
    mesh = await start_mesh(folder / "mesh", free_base_ports(1)[0], engine=engines()[0], trace_ratio=0.0)
    try:
        await apply(mesh, manifests)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(mesh.addresses.router, options=options) as channel:
            stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
            await _until_ready(stub)
            router = processes_of(mesh)["router"]
            figures = {
                "router_hit_200b_us": await _router_us(stub, router, "kept", SMALL_BYTES, 2000),
                "router_computed_200b_us": await _router_us(stub, router, "plain", SMALL_BYTES, 2000),
                "router_hit_600kb_us": await _router_us(stub, router, "kept", LARGE_BYTES, 160),
            }
            computes, answers = await _coalesced(channel, mesh.addresses.router)
            return {**figures, "coalesced_computes": float(computes), "coalesced_answers": float(answers)}
    finally:
        await mesh.stop()


async def _until_ready(stub: "inference_pb2_grpc.InferenceServiceAsyncStub") -> None:
    for model in ("sure", "slow"):
        end_s = _CLOCK.now_s() + CALL_S
        while True:
            try:
                await stub.Infer(request(model, 1), timeout=CALL_S)
                break
            except grpc.aio.AioRpcError:
                if _CLOCK.now_s() > end_s:
                    raise
                await _CLOCK.sleep(0.05)


async def figures(*, seed: int) -> dict[str, float]:
    """Measure all; the figures by name."""
    found = {
        "hit_200b_us": await cost_us("kept", SMALL_BYTES, count=2000),
        "computed_200b_us": await cost_us("plain", SMALL_BYTES, count=2000),
        "hit_600kb_us": await cost_us("kept", LARGE_BYTES, count=60),
    }
    with tempfile.TemporaryDirectory(prefix="modelyard-cache-") as folder:
        found |= await _through_a_router(Path(folder))
    across = await asyncio.to_thread(mistaken, across_tenants(PAIRS, seed=seed))
    within = await asyncio.to_thread(mistaken, within_tenants(PAIRS // 10, seed=seed))
    return {**found, "leaks": float(across), "mistaken": float(within)}


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the pairs")
    found = asyncio.run(figures(seed=parser.parse_args().seed))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
