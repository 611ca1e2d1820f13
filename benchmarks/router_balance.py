"""Hosts of unequal speed behind two routers: the product's balancing against round robin, random and least loaded.

Real processes: etcd, a registry, two routers that know nothing of each other, and six hosts whose devices wait instead
of computing. Calls arrive at seeded Poisson times, the same for every policy, at a share of what the hosts were
measured to do together, and are timed from when they were to leave. A call that fails counts as one that took the whole
of its deadline. `python -m benchmarks.router_balance` prints the figures as one line of JSON.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import uvloop

from benchmarks.host_load import Source
from benchmarks.host_models import SEED, request_of, waiting
from benchmarks.host_process import Host
from benchmarks.host_stream import Saturation, open_line
from benchmarks.load import quantile
from benchmarks.registry_yard import Yard
from benchmarks.servers import free_base_ports, running
from modelyard.registry.v1 import objects_pb2, tenancy_pb2
from services.chassis.channels import open_channel
from services.domain.clock import SystemClock
from yardctl.parts import REGISTRY

MODEL = "uneven"
SERVICE_MS = (20.0, 20.0, 40.0, 40.0, 60.0, 80.0)
"""Of each host, one call at a time: at most 179 calls a second in all, of which a sixth on the two slowest."""

LOADS = {"70": 0.7, "85": 0.85}
"""Share of what the hosts can do, by its name in figures."""

OURS = "ours"
POLICIES = {
    OURS: tenancy_pb2.BALANCING_STRATEGY_LEAST_COMPLETION,
    "rr": tenancy_pb2.BALANCING_STRATEGY_ROUND_ROBIN,
    "random": tenancy_pb2.BALANCING_STRATEGY_RANDOM,
    "least": tenancy_pb2.BALANCING_STRATEGY_LEAST_LOADED,
}
BASELINES = tuple(name for name in POLICIES if name != OURS)
NAMES = {"rr": "round robin", "random": "random", "least": "least loaded"}

TIMEOUT_S = 1.5
"""Deadline of a call, 18 times what the slowest host needs: where queues grow without bound, it bounds what is seen."""

RUN_S = 5.0
WARM_S = 1.0
"""Of each run; it does not count."""

REPETITIONS = 2
LAST = ("rr", "random")
"""Policies whose calls run out of time: measured once, after all others, for routers remember for most of a minute on
which hosts."""

PEAK_S = 1.5
ROUTERS = 2
METHOD = "/modelyard.inference.v1.InferenceService/Infer"
READY_S = 30.0
Infer = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
_CLOCK = SystemClock()

EXPLAINED: Mapping[str, str] = {
    **{
        f"balance_{figure}_ms_{load}": f"{figure.upper()} in ms by LEAST_COMPLETION, six unequal hosts, load .{load}"
        for load in LOADS
        for figure in ("mean", "p50", "p99")
    },
    **{
        f"balance_{name}_{figure}_ratio_{load}": f"{figure.upper()} of {NAMES[name]} ÷ ours, load .{load}"
        for load in LOADS
        for name in BASELINES
        for figure in ("mean", "p99")
    },
    **{
        f"balance_{name}_failed_{load}": f"share of calls that fail within {TIMEOUT_S:g} s by {name}, load .{load}"
        for load in LOADS
        for name in POLICIES
    },
}
GOALS: Mapping[str, tuple[str, float]] = {
    **{f"balance_{OURS}_failed_{load}": ("<=", 0.0) for load in LOADS},
    **{
        f"balance_{name}_{figure}_ratio_{load}": (">=", 1.0 if name == "least" else 2.0)
        for load in LOADS
        for name in BASELINES
        for figure in ("mean", "p99")
    },
}


@dataclass(frozen=True, slots=True)
class Run:
    """One policy at one load."""

    took_s: Sequence[float]
    """Sorted; a call that failed took its deadline."""
    failed: int

    @property
    def mean_ms(self) -> float:
        """Mean."""
        return statistics.fmean(self.took_s) * 1e3

    def at_ms(self, share: float) -> float:
        """A quantile."""
        return quantile(list(self.took_s), share) * 1e3

    @property
    def failed_share(self) -> float:
        """Calls that failed."""
        return self.failed / len(self.took_s)


def objects() -> list[objects_pb2.Object]:
    """The model, and for each policy a route over it."""
    subject = waiting(MODEL, base_ms=SERVICE_MS[0], batch=1)
    made = [subject.model, subject.version]
    for name, strategy in POLICIES.items():
        metadata = objects_pb2.Metadata(name=f"{MODEL}-{name}")
        tiers = [tenancy_pb2.Tier(name="all", priority_band=4)]
        policy = tenancy_pb2.PolicySpec(tiers=tiers, balancing=tenancy_pb2.Balancing(strategy=strategy))
        single = objects_pb2.Single(target=objects_pb2.RouteTarget(model=MODEL))
        made.append(objects_pb2.Object(metadata=metadata, policy=policy))
        made.append(
            objects_pb2.Object(metadata=metadata, route=objects_pb2.RouteSpec(single=single, policy=metadata.name))
        )
    return made


def router_command(address: str, registry: str) -> Sequence[str]:
    """A router that serves `address`."""
    flags = ("--registry", registry, "--snapshot", "", "--metrics-port", "0", "--routers", str(ROUTERS))
    return (sys.executable, "-m", "services.router", "--address", address, *flags, "--trace-ratio", "0")


class Caller:
    """Sends calls by a plan."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        """Over one channel to each router."""
        self._infers: list[Infer] = [channel.unary_unary(METHOD) for channel in channels]
        self._requests = {name: request_of(f"{MODEL}-{name}", rows=1) for name in POLICIES}

    async def ready(self) -> None:
        """Wait until every host answers for every policy.

        Raises:
            TimeoutError: One does not.
        """
        async with asyncio.timeout(READY_S):
            for infer, request in itertools.product(self._infers, self._requests.values()):
                in_a_row = 0
                while in_a_row < len(SERVICE_MS):
                    try:
                        await infer(request, timeout=TIMEOUT_S, wait_for_ready=True)
                        in_a_row += 1
                    except grpc.aio.AioRpcError:
                        in_a_row = 0
                        await _CLOCK.sleep(0.1)

    async def run(self, policy: str, per_s: float, *, seed: str) -> Run:
        """Calls for a while; returns when all have ended."""
        request, took_s, failed = self._requests[policy], list[float](), 0

        async def one(infer: Infer, due_s: float, counts: bool) -> None:
            nonlocal failed
            answered = True
            try:
                await infer(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError:
                answered = False
            if counts:
                failed += not answered
                took_s.append(_CLOCK.now_s() - due_s if answered else TIMEOUT_S)

        chance = random.Random(seed)
        start_s, after_s = _CLOCK.now_s(), 0.0
        async with asyncio.TaskGroup() as calls:
            while (after_s := after_s + chance.expovariate(per_s)) < WARM_S + RUN_S:
                if (ahead_s := start_s + after_s - _CLOCK.now_s()) > 0.0:
                    await _CLOCK.sleep(ahead_s)
                calls.create_task(one(chance.choice(self._infers), start_s + after_s, after_s >= WARM_S))
        return Run(sorted(took_s), failed)


async def peak_of(host: Host) -> float:
    """Calls a second of a host that always has more to do."""
    subject = waiting(MODEL, base_ms=SERVICE_MS[0], batch=1)
    async with open_line(host.channel) as line:
        source = Source(MODEL, 0.0, READY_S, subject.key, subject.requests)
        return await Saturation(line, source, in_flight=4).run(seconds=PEAK_S)


async def measure(folder: Path, *, seed: int) -> list[dict[tuple[str, str], Run]]:
    """Runs by load and policy, for each repetition."""
    async with AsyncExitStack() as stack:
        yard = await stack.enter_async_context(Yard(folder / "mesh", free_base_ports(1)[0]))
        await yard.apply(objects())
        flags = ("--registry", yard.address(REGISTRY))
        hosts = [Host(folder / f"h{at}", flags=(*flags, "--host-id", f"h{at}")) for at in range(len(SERVICE_MS))]
        await asyncio.gather(*map(stack.enter_async_context, hosts))
        for host, service_ms in zip(hosts, SERVICE_MS, strict=True):
            subject = waiting(MODEL, base_ms=service_ms, batch=1)
            await host.load(subject.model, subject.version)
        peak_per_s = sum(await asyncio.gather(*map(peak_of, hosts)))
        _tell(f"{peak_per_s:.1f} calls a second are the peak")
        addresses = [f"127.0.0.1:{port}" for port in free_base_ports(ROUTERS)]
        await stack.enter_async_context(running(*(router_command(each, yard.address(REGISTRY)) for each in addresses)))
        channels = [open_channel(address) for address in addresses]
        for channel in channels:
            stack.push_async_callback(channel.close)
        caller = Caller(channels)
        await caller.ready()
        found: list[dict[tuple[str, str], Run]] = [{} for _ in range(REPETITIONS)]
        first = (name for name in POLICIES if name not in LAST)
        plan = [*itertools.product(range(REPETITIONS), LOADS, first), *itertools.product((0,), LOADS, LAST)]
        for repetition, load, policy in plan:
            seed_of_run = f"{seed}/{repetition}/{load}"
            run = await caller.run(policy, LOADS[load] * peak_per_s, seed=seed_of_run)
            found[repetition][load, policy] = run
            _tell(
                f".{load} {policy}: mean {run.mean_ms:.1f}, P50 {run.at_ms(0.5):.1f}, P99 {run.at_ms(0.99):.1f} ms, "
                f"{run.failed} of {len(run.took_s)} failed"
            )
    return found


async def figures(*, seed: int) -> dict[str, float]:
    """Every figure of `EXPLAINED`: the mean over repetitions, ratios taken within each."""
    with tempfile.TemporaryDirectory(prefix="modelyard-balance-") as folder:
        repetitions = await measure(Path(folder), seed=seed)
    found: dict[str, float] = {}
    for load in LOADS:
        ours = [runs[load, OURS] for runs in repetitions]
        found[f"balance_mean_ms_{load}"] = statistics.fmean(run.mean_ms for run in ours)
        found[f"balance_p50_ms_{load}"] = statistics.fmean(run.at_ms(0.5) for run in ours)
        found[f"balance_p99_ms_{load}"] = statistics.fmean(run.at_ms(0.99) for run in ours)
        for name in POLICIES:
            theirs = [runs[load, name] for runs in repetitions if (load, name) in runs]
            found[f"balance_{name}_failed_{load}"] = statistics.fmean(run.failed_share for run in theirs)
            if name != OURS:
                pairs = list(zip(theirs, ours, strict=False))
                found[f"balance_{name}_mean_ratio_{load}"] = statistics.fmean(a.mean_ms / b.mean_ms for a, b in pairs)
                found[f"balance_{name}_p99_ratio_{load}"] = statistics.fmean(
                    a.at_ms(0.99) / b.at_ms(0.99) for a, b in pairs
                )
    return {name: found[name] for name in EXPLAINED}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED, help="of arrivals")
    found = uvloop.run(figures(seed=parser.parse_args().seed))
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
