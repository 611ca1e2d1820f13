"""What is measured: the references and the meshes, all up at once and idle in turn."""

import asyncio
import inspect
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import bare_echo
from benchmarks.envoy import envoy_before_echo, envoy_version
from benchmarks.generators import Call
from benchmarks.models import Prepared, WrongAnswer, check_answers
from benchmarks.places import ROOT
from benchmarks.servers import free_base_ports, running, until_echoed
from benchmarks.shapes import MESHES, TRACE_RATIOS, SubjectName, Work
from yardctl.errors import CommandError
from yardctl.mesh import Mesh

_TRACING: tuple[Work, ...] = ("200 B",)
"""What the meshes that only differ in tracing are sent."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: where it is, what it can be sent, and the processes whose CPU it is charged."""

    name: SubjectName
    target: str
    calls: dict[Work, Call]
    processes: dict[str, psutil.Process]


def engines() -> tuple[SubjectName, ...]:
    """The router's engines that can be chosen here."""
    return ("aio", "native") if "router_flags" in inspect.signature(Mesh.start).parameters else ("aio",)


async def start_mesh(folder: Path, base_port: int, *, engine: SubjectName, trace_ratio: float) -> Mesh:
    """A mesh with one host, whose router runs on `engine`.

    Raises:
        CommandError: It cannot be started.
    """
    start = inspect.signature(Mesh.start)
    chosen = {"router_flags": ("--engine", engine)} if "router_flags" in start.parameters else {}
    further = {"base_port": base_port, "hosts": 1, "trace_ratio": trace_ratio, **chosen}
    return await Mesh.start(folder, **further)  # type: ignore[arg-type]


async def apply(mesh: Mesh, manifests: Path) -> None:
    """Apply manifests to a mesh.

    Raises:
        CommandError: They were refused.
    """
    command = [sys.executable, "-m", "yardctl", "apply", "-f", str(manifests), "--dir", str(mesh.layout.directory)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise CommandError(f"yardctl apply failed: {output.decode(errors='replace').strip()}")


def processes_of(mesh: Mesh) -> dict[str, psutil.Process]:
    """The two processes that a call passes through."""
    (host,) = mesh.hosts().values()
    return {"router": psutil.Process(mesh.pid("router")), "host": psutil.Process(host.pid)}


class Stage:
    """Every subject, up. An async context manager."""

    def __init__(self, folder: Path, prepared: Prepared, wanted: frozenset[SubjectName], lead: SubjectName) -> None:
        """Know what to start: the subjects in `wanted`; those that only differ in tracing run on engine `lead`."""
        self._folder = folder
        self._prepared = prepared
        self._wanted = wanted
        self._lead = lead
        self._stack = AsyncExitStack()
        self._meshes: list[Mesh] = []
        self.subjects: dict[SubjectName, Subject] = {}
        self.missing: dict[SubjectName, str] = {}
        """Subjects that could not be brought up, and why."""

    async def __aenter__(self) -> "Stage":
        """Bring them up, at once."""
        try:
            names = [name for name in TRACE_RATIOS if name in self._wanted]
            ports = free_base_ports(len(names) + 1)
            await self._references(ports[-1])
            await asyncio.gather(*(self._mesh(name, port) for name, port in zip(names, ports, strict=False)))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all of them."""
        await asyncio.gather(*(mesh.stop() for mesh in self._meshes))
        await self._stack.aclose()

    async def _references(self, port: int) -> None:
        """Start the echoes in a row of ports; the second hop of the pair is the one-hop echo itself."""
        base = (sys.executable, "-m", "benchmarks.bare_echo", "--port")
        one, two, proxy = port, port + 1, port + 2
        back, front = await self._stack.enter_async_context(
            running((*base, str(one)), (*base, str(two), "--to", f"127.0.0.1:{one}"))
        )
        await self._echo("one-hop", one, {"echo": back})
        await self._echo("two-hop", two, {"front": front, "back": back})
        if "envoy" not in self._wanted:
            return
        if envoy_version() is None:
            self.missing["envoy"] = "not installed: see tools/bench_tools.sh"
            return
        await self._echo("envoy", proxy, await self._stack.enter_async_context(envoy_before_echo(self._folder, proxy)))

    async def _echo(self, name: SubjectName, port: int, processes: dict[str, psutil.Process]) -> None:
        target = f"127.0.0.1:{port}"
        if await until_echoed(target, bare_echo.METHOD):
            self.subjects[name] = Subject(name, target, self._prepared.bare, processes)
        else:
            self.missing[name] = "did not answer"

    async def _mesh(self, name: SubjectName, port: int) -> None:
        engine = name if name in ("aio", "native") else self._lead
        if engine not in engines():
            self.missing[name] = f"the router has no engine '{engine}'"
            return
        try:
            mesh = await start_mesh(self._folder / name, port, engine=engine, trace_ratio=TRACE_RATIOS[name])
            self._meshes.append(mesh)
            await apply(mesh, self._prepared.manifests if name in MESHES else self._prepared.identity)
            works = tuple(self._prepared.requests) if name in MESHES else _TRACING
            await check_answers(mesh.addresses.router, self._prepared, works)
        except (CommandError, WrongAnswer) as error:
            self.missing[name] = str(error)
            return
        self.subjects[name] = Subject(name, mesh.addresses.router, self._prepared.calls, processes_of(mesh))
