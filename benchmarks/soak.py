"""Whether anything grows: a million requests at a mesh, a tenth of them cancelled; memory and descriptors sampled.

    python -m benchmarks.soak --requests 1000000

Ends with one line of JSON: growth by process from after a warm-up to the end, and the slope of memory over requests.
The samples are taken between portions of the load, when nothing is in flight.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks import bare_echo
from benchmarks.generators import COMPILED, Call, Generator, LoadError, Outcome, find_generator
from benchmarks.models import check_answers, prepare
from benchmarks.servers import free_base_ports
from benchmarks.subjects import apply, engines, processes_of, start_mesh
from services.domain.clock import SystemClock

PORTIONS = 20
LEAST_PORTION = 1000
WARM_UP = 50_000
SETTLE_S = 2.0
"""Time that a process has, after a portion, to end what it does behind a call."""
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment."""

    requests: int
    """Sent since the warm-up."""
    rss_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What changed in a process from the first sample to the last."""

    rss_mb_before: float
    rss_mb_after: float
    rss_mb_delta: float
    rss_mb_highest: float
    rss_mb_per_million: float
    """Slope through all samples, by least squares."""
    rss_mb_per_million_later: float
    """The same over the second half: what does not settle shows here."""
    descriptors_before: int
    descriptors_after: int
    descriptors_delta: int
    threads_delta: int


def sample(process: psutil.Process, requests: int) -> Sample:
    """Look at a process now."""
    with process.oneshot():
        rss_mb = process.memory_info().rss / 1e6
        return Sample(requests, rss_mb, process.num_fds(), process.num_threads())


def slope_per_million(samples: list[Sample]) -> float:
    """Megabytes of memory by million requests, by least squares; 0 where there is no line to draw."""
    mean_x = sum(each.requests for each in samples) / len(samples)
    mean_y = sum(each.rss_mb for each in samples) / len(samples)
    spread = sum((each.requests - mean_x) ** 2 for each in samples)
    if not spread:
        return 0.0
    return 1e6 * sum((each.requests - mean_x) * (each.rss_mb - mean_y) for each in samples) / spread


def growth(samples: list[Sample]) -> Growth:
    """From first to last."""
    first, last = samples[0], samples[-1]
    return Growth(
        rss_mb_before=round(first.rss_mb, 2),
        rss_mb_after=round(last.rss_mb, 2),
        rss_mb_delta=round(last.rss_mb - first.rss_mb, 2),
        rss_mb_highest=round(max(each.rss_mb for each in samples), 2),
        rss_mb_per_million=round(slope_per_million(samples), 2),
        rss_mb_per_million_later=round(slope_per_million(samples[len(samples) // 2 :]), 2),
        descriptors_before=first.descriptors,
        descriptors_after=last.descriptors,
        descriptors_delta=last.descriptors - first.descriptors,
        threads_delta=last.threads - first.threads,
    )


def portions_of(requests: int) -> list[int]:
    """The load in portions, as equal as whole numbers are."""
    count = max(1, min(PORTIONS, requests // LEAST_PORTION))
    return [requests * (index + 1) // count - requests * index // count for index in range(count)]


@dataclass(frozen=True, slots=True)
class Soak:
    """A running mesh under load."""

    generator: Generator
    target: str
    call: Call
    flags: tuple[str, ...]
    processes: dict[str, psutil.Process]

    def load(self, count: int) -> Outcome:
        """Send `count` requests and wait until all are over."""
        return self.generator.run(self.target, self.call, (*self.flags, "--count", str(count)), seconds=0)

    async def run(self, requests: int, warm_up: int) -> tuple[dict[str, list[Sample]], list[Outcome]]:
        """Warm up, then send all in portions and sample in between."""
        if warm_up:
            await asyncio.to_thread(self.load, warm_up)
        samples: dict[str, list[Sample]] = {name: [] for name in self.processes}
        outcomes: list[Outcome] = []
        done = 0
        for portion in (0, *portions_of(requests)):
            if portion:
                outcomes.append(await asyncio.to_thread(self.load, portion))
                done += portion
            await _CLOCK.sleep(SETTLE_S)
            for name, process in self.processes.items():
                samples[name].append(sample(process, done))
            now = ", ".join(f"{name} {each[-1].rss_mb:.1f} MB" for name, each in samples.items())
            print(f"{done:,} of {requests:,}: {now}", file=sys.stderr, flush=True)
        return samples, outcomes


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Bring a mesh up, load it, say what grew."""
    engine = arguments.engine or engines()[-1]
    with tempfile.TemporaryDirectory(prefix="modelyard-soak-") as name:
        folder = Path(name)
        prepared = prepare(folder, echo_method=bare_echo.METHOD)
        (port,) = free_base_ports(1)
        mesh = await start_mesh(folder / "mesh", port, engine=engine, trace_ratio=arguments.trace_ratio)
        try:
            await apply(mesh, prepared.manifests)
            await check_answers(mesh.addresses.router, prepared, ("200 B",))
            flags = ("--callers", str(arguments.callers), "--cancel-share", str(arguments.cancel_share))
            processes = processes_of(mesh)
            soak = Soak(find_generator(), mesh.addresses.router, prepared.calls["200 B"], flags, processes)
            samples, outcomes = await soak.run(arguments.requests, arguments.warm_up)
            restarted = [name for name, process in processes_of(mesh).items() if process != processes[name]]
        finally:
            await mesh.stop()
    failures: dict[str, int] = {}
    for outcome in outcomes:
        for cause, count in outcome.failures.items():
            failures[cause] = failures.get(cause, 0) + count
    answered = sum(outcome.answered for outcome in outcomes)
    return {
        "engine": engine,
        "requests": arguments.requests,
        "warm_up": arguments.warm_up,
        "answered": answered,
        "cancelled": sum(outcome.cancelled for outcome in outcomes),
        "failed": sum(outcome.failed for outcome in outcomes),
        "failures": failures,
        "per_s": round(answered / sum(outcome.seconds for outcome in outcomes), 1),
        "restarted": restarted,
        **{name: asdict(growth(each)) for name, each in samples.items()},
    }


def main() -> int:
    """Soak and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="after the warm-up")
    parser.add_argument("--warm-up", type=int, help=f"requests before the first sample; default: up to {WARM_UP}")
    parser.add_argument("--cancel-share", type=float, default=0.1)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--trace-ratio", type=float, default=0.01)
    parser.add_argument("--engine", choices=engines(), help="of the router; default: native where there is one")
    arguments = parser.parse_args()
    if arguments.requests < 1:
        parser.error("--requests must be 1 or more")
    if arguments.warm_up is None:
        arguments.warm_up = min(WARM_UP, arguments.requests)
    if not COMPILED.exists():
        print("the soak needs the compiled generator: run tools/bench_tools.sh", file=sys.stderr)
        return 2
    try:
        found = asyncio.run(run(arguments))
    except LoadError as error:
        print(f"the soak broke off: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
