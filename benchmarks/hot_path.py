"""What the mesh costs on top of bare gRPC: client → router → host beside a bare two-hop echo.

Both run at once, idle in turn; every shape is measured on one, then on the other, several times,
so that drift of the machine hits both. Writes `benchmarks/README.md` and ends with one line of JSON.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil

from benchmarks import bare_echo
from modelyard.inference.v1 import inference_pb2, inference_pb2_grpc
from yardctl.layout import free_base_port
from yardctl.mesh import Mesh

ROOT = Path(__file__).parents[1]
MANIFEST = Path(__file__).with_name("identity.yaml")
PAYLOAD_BYTES = 200
MESH_METHOD = "/modelyard.inference.v1.InferenceService/Infer"


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to load a server."""

    name: str
    flags: tuple[str, ...]


SHAPES = (
    Shape("1 caller", ("--callers", "1")),
    Shape("8 callers", ("--callers", "8")),
    Shape("64 callers", ("--callers", "64")),
    Shape("300/s open loop", ("--rate", "300")),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: where it is, what it is sent, and the processes whose CPU it is charged."""

    name: str
    target: str
    method: str
    payload: Path
    processes: dict[str, psutil.Process]


@dataclass(slots=True)
class Series:
    """Every repetition of one shape on one subject, by figure."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: dict[str, float]) -> None:
        """Take one repetition."""
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle repetition of a figure."""
        return statistics.median(self.values[name])

    def spread(self, name: str, digits: int) -> str:
        """`median (min to max)`."""
        values = self.values[name]
        return f"{self.median(name):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(subject: Subject, shape: Shape, seconds: float) -> dict[str, float]:
    """Load a subject once."""
    before = {name: cpu_s(process) for name, process in subject.processes.items()}
    command = [sys.executable, "-m", "benchmarks.load", "--target", subject.target, "--method", subject.method]
    command += ["--payload", str(subject.payload), "--seconds", str(seconds), *shape.flags]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    if figures["failed"] or not figures["answered"]:
        raise RuntimeError(f"{subject.name}, {shape.name}: {figures['failed']} calls failed; the run is void")
    for name, process in subject.processes.items():
        figures[f"{name}_cpu_us"] = (cpu_s(process) - before[name]) * 1e6 / figures["answered"]
    return figures


@asynccontextmanager
async def bare_pair(folder: Path, port: int) -> AsyncIterator[Subject]:
    """Two bare echo servers in a row, on `port` and the next."""
    front, back = port, port + 1
    base = [sys.executable, "-m", "benchmarks.bare_echo", "--port"]
    servers = [
        subprocess.Popen([*base, str(back)], cwd=ROOT, stderr=subprocess.DEVNULL),
        subprocess.Popen([*base, str(front), "--to", f"127.0.0.1:{back}"], cwd=ROOT, stderr=subprocess.DEVNULL),
    ]
    payload = folder / "bare.bin"
    payload.write_bytes(bytes(PAYLOAD_BYTES))
    try:
        processes = {"back": psutil.Process(servers[0].pid), "front": psutil.Process(servers[1].pid)}
        yield Subject("bare", f"127.0.0.1:{front}", bare_echo.METHOD, payload, processes)
    finally:
        for server in servers:
            server.terminate()
            server.wait()


@asynccontextmanager
async def mesh_with_identity(folder: Path, trace_ratio: float) -> AsyncIterator[Subject]:
    """A whole mesh with one host and the identity model, ready."""
    mesh = await Mesh.start(folder / "mesh", base_port=free_base_port(), hosts=1, trace_ratio=trace_ratio)
    try:
        await apply(mesh)
        request = inference_pb2.InferRequest(model_name="identity")
        request.inputs.add(name="x", datatype="UINT8", shape=[1, PAYLOAD_BYTES])
        request.raw_input_contents.append(bytes(PAYLOAD_BYTES))
        payload = folder / "infer.bin"
        payload.write_bytes(request.SerializeToString())
        await until_answered(mesh.addresses.router, request)
        (host,) = mesh.hosts().values()
        processes = {"host": psutil.Process(host.pid), "router": psutil.Process(mesh.pid("router"))}
        yield Subject("mesh", mesh.addresses.router, MESH_METHOD, payload, processes)
    finally:
        await mesh.stop()


async def apply(mesh: Mesh) -> None:
    """Apply the identity model."""
    command = [sys.executable, "-m", "yardctl", "apply", "-f", str(MANIFEST), "--dir", str(mesh.layout.directory)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if await process.wait():
        raise RuntimeError("yardctl apply failed")


async def until_answered(router: str, request: inference_pb2.InferRequest, within_s: float = 60.0) -> None:
    """Wait until the model answers, as what was sent."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    async with grpc.aio.insecure_channel(router) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while True:
            try:
                answer = await stub.Infer(request, timeout=5.0)
            except grpc.aio.AioRpcError as error:
                if loop.time() > end:
                    raise RuntimeError(f"the model does not answer: {error.details()}") from error
                await asyncio.sleep(0.1)
            else:
                if list(answer.raw_output_contents) != list(request.raw_input_contents):
                    raise RuntimeError("the identity model did not answer what it was sent")
                return


def table(results: dict[tuple[str, str], Series]) -> str:
    """The figures as Markdown."""
    rows = ["| load | | bare two-hop echo | modelyard | ratio |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        bare, mesh = results["bare", shape.name], results["mesh", shape.name]
        for figure, label, digits in (
            ("per_s", "requests/s", 0),
            ("p50_ms", "P50, ms", 2),
            ("p99_ms", "P99, ms", 2),
        ):
            ratio = mesh.median(figure) / bare.median(figure)
            cells = f"{bare.spread(figure, digits)} | {mesh.spread(figure, digits)} | {ratio:.2f}"
            rows.append(f"| {shape.name} | {label} | {cells} |")
        cpu = [
            f"front {bare.median('front_cpu_us'):.0f} + back {bare.median('back_cpu_us'):.0f}",
            f"router {mesh.median('router_cpu_us'):.0f} + host {mesh.median('host_cpu_us'):.0f}",
        ]
        total = mesh.median("router_cpu_us") + mesh.median("host_cpu_us")
        ratio = total / (bare.median("front_cpu_us") + bare.median("back_cpu_us"))
        rows.append(f"| {shape.name} | CPU µs a request | {cpu[0]} | {cpu[1]} | {ratio:.2f} |")
    return "\n".join(rows)


def page(results: dict[tuple[str, str], Series], arguments: argparse.Namespace) -> str:
    """`benchmarks/README.md`."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    ).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "uvloop"))
    lines = [
        "# Benchmarks",
        "",
        "`make bench` writes this page. Everything runs on one machine, load generator included, on loopback.",
        "",
        "## One Infer on the identity model, beside a bare two-hop grpc.aio echo",
        "",
        "The echo pair parses no message and decides nothing: `benchmarks/bare_echo.py`, raw bytes, uvloop. The mesh's",
        "path is client → router → host with every policy, metric and trace switched on",
        f"({arguments.trace_ratio:.0%} of calls sampled); {PAYLOAD_BYTES} bytes of tensor. Each figure is the median",
        f"(min to max) of {arguments.repetitions} repetitions of {arguments.seconds:g} s, the two subjects in turn",
        "within each. Open loop is timed from when a request was to be sent. The generator (`benchmarks/load.py`, a",
        "process of its own) takes its share of the CPU as well.",
        "",
        table(results),
        "",
        f"{psutil.cpu_count()} CPU cores, {platform.system()} {platform.machine()},",
        f"CPython {platform.python_version()}, {packages}; commit {commit}.",
    ]
    return "\n".join(lines) + "\n"


def summary(results: dict[tuple[str, str], Series]) -> dict[str, float]:
    """The figures by name."""
    bare, mesh = results["bare", "64 callers"], results["mesh", "64 callers"]
    single = results["mesh", "1 caller"]
    return {
        "aio_ratio": round(mesh.median("per_s") / bare.median("per_s"), 3),
        "mesh_rps": round(mesh.median("per_s")),
        "bare_rps": round(bare.median("per_s")),
        "cpu_us_per_request": round(mesh.median("router_cpu_us") + mesh.median("host_cpu_us")),
        "router_cpu_us": round(mesh.median("router_cpu_us")),
        "host_cpu_us": round(mesh.median("host_cpu_us")),
        "added_p50_ms": round(single.median("p50_ms") - results["bare", "1 caller"].median("p50_ms"), 2),
        "p50_ms_300rps": round(results["mesh", "300/s open loop"].median("p50_ms"), 2),
        "p99_ms_300rps": round(results["mesh", "300/s open loop"].median("p99_ms"), 2),
    }


async def run(arguments: argparse.Namespace) -> dict[tuple[str, str], Series]:
    """Every shape on both subjects, in turn."""
    results: dict[tuple[str, str], Series] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        mesh = await stack.enter_async_context(mesh_with_identity(folder, arguments.trace_ratio))
        bare = await stack.enter_async_context(bare_pair(folder, free_base_port()))
        for repetition in range(arguments.repetitions + 1):
            for shape in SHAPES:
                for subject in (bare, mesh):
                    figures = await asyncio.to_thread(measure, subject, shape, arguments.seconds)
                    if repetition == 0:
                        continue  # warms both up
                    results.setdefault((subject.name, shape.name), Series()).add(figures)
                    print(
                        f"{repetition}/{arguments.repetitions} {shape.name:16} {subject.name}: "
                        f"{figures['per_s']:,.0f}/s, P50 {figures['p50_ms']:.2f} ms, P99 {figures['p99_ms']:.2f} ms"
                    )
    return results


def main() -> None:
    """Measure, write the page, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--trace-ratio", type=float, default=0.01)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("README.md"))
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments))
    arguments.out.write_text(page(results, arguments))
    print(table(results))
    print(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
